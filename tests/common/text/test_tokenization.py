"""Tokenizers: the same in every process, saved and loaded; pieces of documents against whole documents."""

import json
import os

import pytest
from hypothesis import assume, given, settings, strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from common.errors import UserError
from common.text import encoding
from common.text.encoding import Encoder, ends_tokens_at_spaces
from common.text.tokenization import load_tokenizer, plain, separator_of, tokenizer_hash, train_tokenizer
from tests.commands import python
from tests.documents import documents
from tests.forked import forked

DOCUMENTS = documents(300)
KINDS = ("wordpiece", "bpe")
TEXTS = st.text(
    st.one_of(st.sampled_from("abkoNé's.,[] \n\t\r\x0b\x1c\x85\xa0\u2028\u3000中\u0301"), st.characters(codec="utf-8")),
    max_size=60,
)


@pytest.fixture(scope="module")
def trained():
    return {kind: train_tokenizer(lambda: DOCUMENTS, kind, 400) for kind in KINDS}


@pytest.mark.slow
def test_training_gives_the_same_in_every_process_and_with_any_threads(trained):
    code = "\n".join(
        [
            "import os, sys",
            "os.environ['RAYON_NUM_THREADS'] = sys.argv[1]",
            "from common.text.tokenization import tokenizer_hash, train_tokenizer",
            "from tests.documents import documents",
            f"print(*(tokenizer_hash(train_tokenizer(lambda: documents(300), kind, 400)) for kind in {KINDS!r}))",
        ]
    )
    for done in (forked("-c", code, 1), python("-c", code, 3, env={**os.environ, "PYTHONHASHSEED": "5"})):
        assert done.stdout.split() == [tokenizer_hash(trained[kind]) for kind in KINDS], done.stderr


def test_the_order_of_documents_does_not_matter(trained):
    for kind in KINDS:
        again = train_tokenizer(lambda: DOCUMENTS[::-1], kind, 400)
        assert tokenizer_hash(again) == tokenizer_hash(trained[kind])


def test_special_tokens(trained):
    wordpiece, bpe = trained["wordpiece"], trained["bpe"]
    assert wordpiece.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [0, 1, 2, 3, 4]
    assert (wordpiece.pad_token_id, wordpiece.mask_token_id, separator_of(wordpiece)) == (0, 4, 3)
    assert wordpiece("ba").input_ids[0] == 2
    assert wordpiece("ba").input_ids[-1] == 3
    assert (bpe.all_special_ids, separator_of(bpe), bpe.mask_token) == ([0], 0, None)
    assert wordpiece.decode(wordpiece("Balan, NÉ").input_ids, skip_special_tokens=True).replace(" ", "") == "balan,ne"
    assert bpe.decode(bpe("Balan,\n NÉ ħ").input_ids) == "Balan,\n NÉ ħ"


def test_the_vocabulary_has_the_given_size(trained):
    assert {len(tokenizer) for tokenizer in trained.values()} == {400}
    tokens = trained["wordpiece"].convert_ids_to_tokens(range(400))
    assert len(set(tokens)) == 400
    for kind in KINDS:
        assert len(train_tokenizer(lambda: ["a few words"], kind, 10_000)) < 300
        with pytest.raises(UserError, match="--vocabulary must be from 300 to 1,048,576, got 299"):
            train_tokenizer(lambda: DOCUMENTS, kind, 299)


def test_rare_characters_are_unknown():
    """Of Ethiopic, which has no upper case and no accents."""
    counts = {chr(0x1200 + i): 2 + i % 7 for i in range(300)}
    tokenizer = train_tokenizer(lambda: [c * count for c, count in counts.items()], "wordpiece", 400)
    known = {token.removeprefix("##")[0] for token in tokenizer.get_vocab()}
    frequent = sorted(counts, key=lambda c: (-counts[c], c))[:100]
    assert known & set(counts) == set(frequent)


def test_only_so_many_characters_are_read():
    read = []

    def some():
        for document in DOCUMENTS:
            read.append(document)
            yield document

    train_tokenizer(some, "bpe", 300, characters=sum(map(len, DOCUMENTS[:20])))
    assert read == DOCUMENTS[:20]


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(trained, kind, tmp_path):
    trained[kind].save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert tokenizer_hash(loaded) == tokenizer_hash(trained[kind])
    assert loaded(DOCUMENTS[0]).input_ids == trained[kind](DOCUMENTS[0]).input_ids


def test_what_is_no_tokenizer_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "tokenizer.json").write_text("{")
    for name in (str(tmp_path), str(tmp_path / "missing"), "org/absent"):
        with pytest.raises(UserError, match=f"cannot load the tokenizer {name} .*give wordpiece or bpe") as caught:
            load_tokenizer(name)
        assert "\n" not in str(caught.value)
    (tmp_path / "tokenizer.json").unlink()
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"cannot load the tokenizer .*tokenizer\.json is no regular file"):
        load_tokenizer(str(tmp_path))


