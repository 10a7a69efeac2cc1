"""Find the runs and probes behind a figure: every complete run below a folder, told from others by its config.json.

Names of directories mean nothing. A run is that of a preset if its arguments are the preset's; those that only say
where and how it was executed (`EXECUTION_ARGUMENTS`) do not count, nor does an argument that its config.json lacks, as
there was none when it was made.
"""

import json
import os
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.runs.names import EXECUTION_ARGUMENTS
from common.runs.run import Run
from common.teachers.discovery import find_checkpoints

ROOT = Path(__file__).resolve().parents[1]


class MissingError(UserError):
    """A run or a probe is not there; the message names the command that makes it."""


@dataclass(frozen=True)
class FoundRun:
    """A complete run, its config.json read once."""

    run: Run
    config: Mapping[str, Any]
    shown: str
    """Its directory as commands that are written down name it: from the repository's root, or else from runs/."""

    @property
    def directory(self) -> Path:
        """Where it is."""
        return self.run.directory

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Those of its command."""
        return self.config["arguments"]

    @property
    def is_student(self) -> bool:
        """Whether distill.py made it."""
        return "methods" in self.arguments

    def records(self) -> list[dict[str, Any]]:
        """Every record, in the order they were logged."""
        return self.run.records()


@dataclass(frozen=True)
class Collected:
    """What is behind the figures of a setting, as far as it is there."""

    data: dict[str, Any]
    """By part."""
    errors: dict[str, UserError]
    """Why a part is not there: a `MissingError` if its runs have yet to be made."""


def find_runs(root: Path) -> list[FoundRun]:
    """Every complete run below a folder, at any depth, in the order of their paths; links are not followed.

    Raises:
        UserError: there is no such folder, or a run's config.json is damaged.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}")
    found = []
    for path, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("checkpoint-"))
        if {"config.json", "done.json"} <= set(files):
            run = Run(Path(path))
            found.append(FoundRun(run, run.config, _shown(run.directory, root)))
    return found


def made_with(runs: Iterable[FoundRun], arguments: Mapping[str, object], free: Collection[str] = ()) -> list[FoundRun]:
    """Runs that were made with these arguments.

    Args:
        runs: to choose from.
        arguments: by name, in the types that a command has.
        free: names of arguments that may differ.
    """
    plain = json.loads(json.dumps(dict(arguments), default=os.fspath))
    wanted = {name: value for name, value in plain.items() if name not in EXECUTION_ARGUMENTS and name not in free}
    return [run for run in runs if all(run.arguments.get(name, value) == value for name, value in wanted.items())]


def belongs_to(student: FoundRun, teacher: FoundRun) -> bool:
    """Whether a student was taught by a teacher: by the teacher's id, or, if the student knows none, by its directory.

    Students of labels alone are counted in with the teacher that their command named.
    """
    known = student.arguments.get("teacher_id")
    if known is not None:
        return known == teacher.config.get("id")
    return (ROOT / student.arguments["teacher"]).resolve() == teacher.directory.resolve()


def only_one(runs: Sequence[FoundRun], what: str, made_by: str) -> FoundRun:
    """The only one of runs.

    Args:
        runs: that were found.
        what: they are.
        made_by: the command that makes such a run.

    Raises:
        MissingError: there is none.
        UserError: there are several.
    """
    if not runs:
        raise MissingError(f"there is no complete run of {what}; make it by {made_by}")
    return by_key(runs, lambda run: what, lambda key: key)[what]


def by_key(
    runs: Iterable[FoundRun], key: Callable[[FoundRun], Hashable], what: Callable[[Any], str]
) -> dict[Any, FoundRun]:
    """Runs by what tells them apart in a figure.

    Args:
        runs: that were found.
        key: of a run.
        what: the words for a key.

    Raises:
        UserError: two runs would be the same point; copies of a run are two runs.
    """
    found: dict[Any, FoundRun] = {}
    for run in runs:
        other = found.setdefault(key(run), run)
        if other is not run:
            raise UserError(
                f"{other.directory} and {run.directory} are both {what(key(run))}: leave one of them in the folder"
            )
    return found


def by_seed(runs: Sequence[FoundRun], what: str, made_by: str) -> dict[int, FoundRun]:
    """Students that differ in their seed alone, in its order.

    Args:
        runs: that were found.
        what: they are.
        made_by: the command that makes them.

    Raises:
        MissingError: there is none.
        UserError: a seed is there twice.
    """
    if not runs:
        raise MissingError(f"there is no complete run of {what}; make it by {made_by}")
    found = by_key(runs, lambda run: run.arguments["seeds"][0], lambda seed: f"{what} with seed {seed}")
    return dict(sorted(found.items()))


def final_accuracies(
    runs: Mapping[int, Sequence[FoundRun]], what: Callable[[int], str], made_by: str
) -> dict[str, Any]:
    """What students end with that differ in one number, all with the same seeds.

    Args:
        runs: by that number.
        what: they are, by that number.
        made_by: the command that makes them.

    Returns:
        `seeds`, and `accuracy` of shape (seeds, numbers).

    Raises:
        MissingError: a run is not there.
        UserError: a run is there twice.
    """
    found = {number: by_seed(some, what(number), made_by) for number, some in runs.items()}
    seeds = sorted(set().union(*found.values()))
    for number, some in found.items():
        if missing := [seed for seed in seeds if seed not in some]:
            raise MissingError(
                f"there is no complete run of {what(number)} with seed {missing[0]}; make it by {made_by}"
            )
    final = [[some[seed].records()[-1]["accuracy"] for some in found.values()] for seed in seeds]
    return {"seeds": seeds, "accuracy": [[round(accuracy, 5) for accuracy in row] for row in final]}


def collect_parts(parts: Mapping[str, Callable[[], Any]]) -> Collected:
    """Each part on its own, so that one is there though another's runs are not."""
    data, errors = {}, {}
    for name, part in parts.items():
        try:
            data[name] = part()
        except UserError as error:
            errors[name] = error
    return Collected(data, errors)


def commits_of(runs: Iterable[FoundRun]) -> list[str]:
    """Git commits of the code that made the runs, each once."""
    return sorted({run.config["commit"] for run in runs if run.config.get("commit")})


def probe_file(run: FoundRun, name: str) -> Path | None:
    """The only file that a probe wrote for a run, whatever the probe's arguments; None if there is none.

    Raises:
        UserError: there are several.
    """
    found = sorted([*run.directory.glob(f"probes/{name}.json"), *run.directory.glob(f"probes/{name}-*.json")])
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{run.directory / 'probes'} has {names}: leave the one there that is to be drawn")
    return found[0] if found else None


def probe_result(run: FoundRun, name: str, made_by: str) -> dict[str, Any]:
    """What a probe found.

    Args:
        run: that was probed.
        name: of the probe.
        made_by: the command that probes.

    Raises:
        MissingError: there is no file, or checkpoints are missing.
        UserError: there are several files.
    """
    path = probe_file(run, name)
    if path is None:
        raise MissingError(f"{run.directory} was not probed; do it by {made_by}")
    content = json.loads(path.read_bytes())
    probed = [entry["step"] for entry in content.get("checkpoints", ())]
    if "checkpoints" in content and probed != [checkpoint.step for checkpoint in find_checkpoints(run.directory)]:
        raise MissingError(f"{path} lacks checkpoints; go on by {made_by}")
    return content


def _shown(directory: Path, root: Path) -> str:
    resolved = directory.resolve()
    if resolved.is_relative_to(ROOT):
        return resolved.relative_to(ROOT).as_posix()
    return (Path("runs") / directory.relative_to(root)).as_posix()
