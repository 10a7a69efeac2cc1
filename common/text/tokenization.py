"""Fast tokenizers: loaded, or trained on documents so that the same documents always give the same tokenizer.

Two kinds are trained: WordPiece as of BERT (lower case; Devlin et al. 2019) and byte-level BPE as of GPT-2 (Radford et
al. 2019). The trainers of `tokenizers` number the characters within words ("##a") in the order of a hash table, which
differs from process to process. Here these are counted first and handed over in order, so that nothing is left to it.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from common.distillation.vocabulary import has_tokenizer
from common.errors import UserError, listed
from common.runs.files import require_readable
from common.teachers.discovery import named_checkpoints

Kind = Literal["wordpiece", "bpe"]

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
"""Of WordPiece, with the ids 0 to 4."""

END_OF_DOCUMENT = "<|endoftext|>"
"""The only special token of BPE, with the id 0."""

TRAINING_CHARACTERS = 200_000_000
"""Characters that a tokenizer is trained on at most."""

SMALLEST_VOCABULARY = 300
"""Byte-level BPE has a token for each of the 256 bytes."""
LARGEST_VOCABULARY = 1 << 20
MOST_IDS = 1 << 24
"""Bound of the token ids of any tokenizer: `tokenizers` makes a list of those below the largest that have no token."""

CHARACTERS = 1000
"""Different characters that a WordPiece tokenizer knows at most, the most frequent ones, as of BERT; they are also at
most a quarter of the vocabulary."""


def train_tokenizer(
    read: Callable[[], Iterable[str]], kind: Kind, vocabulary: int, characters: int = TRAINING_CHARACTERS
) -> PreTrainedTokenizerFast:
    """A tokenizer that depends on the documents, their order aside if all are read, and on the arguments.

    Args:
        read: gives the documents, each time it is called; only the counts of their words are kept.
        kind: of the tokenizer.
        vocabulary: tokens, including special ones; fewer if the documents have too few words.
        characters: stop after the document that reaches this number.

    Raises:
        UserError: the vocabulary is not between `SMALLEST_VOCABULARY` and `LARGEST_VOCABULARY`.
    """
    if not SMALLEST_VOCABULARY <= vocabulary <= LARGEST_VOCABULARY:
        raise UserError(f"--vocabulary must be from {SMALLEST_VOCABULARY} to {LARGEST_VOCABULARY:,}, got {vocabulary}")
    train = _train_wordpiece if kind == "wordpiece" else _train_bpe
    return train(lambda: _first(read(), characters), vocabulary)


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer in a directory, that of the last checkpoint in it, or that of a model on the hub.

    Raises:
        UserError: there is none, it cannot be loaded, or it is not a fast one.
    """
    advice = "give wordpiece or bpe to train one, a directory with tokenizer.json, or a model on the hub"
    if Path(name).is_dir():
        place = _place_of_tokenizer(Path(name))
        if place is None:
            raise UserError(f"{name} has no tokenizer: {advice}")
        name = str(place)
    try:
        tokenizer = AutoTokenizer.from_pretrained(require_readable(name), trust_remote_code=False)
    except Exception as error:  # that of `tokenizers` is no subclass
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"cannot load the tokenizer {name} ({reason[0]}): {advice}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"the tokenizer {name} is not a fast one: {advice}")
    if Path(name).is_dir() and not (Path(name) / "tokenizer.json").exists():
        raise UserError(f"{name} has no tokenizer.json: {advice}")
    if (largest := max(tokenizer.get_vocab().values(), default=0)) >= MOST_IDS:
        raise UserError(f"the tokenizer {name} has the token id {largest:,}, but ids are below {MOST_IDS:,}: {advice}")
    if unknown := set(tokenizer.all_special_tokens) - set(tokenizer.get_vocab()):
        raise UserError(f"the tokenizer {name} lacks its special tokens {listed(sorted(unknown))} itself: {advice}")
    return tokenizer


def _place_of_tokenizer(directory: Path) -> Path | None:
    """The directory itself if it has a tokenizer, or else the last checkpoint in it that has one."""
    if has_tokenizer(directory):
        return directory
    try:
        places = [checkpoint.location for checkpoint in named_checkpoints(directory)]
    except UserError:  # no checkpoints
        return None
    return next((place for place in reversed(places) if isinstance(place, Path) and has_tokenizer(place)), None)


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of all that determines which tokens a text has, and of the names of the special tokens."""
    special = repr(sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items()))
    return hashlib.sha256((plain(tokenizer).to_str() + special).encode()).hexdigest()


def plain(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of the tokenizer proper that cuts, pads and adds nothing, and reads "[MASK]" in a text as any word."""
    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = True
    return copy


def separator_of(tokenizer: PreTrainedTokenizerFast) -> int:
    """Id of the token after each document: [SEP], or the end of a document.

    Raises:
        UserError: it has neither.
    """
    for found in (tokenizer.sep_token_id, tokenizer.eos_token_id):
        if found is not None:
            return int(found)
    raise UserError("the tokenizer has no token that ends a document, neither sep_token nor eos_token: give another")


def _first(documents: Iterable[str], characters: int) -> Iterator[str]:
    read = 0
    for document in documents:
        yield document
        read += len(document)
        if read >= characters:
            return


def _train_wordpiece(read: Callable[[], Iterator[str]], vocabulary: int) -> PreTrainedTokenizerFast:
    """Characters within words are passed as special tokens, which are numbered as given, and then made ordinary."""
    tokenizer = _bert(models.WordPiece(unk_token=SPECIAL_TOKENS["unk_token"]))
    counts, within = _characters(read(), tokenizer)
    most = min(CHARACTERS, vocabulary // 4)
    kept = sorted(sorted(counts, key=lambda character: (-counts[character], character))[:most])
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        special_tokens=[*SPECIAL_TOKENS.values(), *(f"##{character}" for character in kept if character in within)],
        limit_alphabet=len(kept),
        initial_alphabet=kept,
        show_progress=False,
    )
    tokenizer.train_from_iterator(read(), trainer)
    unknown = SPECIAL_TOKENS["unk_token"]
    trained = _bert(models.WordPiece(tokenizer.get_vocab(), unk_token=unknown, max_input_chars_per_word=100))
    trained.add_special_tokens(list(SPECIAL_TOKENS.values()))
    trained.decoder = decoders.WordPiece()
    first, last = SPECIAL_TOKENS["cls_token"], SPECIAL_TOKENS["sep_token"]
    trained.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(token, trained.token_to_id(token)) for token in (first, last)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=trained, **SPECIAL_TOKENS)


def _bert(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _characters(documents: Iterable[str], tokenizer: Tokenizer) -> tuple[Counter[str], set[str]]:
    """How often each character occurs in words, and which characters occur within words, not only at their start."""
    pieces: Counter[str] = Counter()
    for document in documents:
        pieces.update(document.split())
    counts: Counter[str] = Counter()
    within: set[str] = set()
    for piece, count in pieces.items():
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(piece)):
            within.update(word[1:])
            for character in word:
                counts[character] += count
    return counts, within


def _train_bpe(read: Callable[[], Iterator[str]], vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(read(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_DOCUMENT, bos_token=END_OF_DOCUMENT, unk_token=None
    )
