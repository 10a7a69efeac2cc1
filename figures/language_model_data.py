"""Parts of the data behind the figures of all settings with language models: teachers and their students."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from finding_runs import FoundRun, MissingError, Part, final_accuracies, runs_by_key, students_of, with_arguments

from common.distillation.choosing import Transition, find_transition
from common.distillation.supervision import first_checkpoint
from common.errors import UserError
from common.teachers.curves import Curve
from common.teachers.discovery import find_checkpoints

METHODS = ("ce", "one-shot", "progressive")
"""Methods that are compared at every budget of steps."""
NGRAM = 3
"""Length of the n-grams whose quartiles are drawn."""


def teachers_among(runs: Sequence[FoundRun]) -> list[FoundRun]:
    """The runs that train.py made."""
    return [run for run in runs if not run.is_student]


def teacher_data(teacher: FoundRun, names: Collection[str]) -> dict[str, Any]:
    """Some arguments of a teacher, and its learning curve."""
    records = teacher.records()
    return {
        "arguments": {name: teacher.arguments[name] for name in names},
        "steps": [record["step"] for record in records],
        "loss": [round(record["loss"], 5) for record in records],
        "accuracy": [round(record["accuracy"], 5) for record in records],
    }


def transition_of(teacher: FoundRun) -> Transition | None:
    """The transition of a teacher's loss, or else of its error rate; None without one, as after very few steps."""
    records = teacher.records()
    steps, losses, accuracies = (tuple(record[name] for record in records) for name in ("step", "loss", "accuracy"))
    try:
        return find_transition(Curve(steps, losses, "metrics.jsonl", accuracies))
    except UserError:
        return None


def phases_of(transition: Transition | None) -> dict[str, float] | None:
    """The phases of a transition, to a tenth of a step."""
    return None if transition is None else {name: round(step, 1) for name, step in asdict(transition.phases).items()}


def compared_students(
    teacher: FoundRun,
    runs: Sequence[FoundRun],
    arguments: Mapping[str, Any],
    budgets: Sequence[int],
    command: str,
    free: Collection[str] = (),
) -> Part:
    """Final accuracies of a teacher's students by method, budget of steps and seed.

    Args:
        teacher: of the students.
        runs: of the setting.
        arguments: of the students; those that distinguish the compared runs may differ.
        budgets: steps of the students.
        command: that makes them.
        free: further arguments that may differ.

    Returns:
        By method: `heads`, `steps`, `seeds`, and `accuracy` of shape (seeds, budgets).

    Raises:
        MissingError: a run does not exist.
        UserError: two runs have the same method, budget and seed.
    """
    heads = arguments["student_heads"][0]
    data, commands = {}, []
    for method in METHODS:
        wanted = {**arguments, "methods": [method], "student_heads": [heads], "checkpoint": []}
        some = with_arguments(students_of(teacher, runs), wanted, free=("seeds", "steps", "teacher", *free))
        by_budget = {steps: [run for run in some if run.arguments["steps"] == [steps]] for steps in budgets}
        final = final_accuracies(
            by_budget,
            lambda steps, method=method: f"{method} students of {teacher.directory} and {steps} steps",  # type: ignore[misc]
            command,
        )
        data[method] = {"heads": heads, "steps": list(budgets), **final}
        commands += [run.argv for used in by_budget.values() for run in used]
    return Part(data, commands)


