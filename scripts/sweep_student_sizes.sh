#!/usr/bin/env bash
# How large must a student be? CE, one-shot and progressive students of several widths or numbers of heads, three seeds.

set -euo pipefail
# shellcheck source=scripts/sweep.sh
source "$(dirname "${BASH_SOURCE[0]}")/sweep.sh"

case "$setting $preset" in
    "parity_mlp smoke") sizes=(8 16 32) ;;
    "parity_mlp laptop") sizes=(5 10 20 50 100) ;;
    "parity_mlp paper") sizes=(50 100 300 1000) ;;
    *" smoke") sizes=(1 2) ;;
    "parity_gpt2 laptop") sizes=(1 2 4) ;;
    PCFG_*" laptop") sizes=(2 3 4) ;;
    text_*" laptop") sizes=(1 2 4) ;;
    text_*" paper") sizes=(2 4 8) ;;
    *" paper") sizes=(4 8 16) ;;
esac

new_teacher 0
for size in "${sizes[@]}"; do
    students "size$size" 9 --methods ce one-shot progressive "$size_flag" "$size" --seeds 0 1 2
done
launch
