"""`train.py` and `distill.py` of the settings on parity."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.arguments import option_of, require_at_least, require_seed
from common.distillation.arguments import (
    needs_teacher,
    require_distinct,
    resolve_teacher,
    student_arguments,
    with_designs,
    with_task_of,
)
from common.distillation.automatic import Anchor, choose_anchors
from common.distillation.chance import teacher_report
from common.distillation.given_teacher import default_teacher, find_teacher, own_checkpoint_warnings, teacher_id_of
from common.distillation.supervision import (
    FROM_LABELS,
    automatic_notes,
    print_notes,
    require_early_evaluation,
    schedule_warnings,
    supervision,
    trajectory_warnings,
    used_checkpoints,
)
from common.errors import UserError
from common.parity.arguments import SETTINGS, check
from common.parity.designed import designs_of
from common.parity.frozen import Logits, load_network, teacher_logits
from common.parity.networks import Network
from common.parity.students import Student
from common.parity.task import TASK_ARGUMENTS, ParityTask, task_of
from common.parity.training import Setting, data_needs, probabilities, train_together
from common.resources import require_resources, together
from common.runs.names import EXECUTION_ARGUMENTS, ROOT, RUNS, default_name
from common.runs.processes import join_processes, open_shared_run
from common.runs.run import Run
from common.teachers.discovery import Checkpoint, local_path
from common.teachers.tensors import require_finite_logits
from common.teachers.trajectory import checkpoint_digests

ANCHOR_SAMPLES = 8192
"""On which checkpoints are compared with the final one."""


def train(arguments: Any, presets: Mapping[str, Any], setting: Setting, argv: Sequence[str] = ()) -> None:
    """Start the run that the arguments describe, or resume it.

    Raises:
        UserError: an argument is out of range, or the run's directory cannot be used.
        DivergedError: the loss or the weights are not finite; nothing invalid is saved.
    """
    check(arguments, (arguments.lr,))
    setting.check(arguments)
    require_at_least(1, arguments, setting.size)
    require_seed(arguments, "seed")
    task = task_of(vars(arguments))
    name = default_name(arguments, presets[arguments.preset], arguments.preset)
    directory = arguments.out or RUNS / setting.name / name
    processes, device = join_processes(arguments.device)
    setting.check_processes(arguments, processes)
    if arguments.force or not Run(directory).complete:
        network_needs = setting.needs(arguments, getattr(arguments, setting.size), processes)
        needs = together([network_needs, data_needs(arguments, task)])
        notes = require_resources(needs, [directory], device)
        if processes.first:
            print_notes(notes)
    options = {"setting": setting.name, "argv": argv, "force": arguments.force, "wandb": arguments.wandb}
    with open_shared_run(directory, asdict(arguments), processes, **options) as run:
        if run.complete:
            processes.print(f"{directory} is complete")
            return
        initial = setting.new_network(arguments, getattr(arguments, setting.size), arguments.seed)
        student = Student(run, FROM_LABELS, initial, arguments.lr)
        train_together(setting, arguments, [student], arguments.seed, directory.name, device, processes)
        processes.print(f"{directory}: accuracy {student.records[-1]['accuracy']:.3f}")


def distill(arguments: Any, presets: Mapping[str, Any], setting: Setting, argv: Sequence[str] = ()) -> None:
    """Start or resume one run for every method, size, seed and learning rate (and first checkpoint of two-shot).

    Raises:
        UserError: an argument is out of range, the teacher does not fit, or a run's directory cannot be used.
        DivergedError: a student's loss is not finite; the other students are trained first.
    """
    arguments, plural = with_designs(arguments), _plural(setting)
    check(arguments, arguments.lr)
    require_distinct(arguments, [name for name in plural if getattr(arguments, name) is not None])
    require_at_least(1, arguments, setting.sizes)
    require_seed(arguments, "seeds", "stream_seed")
    name = resolve_teacher(arguments.teacher, default_teacher(setting.name, arguments.preset), ROOT)
    is_needed = needs_teacher(arguments)
    given = find_teacher(name, arguments.teacher_pattern, setting.name, arguments.preset, SETTINGS, is_needed)
    directory, teacher, own = given.directory, given.checkpoints, given.config
    arguments = with_task_of(own and own["arguments"], replace(arguments, teacher=name), TASK_ARGUMENTS, argv)
    setting.check(arguments)
    task = task_of(vars(arguments))
    teacher_id = None if own is None else _check_own_teacher(arguments, directory, own)

    def error_rate(record: Mapping[str, Any]) -> float:
        return 1 - record["accuracy"]

    processes, device = join_processes(arguments.device)
    setting.check_processes(arguments, processes)
    anchors: list[Anchor] = []
    if "auto" in arguments.methods:
        require_early_evaluation(arguments.eval_every, arguments.steps)
        anchors = automatic_anchors(arguments, teacher, task, setting, device)
    prepared = []
    for student in student_arguments(arguments, plural):
        designs = designs_of(student, task)
        of_teacher = student.steps, teacher, directory, task.classes, error_rate
        prepared.append((student, supervision(student, *of_teacher, designs, student.then, anchors)))
    scheduled = [(student, supervised, student.steps) for student, supervised in prepared]
    used = used_checkpoints(scheduled)
    last = (used or teacher)[-1] if teacher else None
    network = load_network(local_path(last), task) if last else None
    digests = checkpoint_digests(used)
    trust = arguments.trust_trajectory
    notes = automatic_notes(anchors) if anchors else []
    notes += [] if own is None else own_checkpoint_warnings(directory, teacher if anchors else used, trust)
    notes += [*trajectory_warnings(used, trust), *schedule_warnings(scheduled)]
    places = [(student, _run_directory(arguments, student, presets, setting)) for student, _ in prepared]
    unfinished = [(student, place) for student, place in places if arguments.force or not Run(place).complete]
    if unfinished:
        network_needs = [
            setting.needs(student, getattr(student, setting.sizes)[0], processes) for student, _ in unfinished
        ]
        needs = together([*network_needs, data_needs(arguments, task)])
        notes += require_resources(needs, [place for _, place in unfinished], device)
    with ExitStack() as stack:
        students = []
        for (student, supervised), (_, run_directory) in zip(prepared, places, strict=True):
            needed = used_checkpoints([(student, supervised, student.steps)])
            config = {**asdict(student), "teacher_id": teacher_id_of(run_directory, teacher_id, bool(needed))}
            options = {"force": student.force, "wandb": student.wandb, "group": student.preset}
            opened = open_shared_run(run_directory, config, processes, setting=setting.name, argv=argv, **options)
            run = stack.enter_context(opened)
            of_student = {str(checkpoint.step): digests[str(checkpoint.step)] for checkpoint in needed}
            if run.complete:
                run.require_teacher(of_student)
                processes.print(f"{run.directory} is complete")
                continue
            with processes.main_process_first():  # what one of them refuses, all of them do
                run.keep_teacher(of_student)
            initial = setting.new_network(student, getattr(student, setting.sizes)[0], student.seeds[0])
            students.append(Student(run, supervised, initial, student.lr[0], student.methods[0] == "auto"))
        if students:
            if processes.first:
                reported = [_report(network, used[-1], task, arguments, setting, device)] if network and used else []
                print_notes([*notes, *reported])
            description = f"{len(students)} students"
            train_together(setting, arguments, students, arguments.stream_seed, description, device, processes)
        for made in students:
            processes.print(f"{made.run.directory}: accuracy {made.records[-1]['accuracy']:.3f}")


def automatic_anchors(
    arguments: Any, teacher: Sequence[Checkpoint], task: ParityTask, setting: Setting, device: str
) -> list[Anchor]:
    """The checkpoints for `--methods auto`.

    Raises:
        UserError: one of all checkpoints cannot be loaded, or the final one predicts the same for all samples.
    """
    bits = task.sample(arguments.stream_seed, "probe", 0, ANCHOR_SAMPLES)
    by_step = {checkpoint.step: checkpoint for checkpoint in teacher}

    def logits_of(network: Network) -> Logits:
        return setting.frozen_logits(network, task.d, device, setting.precision(arguments))

    def predict(step: int) -> NDArray[np.float64]:
        return probabilities(teacher_logits(local_path(by_step[step]), task, logits_of)(bits))

    return choose_anchors(sorted(by_step), predict)


def _report(
    teacher: Network, checkpoint: Checkpoint, task: ParityTask, arguments: Any, setting: Setting, device: str
) -> str:
    """A line on a teacher's accuracy on the evaluation data of all students."""
    bits = task.sample(arguments.stream_seed, "evaluation", 0, arguments.eval_samples)
    labels = task.labels(bits)
    logits = setting.frozen_logits(teacher, task.d, device, setting.precision(arguments))(bits)
    require_finite_logits(torch.from_numpy(logits), checkpoint.location)
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    return teacher_report(checkpoint.step, accuracy, [torch.from_numpy(labels)])