def paired_students(
    teachers: Sequence[FoundRun],
    runs: Sequence[FoundRun],
    arguments: Mapping[str, Any],
    budgets: Sequence[int],
    command: str,
) -> Part:
    """Final accuracies of the students of several teachers on several streams, by method, stream and seed.

    Args:
        teachers: of the students. Those that learn from the labels are students of the first one, as they do not
            depend on it.
        runs: of the setting.
        arguments: of the students; those that distinguish the compared runs may differ.
        budgets: steps of the students.
        command: that makes them.

    Returns:
        `steps`, `teacher_seeds`, `pairs` of (stream seed, seed), and `accuracy` by method, of shape (pairs, teachers,
        budgets); for `ce` with a single teacher.

    Raises:
        MissingError: a run does not exist.
        UserError: two runs have the same method, teacher, budget, stream and seed.
    """
    taught = {method: teachers[:1] if method == "ce" else teachers for method in METHODS}
    found: dict[tuple[Any, ...], FoundRun] = {}
    for method in METHODS:
        wanted = {**arguments, "methods": [method], "student_heads": arguments["student_heads"][:1], "checkpoint": []}
        for teacher in taught[method]:
            some = with_arguments(students_of(teacher, runs), wanted, free=("seeds", "steps", "teacher", "stream_seed"))
            name = f"{method} students of {teacher.directory}"
            found |= runs_by_key(
                [run for run in some if run.arguments["steps"][0] in budgets],
                lambda run, of=(method, teacher.directory): (*of, _pair(run), run.arguments["steps"][0]),  # type: ignore[misc]
                lambda key, name=name: f"{name} and {key[3]} steps with stream and seed {key[2]}",  # type: ignore[misc]
            )
    if not found:
        raise MissingError(f"no students of {teachers[0].directory}; create them with {command}")

    def final(method: str, teacher: FoundRun, pair: tuple[int, int], steps: int) -> float:
        run = found.get((method, teacher.directory, pair, steps))
        if run is None:
            raise MissingError(
                f"no complete run of {method} students of {teacher.directory} and {steps} steps with stream {pair[0]} "
                f"and seed {pair[1]}; create it with {command}"
            )
        return round(run.records()[-1]["accuracy"], 5)

    pairs = sorted({key[2] for key in found})
    data = {
        "steps": list(budgets),
        "teacher_seeds": [teacher.arguments["seed"] for teacher in teachers],
        "pairs": [list(pair) for pair in pairs],
        "accuracy": {
            method: [
                [[final(method, each, pair, steps) for steps in budgets] for each in taught[method]] for pair in pairs
            ]
            for method in METHODS
        },
    }
    return Part(data, [run.argv for run in found.values()])


def _pair(student: FoundRun) -> tuple[int, int]:
    """What a student shares with those of other methods: its stream and its seed."""
    return student.arguments["stream_seed"], student.arguments["seeds"][0]


def two_shot_students(
    teacher: FoundRun, students: Sequence[FoundRun], arguments: Mapping[str, Any], command: str
) -> Part:
    """Final accuracies by the first checkpoint, for the budget of steps with the most checkpoints.

    If a checkpoint was given both by its step and as before, inside or after, the students that gave its step are used.

    Args:
        teacher: of the students.
        students: of the teacher.
        arguments: of the students; those that distinguish the compared runs may differ.
        command: that makes them, without their budget and checkpoints.

    Raises:
        MissingError: a run does not exist.
        UserError: two runs have the same checkpoint and seed.
    """
    wanted = {**arguments, "methods": ["two-shot"], "student_heads": [arguments["student_heads"][0]]}
    found = with_arguments(students, wanted, free=("seeds", "steps", "teacher", "checkpoint"))
    if not found:
        raise MissingError(
            f"no two-shot students of {teacher.directory}; create them with {command}, with the arguments in "
            "scripts/reproduce.sh"
        )
    saved = [checkpoint.step for checkpoint in find_checkpoints(teacher.directory)]
    budgets: dict[int, dict[str, list[FoundRun]]] = {}
    for run in found:
        names = budgets.setdefault(run.arguments["steps"][0], {})
        names.setdefault(run.arguments["checkpoint"][0], []).append(run)
    budget = max(budgets, key=lambda steps: (len(budgets[steps]), steps))
    names_at: dict[int, str] = {}
    for name in sorted(budgets[budget]):  # digits come before letters
        names_at.setdefault(first_checkpoint(name, saved, teacher.directory, lambda record: record["loss"]), name)
    by_checkpoint = {step: budgets[budget][names_at[step]] for step in sorted(names_at)}
    checkpoints = " ".join(names_at[step] for step in by_checkpoint)
    final = final_accuracies(
        by_checkpoint,
        lambda step: f"two-shot students from {names_at[step]} of {teacher.directory} and {budget} steps",
        f"{command} --steps {budget} --checkpoint {checkpoints}",
    )
    first_steps = found[0].arguments["first_steps"]
    data = {"steps": budget, "first_steps": first_steps, "checkpoints": list(by_checkpoint), **final}
    return Part(data, [run.argv for used in by_checkpoint.values() for run in used])


def robust_quartiles(probe: Mapping[str, Any], n: int = NGRAM) -> list[float]:
    """25th, 50th and 75th percentiles of M_robust for n-grams, of one model.

    Raises:
        MissingError: n-grams of this length were not probed.
    """
    found = next((entry["percentiles"] for entry in probe["robust"] if entry["n"] == n), None)
    if found is None:
        raise MissingError(f"{n}-grams were not probed; rerun the probe with {n} among its --sizes")
    return [float(f"{found[key]:.4g}") for key in ("25", "50", "75")]
