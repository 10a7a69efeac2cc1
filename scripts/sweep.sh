# Sourced by the sweeps, scripts/sweep_*.sh: their arguments, and the plan of their jobs.
#
#   scripts/sweep_NAME.sh SETTING PRESET [--teacher RUN] [--dry-run | -j N | --slurm] [-- ARGUMENTS]
#
#   SETTING         parity_mlp, parity_gpt2, PCFG_mlm, PCFG_autoregressive, text_mlm or text_autoregressive
#   PRESET          smoke, laptop or paper
#   --teacher RUN   students learn from this run or directory of checkpoints; by default from the run of train.py with
#                   the preset, which is trained first unless it exists
#   --dry-run       print the commands, each with its number of runs
#   -j N            execute N jobs at a time on this machine; by default one per GPU, or one
#   --slurm         submit the jobs to Slurm; see scripts/slurm/array.sbatch
#   ARGUMENTS       are added to every command, such as --wandb offline
#
# A job trains a teacher, or a group of students that share its forward pass. Runs are in
# runs/SETTING/sweeps/<sweep>-SETTING-PRESET/<group>/, logs of jobs in the sweep's folder logs. Complete runs are
# skipped: rerun the command to resume.

# A sweep gets `setting`, `preset` and `size_flag` by sourcing this file, calls `new_teacher` (or adds a job that trains
# `teacher`) and `students`, and ends with `launch`.
#
# Its groups are those of one value of what it varies (or of one seed, where students of one seed share more), so that
# there are two to five of them. One group of all students would save little more, and could use one device only. They
# do not depend on -j, as a GPT-2 on parity is trained in one stack with the rest of its group, and depends on it by
# rounding.
# shellcheck shell=bash disable=SC2034

refuse() {
    echo "error: $*" >&2
    exit 2
}

sweep=$(basename "$0" .sh)
sweep=${sweep#sweep_}
usage="give scripts/sweep_$sweep.sh SETTING PRESET [--teacher RUN] [--dry-run | -j N | --slurm] [-- ARGUMENTS]"
if [[ ${1:-} =~ ^(-h|--help)$ ]]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit
fi
setting=${1:-}
preset=${2:-}
settings="parity_mlp parity_gpt2 PCFG_mlm PCFG_autoregressive text_mlm text_autoregressive"
[[ $setting =~ ^(${settings// /|})$ ]] || refuse "no setting '$setting'; settings are ${settings// /, }: $usage"
[[ $preset =~ ^(smoke|laptop|paper)$ ]] || refuse "no preset '$preset'; presets are smoke, laptop and paper: $usage"
shift 2

mode=
own_teacher=
launcher_options=()
added=
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case $1 in
        --dry-run | --slurm | -j)
            [ -z "$mode" ] || refuse "$mode and $1 exclude each other: $usage"
            mode=$1
            ;;&
        -j)
            [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || refuse "-j takes a number of jobs, at least 1; got '${2:-}'"
            launcher_options+=(--jobs "$2")
            shift
            ;;
        --slurm) launcher_options+=(--slurm) ;;
        --dry-run) ;;
        --teacher)
            own_teacher=${2:-}
            [ -n "$own_teacher" ] || refuse "--teacher takes a directory with checkpoint-<step> folders: $usage"
            shift
            ;;
        *) refuse "unknown argument '$1': $usage" ;;
    esac
    shift
done
[ ! -d "$own_teacher" ] || own_teacher=$(cd "$own_teacher" && pwd)
named=() # added words that results depend on
is_named=yes
options=" " # the added ones, each followed by a space
option=
for word in "${@:2}"; do
    printf -v quoted ' %q' "$word"
    added+=$quoted
    if [[ $word == --* ]]; then
        option=${word%%=*}
        option=${option//_/-}
        options+="$option "
        values=0
    elif [[ $option =~ ^--(steps|widths|student-heads)$ && $((++values)) -gt 1 ]]; then
        refuse "$option takes one value here, as the number of runs of each command is fixed; got '$word' as well"
    fi
    case $word in
        --out | --out=* | --force | --teacher | --teacher=*) refuse "$word cannot be added to all commands: $usage" ;;
        --wandb | --device) is_named= ;;
        --wandb=* | --device=*) ;;
        *)
            [ -z "$is_named" ] || named+=("$word")
            is_named=yes
            ;;
    esac
