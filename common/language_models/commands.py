"""`train.py` and `distill.py` of the settings with language models."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments

from common.arguments import option_of, require_at_least, require_seed, require_steps
from common.attention import ATTENTION
from common.cli import fast_garbage_collection
from common.distillation import schedules
from common.distillation.arguments import require_distinct, resolve_teacher, student_arguments, with_task_of
from common.distillation.batches import Source, batch_tensors
from common.distillation.evaluation import report_on
from common.distillation.losses import IGNORED_LABEL, check_loss_arguments
from common.distillation.run_loop import RunTrainer
from common.distillation.supervision import (
    FROM_LABELS,
    Supervision,
    own_checkpoint_warnings,
    own_teacher,
    print_notes,
    require_default_teacher,
    schedule_warnings,
    supervision,
    trajectory_warnings,
    used_checkpoints,
)
from common.distillation.target_cache import TargetCache
from common.distillation.target_shards import least_memory
from common.errors import DivergedError, UserError
from common.language_models.arguments import DistillArguments, TrainArguments, check
from common.language_models.setting import Setting, Task, config_of, task_of
from common.language_models.training import (
    processes_of,
    require_first_labels,
    train_to_end,
    trainer_arguments,
    trainer_of,
    trainer_options,
)
from common.resources import (
    TARGETS,
    Needs,
    fitting_groups,
    free_memory_of,
    in_turn,
    one_after_another,
    require_disk,
    require_resources,
    transformer_needs,
)
from common.runs.checkpoints import number_of_checkpoints
from common.runs.names import EXECUTION_ARGUMENTS, ROOT, RUNS, default_name
from common.runs.processes import Processes, open_shared_run
from common.runs.run import Run
from common.teachers.discovery import Checkpoint, find_checkpoints, local_path
from common.teachers.objective import objective_of
from common.teachers.trajectory import checkpoint_digests

PLURAL = ("methods", "student_heads", "steps", "seeds", "checkpoint")
"""Arguments of distillation of which each run has one value."""

Distill = TypeVar("Distill", bound=DistillArguments)


@fast_garbage_collection()
def train(
    arguments: TrainArguments, presets: Mapping[str, TrainArguments], setting: Setting, argv: Sequence[str] = ()
) -> None:
    """Start the run that the arguments describe, or resume it.

    Raises:
        UserError: an argument is out of range, or the run's directory cannot be used.
        DivergedError: the loss or the weights are not finite; nothing invalid is saved.
    """
    check(arguments)
    require_steps(arguments)
    require_at_least(1, arguments, "heads")
    require_seed(arguments, "seed")
    name = default_name(arguments, presets[arguments.preset], arguments.preset)
    directory = arguments.out or RUNS / setting.name / name
    trainer_args = trainer_arguments(arguments, directory, arguments.steps, arguments.seed)
    task = task_of(arguments, setting)  # may take minutes; what needs no data has been checked
    batches = setting.training_batches(arguments, task, arguments.steps, arguments.seed)
    if arguments.force or not Run(directory).complete:
        needs = _needs(arguments, task, arguments.heads, arguments.steps, processes_of(trainer_args))
        notes = require_resources(needs, [directory], trainer_args.device.type)
        require_first_labels(batches, arguments.steps)
        shared = trainer_options(arguments, setting, task)
        if processes_of(trainer_args).first:
            print_notes(notes)
    options = {"setting": setting.name, "argv": argv, "force": arguments.force, "wandb": arguments.wandb}
    config = config_of(arguments, task, setting)
    processes = processes_of(trainer_args)
    with open_shared_run(directory, config, processes, **options) as run:
        if run.complete:
            processes.print(f"{directory} is complete")
            return
        given = (arguments, setting, run, trainer_args, task, batches, arguments.heads, arguments.seed, FROM_LABELS)
        train_to_end([trainer_of(*given, shared)])


@fast_garbage_collection()
def distill(arguments: Distill, presets: Mapping[str, Distill], setting: Setting, argv: Sequence[str] = ()) -> None:
    """Start or resume one run for every method, size, number of steps and seed (and first checkpoint of two-shot).

    All students are checked before the first one is trained. As many as fit into `--memory` are trained together.

    Raises:
        UserError: an argument is out of range, the teacher does not fit, or a run's directory cannot be used.
        DivergedError: a student's loss is not finite; the other students are trained first.
    """
    check(arguments)
    require_distinct(arguments, PLURAL)
    require_steps(arguments)
    require_at_least(1, arguments, "student_heads")
    require_seed(arguments, "seeds", "stream_seed")
    default = _default_teacher(arguments.preset, setting)
    arguments = replace(arguments, teacher=resolve_teacher(arguments.teacher, default, ROOT))
    directory = ROOT / arguments.teacher
    if arguments.teacher == default:
        require_default_teacher(directory, default, f"python -m {setting.name}.train {arguments.preset}")
    teacher = find_checkpoints(directory if directory.exists() else arguments.teacher, arguments.teacher_pattern)
    own = own_teacher(directory, (setting.name,))
    task_arguments = (*setting.data_arguments, *setting.prediction_arguments)
    arguments = with_task_of(own and setting.as_given(own["arguments"]), arguments, task_arguments, argv)
    students = []
    for chosen in student_arguments(arguments, PLURAL):
        (steps,), (seed,) = chosen.steps, chosen.seeds
        place = _run_directory(arguments, chosen, presets, setting)
        trainer_args = trainer_arguments(chosen, place, steps, seed)
        supervised = supervision(chosen, steps, teacher, directory, None, lambda record: record["loss"])
        students.append(_Student(chosen, place, trainer_args, supervised))
    processes, device = processes_of(students[0].trainer_args), students[0].trainer_args.device

    try:
        task = task_of(arguments, setting)  # may take minutes; what needs no data has been checked
    except UserError as error:
        if own is None:
            raise
        source = directory / "config.json"
        raise UserError(f"{error} (what the command does not say of the task is from {source})") from error
    teacher_id, notes = None, []
    if own is not None:
        _check_data(arguments, setting, task, directory, own)
        teacher_id, notes = own.get("id"), _prediction_notes(arguments, setting, own)
    for student in students:
        check_loss_arguments(student.supervision, task.vocabulary, option_of)
    batches = setting.training_batches(arguments, task, max(arguments.steps), arguments.stream_seed)
    unfinished = [student for student in students if arguments.force or not Run(student.directory).complete]
    groups = _groups(unfinished, arguments.memory, task, processes, device)
    prepared = [(student.arguments, student.supervision, student.steps) for student in students]
    used = used_checkpoints(prepared)
    last = (used or teacher)[-1]
    cache = None
    if arguments.cache_teacher is not None and used:
        cache = _target_cache(arguments, setting, task, students)
    shared: dict[str, Any] = {}
    if unfinished:
        needs = [in_turn([student.needs(task, processes) for student in group]) for group in groups]
        if cache is not None:
            size = _bytes_of_a_step(cache, batches, task) // processes.count
            kept = {TARGETS: least_memory(size, max(student.steps for student in unfinished))}
            needs = [replace(each, host={**each.host, **kept}) for each in needs]
        places = [student.directory for student in unfinished]
        notes += require_resources(one_after_another(needs), places, device.type)
        require_first_labels(batches, min(student.steps for student in unfinished))
        shared = {**trainer_options(arguments, setting, task), "cache": cache}
    is_cached = cache is not None and not _missing_targets(cache, unfinished, used, batches, task, processes)
    if not is_cached:
        setting.load_model(local_path(last), task)
    setting.check_checkpoints(used, task)
    if own is not None:
        notes += own_checkpoint_warnings(directory, used, arguments.trust_trajectory)
    digests = checkpoint_digests(used)
    notes += [*setting.notes(local_path(last), task), *trajectory_warnings(used, arguments.trust_trajectory)]
    notes += schedule_warnings(prepared)
    is_reported = not used or is_cached
    if is_reported and unfinished and processes.first:
        print_notes(notes)
    diverged: list[DivergedError] = []
    finished = [[student] for student in students if student not in unfinished]
    for group in [*finished, *groups]:
        with ExitStack() as stack:
            opened: list[tuple[_Student, Run]] = []
            for student in group:
                config = {**config_of(student.arguments, task, setting), "teacher_id": teacher_id}
                options = {"argv": argv, "force": arguments.force, "wandb": arguments.wandb, "group": arguments.preset}
                opening = open_shared_run(student.directory, config, processes, setting=setting.name, **options)
                run = stack.enter_context(opening)
                if run.complete:
                    needed = used_checkpoints([(student.arguments, student.supervision, student.steps)])
                    run.require_teacher({str(checkpoint.step): digests[str(checkpoint.step)] for checkpoint in needed})
                    processes.print(f"{run.directory} is complete")
                else:
                    opened.append((student, run))
            if not opened:
                continue
            if not is_reported:
                is_reported = True
                report = _report(last, task, arguments, setting, device)  # may raise, in every process
                if processes.first:
                    print_notes([*notes, report])
            try:
                train_to_end([student.trainer(setting, run, task, batches, shared) for student, run in opened])
            except DivergedError as divergence:
                diverged.append(divergence)
    if diverged:
        raise diverged[0]


@dataclass(frozen=True)
class _Student:
    """A student's run, before it is opened."""

    arguments: DistillArguments
    directory: Path
    trainer_args: TrainingArguments
    supervision: Supervision

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.arguments.steps[0]

    def needs(self, task: Task, processes: Processes) -> Needs:
        """What training it needs."""
        return _needs(self.arguments, task, self.arguments.student_heads[0], self.steps, processes)

    def trainer(self, setting: Setting, run: Run, task: Task, batches: Source, shared: Mapping[str, Any]) -> RunTrainer:
        """Its trainer; `shared` is from `trainer_options`."""
        (heads,), (seed,) = self.arguments.student_heads, self.arguments.seeds
        given = (self.arguments, setting, run, self.trainer_args, task, batches, heads, seed, self.supervision)
        return trainer_of(*given, shared)


