#!/usr/bin/env bash
# Install what is needed, train, probe, distil and draw.  scripts/reproduce.sh [setting] [preset]
# Figures and their data go to runs/figures. Run again, it goes on where it was stopped.
set -euo pipefail

setting=${1:-parity_mlp}
preset=${2:-laptop}
if [ "$setting" != parity_mlp ]; then
    echo "error: unknown setting '$setting'; there is parity_mlp" >&2
    exit 2
fi
if [[ ! $preset =~ ^(smoke|laptop|paper)$ ]]; then
    echo "error: unknown preset '$preset'; there are smoke, laptop and paper" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

python -m "$setting.train" "$preset"
python -m "$setting.probe" --run "runs/$setting/$preset"
python -m "$setting.distill" "$preset"
python -m "$setting.distill" "$preset" --methods two-shot --checkpoint before inside after
python figures/make_figures.py "$setting" --preset "$preset" --runs runs