done

changes_name() { # the end of a sweep's name: the teacher and the added words, as its results depend on them
    # Where the name does not show the exact words, a checksum of them follows, so that others have another name.
    local LC_ALL=C root word before=value exact=yes text=
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    if [ -n "$own_teacher" ]; then
        exact=
        text="-teacher-$(basename "$own_teacher" | tr -cd 'A-Za-z0-9.,=_-')"
    fi
    for word in "${named[@]}"; do
        if [[ $word =~ ^--[A-Za-z][A-Za-z0-9.,=_]*$ ]]; then
            [ "$before" = value ] || exact=
            before=option
        else
            # a letter at the beginning, other than after an option, would look like one
            [[ $word =~ ^[A-Za-z0-9.,=_]+$ && ! ($before = value && $word =~ ^[A-Za-z]) ]] || exact=
            before=value
        fi
        text+="-${word//[^A-Za-z0-9.,=_]/}"
    done
    if [ -z "$exact" ] || [ ${#text} -gt 150 ]; then
        text="${text:0:150}~$(printf '%s\0' "${own_teacher#"$root/"}" "${named[@]}" | cksum | cut -d ' ' -f 1)"
    fi
    printf '%s' "$text"
}
changed=$(changes_name)

size_flag=--student-heads
[ "$setting" != parity_mlp ] || size_flag=--widths
# presets of language models have several budgets for students: the one that sweeps of other arguments use
budget=
case "$setting $preset" in
    PCFG_*" smoke") budget=60 ;;
    "PCFG_mlm laptop") budget=700 ;;
    "PCFG_autoregressive laptop") budget=600 ;;
    PCFG_*" paper") budget=8000 ;;
    text_*" smoke") budget=60 ;;
    text_*" laptop") budget=600 ;;
    text_*" paper") budget=60000 ;;
esac
# disk space for a teacher
teacher_megabytes=100
[ "$preset" != paper ] || teacher_megabytes=2000
[[ "$setting $preset" != text_*" paper" ]] || teacher_megabytes=80000

name=$sweep-$setting-$preset$changed
directory=runs/$setting/sweeps/$name
commands=()
plan=

add_job() { # DIRECTORY RUNS TEACHER COMMAND: the job in DIRECTORY waits for the run in TEACHER, - for none
    local line out
    printf -v line '%q ' "${@:4}"
    printf -v out '%q' "$1"
    line+="--out $out$added"
    commands+=("$line  # $2 run$([ "$2" = 1 ] || echo s)")
    plan+=$1$'\t'$2$'\t'$3$'\t'$line$'\n'
}

new_teacher() { # SEED: the teacher of the following students, unless --teacher names one
    local suffix=
    [ "$1" = 0 ] || suffix=-seed$1
    teacher=$own_teacher
    [ -z "$teacher" ] || return 0
    teacher=runs/$setting/$preset$suffix
    [ -z "$changed" ] || teacher=$directory/teacher$suffix
    if [ "$1" = 0 ]; then
        add_job "$teacher" 1 - python -m "$setting.train" "$preset"
    else
        add_job "$teacher" 1 - python -m "$setting.train" "$preset" --seed "$1"
    fi
}

refuse_as_added() { # ARGUMENTS that the sweep gives
    local word
    for word in "$@"; do
        [[ $word != --* || $options != *" $word "* ]] || refuse "$word cannot be added: the sweep gives it"
    done
}

students() { # NAME RUNS ARGUMENTS: a group of as many students of the current teacher, made by distill.py with these
    local command=(python -m "$setting.distill" "$preset" --teacher "$teacher" "${@:3}")
    refuse_as_added "${@:3}"
    [ -z "$budget" ] || [[ " $* " == *" --steps "* ]] || command+=(--steps "$budget")
    add_job "$directory/$1" "$2" "$teacher" "${command[@]}"
}

launch() { # print the commands or execute them
    if [ "$mode" = --dry-run ]; then
        printf '%s\n' "${commands[@]}"
        exit
    fi
    # shellcheck source=scripts/environment.sh
    source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
    launcher_options+=(--teacher-megabytes "$teacher_megabytes")
    exec python -m common.cluster "$directory" "${launcher_options[@]}" <<< "$plan"
}
