"""Prepared text as it must not be: what is read of it is blocks of known tokens, or a refusal that names its folder."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, strategies as st

from common.errors import UserError
from common.text.batches import CausalText, MaskedText, TextBatches, evaluation_batches
from common.text.blocks import TextData, open_blocks
from common.text.preparation import prepared
from common.text.report import summary
from tests.hostile.contract import attempt, cases
from tests.hostile.damage import damaged, json_files
from tests.text import CORPUS, forget_digests

DATA = TextData(corpora=(str(CORPUS),), vocabulary=300, length=12, held_out=0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def whole(folder):
    """The directory of prepared blocks, and a copy."""
    directory = prepared(DATA, folder).directory
    return directory, shutil.copytree(directory, folder / "copy")


def restored(whole):
    directory, copy = whole
    shutil.rmtree(directory)
    return shutil.copytree(copy, directory)


def read(folder):
    blocks = prepared(DATA, folder)
    tokenizer = blocks.tokenizer()
    batch = TextBatches(blocks, MaskedText(), 0, 4).batch(2)
    held_out = evaluation_batches(blocks, CausalText(), 3, 2)
    return blocks, summary(blocks), tokenizer, [batch.input_ids, *(each.input_ids for each in held_out)]


def use(folder, directory):
    if (found := attempt(read, folder, names=str(directory))) is not None:
        blocks, _, tokenizer, batches = found
        assert blocks.vocabulary == max(tokenizer.get_vocab().values()) + 1
        assert all(0 <= ids.min() <= ids.max() < blocks.vocabulary for ids in batches)
        assert all(ids.shape[1] == DATA.length for ids in batches)


@given(st.data())
@cases(200)
def test_descriptions(folder, whole, data):
    directory = restored(whole)
    description = json.loads((directory / "blocks.json").read_bytes())
    (directory / "blocks.json").write_bytes(data.draw(json_files(description)))
    use(folder, directory)


@given(st.sampled_from(["train.npy", "held_out.npy"]), st.data())
@cases(200)
def test_arrays(folder, whole, name, data):
    directory = restored(whole)
    (directory / name).write_bytes(data.draw(damaged((directory / name).read_bytes())))
    use(folder, directory)


@given(
    st.sampled_from(["uint16", "uint32", "int16", "float32", ">u2", "S4"]),
    st.tuples(st.integers(0, 400), st.integers(0, 13)),
    st.booleans(),
)
@cases(50)
def test_other_arrays(folder, whole, dtype, shape, fortran):
    directory = restored(whole)
    np.save(directory / "train.npy", np.zeros(shape, dtype, order="F" if fortran else "C"))
    use(folder, directory)


@given(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]), st.data())
@cases(200)
def test_tokenizers(folder, whole, name, data):
    directory = restored(whole)
    path = directory / "tokenizer" / name
    path.write_bytes(data.draw(json_files(json.loads(path.read_bytes()))))
    use(folder, directory)


# What was found


def test_a_token_id_of_hundreds_of_millions_is_refused(folder, whole):
    path = restored(whole) / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_bytes())
    content["model"]["vocab"][max(content["model"]["vocab"])] = 323_866_563
    path.write_text(json.dumps(content))
    assert attempt(read, folder, names=str(path.parent)) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"length": "12"},
        {"length": 1},
        {"vocabulary": 2**40},
        {"vocabulary": 301},
        {"separator": -1},
        {"special": [0, 10**9]},
        {"mask": 0.5},
        {"mask": 5},
        {"separator": 5},
        {"digests": None},
        {"digests": {"train": "0"}},
        {"dtype": "object"},
        {"corpora": []},
        {"seconds": None},
    ],
)
def test_what_blocks_must_be(folder, whole, changes):
    place = restored(whole) / "blocks.json"
    place.write_text(json.dumps(json.loads(place.read_bytes()) | changes))
    with pytest.raises(UserError, match=f"^{place.parent}/.* is missing or damaged: remove {place.parent},"):
        read(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"train": True},
        {"notes": []},
        {"notes": {"commits": [1]}},
        {"notes": {"held_out_sentences": 3}},
        {"notes": {"duplicates_left_out": 10**400}},
    ],
)
def test_what_a_corpus_must_be(folder, whole, changes):
    place = restored(whole) / "blocks.json"
    content = json.loads(place.read_bytes())
    content["corpora"][0] |= changes
    place.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"^{place} is missing or damaged: remove"):
        read(folder)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_tokens_must_be_in_the_vocabulary(whole, split):
    path = restored(whole) / f"{split}.npy"
    tokens = np.load(path)
    tokens[:] = 300
    np.save(path, tokens)
    forget_digests(path.parent)
    blocks = open_blocks(path.parent)
    with pytest.raises(UserError, match=f"^{path} is missing or damaged"):
        blocks.samples(split, np.arange(2))
