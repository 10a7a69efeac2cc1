#!/usr/bin/env bash
# The parity result at the published size: everything behind the full-size figures and their table, in about 35 minutes
# on two cores. Run again, it goes on where it was stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

scripts/reproduce.sh parity_mlp paper
python -m parity_mlp.distill paper --widths 1000
