"""`data.py` of the settings on text: prepare blocks, and say what they are."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.text.arguments import PrepareArguments
from common.text.blocks import TRAINED, Blocks, TextData
from common.text.corpora import NAMED
from common.text.preparation import prepared
from common.text.sentences import WORDS


def text_data(arguments: Mapping[str, Any]) -> TextData:
    """What the blocks of a command's arguments, by name, are made from; files have absolute names."""
    tokenizer = arguments["tokenizer"]
    if not tokenizer:
        raise UserError("--tokenizer is empty: give wordpiece or bpe, a directory, or a model on the hub")
    is_directory = tokenizer not in TRAINED and Path(tokenizer).is_dir()
    return TextData(
        corpora=tuple(
            os.path.abspath(name) if name not in NAMED and Path(name).is_file() else name
            for name in arguments["corpus"]
        ),
        text_column=arguments["text_column"],
        tokenizer=str(Path(tokenizer).resolve()) if is_directory else tokenizer,
        vocabulary=arguments["vocabulary"],
        length=arguments["length"],
        held_out=arguments["held_out"],
    )


def prepare(arguments: PrepareArguments) -> None:
    """Prepare the blocks, unless they exist, and print a summary.

    Raises:
        UserError: a corpus or the tokenizer cannot be read, or there are too few documents.
    """
    print("\n".join(summary(prepared(text_data(asdict(arguments))))))


def summary(blocks: Blocks) -> list[str]:
    """Lines on the blocks and on each of their corpora."""
    lines = [f"{blocks.directory}: {blocks.vocabulary:,} tokens in the vocabulary, {blocks.length} in a block"]
    for corpus in blocks.corpora:
        duplicates = corpus.duplicates + corpus.notes.get("duplicates_left_out", 0)
        lines.append(
            f"{corpus.name}: {corpus.train:,} training and {corpus.held_out:,} held-out blocks of "
            f"{corpus.train_documents:,} and {corpus.held_out_documents:,} documents; {duplicates:,} "
            f"near-duplicates left out; SHA-256 {corpus.sha256[:12]}"
        )
        if sentences := corpus.notes.get("held_out_sentences"):
            shared = corpus.notes["held_out_sentences_in_training"]
            lines.append(
                f"{corpus.name}: {shared:,} of {sentences:,} held-out sentences of {WORDS} or more words "
                f"({shared / sentences:.1%}) also occur in training documents"
            )
    return lines
