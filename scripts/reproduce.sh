#!/usr/bin/env bash
# Install what is needed, train, probe, distill and draw.  scripts/reproduce.sh [setting|all] [preset]
# Figures and their data go to runs/figures, the time of each command to runs/figures/times.jsonl. Rerun it to resume.
# With `all`, the two settings on parity are run one after another, then both on grammars at once, then both on text, and
# runs/report.html shows the results. Of the paper preset, nothing is run at once.
set -euo pipefail

child=""
run() { # COMMAND: in the background, so that a signal is handled at once
    local code=0
    "$@" &
    child=$!
    wait "$child" || code=$?
    child=""
    return "$code"
}
stop() { # the command that runs, and then this script
    trap - HUP INT TERM
    [ -z "$child" ] || kill -TERM "$child" 2> /dev/null || true
    wait
    exit 143
}
trap stop HUP INT TERM

# for the scripts that `all` starts as well: the threads of a command that the user wants, and how many commands run at once
export wanted_threads=${wanted_threads-${OMP_NUM_THREADS:-}} at_once=${at_once:-1}

side_by_side() { # FIRST SECOND: two functions at once, as networks of a laptop's size cannot use many threads
    if [ "$preset" = paper ]; then # each fills a GPU
        "$1"
        "$2"
        return
    fi
    local at_once=$((2 * at_once)) code=0
    local -x OMP_NUM_THREADS=${wanted_threads:-$((($(getconf _NPROCESSORS_ONLN) + at_once - 1) / at_once))}
    set -m # in a process group of its own, which ends with this script
    { # its commands are in the same group
        set +m
        trap stop HUP INT TERM
        "$1"
    } &
    set +m
    background=$!
    stop_background() {
        kill -TERM -- "-$background" 2> /dev/null || true
    }
    trap 'stop_background; wait "$background" 2> /dev/null || true' EXIT
    trap 'stop_background; stop' HUP INT TERM
    "$2"
    wait "$background" || code=$?
    if [ "$code" != 0 ]; then
        echo "error: a command failed: its message is above, before those of the command beside it" >&2
        exit "$code"
    fi
    trap - EXIT
    trap stop HUP INT TERM
}

setting=${1:-parity_mlp}
preset=${2:-laptop}
if [ "$setting" = all ]; then
    case "$preset" in
        smoke | laptop | paper) ;;
        *)
            echo "error: no 'all $preset'; presets are smoke, laptop and paper" >&2
            exit 2
            ;;
    esac
    reproduce() { # SETTING
        report_follows=yes run "${BASH_SOURCE[0]}" "$1" "$preset"
    }
    reproduce parity_mlp
    reproduce parity_gpt2
    for task in PCFG text; do
        masked() { reproduce "${task}_mlm"; }
        autoregressive() { reproduce "${task}_autoregressive"; }
        side_by_side masked autoregressive
    done
    source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
    python figures/report.py --preset "$preset" --runs runs
    exit
fi
# the teacher's probes; except for text, the budget and first checkpoints of two-shot students; for GPT-2 on grammars
# also other label levels, their probes, and the arguments of their teachers and students
levels=""
level_probes=(bayes-optimal)
level_teacher=""
level_students=""
case "$setting $preset" in
    "parity_mlp smoke" | "parity_mlp laptop" | "parity_mlp paper")
        probes=("")
        two_shot=(--checkpoint before inside after)
        ;;
    "parity_gpt2 smoke" | "parity_gpt2 laptop" | "parity_gpt2 paper")
        probes=("--samples 20000")
        two_shot=(--checkpoint before inside after)
        ;;
    "PCFG_mlm smoke")
        probes=(bayes-optimal "ngrams --sentences 128" "windows --positions 64"
            "nonterminals --training 256 --heldout 64")
        two_shot=(--steps 60 --checkpoint 20 40)
        ;;
    "PCFG_mlm laptop")
        probes=(bayes-optimal ngrams windows "nonterminals --training 2048 --heldout 512")
        two_shot=(--steps 700 --checkpoint 100 200 300 400 600 1000 2000)
        ;;
    "PCFG_mlm workstation" | "PCFG_autoregressive workstation")
        probes=(bayes-optimal "ngrams --sentences 512" windows)
        two_shot=(--steps 1000 --checkpoint 200 400 600 800 1200 2000 4000 --seeds 10 11 12)
        ;;
    "PCFG_mlm paper")
        probes=(bayes-optimal ngrams windows nonterminals)
        two_shot=(--steps 4000 --checkpoint before inside after 1000 2000 4000)
        ;;
    "PCFG_autoregressive smoke")
        probes=(bayes-optimal "ngrams --sentences 128" "windows --positions 64"
            "generation --continuations 100 --tokens 30")
        two_shot=(--steps 60 --checkpoint 20 40)
        levels=1
        ;;
    "PCFG_autoregressive laptop")
        probes=(bayes-optimal "ngrams --sentences 512" windows)
        two_shot=(--steps 600 --checkpoint 300 500 700 1000)
        levels=all
        level_probes=(bayes-optimal generation)
        level_teacher="--grammar cfg3b --checkpoint-every 100"
        level_students="--grammar cfg3b --steps 300 600 --teacher-range None --teacher-every None"
        ;;
    "PCFG_autoregressive paper")
        probes=(bayes-optimal ngrams windows generation)
        two_shot=(--steps 4000 --checkpoint before inside after 1000 2000 4000)
        levels="1 2 3"
        ;;
    "text_mlm smoke" | "text_autoregressive smoke")
        probes=("ngrams --samples 64" "ngrams --unit word --samples 64" "kneser-ney --samples 64 --order 3")
        ;;
    "text_mlm laptop" | "text_autoregressive laptop" | "text_mlm paper" | "text_autoregressive paper")
        probes=(ngrams "ngrams --unit word" kneser-ney)
        ;;
    *)
        echo "error: no '$setting $preset'; settings are parity_mlp, parity_gpt2, PCFG_mlm, PCFG_autoregressive," \
            "text_mlm, text_autoregressive and all, presets smoke, laptop and paper, and on grammars workstation" >&2
        exit 2
        ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