def _target_cache(
    arguments: DistillArguments, setting: Setting, task: Task, students: Sequence[_Student]
) -> TargetCache:
    """The cache of the teacher's targets, for these students.

    Raises:
        UserError: their losses cannot be computed from such targets, it holds something else, or it is a run's.
    """
    assert arguments.cache_teacher is not None
    if arguments.cache_teacher.absolute() in [student.directory.absolute() for student in students]:
        raise UserError(f"--cache-teacher {arguments.cache_teacher} is the directory of a run: give another one")
    config = config_of(arguments, task, setting)
    names = {**setting.identity(task), **setting.own_data(arguments), **dict.fromkeys(setting.prediction_arguments)}
    data = {"setting": setting.name, "stream_seed": arguments.stream_seed, **{name: config[name] for name in names}}
    cache = TargetCache(arguments.cache_teacher, arguments.targets, arguments.samples, arguments.stream_seed, data)
    for student in students:
        if student.supervision.teacher:
            cache.prepare(student.trainer_args, student.supervision, attention=ATTENTION, spell=option_of)
    return cache


def _missing_targets(
    cache: TargetCache,
    students: Sequence[_Student],
    used: Sequence[Checkpoint],
    batches: Source,
    task: Task,
    processes: Processes,
) -> int:
    """How many batches of targets the cache lacks for students that are not complete, in the process that lacks most.

    Raises:
        UserError: it has targets of another teacher; or they would not fit onto its disk, or cannot be written.
    """
    cache.require_teacher(checkpoint_digests(used))
    spans = [
        span
        for student in students
        for span in schedules.spans(schedules.segments_at(student.supervision.schedule, []), 0, student.steps)
    ]
    missing = int(processes.largest(cache.missing(spans)))
    if any(callable(student.supervision.schedule) for student in students):
        missing = max(missing, 1)  # which checkpoints teach when depends on the students
    if missing:
        cache.require_writable()
        needed = {TARGETS: missing * _bytes_of_a_step(cache, batches, task)}
        require_disk(needed, cache.directory, "give --targets sampled, or --cache-teacher on another disk")
    return missing


