#!/usr/bin/env bash
# Which method is best? Every method that needs no choice of checkpoints by hand, beside two-shot from inside the teacher's
# transition and a designed target, for two teachers and five seeds; none of the seeds is one that the presets were
# chosen on. `python figures/methods.py SETTING --runs runs` makes one table of them.

set -euo pipefail
# shellcheck source=scripts/sweep.sh
source "$(dirname "${BASH_SOURCE[0]}")/sweep.sh"

student_seeds=(50 51 52 53 54)
[ "$preset" != smoke ] || student_seeds=(50 51)
teacher_seeds=(5 6)
[ -z "$own_teacher" ] || teacher_seeds=(5)

methods=(one-shot progressive two-shot until-saturation)
for teacher_seed in "${teacher_seeds[@]}"; do
    new_teacher "$teacher_seed"
    for then in teacher labels; do
        [[ $setting != text_* ]] || continue # which has no designed targets
        [[ $then == teacher || $teacher_seed == 5 ]] || continue # it depends on no teacher
        students "designed-$then-$teacher_seed" ${#student_seeds[@]} --methods designed --then "$then" \
            --seeds "${student_seeds[@]}"
    done
    group=("${methods[@]}")
    [ "$teacher_seed" != 5 ] || group=(ce "${methods[@]}")
    students "methods-$teacher_seed" $((${#group[@]} * ${#student_seeds[@]})) --methods "${group[@]}" \
        --seeds "${student_seeds[@]}"
    students "auto-$teacher_seed" ${#student_seeds[@]} --methods auto --temperature 1 --seeds "${student_seeds[@]}"
done
launch
