#!/usr/bin/env bash
# Which checkpoint teaches best? (2, T)-progressive distillation: students learn from one checkpoint for T steps, then
# from the final one, for checkpoints before, inside and after the teacher's transition; one-shot students are the
# baseline. Three seeds. T is that of the preset.

set -euo pipefail
# shellcheck source=scripts/sweep.sh
source "$(dirname "${BASH_SOURCE[0]}")/sweep.sh"

case "$setting $preset" in
    "parity_mlp smoke") mapfile -t checkpoints < <(seq 1000 1000 19000) ;;
    "parity_mlp laptop") checkpoints=(200000 300000 350000 400000 415000 430000 440000 450000 475000 500000 550000) ;;
    "parity_mlp paper") checkpoints=(1000000 2000000 3000000 3500000 3700000 3800000 3900000 4000000 5000000 6000000) ;;
    "parity_gpt2 smoke") checkpoints=(80 120 160 200 240 280 320) ;;
    "parity_gpt2 laptop") checkpoints=(600 1200 1800 2300 2400 2450 2500 2600 2700 2900 3400 4400) ;;
    "parity_gpt2 paper") mapfile -t checkpoints < <(seq 20000 20000 240000) ;;
    PCFG_*" smoke") checkpoints=(10 20 30 40 50) ;;
    "PCFG_mlm laptop") checkpoints=(100 200 300 400 500 600 1000 1500 2000) ;;
    "PCFG_autoregressive laptop") checkpoints=(300 400 450 500 550 600 700 1000 1500) ;;
    PCFG_*" paper") checkpoints=(400 800 1200 1600 2000 3000 4000 6000) ;;
    text_*" smoke") checkpoints=(10 20 30 40 50) ;;
    text_*" laptop") checkpoints=(200 400 600 800 1000 1400 1800 2400) ;;
    text_*" paper") checkpoints=(2000 4000 6000 8000 12000 20000 40000 80000) ;;
esac

new_teacher 0
for seed in 0 1 2; do
    count=$((1 + ${#checkpoints[@]}))
    students "seed$seed" $count --methods one-shot two-shot --checkpoint "${checkpoints[@]}" --seeds "$seed"
done
launch