def test_a_teachers_tokenizer_is_that_of_its_last_checkpoint_unless_it_has_one_itself(trained, tmp_path):
    """Whatever else is in a directory, an error says only that there is no tokenizer."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for name in ("logs", "checkpoint-100"):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=rf"^{tmp_path} has no tokenizer: give wordpiece or bpe to train one"):
            load_tokenizer(str(tmp_path))
    for step, kind in ((90, "wordpiece"), (100, "bpe")):
        trained[kind].save_pretrained(tmp_path / f"checkpoint-{step}")
    assert tokenizer_hash(load_tokenizer(str(tmp_path))) == tokenizer_hash(trained["bpe"])
    (tmp_path / "checkpoint-200").mkdir()
    assert tokenizer_hash(load_tokenizer(str(tmp_path))) == tokenizer_hash(trained["bpe"])
    trained["wordpiece"].save_pretrained(tmp_path)
    assert tokenizer_hash(load_tokenizer(str(tmp_path))) == tokenizer_hash(trained["wordpiece"])


def test_a_tokenizer_without_a_separator_is_refused():
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(UserError, match="no token that ends a document"):
        separator_of(bare)


# Encoding


def expected(tokenizer, some, separator):
    """Documents one by one, as a whole."""
    whole = [tokenizer.encode(document, add_special_tokens=False).ids for document in some]
    whole = [[*ids, separator] if ids else [] for ids in whole]
    return [token for ids in whole for token in ids], [len(ids) for ids in whole]


def check(encoder, tokenizer, some):
    ids, counts = encoder.encode(some, 7)
    assert (ids.tolist(), counts.tolist()) == expected(tokenizer, some, 7)


@pytest.mark.parametrize("kind", KINDS)
@given(some=st.lists(TEXTS, min_size=1, max_size=6))
@settings(deadline=None, max_examples=200)
def test_pieces_give_the_tokens_of_whole_documents(trained, kind, some):
    tokenizer = plain(trained[kind])
    encoder = Encoder(tokenizer)
    assert encoder.cuts
    check(encoder, tokenizer, some)
    check(encoder, tokenizer, some[::-1])


def unigram():
    """As of T5: SentencePiece, with a space before the first word."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )


def sentencepiece_bpe():
    """As of Llama 2: the normalizer prepends a space, whole documents are one word, and bytes stand for the unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return tokenizer, trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, show_progress=False, max_token_length=12
    )


def byte_level():
    """As of RoBERTa in some versions: a space is added before the first word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer, trainers.BpeTrainer(vocab_size=400, special_tokens=["</s>"], show_progress=False)


def added_words():
    """Byte-level with added tokens that are not special, as Pythia has for runs of spaces."""
    tokenizer, trainer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_tokens(["   ", "  "])
    return tokenizer, trainer


@pytest.fixture(scope="module")
def others():
    """Tokenizers of other kinds, as transformers has them."""
    made = {}
    for make in (unigram, sentencepiece_bpe, byte_level, added_words):
        tokenizer, trainer = make()
        tokenizer.train_from_iterator(DOCUMENTS, trainer)
        made[make.__name__] = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    return made


@pytest.mark.parametrize("kind", ["unigram", "sentencepiece_bpe", "byte_level", "added_words"])
@given(some=st.lists(TEXTS, min_size=1, max_size=6))
@settings(deadline=None, max_examples=100)
def test_other_tokenizers_give_the_ids_of_transformers(others, kind, some):
    """Of documents without special tokens, each by itself."""
    tokenizer = others[kind]
    encoder = Encoder(plain(tokenizer))
    assert not encoder.cuts
    whole = [tokenizer(document, add_special_tokens=False).input_ids for document in some]
    ids, counts = encoder.encode(some, 7)
    assert ids.tolist() == [token for of_one in whole if of_one for token in [*of_one, 7]]
    assert counts.tolist() == [len(of_one) + bool(of_one) for of_one in whole]


@pytest.mark.parametrize("kind", KINDS)
@given(some=TEXTS)
@settings(deadline=None, max_examples=50)
def test_trained_tokenizers_give_the_ids_of_transformers(trained, kind, some):
    assume(not any(token in some for token in trained[kind].all_special_tokens))  # words to us, special to transformers
    ids, _ = Encoder(plain(trained[kind])).encode([some], 7)
    assert ids.tolist()[:-1] == trained[kind](some, add_special_tokens=False).input_ids


def test_special_tokens_in_a_document_are_words(trained):
    for kind in KINDS:
        tokenizer = plain(trained[kind])
        ids, _ = Encoder(tokenizer).encode(["[MASK] [SEP]<|endoftext|>", "a [PAD]"], 499)
        assert not set(ids.tolist()) & set(trained[kind].all_special_ids) - {trained[kind].unk_token_id}


def test_memory_for_pieces_is_bounded(trained, monkeypatch):
    monkeypatch.setattr(encoding, "MOST_PIECES", 200)
    tokenizer = plain(trained["bpe"])
    encoder = Encoder(tokenizer)
    for start in range(0, 300, 20):
        check(encoder, tokenizer, DOCUMENTS[start : start + 20])
    assert len(encoder._numbers) < 600


def test_tokenizers_that_may_join_words_are_given_whole_documents():
    tokenizer = Tokenizer(models.BPE({"a": 0, " ": 1, "a ": 2, "a a": 3}, [("a", " "), ("a ", "a")]))
    encoder = Encoder(tokenizer)
    assert not encoder.cuts
    check(encoder, tokenizer, ["a a", "a a a", "", "a"])
    assert encoder.encode(["a a"], 7)[0].tolist() == [3, 7]


def test_which_tokenizers_end_tokens_at_spaces(trained):
    def cuts(tokenizer, **changes):
        return ends_tokens_at_spaces(json.loads(tokenizer.to_str()) | changes)

    for kind in KINDS:
        assert cuts(plain(trained[kind]))
        assert not cuts(plain(trained[kind]), added_tokens=[{"special": False}])
        assert not cuts(plain(trained[kind]), normalizer={"type": "NFC"})
        assert not cuts(plain(trained[kind]), pre_tokenizer={"type": "Metaspace"})
    for prefix, regex in ((True, True), (False, False)):
        other = plain(trained["bpe"])
        other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)
        assert not cuts(other)
    other = plain(trained["wordpiece"])
    other.normalizer = normalizers.Lowercase()
    assert not cuts(other)
    check(Encoder(other), other, ["ba lan"])
