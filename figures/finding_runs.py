"""Find the runs and the probe results behind a figure.

Directory names do not matter: runs are identified by their config.json. A run belongs to a preset if its arguments are
those of the preset, except `EXECUTION_ARGUMENTS` and arguments that its config.json lacks because they were introduced
later.
"""

import json
import os
import shlex
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from common.arguments import is_of_type
from common.errors import UserError
from common.probes.checkpoints import read_probe, require_run
from common.runs import finding
from common.runs.names import EXECUTION_ARGUMENTS, ROOT
from common.runs.run import Run
from common.teachers.discovery import find_checkpoints


class MissingError(UserError):
    """A run or a probe result does not exist yet; the message names the command that creates it."""


@dataclass(frozen=True)
class FoundRun:
    """A complete run whose config.json is read once."""

    directory: Path
    config: Mapping[str, Any]

    @property
    def setting(self) -> str:
        return self.config["setting"]

    @property
    def arguments(self) -> Mapping[str, Any]:
        return self.config["arguments"]

    @property
    def argv(self) -> Sequence[str]:
        """The command that made it; empty if no command did."""
        return self.config["argv"]

    @property
    def is_student(self) -> bool:
        """Whether distill.py made it."""
        return "methods" in self.arguments

    def records(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, in order.

        Raises:
            UserError: it is damaged: there is none, steps are not ascending, or a measurement is no number.
        """
        records = Run(self.directory).records()
        if not (records and all(map(_is_record, records)) and _ascends([record["step"] for record in records])):
            raise _damaged(self.directory / "metrics.jsonl")
        return records


class Part(NamedTuple):
    """A part of the data behind the figures of a setting."""

    data: Any
    commands: Iterable[Sequence[str]]
    """The commands behind it, each as a list, in order; they may repeat."""


@dataclass(frozen=True)
class Collected:
    """The data behind the figures of a setting, as far as their runs exist."""

    data: dict[str, Any]
    errors: dict[str, UserError]
    """Why a part is missing, by its name: a `MissingError` if its runs do not exist yet."""


def find_runs(directory: Path) -> list[FoundRun]:
    """All complete runs in a directory, at any depth, in the order of their paths; links are not followed.

    Raises:
        UserError: there is no such directory, or the config.json of a run is damaged.
    """
    found = [FoundRun(run.directory, run.config) for run in finding.find_runs(directory) if run.complete]
    for run in found:
        if not _is_config(run.config):
            raise _damaged(run.directory / "config.json")
    return found


def _is_config(config: Mapping[str, Any]) -> bool:
    """Whether a run's config has what figures need of it, in the right types."""
    arguments = config["arguments"]
    is_student = "methods" in arguments
    types = {"methods": tuple[str, ...], "seeds": tuple[int, ...], "teacher": str} if is_student else {}
    return (
        "versions" in config
        and all(is_of_type(arguments.get(name), hint) for name, hint in types.items())
        and all(arguments[name] for name in types if name != "teacher")
    )


def _is_record(record: Mapping[str, Any]) -> bool:
    """Whether a record has a step and numbers, which are null where they were not finite."""
    return (
        is_of_type(record["step"], int)
        and all(is_of_type(record.get(name), float | None) for name in ("loss", "accuracy", "kl", "samples"))
        and is_of_type(record.get("teacher"), int | None)
    )


def _ascends(steps: Sequence[int]) -> bool:
    return all(step < later for step, later in pairwise(steps))


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is truncated or damaged: copy it again, or move its run elsewhere")


def with_arguments(
    runs: Iterable[FoundRun], arguments: Mapping[str, object], free: Collection[str] = ()
) -> list[FoundRun]:
    """The runs that have these arguments.

    Args:
        runs: to choose from.
        arguments: by name, in the types of a command's arguments.
        free: names of arguments that may differ.
    """
    plain = json.loads(json.dumps(dict(arguments), default=os.fspath))
    wanted = {name: value for name, value in plain.items() if name not in EXECUTION_ARGUMENTS and name not in free}
    return [run for run in runs if all(run.arguments.get(name, value) == value for name, value in wanted.items())]


def students_of(teacher: FoundRun, runs: Iterable[FoundRun]) -> list[FoundRun]:
    """The students of a teacher, identified by the teacher's id or, if a student has none, by its directory.

    Students that learn from the labels alone count as students of the teacher that their command named.
    """

    def learned_from_it(student: FoundRun) -> bool:
        known = student.arguments.get("teacher_id")
        if known is not None:
            return known == teacher.config.get("id")
        return (ROOT / student.arguments["teacher"]).resolve() == teacher.directory.resolve()

    return [run for run in runs if run.is_student and learned_from_it(run)]


def only_run(runs: Sequence[FoundRun], description: str, command: str) -> FoundRun:
    """The only one of the runs found.

    Args:
        runs: that were found.
        description: of the run.
        command: that makes it.

    Raises:
        MissingError: there is none.
        UserError: there are several.
    """
    if not runs:
        raise MissingError(f"no complete run of {description}; create it with {command}")
    return runs_by_key(runs, lambda run: description, lambda key: key)[description]


def runs_by_key(
    runs: Iterable[FoundRun], key: Callable[[FoundRun], Hashable], describe: Callable[[Any], str]
) -> dict[Any, FoundRun]:
    """Runs by what distinguishes them in a figure.

    Args:
        runs: that were found.
        key: of a run.
        describe: a key in words.

    Raises:
        UserError: two runs have the same key, such as a run and its copy.
    """
    found: dict[Any, FoundRun] = {}
    for run in runs:
        other = found.setdefault(key(run), run)
        if other is not run:
            raise UserError(
                f"{other.directory} and {run.directory} are both {describe(key(run))}: keep only one of them in the "
                "directory"
            )
    return found


def runs_by_seed(runs: Sequence[FoundRun], description: str, command: str) -> dict[int, FoundRun]:
    """Students that differ in their seed alone, by seed in ascending order.

    Args:
        runs: that were found.
        description: of the runs.
        command: that makes them.

    Raises:
        MissingError: there is none.
        UserError: two runs have the same seed.
    """
    if not runs:
        raise MissingError(f"no complete run of {description}; create it with {command}")
    found = runs_by_key(runs, lambda run: run.arguments["seeds"][0], lambda seed: f"{description} with seed {seed}")
    return dict(sorted(found.items()))


def final_accuracies(
    runs: Mapping[int, Sequence[FoundRun]], describe: Callable[[int], str], command: str
) -> dict[str, Any]:
    """Final accuracies of students that differ in a number and in their seeds, the seeds being the same throughout.

    Args:
        runs: by that number.
        describe: runs of a number in words.
        command: that makes them.

    Returns:
        `seeds`, and `accuracy` of shape (seeds, numbers).

    Raises:
        MissingError: a run does not exist.
        UserError: two runs have the same number and seed.
    """
    found = {number: runs_by_seed(some, describe(number), command) for number, some in runs.items()}
    seeds = sorted(set().union(*found.values()))
    for number, some in found.items():
        if missing := [seed for seed in seeds if seed not in some]:
            raise MissingError(
                f"no complete run of {describe(number)} with seed {missing[0]}; create it with {command}"
            )
    final = [[some[seed].records()[-1]["accuracy"] for some in found.values()] for seed in seeds]
    return {"seeds": seeds, "accuracy": [[round(accuracy, 5) for accuracy in row] for row in final]}


def collect_parts(
    preset: str,
    teacher: FoundRun,
    students: Sequence[FoundRun],
    always: Mapping[str, Any],
    parts: Mapping[str, Callable[[], Part]],
) -> Collected:
    """The data of a setting, with every part whose runs exist.

    Args:
        preset: its name.
        teacher: the preset's.
        students: of the teacher.
        always: data of the teacher alone.
        parts: by name, in the order in which their commands are listed.
    """
    found: dict[str, Part] = {}
    errors: dict[str, UserError] = {}
    for name, part in parts.items():
        try:
            found[name] = part()
        except UserError as error:
            errors[name] = error
    commands = [teacher.argv, *(argv for part in found.values() for argv in part.commands)]
    data = {
        "setting": teacher.setting,
        "preset": preset,
        "commands": list(dict.fromkeys(shlex.join(argv) for argv in commands if argv)),
        "versions": teacher.config["versions"],
        "commits": sorted({run.config["commit"] for run in [teacher, *students] if run.config.get("commit")}),
        **always,
        **{name: part.data for name, part in found.items()},
    }
    return Collected(data, errors)


def probe_file(run: FoundRun, name: str, **settings: object) -> Path | None:
    """The file that a probe wrote for a run, whatever its arguments but for `settings`; None if it was not probed.

    Raises:
        UserError: there are several, or one is damaged or of another run.
    """
    found = sorted([*run.directory.glob(f"probes/{name}.json"), *run.directory.glob(f"probes/{name}-*.json")])
    if settings:
        found = [path for path in found if settings.items() <= read_probe(path).get("settings", {}).items()]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{run.directory / 'probes'} has {names}: keep only the file to be drawn")
    for path in found:
        require_run(read_probe(path), path, run.config.get("id"))
    return found[0] if found else None


def probe_result(run: FoundRun, name: str, command: str, **settings: object) -> dict[str, Any]:
    """The content of a probe's file.

    Args:
        run: that was probed.
        name: of the probe.
        command: that probes it.
        settings: arguments of the probe; the others may have any value.

    Raises:
        MissingError: there is no such file, or it lacks checkpoints.
        UserError: there are several, or one is damaged or of another run.
    """
    path = probe_file(run, name, **settings)
    if path is None:
        raise MissingError(f"{run.directory} has not been probed; do so with {command}")
    content = read_probe(path)
    probed = [entry["step"] for entry in content.get("checkpoints", ())]
    if "checkpoints" in content and probed != [checkpoint.step for checkpoint in find_checkpoints(run.directory)]:
        raise MissingError(f"{path} lacks checkpoints; add them with {command}")
    return content
