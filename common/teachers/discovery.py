"""A teacher's checkpoints, in a directory or on the Hugging Face hub."""

import re
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError, HTTPError

from common.errors import UserError
from common.runs.files import NUMBER


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a teacher."""

    step: int
    """Teacher step at which it was saved."""
    location: Path | str
    """A local directory, or `org/name@step<N>` on the Hugging Face hub."""


def find_checkpoints(teacher: str | Path) -> list[Checkpoint]:
    """All checkpoints of a teacher, in the order of their steps.

    Args:
        teacher: a directory with `checkpoint-<step>` directories, from a run of this project or of any Hugging Face
            trainer, or else a hub id `org/name` with branches or tags `step<N>`, which are only listed here.

    Raises:
        UserError: the teacher does not exist, has no checkpoint, or one lacks its files.
    """
    locations: dict[int, Path | str] = {}
    if Path(teacher).is_dir():
        for directory in Path(teacher).iterdir():
            if match := re.fullmatch(f"checkpoint-{NUMBER}", directory.name):
                locations[int(match[1])] = _with_weights(directory)
        wanted = "checkpoint-<step> directory"
    else:
        for revision in _hub_revisions(str(teacher)):
            if match := re.fullmatch(f"step{NUMBER}", revision):
                locations[int(match[1])] = f"{teacher}@{revision}"
        wanted = "branch or tag step<N>"
    if not locations:
        raise UserError(f"{teacher} has no {wanted}: give a teacher that saved checkpoints")
    return [Checkpoint(step, location) for step, location in sorted(locations.items())]


def local_path(checkpoint: Checkpoint) -> Path:
    """The directory of a checkpoint; one on the hub is downloaded, without pickles, unless it is cached.

    Raises:
        UserError: the download failed, or it has no config or no safetensors.
    """
    if isinstance(checkpoint.location, Path):
        return checkpoint.location
    name, revision = checkpoint.location.split("@")
    patterns = ["*.json", "*.safetensors", "*.txt"]
    try:
        return _with_weights(Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns)))
    except (HTTPError, OSError) as error:
        raise UserError(
            f"cannot download {checkpoint.location} from the Hugging Face hub ({type(error).__name__}): "
            "check the connection and the disk space, then rerun the command"
        ) from error


def _with_weights(directory: Path) -> Path:
    if not (directory / "config.json").is_file() or not any(directory.glob("model*.safetensors")):
        raise UserError(f"{directory} lacks config.json or model.safetensors: remove it, or let its run finish it")
    return directory


def _hub_revisions(name: str) -> list[str]:
    advice = "give a run's directory, or org/name of a model on the Hugging Face hub"
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise UserError(f"there is no directory {name}: {advice}")
    try:
        refs = huggingface_hub.HfApi().list_repo_refs(name)
    except (HTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"there is no directory {name}, and the Hugging Face hub cannot list a model of that name "
            f"({type(error).__name__}): {advice}"
        ) from error
    return [ref.name for ref in [*refs.branches, *refs.tags]]
