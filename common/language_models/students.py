"""The students of one `distill.py` command: which runs they are, what they need, and whom they learn from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import TrainingArguments

from common.arguments import option_of
from common.attention import ATTENTION
from common.distillation import schedules
from common.distillation.arguments import (
    needs_teacher,
    resolve_teacher,
    student_arguments,
    with_designs,
    with_task_of,
)
from common.distillation.automatic import Anchor, choose_anchors
from common.distillation.batches import Source, batch_tensors
from common.distillation.evaluation import logits_at, report_on
from common.distillation.given_teacher import GivenTeacher, default_teacher, find_teacher
from common.distillation.losses import IGNORED_LABEL
from common.distillation.run_loop import RunTrainer
from common.distillation.supervision import Supervision, supervision, used_checkpoints
from common.distillation.target_cache import TargetCache
from common.distillation.target_shards import least_memory
from common.errors import UserError
from common.language_models.arguments import DistillArguments
from common.language_models.setting import Setting, Task, config_of, task_of
from common.language_models.training import (
    needs_of,
    trainer_arguments,
    trainer_of,
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
)
from common.runs.names import EXECUTION_ARGUMENTS, ROOT, RUNS, default_name
from common.runs.processes import Processes
from common.runs.run import Run
from common.teachers.discovery import Checkpoint, local_path
from common.teachers.objective import objective_of
from common.teachers.trajectory import checkpoint_digests

PLURAL = ("methods", "student_heads", "steps", "seeds", "checkpoint", "windows")
"""Arguments of distillation of which each run has one value; `windows` is of grammars only."""


def plural_of(arguments: DistillArguments) -> list[str]:
    """Those of `PLURAL` that a command has."""
    return [name for name in PLURAL if getattr(arguments, name, None) is not None]


ANCHOR_LABELS = 2048
"""Held-out labels on which checkpoints are compared with the final one, about."""

Distill = TypeVar("Distill", bound=DistillArguments)


def with_teacher(arguments: Distill, setting: Setting, argv: Sequence[str]) -> tuple[Distill, GivenTeacher]:
    """The arguments with the teacher's task, as far as the command does not say another one, and the teacher.

    Raises:
        UserError: there is none, or its checkpoints are not what they must be.
    """
    name = resolve_teacher(arguments.teacher, default_teacher(setting.name, arguments.preset), ROOT)
    is_needed = needs_teacher(arguments)
    teacher = find_teacher(name, arguments.teacher_pattern, setting.name, arguments.preset, (setting.name,), is_needed)
    task_arguments = (*setting.data_arguments, *setting.prediction_arguments)
    theirs = teacher.config and setting.as_given(teacher.config["arguments"])
    return with_task_of(theirs, replace(arguments, teacher=name), task_arguments, argv), teacher


def task_of_students(arguments: DistillArguments, setting: Setting, teacher: GivenTeacher) -> Task:
    """The task, which must be the teacher's.

    Raises:
        UserError: it is not, or cannot be made.
    """
    try:
        task = task_of(arguments, setting)
    except UserError as error:
        if teacher.config is None:
            raise
        source = teacher.directory / "config.json"
        raise UserError(f"{error} (what the command does not say of the task is from {source})") from error
    if teacher.config is not None:
        _check_data(arguments, setting, task, teacher.directory, teacher.config)
    return task


@dataclass(frozen=True)
class Student:
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
        return needs_of(self.arguments, task, self.arguments.student_heads[0], self.steps, processes)

    def trainer(self, setting: Setting, run: Run, task: Task, batches: Source, shared: Mapping[str, Any]) -> RunTrainer:
        """Its trainer; `shared` is from `trainer_options`."""
        (heads,), (seed,) = self.arguments.student_heads, self.arguments.seeds
        supervision = replace(self.supervision, designs=self.designed_models(setting, task))
        given = (self.arguments, setting, run, self.trainer_args, task, batches, heads, seed, supervision)
        return trainer_of(*given, shared)

    def designed_models(self, setting: Setting, task: Task) -> dict[int, nn.Module]:
        """The models of its designed targets, made once for all students.

        Raises:
            UserError: a target does not fit the task.
        """
        if setting.designed_model is None:
            return {}
        return {step: setting.designed_model(task, design) for step, design in self.supervision.designs.items()}

    def digests_of_teacher(self, digests: Mapping[str, str]) -> dict[str, str]:
        """Of the checkpoints that it learns from, by step."""
        used = used_checkpoints([(self.arguments, self.supervision, self.steps)])
        return {str(checkpoint.step): digests[str(checkpoint.step)] for checkpoint in used}


def automatic_anchors(
    arguments: DistillArguments, teacher: GivenTeacher, task: Task, setting: Setting, device: torch.device
) -> list[Anchor]:
    """The checkpoints for `--methods auto`, by what they predict for held-out labels, of sentences of all lengths.

    Raises:
        UserError: one of all checkpoints cannot be loaded, or the final one predicts the same for all samples.
    """
    held_out = [batch_tensors(batch) for batch in setting.evaluation_batches(task, arguments.eval_samples)]
    count = sum(int((batch["labels"] != IGNORED_LABEL).sum()) for batch in held_out)
    every = max(1, count // ANCHOR_LABELS)
    batches = [{name: tensor[::every] for name, tensor in batch.items()} for batch in held_out]
    chosen = [(batch, batch["labels"]) for batch in batches]
    by_step = {checkpoint.step: checkpoint for checkpoint in teacher.checkpoints}

    def predict(step: int) -> NDArray[np.float32]:
        model = setting.load_model(local_path(by_step[step]), task)
        nn.Module.to(model, device)
        return logits_at(model, chosen).softmax(dim=-1).numpy()

    return choose_anchors(sorted(by_step), predict)


def student_of(
    chosen: Distill,
    arguments: Distill,
    presets: Mapping[str, Distill],
    setting: Setting,
    teacher: GivenTeacher,
    anchors: Sequence[Anchor] = (),
) -> Student:
    """The run of one of the students that the arguments describe; `anchors` is for the method auto.

    Raises:
        UserError: the teacher lacks a checkpoint that it is to learn from, or torch cannot train it as asked.
    """
    (steps,), (seed,) = chosen.steps, chosen.seeds
    place = _run_directory(arguments, chosen, presets, setting)
    trainer_args = trainer_arguments(chosen, place, steps, seed)
    of_teacher = teacher.checkpoints, teacher.directory, None, lambda record: record["loss"]
    designs, then = setting.designs(chosen), getattr(chosen, "then", None)
    supervised = supervision(chosen, steps, *of_teacher, designs, then, anchors)
    return Student(chosen, place, trainer_args, supervised)


def target_cache_of(
    arguments: DistillArguments, setting: Setting, task: Task, students: Sequence[Student]
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


def missing_targets(
    cache: TargetCache,
    students: Sequence[Student],
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


def require_resources_of(
    groups: Sequence[Sequence[Student]],
    cache: TargetCache | None,
    task: Task,
    batches: Source,
    processes: Processes,
    device: torch.device,
) -> list[str]:
    """Warnings about memory and disk for students that are trained group by group.

    Raises:
        UserError: they do not suffice.
    """
    needs = [in_turn([student.needs(task, processes) for student in group]) for group in groups]
    students = [student for group in groups for student in group]
    if cache is not None:
        size = _bytes_of_a_step(cache, batches, task) // processes.count
        kept = {TARGETS: least_memory(size, max(student.steps for student in students))}
        needs = [replace(each, host={**each.host, **kept}) for each in needs]
    return require_resources(one_after_another(needs), [student.directory for student in students], device.type)


def _bytes_of_a_step(cache: TargetCache, batches: Source, task: Task) -> int:
    """Bytes of the targets of a training step in all processes, at least, by the first batch."""
    labels = batch_tensors(batches.batch(0))["labels"]
    positions = int((labels[:, 1:] != IGNORED_LABEL).sum())  # of causal models all, of others most
    return positions * cache.kind.least_bytes(task.vocabulary)


def groups_of(
    students: Sequence[Student], memory: float | None, task: Task, processes: Processes, device: torch.device
) -> list[list[Student]]:
    """The students in groups that are trained together, each of which needs at most `memory` gigabytes."""
    free = free_memory_of(device)
    most = free / 2 if memory is None else min(memory * 1e9, free)
    needs = [student.needs(task, processes) for student in students]
    groups = fitting_groups(needs, -processes.largest(-most), device.type)
    return [[students[i] for i in group] for group in groups]


def report_of_teacher(
    teacher: Checkpoint, task: Task, arguments: DistillArguments, setting: Setting, device: torch.device
) -> str:
    """A line on a teacher's accuracy on the evaluation data of all students."""
    model = setting.load_model(local_path(teacher), task)
    held_out = setting.evaluation_batches(task, arguments.eval_samples)
    return report_on(model, teacher, held_out, objective_of(model), device)