def _bytes_of_a_step(cache: TargetCache, batches: Source, task: Task) -> int:
    """Bytes of the targets of a training step in all processes, at least, by the first batch."""
    labels = batch_tensors(batches.batch(0))["labels"]
    positions = int((labels[:, 1:] != IGNORED_LABEL).sum())  # of causal models all, of others most
    return positions * cache.kind.least_bytes(task.vocabulary)


def _groups(
    students: Sequence[_Student], memory: float | None, task: Task, processes: Processes, device: torch.device
) -> list[list[_Student]]:
    """The students in groups that are trained together, each of which needs at most `memory` gigabytes."""
    free = free_memory_of(device)
    most = free / 2 if memory is None else min(memory * 1e9, free)
    needs = [student.needs(task, processes) for student in students]
    groups = fitting_groups(needs, -processes.largest(-most), device.type)
    return [[students[i] for i in group] for group in groups]


def _report(
    teacher: Checkpoint, task: Task, arguments: DistillArguments, setting: Setting, device: torch.device
) -> str:
    """A line on a teacher's accuracy on the evaluation data of all students."""
    model = setting.load_model(local_path(teacher), task)
    held_out = setting.evaluation_batches(task, arguments.eval_samples)
    return report_on(model, teacher, held_out, objective_of(model), device)


