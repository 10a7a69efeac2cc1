"""Corpora as blocks of a fixed number of tokens on disk, split into train and held-out.

A document that nearly repeats an earlier one, of any of the corpora, is left out (see near_duplicates.py). A hash of
the beginning of each other one decides whether it is held out, so that a document is on the same side whatever else is
prepared. The documents of a side, each followed by a separator, are cut into blocks of `length` tokens; of each corpus
the rest that does not fill a block is left out. No block has documents of both sides, or of two corpora.

    data/text/<hash of what the blocks depend on>/
      train.npy, held_out.npy   (blocks, length), corpus after corpus; uint16 if the vocabulary fits, else uint32
      tokenizer/                as `save_pretrained` writes it
      blocks.json               written last: what they were made from, counts, and digests of the two files

The directory is made under a hidden name, with a lock, and renamed once it is complete: what a killed process leaves
behind is made again, and a process that comes second waits and uses the blocks of the first. The digests are added when
blocks without them are opened: right after preparation, or where an earlier version prepared them.
"""

import hashlib
import json
import os
import tokenize
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import numpy as np
from numpy.typing import NDArray

from common.arguments import is_of_type
from common.errors import UserError
from common.runs.files import read_json, require_regular, sampled_digest, to_json, write_file
from common.runs.names import ROOT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FOLDER = ROOT / "data" / "text"
"""Where blocks are stored, unless the environment variable TEXT_BLOCKS names another directory."""

FORMAT = 1
"""To be raised when the same arguments give other blocks."""

SPLITS = ("train", "held_out")

TRAINED = ("wordpiece", "bpe")
"""Tokenizers that are trained on the corpora."""


@dataclass(frozen=True)
class TextData:
    """What blocks are made from."""

    corpora: tuple[str, ...] = ("docs",)
    """Names; see corpora.py."""
    text_column: str = "text"
    """Column with the documents, of JSON, parquet and hub datasets."""
    tokenizer: str = "wordpiece"
    """wordpiece or bpe, to be trained on the corpora; or a directory or a model on the hub."""
    vocabulary: int = 8192
    """Tokens of a tokenizer that is trained."""
    length: int = 128
    """Tokens per block."""
    held_out: float = 0.03
    """Fraction of the documents that is held out."""

    def __post_init__(self) -> None:
        if not self.corpora or len(set(self.corpora)) < len(self.corpora):
            raise UserError(f"--corpus must be one or more different corpora, not {', '.join(self.corpora) or 'none'}")
        if self.length < 2:
            raise UserError(f"--length must be at least 2 tokens, got {self.length}")
        if not 0 < self.held_out < 1:
            raise UserError(f"--held-out must be between 0 and 1, both excluded, got {self.held_out}")


@dataclass(frozen=True)
class CorpusBlocks:
    """A corpus within the blocks."""

    name: str
    train: int
    held_out: int
    """Blocks."""
    train_documents: int
    held_out_documents: int
    train_tokens: int
    held_out_tokens: int
    """With separators, and with the rest that does not fill a block."""
    duplicates: int
    """Documents that were left out because they nearly repeat another one."""
    characters: int
    """Of all documents that were not left out."""
    sha256: str
    """Of these documents."""
    notes: dict[str, Any]
    """What else was left out; commits of datasets on the hub; held-out sentences that occur in training documents."""