def _run_directory(arguments: Distill, student: Distill, presets: Mapping[str, Distill], setting: Setting) -> Path:
    """`--out` itself for a single run, a folder in it for one of several; by default a folder in the setting's runs."""
    sizes = [f"heads{student.student_heads[0]}", f"steps{student.steps[0]}", f"seed{student.seeds[0]}"]
    windows = [f"windows{text}" for text in getattr(student, "windows", None) or ()]
    parts = [*student.methods, *student.checkpoint, *windows, *sizes]
    if arguments.out is not None:
        several = len(student_arguments(arguments, plural_of(arguments))) > 1
        return arguments.out / "-".join(parts) if several else arguments.out
    name = "-".join([arguments.preset, *parts])
    preset = replace(presets[arguments.preset], teacher=default_teacher(setting.name, arguments.preset))
    if student.methods[0] == "designed":
        preset = with_designs(replace(preset, methods=student.methods))
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


def prediction_notes(arguments: DistillArguments, setting: Setting, config: Mapping[str, Any]) -> list[str]:
    """Lines on what students predict, if a teacher with this config was trained to predict something else."""
    pairs = {name: (getattr(arguments, name), config["arguments"].get(name)) for name in setting.prediction_arguments}
    return [
        f"warning: {option_of(name)} is {ours}, but the teacher was trained with {theirs}"
        for name, (ours, theirs) in pairs.items()
        if ours != theirs
    ]
