"""Making blocks from corpora: training of the tokenizer, near-duplicates, the split, tokenizing and packing."""

import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
from transformers import PreTrainedTokenizerFast

from common.errors import UserError
from common.runs.files import make_directory, open_lock, to_json, write_file
from common.text import blocks as stored
from common.text.blocks import (
    BlockFile,
    Blocks,
    CorpusBlocks,
    TextData,
    damaged,
    description_of,
    open_blocks,
    place_of,
)
from common.text.corpora import Corpus
from common.text.encoding import Encoder
from common.text.near_duplicates import NearDuplicates, normalised, prefix_key
from common.text.sentences import SentenceOverlap
from common.text.tokenization import (
    TRAINING_CHARACTERS,
    load_tokenizer,
    plain,
    separator_of,
    tokenizer_hash,
    train_tokenizer,
)

WARNED_UNKNOWN, MOST_UNKNOWN = 0.05, 0.5
"""Shares of unknown tokens in a corpus from which on there is a warning, or an error."""

BATCH_CHARACTERS = 1 << 20
"""Characters of documents that are processed together, or a little more."""


def prepared(data: TextData, folder: Path | None = None) -> Blocks:
    """The blocks of some corpora, prepared if they are not there yet.

    Args:
        data: what they are made from.
        folder: with the directories of blocks; by default that of TEXT_BLOCKS or data/text in the repository.

    Raises:
        UserError: a corpus or the tokenizer cannot be read, there are too few documents, or earlier blocks are damaged.
    """
    folder = folder or Path(os.environ.get("TEXT_BLOCKS") or stored.FOLDER)
    directory = place_of(data, folder)
    if not directory.exists():
        with _lock(directory.with_name(f".{directory.name}.lock"), directory):
            if not directory.exists():
                unfinished = directory.with_name(f".{directory.name}.unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)
                try:
                    _prepare(data, directory, unfinished)
                    if place_of(data, folder) != directory:
                        raise UserError("a corpus was changed while it was prepared: rerun the command")
                    os.rename(unfinished, directory)
                finally:
                    shutil.rmtree(unfinished, ignore_errors=True)
    blocks = open_blocks(directory)
    if (blocks.length, len(blocks.corpora)) != (data.length, len(data.corpora)):
        raise damaged(directory / "blocks.json", directory)
    return blocks


def is_held_out(document: str, fraction: float) -> bool:
    """The side of a normalised document, which its first `PREFIX` characters decide."""
    return prefix_key(document) < fraction * 2**64


def update_hash(digest: "hashlib._Hash", document: str) -> None:
    """Append a document, so that different sequences of documents give different hashes."""
    content = document.encode()
    digest.update(len(content).to_bytes(8, "little") + content)


@contextmanager
def _lock(path: Path, directory: Path) -> Iterator[None]:
    """Hold a lock, once another process that holds it has ended.

    Its file is removed in the end, and so are the folders that were made for it, if they are empty.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        with _taken(path, directory):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def _taken(path: Path, directory: Path) -> IO[bytes]:
    """The locked file of a lock, which another process may remove when it ends."""
    while True:
        make_directory(path.parent)
        try:
            lock = open_lock(path)
        except FileNotFoundError:  # another process has removed the directory since
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that prepares {directory}", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(path)):
                return lock
        lock.close()


def _prepare(data: TextData, directory: Path, unfinished: Path) -> None:
    """Write what will be `directory` to `unfinished`."""
    unfinished.mkdir()
    print(f"preparing {', '.join(data.corpora)} in {directory}", file=sys.stderr, flush=True)
    corpora = [Corpus(name, data.text_column) for name in data.corpora]
    started = time.perf_counter()
    tokenizer = _tokenizer(data, corpora)
    tokenizer.save_pretrained(unfinished / "tokenizer")
    trained = time.perf_counter()
    vocabulary = max(tokenizer.get_vocab().values()) + 1  # ids may have gaps
    dtype = "uint16" if vocabulary <= 1 << 16 else "uint32"
    files = {split: BlockFile(unfinished / f"{split}.npy", data.length, dtype) for split in stored.SPLITS}
    encoder, known = Encoder(plain(tokenizer)), NearDuplicates()
    overlap = SentenceOverlap(unfinished / "sentences", len(corpora))
    packed = [
        _pack(corpus, i, data, encoder, separator_of(tokenizer), tokenizer.unk_token_id, known, files, overlap)
        for i, corpus in enumerate(corpora)
    ]
    for i, (sentences, trained_on) in enumerate(overlap.counts()):
        notes = {"held_out_sentences": sentences, "held_out_sentences_in_training": trained_on}
        packed[i] = replace(packed[i], notes={**packed[i].notes, **notes})
    for corpus in packed:
        _warn_of_repeats(corpus)
    for split, file in files.items():
        file.close()
        if not file.blocks:
            raise UserError(
                f"{', '.join(data.corpora)} has no {split.replace('_', '-')} block of {data.length} tokens: give a "
                "larger corpus or a smaller --length"
                + (", or a larger --held-out" if split == "held_out" else "")
                + "; blank lines separate the documents of a .txt file"
            )
    for corpus in packed:
        _check_unknown(corpus, tokenizer)
    blocks = Blocks(
        directory=directory,
        length=data.length,
        vocabulary=vocabulary,
        separator=separator_of(tokenizer),
        mask=tokenizer.mask_token_id,
        special=tuple(sorted(tokenizer.all_special_ids)),
        tokenizer_sha256=tokenizer_hash(tokenizer),
        corpora=tuple(packed),
        dtype=dtype,
        seconds={"tokenizer": round(trained - started, 2), "blocks": round(time.perf_counter() - trained, 2)},
    )
    write_file(unfinished / "blocks.json", to_json(description_of(blocks, data)))


def _warn_of_repeats(corpus: CorpusBlocks) -> None:
    """Say so if most of a corpus was left out."""
    kept = corpus.train_documents + corpus.held_out_documents
    if corpus.duplicates > kept:
        print(
            f"warning: {corpus.duplicates:,} of {corpus.duplicates + kept:,} documents of {corpus.name} repeat an "
            "earlier one and were left out: if they begin with the same text, remove it",
            file=sys.stderr,
        )


def _check_unknown(corpus: CorpusBlocks, tokenizer: PreTrainedTokenizerFast) -> None:
    """Warn if the tokenizer does not know much of a corpus.

    Raises:
        UserError: it does not know most of it.
    """
    share = corpus.notes["unknown_tokens"] / max(corpus.train_tokens + corpus.held_out_tokens, 1)
    line = f"{share:.0%} of the tokens of {corpus.name} are {tokenizer.unk_token}: give a tokenizer for its language"
    if share > MOST_UNKNOWN:
        raise UserError(line)
    if share > WARNED_UNKNOWN:
        print(f"warning: {line}", file=sys.stderr)


def _tokenizer(data: TextData, corpora: Sequence[Corpus]) -> PreTrainedTokenizerFast:
    if data.tokenizer not in stored.TRAINED:
        return load_tokenizer(data.tokenizer)

    def training_documents() -> Iterator[str]:
        """From every corpus the same number of characters at most, and nothing that is held out."""
        for corpus in corpora:
            characters = 0
            for document in corpus.documents():
                if not is_held_out(normalised(document), data.held_out):
                    yield document
                    characters += len(document)
                    if characters >= TRAINING_CHARACTERS // len(corpora):
                        break

    return train_tokenizer(training_documents, "bpe" if data.tokenizer == "bpe" else "wordpiece", data.vocabulary)


def _pack(
    corpus: Corpus,
    index: int,
    data: TextData,
    encoder: Encoder,
    separator: int,
    unknown: int | None,
    known: NearDuplicates,
    files: dict[str, BlockFile],
    overlap: SentenceOverlap,
) -> CorpusBlocks:
    """Append a corpus, of this index, to the files of both sides."""
    before = {split: file.blocks for split, file in files.items()}
    documents, tokens = dict.fromkeys(files, 0), dict.fromkeys(files, 0)
    duplicates, characters, unknown_tokens, digest = 0, 0, 0, hashlib.sha256()
    for batch in _batches(corpus):
        normal = [normalised(document) for document in batch]
        accepted = known.accept(normal)
        duplicates += len(batch) - int(accepted.sum())
        sides: dict[str, list[str]] = {split: [] for split in files}
        normal_sides: dict[str, list[str]] = {split: [] for split in files}
        for document, text, is_new in zip(batch, normal, accepted, strict=True):
            if is_new:
                split = "held_out" if is_held_out(text, data.held_out) else "train"
                sides[split].append(document)
                normal_sides[split].append(text)
                update_hash(digest, document)
                characters += len(document)
        overlap.train_on(normal_sides["train"])
        overlap.hold_out(normal_sides["held_out"], index)
        for split, chosen in sides.items():
            if chosen:
                ids, counts = encoder.encode(chosen, separator)
                files[split].append(ids)
                documents[split] += int(np.count_nonzero(counts))
                tokens[split] += len(ids)
                unknown_tokens += int(np.count_nonzero(ids == unknown)) if unknown != separator else 0
    for file in files.values():
        file.drop_rest()
    return CorpusBlocks(
        name=corpus.name,
        train=files["train"].blocks - before["train"],
        held_out=files["held_out"].blocks - before["held_out"],
        train_documents=documents["train"],
        held_out_documents=documents["held_out"],
        train_tokens=tokens["train"],
        held_out_tokens=tokens["held_out"],
        duplicates=duplicates,
        characters=characters,
        sha256=digest.hexdigest(),
        notes={**corpus.notes(), "unknown_tokens": unknown_tokens},
    )


def _batches(corpus: Corpus) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for document in corpus.documents():
        batch.append(document)
        characters += len(document)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
