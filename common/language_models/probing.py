"""`probe.py` of the settings with language models: the task that is probed, and the models of all checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from common.arguments import device_of
from common.distillation.supervision import print_notes
from common.language_models.setting import Setting, Task, task_of_run
from common.probes.arguments import ProbedArguments
from common.probes.checkpoints import ProbedData, given_task, probe_checkpoints
from common.teachers.discovery import find_checkpoints
from common.teachers.tensors import require_finite_logits


def probed_task(arguments: ProbedArguments, setting: Setting) -> Any:
    """The task of the run that is probed, or the one given for a teacher that is not a run.

    Raises:
        UserError: the run is of another setting or its data has changed; or no task, or an unknown one, is given for a
            teacher, or it has no checkpoint.
    """
    given = given_task(arguments)
    if given is None:
        return task_of_run(arguments.run, setting)
    find_checkpoints(arguments.run, arguments.teacher_pattern)  # before data is prepared, which may take minutes
    return setting.task(given)


def probed_data(setting: Setting, task: Task) -> ProbedData:
    """What the data of a task is."""
    return ProbedData(setting.resolved(task), setting.identity(task))


def probe_models(
    arguments: ProbedArguments,
    argv: Sequence[str],
    name: str,
    setting: Setting,
    task: Task,
    measure: Callable[[Any], dict[str, Any]],
    once: Mapping[str, Callable[[], object]],
    device: Literal["auto", "cpu", "cuda"],
) -> None:
    """`probe_checkpoints` with `measure` called on the model of each checkpoint, on the device.

    Raises:
        UserError: the device cannot be used, the run has no checkpoint, or the hidden states or logits of one are not
            finite.
    """
    used = device_of(device)
    noted: list[str] = []

    def measure_checkpoint(checkpoint: Path) -> dict[str, Any]:
        model = setting.load_model(checkpoint, task)
        if not noted and (lines := setting.notes(checkpoint, task)):
            print_notes(lines)
            noted.extend(lines)
        model.to(used)  # type: ignore[arg-type]
        model.register_forward_hook(lambda module, inputs, output: require_finite_logits(output["logits"], checkpoint))
        model.base_model.register_forward_hook(
            lambda module, inputs, output: require_finite_logits(output["last_hidden_state"], checkpoint)
        )
        return measure(model)

    data = probed_data(setting, task)
    probe_checkpoints(arguments, argv, setting.name, name, measure_checkpoint, once, data=data)
