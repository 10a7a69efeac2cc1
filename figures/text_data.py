"""Collect the data behind the figures of language models on text from runs, small enough to be committed.

`text_figures.py` draws them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from finding_runs import Collected, FoundRun, Part, collect_parts, only_run, probe_result, students_of, with_arguments
from language_model_data import (
    NGRAM,
    compared_students,
    phases_of,
    robust_quartiles,
    teacher_data,
    teachers_among,
    transition_of,
)

from text_autoregressive.distill import PRESETS as AUTOREGRESSIVE_STUDENTS
from text_autoregressive.train import PRESETS as AUTOREGRESSIVE_TEACHERS
from text_mlm.distill import PRESETS as MLM_STUDENTS
from text_mlm.train import PRESETS as MLM_TEACHERS

SettingName = Literal["text_mlm", "text_autoregressive"]
Unit = Literal["token", "word"]


@dataclass(frozen=True)
class Presets:
    """Of a setting's teachers and students."""

    teachers: Mapping[str, Any]
    students: Mapping[str, Any]


PRESETS: dict[SettingName, Presets] = {
    "text_mlm": Presets(MLM_TEACHERS, MLM_STUDENTS),
    "text_autoregressive": Presets(AUTOREGRESSIVE_TEACHERS, AUTOREGRESSIVE_STUDENTS),
}


def collect(found: Sequence[FoundRun], preset: str, setting: SettingName) -> Collected:
    """Curves, final accuracies and probe results of a preset's runs, such as `scripts/reproduce.sh` makes.

    Args:
        found: runs of any setting.
        preset: its name. Only runs with exactly its arguments are used, and only students of its teacher.
        setting: whose runs.

    Returns:
        Always: `setting`, `preset`, `commands`, `versions`, `commits`, `corpus`, `documents` (their hashes), `teacher`,
        its `phases` (None without a transition), and the curve that shows them, `phases_in`. By part: `ngrams`,
        `word_ngrams`, `kneser_ney` and `students`.

    Raises:
        MissingError: there is no teacher; the message names the command that makes it.
        UserError: there are two.
    """
    runs = [run for run in found if run.setting == setting]
    trained = with_arguments(teachers_among(runs), asdict(PRESETS[setting].teachers[preset]))
    teacher = only_run(trained, f"the teacher of {setting} {preset}", f"python -m {setting}.train {preset}")
    own = PRESETS[setting].students[preset]
    names = ("layers", "heads", "head_dim", "batch_size", "lr", "steps", "seed", "vocabulary", "length")
    transition = transition_of(teacher)
    always = {
        "corpus": teacher.arguments["corpus"],
        "documents": [digest[:16] for digest in teacher.arguments["documents"]],
        "teacher": teacher_data(teacher, names),
        "phases": phases_of(transition),
        "phases_in": None if transition is None else transition.curve,
    }
    command = f"python -m {setting}.distill {preset}"
    parts = {
        "ngrams": partial(_ngrams, teacher, "token"),
        "word_ngrams": partial(_ngrams, teacher, "word"),
        "kneser_ney": partial(_kneser_ney, teacher),
        "students": partial(compared_students, teacher, runs, asdict(own), own.steps, command),
    }
    return collect_parts(preset, teacher, students_of(teacher, runs), always, parts)


def _ngrams(run: FoundRun, unit: Unit) -> Part:
    """M_robust by checkpoint: medians for all lengths of n-grams, and quartiles for one."""
    command = f"python -m {run.setting}.probe ngrams --run {run.directory}"
    command += "" if unit == "token" else f" --unit {unit}"
    result = probe_result(run, "ngrams", command, unit=unit)
    sizes, checkpoints = result["settings"]["sizes"], result["checkpoints"]
    data = {
        "n": NGRAM,
        "pairs": checkpoints[0]["pairs"],
        "steps": [entry["step"] for entry in checkpoints],
        "percentiles": [robust_quartiles(entry) for entry in checkpoints],
        "sizes": sizes,
        "medians": [[robust_quartiles(entry, n)[1] for entry in checkpoints] for n in sizes],
    }
    return Part(data, [result.get("argv", ())])


def _kneser_ney(run: FoundRun) -> Part:
    """Mean KL(checkpoint || n-gram model) by order and checkpoint, and what the n-gram models themselves reach."""
    result = probe_result(run, "kneser_ney", f"python -m {run.setting}.probe kneser-ney --run {run.directory}")
    checkpoints = result["checkpoints"]
    data = {
        "orders": [model["n"] for model in result["ngrams"]],
        "loss": [round(model["loss"], 5) for model in result["ngrams"]],
        "accuracy": [round(model["accuracy"], 5) for model in result["ngrams"]],
        "positions": checkpoints[0]["ngrams"][0]["positions"],
        "steps": [entry["step"] for entry in checkpoints],
        "kl": [
            [round(entry["ngrams"][i]["model_to_ngram"]["mean"], 5) for entry in checkpoints]
            for i in range(len(result["ngrams"]))
        ],
    }
    return Part(data, [result.get("argv", ())])
