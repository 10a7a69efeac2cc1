"""The classes that a student and a teacher share: the tokens of a tokenizer, without the padding of either model."""

import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
from common.runs.files import require_readable

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")


def shared_classes(
    student: int, teacher: int, students: PreTrainedTokenizerBase | None, teachers: PreTrainedTokenizerBase | None
) -> int:
    """Number of classes, from the first one on, that mean the same token to student and teacher.

    Args:
        student: classes of the student's logits.
        teacher: classes of the teacher's logits.
        students: the student's tokenizer, if it has one.
        teachers: the teacher's tokenizer, if it has one.

    Raises:
        UserError: the tokenizers differ, or the sizes differ and a tokenizer is unknown.
    """
    if students is None or teachers is None:
        if student != teacher:
            unknown = [name for name, of in (("student", students), ("teacher", teachers)) if of is None]
            raise UserError(
                f"the student predicts {student:,} classes and the teacher {teacher:,}, and the tokenizer of the "
                f"{' and the '.join(unknown)} is unknown: give processing_class=tokenizer for the student and save the "
                "teacher's in its directory, or give classes=N if the first N are the same tokens"
            )
        return student
    ours, theirs = students.get_vocab(), teachers.get_vocab()
    differing = sorted(token for token in ours.keys() & theirs.keys() if ours[token] != theirs[token])
    smaller, larger = sorted((ours, theirs), key=len)
    lacking = sorted(smaller.keys() - larger.keys())
    if differing or lacking:
        token = (differing or lacking)[0]
        raise UserError(
            f"the teacher's tokenizer ({type(teachers).__name__}, {len(theirs):,} tokens) is not the student's "
            f"({type(students).__name__}, {len(ours):,} tokens): {token!r} has the id {ours.get(token, 'none')} "
            f"for the student and {theirs.get(token, 'none')} for the teacher; give a teacher with the same tokenizer"
        )
    if len(ours) == len(theirs):
        return min(student, teacher)
    return min(student, teacher, max(smaller.values()) + 1)


def tokenizer_of(path: Path | str) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a checkpoint's directory or, for a hub id, in the cache; None if there is none.

    Raises:
        UserError: its files are damaged.
    """
    if not str(path):
        return None
    if Path(path).is_dir() and not has_tokenizer(Path(path)):
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            require_readable(path), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # that of `tokenizers` is no subclass
        if Path(path).is_dir():
            raise UserError(f"{path} has a tokenizer that cannot be loaded: {str(error).splitlines()[0]}") from error
        if not isinstance(error, OSError | ValueError):
            raise
        return None
    return tokenizer


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory has a file with the tokens of a tokenizer."""
    return any((directory / name).exists() for name in TOKENIZER_FILES)


def teacher_tokenizer(checkpoint: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a checkpoint's directory or else in the directory around it; None if there is none.

    Raises:
        UserError: its files are damaged.
    """
    found = tokenizer_of(checkpoint)
    return tokenizer_of(checkpoint.absolute().parent) if found is None else found


def student_tokenizer(student: PreTrainedModel, processing_class: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer given to the trainer, or else that of the checkpoint that the student was loaded from."""
    if isinstance(processing_class, PreTrainedTokenizerBase):
        return processing_class
    return tokenizer_of(student.config.name_or_path or "")


def tokenizer_files(processing_class: Any) -> dict[str, bytes]:
    """The files of a tokenizer, by name; none of anything else."""
    if not isinstance(processing_class, PreTrainedTokenizerBase):
        return {}
    with tempfile.TemporaryDirectory() as directory:
        processing_class.save_pretrained(directory)
        return {path.name: path.read_bytes() for path in sorted(Path(directory).iterdir()) if path.is_file()}


def classes_of(config: PretrainedConfig) -> int:
    """Number of classes of a language model's logits."""
    classes: int = config.get_text_config().vocab_size
    return classes