def _needs(
    arguments: TrainArguments | DistillArguments, task: Task, heads: int, steps: int, processes: Processes
) -> Needs:
    """What training one model needs."""
    return transformer_needs(
        layers=arguments.layers,
        hidden=heads * arguments.head_dim,
        feed_forward=4 * heads * arguments.head_dim,
        vocabulary=task.vocabulary,
        positions=task.positions,
        batch_tokens=arguments.batch_size / (arguments.accumulate * processes.count) * task.expected_length,
        evaluation_tokens=arguments.eval_samples * task.expected_length,
        checkpoints=number_of_checkpoints(steps, arguments.checkpoint_every),
        half=arguments.precision == "bf16",
    )


def _default_teacher(preset: str, setting: Setting) -> str:
    return (RUNS / setting.name / preset).relative_to(ROOT).as_posix()


def _run_directory(arguments: Distill, student: Distill, presets: Mapping[str, Distill], setting: Setting) -> Path:
    """`--out` itself for a single run, a folder in it for one of several; by default a folder in the setting's runs."""
    sizes = [f"heads{student.student_heads[0]}", f"steps{student.steps[0]}", f"seed{student.seeds[0]}"]
    parts = [*student.methods, *student.checkpoint, *sizes]
    if arguments.out is not None:
        return arguments.out / "-".join(parts) if len(student_arguments(arguments, PLURAL)) > 1 else arguments.out
    name = "-".join([arguments.preset, *parts])
    preset = replace(presets[arguments.preset], teacher=_default_teacher(arguments.preset, setting))
    return RUNS / setting.name / default_name(student, preset, name, exclude=(*EXECUTION_ARGUMENTS, *PLURAL))


def _check_data(
    arguments: DistillArguments, setting: Setting, task: Task, directory: Path, config: Mapping[str, Any]
) -> None:
    """Reject a teacher, a run of ours with this config, that was trained on other data.

    Raises:
        UserError: names both, or the data that has changed.
    """
    theirs, ours = config["arguments"], config_of(arguments, task, setting)
    if all(theirs.get(name) == ours[name] for name in setting.identity(task)):
        return
    was, now = setting.describe(theirs), setting.describe(ours)
    if was == now:
        raise UserError(
            f"the file of {now} has changed since {directory} was trained on it: restore it, or give another --teacher"
        )
    raise UserError(
        f"{directory} was trained on {was}, but here the data is {now}: give another --teacher, or the teacher's "
        "arguments"
    )


def _prediction_notes(arguments: DistillArguments, setting: Setting, config: Mapping[str, Any]) -> list[str]:
    """Lines on what students predict, if a teacher with this config was trained to predict something else."""
    pairs = {name: (getattr(arguments, name), config["arguments"].get(name)) for name in setting.prediction_arguments}
    return [
        f"warning: {option_of(name)} is {ours}, but the teacher was trained with {theirs}"
        for name, (ours, theirs) in pairs.items()
        if ours != theirs
    ]
