#!/usr/bin/env bash
# How long must a student train? CE, one-shot and progressive students with several budgets of steps, three seeds.

set -euo pipefail
# shellcheck source=scripts/sweep.sh
source "$(dirname "${BASH_SOURCE[0]}")/sweep.sh"

case "$setting $preset" in
    "parity_mlp smoke") budgets=(5000 10000 20000) ;;
    "parity_mlp laptop") budgets=(300000 500000 600000 800000) ;;
    "parity_mlp paper") budgets=(3000000 4000000 6000000 8000000) ;;
    "parity_gpt2 smoke") budgets=(200 400) ;;
    "parity_gpt2 laptop") budgets=(2000 3000 4000 6000) ;;
    "parity_gpt2 paper") budgets=(100000 150000 200000 250000) ;;
    PCFG_*" smoke") budgets=(30 60) ;;
    "PCFG_mlm laptop") budgets=(400 500 700 1000 2000) ;;
    "PCFG_autoregressive laptop") budgets=(400 600 1000 2000) ;;
    PCFG_*" paper") budgets=(2000 4000 8000 16000) ;;
    text_*" smoke") budgets=(30 60) ;;
    "text_mlm laptop") budgets=(400 600 1200 2400) ;;
    "text_autoregressive laptop") budgets=(300 600 1200 2400) ;;
    text_*" paper") budgets=(24000 60000 120000) ;;
esac

new_teacher 0
for steps in "${budgets[@]}"; do
    students "steps$steps" 9 --methods ce one-shot progressive --steps "$steps" --seeds 0 1 2
done
launch
