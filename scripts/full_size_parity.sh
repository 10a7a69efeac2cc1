#!/usr/bin/env bash
# The parity results at the published size: everything behind the full-size figures and their tables, in about 45
# minutes on two cores, and then students of a second teacher. Rerun it to resume.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

scripts/reproduce.sh parity_mlp paper
python -m parity_mlp.distill paper --widths 1000

dense=(--steps 4200000 --checkpoint-every 20000 --checkpoint-from 3400000)
python -m parity_mlp.train paper "${dense[@]}" --out runs/parity_mlp/paper-dense
python -m parity_mlp.probe --run runs/parity_mlp/paper-dense
python figures/make_figures.py parity_mlp --preset paper --runs runs

# a second teacher, with students of its own
python -m parity_mlp.train paper --seed 1
python -m parity_mlp.distill paper --teacher runs/parity_mlp/paper-seed1 --widths 100 1000 \
    --methods one-shot progressive two-shot --checkpoint before inside after
