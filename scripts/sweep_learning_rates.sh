#!/usr/bin/env bash
# Does the ranking of the methods depend on the learning rate? CE, one-shot and progressive students at several learning
# rates, three seeds.

set -euo pipefail
# shellcheck source=scripts/sweep.sh
source "$(dirname "${BASH_SOURCE[0]}")/sweep.sh"

case "$setting $preset" in
    "parity_mlp smoke") rates=(0.01 0.02 0.05) ;;
    "parity_mlp laptop") rates=(0.003 0.005 0.01 0.02) ;;
    "parity_mlp paper") rates=(0.005 0.01 0.02) ;;
    "parity_gpt2 smoke") rates=(3e-4 1e-3 3e-3) ;;
    "parity_gpt2 laptop") rates=(3e-4 1e-3 2e-3) ;;
    "parity_gpt2 paper") rates=(1e-4 3e-4 1e-3) ;;
    PCFG_*" laptop") rates=(5e-3 1e-2 2e-2) ;;
    PCFG_*) rates=(2e-3 5e-3 1e-2) ;;
    text_*" paper") rates=(1e-4 3e-4 1e-3) ;;
    text_*) rates=(2e-3 5e-3 1e-2) ;;
esac

new_teacher 0
for lr in "${rates[@]}"; do
    students "lr$lr" 9 --methods ce one-shot progressive --lr "$lr" --seeds 0 1 2
done
launch
