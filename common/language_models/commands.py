"""`train.py` and `distill.py` of the settings with language models."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from common.arguments import option_of, require_at_least, require_seed, require_steps
from common.cli import fast_garbage_collection
from common.distillation.arguments import require_distinct, student_arguments, with_designs
from common.distillation.automatic import Anchor
from common.distillation.given_teacher import own_checkpoint_warnings, teacher_id_of
from common.distillation.losses import check_loss_arguments
from common.distillation.supervision import (
    FROM_LABELS,
    automatic_notes,
    print_notes,
    require_early_evaluation,
    schedule_warnings,
    trajectory_warnings,
    used_checkpoints,
)
from common.errors import DivergedError
from common.language_models.arguments import TrainArguments, check
from common.language_models.setting import Setting, config_of, task_of
from common.language_models.students import (
    Distill,
    Student,
    automatic_anchors,
    groups_of,
    missing_targets,
    plural_of,
    prediction_notes,
    report_of_teacher,
    require_resources_of,
    student_of,
    target_cache_of,
    task_of_students,
    with_teacher,
)
from common.language_models.training import (
    needs_of,
    processes_of,
    require_first_labels,
    train_to_end,
    trainer_arguments,
    trainer_of,
    trainer_options,
)
from common.resources import require_resources
from common.runs.names import RUNS, default_name
from common.runs.processes import open_shared_run
from common.runs.run import Run
from common.teachers.discovery import local_path
from common.teachers.trajectory import checkpoint_digests


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
        needs = needs_of(arguments, task, arguments.heads, arguments.steps, processes_of(trainer_args))
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
    arguments = with_designs(arguments)
    plural = plural_of(arguments)
    require_distinct(arguments, plural)
    require_steps(arguments)
    require_at_least(1, arguments, "student_heads")
    require_seed(arguments, "seeds", "stream_seed")
    arguments, teacher = with_teacher(arguments, setting, argv)
    given = arguments, presets, setting, teacher
    students = [student_of(chosen, *given) for chosen in student_arguments(arguments, plural)]
    processes, device = processes_of(students[0].trainer_args), students[0].trainer_args.device

    task = task_of_students(arguments, setting, teacher)  # may take minutes; what needs no data has been checked
    anchors: list[Anchor] = []
    if "auto" in arguments.methods:
        require_early_evaluation(arguments.eval_every, min(arguments.steps))
        anchors = automatic_anchors(arguments, teacher, task, setting, device)
        students = [student_of(student.arguments, *given, anchors) for student in students]
    for student in students:
        check_loss_arguments(student.supervision, task.vocabulary, option_of)
    batches = setting.training_batches(arguments, task, max(arguments.steps), arguments.stream_seed)
    unfinished = [student for student in students if arguments.force or not Run(student.directory).complete]
    groups = groups_of(unfinished, arguments.memory, task, processes, device)
    prepared = [(student.arguments, student.supervision, student.steps) for student in students]
    used = used_checkpoints(prepared)
    last = (used or teacher.checkpoints)[-1] if teacher.checkpoints else None
    cache = None
    if arguments.cache_teacher is not None and used:
        cache = target_cache_of(arguments, setting, task, students)
    notes = automatic_notes(anchors) if anchors else []
    notes += [] if teacher.config is None else prediction_notes(arguments, setting, teacher.config)
    shared: dict[str, Any] = {}
    for student in unfinished:
        student.designed_models(setting, task)  # which may be refused
    if unfinished:
        notes += require_resources_of(groups, cache, task, batches, processes, device)
        require_first_labels(batches, min(student.steps for student in unfinished))
        shared = {**trainer_options(arguments, setting, task), "cache": cache}
    is_cached = cache is not None and not missing_targets(cache, unfinished, used, batches, task, processes)
    if last is not None and not is_cached:
        setting.load_model(local_path(last), task)
    setting.check_checkpoints(used, task)
    if teacher.config is not None:
        compared = teacher.checkpoints if anchors else used
        notes += own_checkpoint_warnings(teacher.directory, compared, arguments.trust_trajectory)
    digests = checkpoint_digests(used)
    notes += [] if last is None else setting.notes(local_path(last), task)
    notes += [*trajectory_warnings(used, arguments.trust_trajectory), *schedule_warnings(prepared)]
    is_reported = not used or is_cached
    if is_reported and unfinished and processes.first:
        print_notes(notes)

    def opened(student: Student) -> AbstractContextManager[Run]:
        own = teacher_id_of(student.directory, (teacher.config or {}).get("id"), bool(student.supervision.teacher))
        config = {**config_of(student.arguments, task, setting), "teacher_id": own}
        options = {"argv": argv, "force": arguments.force, "wandb": arguments.wandb, "group": arguments.preset}
        return open_shared_run(student.directory, config, processes, setting=setting.name, **options)

    diverged: list[DivergedError] = []
    finished = [[student] for student in students if student not in unfinished]
    for group in [*finished, *groups]:
        with ExitStack() as stack:
            runs = [(student, stack.enter_context(opened(student))) for student in group]
            for student, run in runs:
                if run.complete:
                    run.require_teacher(student.digests_of_teacher(digests))
                    processes.print(f"{run.directory} is complete")
            trainers = [
                student.trainer(setting, run, task, batches, shared) for student, run in runs if not run.complete
            ]
            if not trainers:
                continue
            if last is not None and not is_reported:
                is_reported = True
                report = report_of_teacher(last, task, arguments, setting, device)  # may raise, in every process
                if processes.first:
                    print_notes([*notes, report])
            try:
                train_to_end(trainers)
            except DivergedError as divergence:
                diverged.append(divergence)
    if diverged:
        raise diverged[0]