@dataclass(frozen=True)
class Blocks:
    """Prepared blocks; they are read on demand."""

    directory: Path
    length: int
    """Tokens per block."""
    vocabulary: int
    """Size of an embedding for the tokens."""
    separator: int
    """Id of the token after each document."""
    mask: int | None
    """Id of the mask token, if there is one."""
    special: tuple[int, ...]
    """Ids of all special tokens, in order."""
    tokenizer_sha256: str
    corpora: tuple[CorpusBlocks, ...]
    dtype: str
    seconds: dict[str, float]
    """That preparation took: for the tokenizer, and for reading, tokenizing and packing the documents."""
    digests: dict[str, str] = field(default_factory=dict)
    """Of train.npy and held_out.npy, by split, as of `sampled_digest`; none until they were opened once."""

    @cached_property
    def train(self) -> NDArray[np.unsignedinteger]:
        """(blocks, length), memory-mapped."""
        return self._open("train")

    @cached_property
    def held_out(self) -> NDArray[np.unsignedinteger]:
        """(blocks, length), memory-mapped."""
        return self._open("held_out")

    def samples(self, split: Literal["train", "held_out"], rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """Some blocks of `train` or `held_out`, (rows, length).

        Raises:
            UserError: a token is not in the vocabulary.
        """
        tokens = getattr(self, split)[rows].astype(np.int64)
        if tokens.max(initial=0) >= self.vocabulary:
            raise damaged(self.directory / f"{split}.npy", self.directory)
        return tokens

    @cached_property
    def is_special(self) -> NDArray[np.bool_]:
        """Whether a token is special, (vocabulary,)."""
        special = np.zeros(self.vocabulary, np.bool_)
        special[list(self.special)] = True
        return special

    @cached_property
    def ordinary(self) -> NDArray[np.int64]:
        """Ids of all other tokens, in order."""
        return np.flatnonzero(~self.is_special)

    def ranges(self, split: str) -> list[range]:
        """The rows of each corpus in `train` or `held_out`."""
        ends = np.cumsum([0, *(getattr(corpus, split) for corpus in self.corpora)]).tolist()
        return [range(start, stop) for start, stop in pairwise(ends)]

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The tokenizer.

        Raises:
            UserError: it is damaged.
        """
        from common.text.tokenization import load_tokenizer, separator_of, tokenizer_hash

        try:
            tokenizer = load_tokenizer(str(self.directory / "tokenizer"))
        except UserError as error:
            raise damaged(self.directory / "tokenizer", self.directory) from error
        known = (max(tokenizer.get_vocab().values()) + 1, tuple(sorted(tokenizer.all_special_ids)))
        if tokenizer_hash(tokenizer) != self.tokenizer_sha256 or known != (self.vocabulary, self.special):
            raise damaged(self.directory / "tokenizer", self.directory)
        if (tokenizer.mask_token_id, separator_of(tokenizer)) != (self.mask, self.separator):
            raise damaged(self.directory / "blocks.json", self.directory)
        return tokenizer

    def _open(self, split: str) -> NDArray[np.unsignedinteger]:
        path = self.directory / f"{split}.npy"
        rows = sum(getattr(corpus, split) for corpus in self.corpora)
        try:
            found = np.lib.format.open_memmap(require_regular(path), mode="r")
        except (OSError, ValueError, EOFError, RecursionError, SyntaxError, tokenize.TokenError):
            raise damaged(path, self.directory) from None
        fits = found.shape == (rows, self.length) and found.dtype == self.dtype and found.flags.c_contiguous
        if not fits:
            raise damaged(path, self.directory)
        return np.asarray(found)


def open_blocks(directory: Path) -> Blocks:
    """Blocks that were prepared.

    Raises:
        UserError: a file is missing, damaged, or not the one that was prepared.
    """
    found = read_json(directory / "blocks.json", f"remove {directory}, and its blocks are prepared again")
    try:
        named = {entry.name for entry in fields(Blocks)} - {"directory", "digests"}
        values = {name: found[name] for name in named} | {"digests": found.get("digests", {})}
        values["corpora"] = tuple(CorpusBlocks(**corpus) for corpus in found["corpora"])
        blocks = Blocks(directory, **{**values, "special": tuple(found["special"])})
    except (KeyError, TypeError):
        raise damaged(directory / "blocks.json", directory) from None
    if not _is_valid(blocks):
        raise damaged(directory / "blocks.json", directory)
    for split in SPLITS:
        blocks._open(split)
    digests = {split: sampled_digest(directory / f"{split}.npy") for split in SPLITS}
    if not blocks.digests:
        blocks = replace(blocks, digests=digests)
        with suppress(OSError):  # others may have prepared them, where nothing can be written
            write_file(directory / "blocks.json", to_json({**found, "digests": digests}))
    for split in SPLITS:
        if blocks.digests.get(split) != digests[split]:
            raise damaged(directory / f"{split}.npy", directory)
    if not (directory / "tokenizer" / "tokenizer.json").is_file():
        raise damaged(directory / "tokenizer", directory)
    return blocks


def _is_valid(blocks: Blocks) -> bool:
    """Whether values from blocks.json have the types and ranges that preparation gives them."""
    tokens = [blocks.separator, *blocks.special, *([] if blocks.mask is None else [blocks.mask])]
    return (
        all(is_of_type(value, int) for value in (blocks.length, blocks.vocabulary, *tokens))
        and isinstance(blocks.tokenizer_sha256, str)
        and isinstance(blocks.seconds, dict)
        and isinstance(blocks.digests, dict)
        and blocks.length >= 2
        and all(0 <= token < blocks.vocabulary <= 1 << 32 for token in tokens)
        and blocks.dtype == ("uint16" if blocks.vocabulary <= 1 << 16 else "uint32")
        and len(blocks.corpora) > 0
        and all(map(_is_valid_corpus, blocks.corpora))
    )


def _is_valid_corpus(corpus: CorpusBlocks) -> bool:
    """The same for a corpus."""
    if not all(
        is_of_type(getattr(corpus, name), hint)
        for name, hint in get_type_hints(CorpusBlocks).items()
        if name != "notes"
    ):
        return False
    numbers = [value for value in vars(corpus).values() if isinstance(value, int)]
    notes = corpus.notes
    if not isinstance(notes, dict) or not isinstance(commits := notes.get("commits", {}), dict):
        return False
    overlap = ("held_out_sentences", "held_out_sentences_in_training")
    counts = [notes[name] for name in ("duplicates_left_out", *overlap) if name in notes]
    return (
        all(is_of_type(count, int) and 0 <= count < 2**63 for count in (*numbers, *counts))
        and all(isinstance(commit, str) for commit in commits.values())
        and len({name in notes for name in overlap}) == 1
    )


def place_of(data: TextData, folder: Path = FOLDER) -> Path:
    """The directory of the blocks, named by a hash of all that they depend on.

    Raises:
        UserError: a corpus or a tokenizer to be loaded does not exist.
    """
    from common.text.corpora import Corpus

    if data.tokenizer in TRAINED:
        tokenizer: dict[str, Any] = {"trained": data.tokenizer, "vocabulary": data.vocabulary}
    else:
        from common.text.tokenization import load_tokenizer, tokenizer_hash

        tokenizer = {"sha256": tokenizer_hash(load_tokenizer(data.tokenizer))}
    identity = {
        "format": FORMAT,
        "corpora": [Corpus(name, data.text_column).identity() for name in data.corpora],
        "tokenizer": tokenizer,
        "length": data.length,
        "held_out": data.held_out,
    }
    return folder / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


class BlockFile:
    """A `.npy` file of blocks that grows; its header is written again at the end.

    Args:
        path: of a file that does not exist.
        length: tokens per block.
        dtype: of the tokens.
    """

    def __init__(self, path: Path, length: int, dtype: str) -> None:
        self._file = path.open("xb")
        self._length, self._dtype = length, np.dtype(dtype)
        self._rest = np.zeros(0, self._dtype)
        self.blocks = 0
        self._header = self._write_header()

    def append(self, tokens: NDArray[np.int64]) -> None:
        """Continue the latest block with more tokens."""
        joined = np.concatenate([self._rest, tokens.astype(self._dtype)])
        full = len(joined) // self._length
        self._file.write(joined[: full * self._length].data)
        self._rest = joined[full * self._length :].copy()
        self.blocks += full

    def drop_rest(self) -> None:
        """Leave out the tokens after the last full block."""
        self._rest = self._rest[:0]

    def close(self) -> None:
        """Make the file complete, and flush it to disk."""
        self._file.seek(0)
        if self._write_header() != self._header:
            raise AssertionError("NumPy leaves room for a longer shape, so that the header keeps its length")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _write_header(self) -> int:
        description = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.blocks, self._length)}
        np.lib.format.write_array_header_1_0(self._file, description)
        return self._file.tell()


def description_of(blocks: Blocks, data: TextData) -> dict[str, Any]:
    """The content of blocks.json."""
    return {"data": asdict(data), **{key: value for key, value in asdict(blocks).items() if key != "directory"}}


def damaged(path: Path, directory: Path) -> UserError:
    """The error for a file of blocks that cannot be used."""
    return UserError(f"{path} is missing or damaged: remove {directory}, and its blocks are prepared again")