def _plural(setting: Setting) -> tuple[str, ...]:
    """Arguments of distillation of which each run has one value."""
    return "methods", setting.sizes, "lr", "seeds", "checkpoint", "monomials"


def _run_directory(arguments: Any, student: Any, presets: Mapping[str, Any], setting: Setting) -> Path:
    """`--out` itself for a single run, a folder in it for one of several; by default a folder in the setting's runs."""
    plural = _plural(setting)
    parts = [*student.methods, *student.checkpoint, *(text.replace(":", "_") for text in student.monomials or ())]
    parts += [f"{setting.size}{getattr(student, setting.sizes)[0]}", f"seed{student.seeds[0]}"]
    if arguments.out is not None:
        parts += [f"lr{student.lr[0]}"] if len(arguments.lr) > 1 else []
        return arguments.out / "-".join(parts) if len(student_arguments(arguments, plural)) > 1 else arguments.out
    preset = replace(presets[arguments.preset], teacher=default_teacher(setting.name, arguments.preset))
    if student.methods[0] == "designed":
        preset = with_designs(replace(preset, methods=student.methods))
    in_name = [argument for argument in plural if argument != "lr"]
    name = "-".join([arguments.preset, *parts])
    return RUNS / setting.name / default_name(student, preset, name, exclude=(*EXECUTION_ARGUMENTS, *in_name))


def _check_own_teacher(arguments: Any, directory: Path, config: Mapping[str, Any]) -> str | None:
    """The id of a teacher that is a run of ours, with its config.

    Raises:
        UserError: it was trained for another support.
    """
    theirs = config["arguments"]
    if task_of(theirs) != task_of(vars(arguments)):
        name = next(name for name in TASK_ARGUMENTS if theirs[name] != getattr(arguments, name))
        raise UserError(
            f"{directory} was trained with {name} {theirs[name]}, but here it is {getattr(arguments, name)}: leave out "
            f"{option_of(name)}, or give another --teacher"
        )
    return config.get("id")
