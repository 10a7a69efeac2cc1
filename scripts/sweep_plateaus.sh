#!/usr/bin/env bash
# What is progressive distillation worth where the teacher has no plateau? On several tasks (grammars, start symbols and,
# for next tokens, label levels) a teacher, students that learn from the labels with several budgets of steps, and
# one-shot and progressive students with one of them; three seeds, none of which the presets were chosen on.
# SETTING is PCFG_mlm or PCFG_autoregressive, and there is no --teacher: each task has its own.
# `python figures/plateaus.py --runs runs` draws the steps saved on each task against the teacher's plateau.
#
# On every task, progressive students learn from the checkpoints of the first third of the teacher's training, in turn,
# for half of their own, and then from the final one: a search for the best ones would depend on the task.

set -euo pipefail
# shellcheck source=scripts/sweep.sh
source "$(dirname "${BASH_SOURCE[0]}")/sweep.sh"
[[ $setting == PCFG_* ]] || refuse "$setting is not on grammars: give PCFG_mlm or PCFG_autoregressive"
[ -z "$own_teacher" ] || refuse "--teacher cannot be given: this sweep trains a teacher for each task"

# grammar, start symbol and label level; for the laptop with sentences of 40 to 64 tokens on average
case "$setting $preset" in
    "PCFG_mlm smoke") tasks=("small 13" "small 12") ;;
    "PCFG_autoregressive smoke") tasks=("small 13 1" "small 13 all") ;;
    "PCFG_mlm laptop") tasks=("cfg3b 16" "cfg3b 17" "cfg3f 18" "cfg3g 17" "cfg3h 18" "cfg3i 18") ;;
    "PCFG_autoregressive laptop")
        tasks=("cfg3b 18 1" "cfg3b 18 2" "cfg3b 18 all" "cfg3f 18 1" "cfg3f 18 2" "cfg3f 18 all" "cfg3g 17 1"
            "cfg3g 17 all" "cfg3h 18 1" "cfg3h 18 all" "cfg3i 18 1" "cfg3i 18 all")
        ;;
    *" paper")
        levels=(1 2 3 all)
        [ "$setting" = PCFG_autoregressive ] || levels=("")
        tasks=()
        for grammar in cfg3b cfg3f cfg3g cfg3h cfg3i; do
            for level in "${levels[@]}"; do
                tasks+=("$grammar 22 $level")
            done
        done
        ;;
esac
case "$setting $preset" in # budgets; that of distilled students; the last checkpoint of the third, and steps with each
    *" smoke") budgets=(20 40 80) distilled=40 third=20 every=10 ;;
    "PCFG_mlm laptop") budgets=(350 700 1400 2800) distilled=700 third=1000 every=17 ;;
    "PCFG_autoregressive laptop") budgets=(300 600 1200 2400) distilled=600 third=650 every=12 ;;
    *" paper") budgets=(2000 4000 8000 16000) distilled=4000 third=2600 every=154 ;;
esac

for task in "${tasks[@]}"; do
    read -r grammar start level <<< "$task"
    name=$grammar-$start${level:+-$level}
    chosen=(--grammar "$grammar" --start "$start" ${level:+--label-level "$level"} --seed 3)
    refuse_as_added "${chosen[@]}"
    teacher=$directory/$name-teacher
    add_job "$teacher" 1 - python -m "$setting.train" "$preset" "${chosen[@]}"
    students "$name-labels" $((3 * ${#budgets[@]})) --methods ce --steps "${budgets[@]}" --seeds 30 31 32
    students "$name-distilled" 6 --methods one-shot progressive --steps "$distilled" --teacher-range 1 "$third" \
        --teacher-every "$every" --seeds 30 31 32
done
launch
