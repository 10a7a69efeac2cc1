#!/usr/bin/env bash
# How much do results vary between seeds? Teachers of three seeds, each with one-shot and progressive students of
# several seeds; students without a teacher (CE) with the same seeds.

set -euo pipefail
# shellcheck source=scripts/sweep.sh
source "$(dirname "${BASH_SOURCE[0]}")/sweep.sh"

student_seeds=(0 1 2 3 4)
[ "$preset" = laptop ] || student_seeds=(0 1 2)
teacher_seeds=(0 1 2)
[ -z "$own_teacher" ] || teacher_seeds=(0)

for teacher_seed in "${teacher_seeds[@]}"; do
    new_teacher "$teacher_seed"
    methods=(one-shot progressive)
    [ "$teacher_seed" != 0 ] || methods=(ce "${methods[@]}")
    count=$((${#methods[@]} * ${#student_seeds[@]}))
    students "students-of-teacher$teacher_seed" $count --methods "${methods[@]}" --seeds "${student_seeds[@]}"
done
launch