if [ -r /proc/cpuinfo ]; then
    processor=$(awk -F ': ' '/^model name/ { print $2; exit }' /proc/cpuinfo)
else
    processor=$(sysctl -n machdep.cpu.brand_string)
fi
processor="$(getconf _NPROCESSORS_ONLN) x ${processor:-$(uname -m)}"

timed() { # COMMAND: run it and record its time, even if it fails
    local begin=$SECONDS code=0 command="$*"
    run "$@" || code=$?
    command=${command//\\/\\\\} # as JSON has it
    mkdir -p runs/figures
    printf '{"setting": "%s", "preset": "%s", "command": "%s", "seconds": %d, "exit": %d, "processor": "%s"}\n' \
        "$setting" "$preset" "${command//\"/\\\"}" $((SECONDS - begin)) "$code" "$processor" >> runs/figures/times.jsonl
    return "$code"
}

# shellcheck disable=SC2086  # lists of words
measure() { # RUN PROBE...: each probe with its arguments
    local run=$1 probe
    shift
    for probe in "$@"; do
        timed python -m "$setting.probe" $probe --run "$run"
    done
}

if [ "$preset" = workstation ]; then # two teachers, and their students on two streams
    other=runs/$setting/workstation-seed2
    teacher() {
        timed python -m "$setting.train" workstation
        measure "runs/$setting/workstation" "${probes[@]}"
    }
    other_teacher() {
        timed python -m "$setting.train" workstation --seed 2 --out "$other"
        measure "$other" "${probes[@]}"
    }
    on_stream() { # SEED
        timed python -m "$setting.distill" workstation --stream-seed "$1"
        timed python -m "$setting.distill" workstation --stream-seed "$1" --teacher "$other" --methods one-shot progressive
    }
    students() {
        on_stream 3000
        timed python -m "$setting.distill" workstation --methods two-shot "${two_shot[@]}"
    }
    other_students() {
        on_stream 4000
    }
    side_by_side teacher other_teacher
    side_by_side students other_students
    timed python figures/make_figures.py "$setting" --preset "$preset" --runs runs
    exit
fi

timed python -m "$setting.train" "$preset"

# two groups of students that do not depend on each other
case "$setting" in
    text_*)
        students() {
            timed python -m "$setting.distill" "$preset" --methods ce one-shot
        }
        other_students() {
            timed python -m "$setting.distill" "$preset" --methods progressive
            measure "runs/$setting/$preset" "${probes[@]}"
        }
        ;;
    *)
        measure "runs/$setting/$preset" "${probes[@]}"
        students() {
            timed python -m "$setting.distill" "$preset"
        }
        other_students() {
            timed python -m "$setting.distill" "$preset" --methods two-shot "${two_shot[@]}"
            for level in $levels; do
                teacher=runs/$setting/$preset-labels-$level
                # shellcheck disable=SC2086
                timed python -m "$setting.train" "$preset" --label-level "$level" --out "$teacher" $level_teacher
                measure "$teacher" "${level_probes[@]}"
                # shellcheck disable=SC2086
                timed python -m "$setting.distill" "$preset" --label-level "$level" --teacher "$teacher" $level_students
            done
        }
        ;;
esac

case "$setting" in
    parity_*)
        students
        other_students
        ;;
    *)
        side_by_side students other_students
        ;;
esac
if [ -z "${report_follows:-}" ]; then
    timed python figures/make_figures.py "$setting" --preset "$preset" --runs runs
fi
