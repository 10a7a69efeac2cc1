#!/usr/bin/env bash
# Which structure of a teacher's checkpoints is it that helps? Students learn first from a designed target, which has one
# kind of structure and nothing else, or from a control without it, and then from the final teacher or from the labels;
# six seeds, none of which the presets were chosen on. On parity, targets are monomials on the hidden support, or on as
# many other coordinates; on grammars, windows of tokens, or windows of another grammar. SETTING is a setting on parity
# or on grammars. `python figures/designed.py SETTING --runs runs` draws them.

set -euo pipefail
# shellcheck source=scripts/sweep.sh
source "$(dirname "${BASH_SOURCE[0]}")/sweep.sh"
[[ $setting != text_* ]] || refuse "$setting has no designed targets: give a setting on parity or on grammars"

seeds=(--seeds 40 41 42 43 44 45)
[ "$preset" != smoke ] || seeds=(--seeds 40 41)
new_teacher 0

designed() { # NAME TARGETS ARGUMENTS: a group of students with so many designed targets
    students "$1" $(($2 * (${#seeds[@]} - 1))) --methods designed "${@:3}" "${seeds[@]}"
}

students references $((3 * (${#seeds[@]} - 1))) --methods ce one-shot progressive "${seeds[@]}"

if [[ $setting == PCFG_* ]]; then
    case "$setting $preset" in
        "PCFG_mlm smoke") windows=(3) one=3 other= ;;
        "PCFG_autoregressive smoke") windows=(2) one=2 other= ;;
        "PCFG_mlm paper") windows=(3 5 7 9 3+5+7) one=5 other=cfg3f ;;
        "PCFG_autoregressive paper") windows=(2 3 4 5 2+3+4) one=4 other=cfg3b ;;
        PCFG_mlm*) windows=(3 5 7 9 3+5+7) one=5 other=cfg3f:18 ;; # whose sentences are about as long
        PCFG_autoregressive*) windows=(2 3 4 5 2+3+4) one=4 other=cfg3b:16 ;;
    esac
    for then in teacher labels; do
        designed "windows-$then" ${#windows[@]} --windows "${windows[@]}" --then "$then"
        designed "permuted-$then" 1 --windows "$one" --windows-of permuted --then "$then"
        [ -z "$other" ] || designed "other-grammar-$then" 1 --windows "$one" --windows-of "$other" --then "$then"
        [ "$setting" != PCFG_mlm ] || designed "with-length-$then" 1 --windows "$one" --windows-with position length \
            --then "$then"
    done
    launch
fi

# degrees of monomials; weights of degree 1, and steps with it, which are usually the preset's
durations=()
usual=
case "$setting $preset" in
    parity_*" smoke") monomials=(1:0.16 3:0.16) ;;
    parity_*" laptop")
        monomials=(1:0.16 2:0.16 3:0.16 4:0.16 1:0.16+2:0.16 1:0.16+3:0.16 2:0.16+3:0.16 1:0.16+2:0.16+3:0.16)
        ;;
    parity_*" paper") monomials=(1:0.16 2:0.16 3:0.16 4:0.16 5:0.16 6:0.16 1:0.16+2:0.16) ;;
esac
case "$setting $preset" in
    "parity_mlp smoke") weights=(1:0.04 1:0.08) durations=(2000 8000) ;;
    "parity_mlp laptop")
        weights=(1:0.01 1:0.02 1:0.04 1:0.08 1:0.32 1:0.64) durations=(10000 20000 50000 100000 200000) usual=100000
        ;;
    "parity_mlp paper")
        weights=(1:0.02 1:0.04 1:0.08 1:0.32 1:0.64) durations=(100000 200000 500000 1000000) usual=1000000
        ;;
esac

for coordinates in support others; do
    for then in teacher labels; do
        designed "$coordinates-$then" ${#monomials[@]} --monomials "${monomials[@]}" \
            --coordinates "$coordinates" --then "$then"
    done
done
for first_steps in "${durations[@]}"; do
    all=(1:0.16 "${weights[@]}")
    [ "$first_steps" != "$usual" ] || all=("${weights[@]}") # the others are in support-labels
    designed "weights-$first_steps" ${#all[@]} --monomials "${all[@]}" --first-steps "$first_steps" --then labels
done
launch
