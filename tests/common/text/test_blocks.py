"""Prepared blocks against plain Python; near-duplicates and sides; killed, in company, damaged."""

import errno
import json
import os
import shutil
import time

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from common.errors import UserError
from common.text import preparation as module
from common.text.blocks import BlockFile, TextData, open_blocks, place_of
from common.text.corpora import Corpus
from common.text.near_duplicates import normalised
from common.text.preparation import is_held_out, prepared
from common.text.tokenization import plain, train_tokenizer
from tests.documents import documents, hash_of, write_text
from tests.forked import Forked, forked
from tests.text import forget_digests

FRACTION = 0.2
FIRST, SECOND = documents(200), documents(100, first=1000)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Two files; the second has a document of the first, and one that begins as another."""
    folder = tmp_path_factory.mktemp("corpora")
    second = [*SECOND[:50], FIRST[3].upper(), *SECOND[50:], normalised(SECOND[0])[:120] + " and more"]
    return write_text(folder / "first.txt", FIRST), write_text(folder / "second.txt", second)


def data_of(corpora, /, **changes):
    return TextData(**{"corpora": corpora, "vocabulary": 320, "length": 16, "held_out": FRACTION, **changes})


@pytest.fixture(scope="module")
def blocks(corpora, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH_CHARACTERS", 3000)
        return prepared(data_of(corpora), tmp_path_factory.mktemp("store"))


def packed(tokenizer, some, separator, length):
    """Blocks of documents by concatenation, without the rest."""
    tokens = [
        token
        for document in some
        for token in [*plain(tokenizer).encode(document, add_special_tokens=False).ids, separator]
    ]
    full = len(tokens) // length * length
    return np.array(tokens[:full]).reshape(-1, length), len(tokens)


def test_the_hash_depends_on_every_document_and_their_order():
    hashes = [hash_of(some) for some in ([], [""], ["ab"], ["a", "b"], ["b", "a"])]
    assert len(set(hashes)) == len(hashes)


def test_blocks_are_the_tokens_of_their_side_joined(blocks):
    tokenizer = blocks.tokenizer()
    for split, array in (("train", blocks.train), ("held_out", blocks.held_out)):
        assert array.dtype == np.uint16
        for corpus, some, rows in zip(blocks.corpora, (FIRST, SECOND), blocks.ranges(split), strict=True):
            side = [text for text in some if is_held_out(normalised(text), FRACTION) == (split == "held_out")]
            expected, tokens = packed(tokenizer, side, 3, 16)
            np.testing.assert_array_equal(array[rows.start : rows.stop], expected)
            assert getattr(corpus, f"{split}_documents") == len(side)
            assert getattr(corpus, f"{split}_tokens") == tokens
            assert len(side) > 5


def test_the_description_says_what_was_made(blocks, corpora):
    first, second = blocks.corpora
    assert (first.duplicates, second.duplicates) == (0, 2)
    assert (first.sha256, second.sha256) == (hash_of(FIRST), hash_of(SECOND))
    assert first.characters == sum(map(len, FIRST))
    assert (blocks.length, blocks.vocabulary, blocks.separator, blocks.mask) == (16, 320, 3, 4)
    assert blocks.special == (0, 1, 2, 3, 4)
    assert set(blocks.seconds) == {"tokenizer", "blocks"}
    described = json.loads((blocks.directory / "blocks.json").read_text())
    assert described["data"]["corpora"] == list(corpora)
    assert sorted(path.name for path in blocks.directory.iterdir()) == [
        "blocks.json",
        "held_out.npy",
        "tokenizer",
        "train.npy",
    ]


def test_the_tokenizer_never_sees_what_is_held_out(blocks, corpora):
    every = [text for name in corpora for text in Corpus(name).documents()]
    seen = [text for text in every if not is_held_out(normalised(text), FRACTION)]
    assert train_tokenizer(lambda: seen, "wordpiece", 320).get_vocab() == blocks.tokenizer().get_vocab()


@given(st.text(max_size=200), st.text(max_size=20), st.floats(0.01, 0.99))
@settings(deadline=None)
def test_the_side_depends_on_the_beginning_alone(text, other, fraction):
    if len(normalised(text)) >= 120:
        assert is_held_out(normalised(text), fraction) == is_held_out(normalised(f" {text.upper()}{other}"), fraction)
    assert is_held_out(text, fraction) <= is_held_out(text, min(1, 1.5 * fraction))


def test_the_fraction_is_held_out():
    held = sum(is_held_out(f"document {i}", 0.03) for i in range(20_000))
    assert abs(held - 600) < 5 * np.sqrt(600)


@given(st.lists(st.lists(st.integers(0, 70_000), max_size=30), max_size=8), st.integers(1, 9), st.booleans())
@settings(deadline=None)
def test_a_block_file_is_its_tokens_cut(tmp_path_factory, parts, length, small):
    path = tmp_path_factory.mktemp("blocks") / "a.npy"
    dtype = "uint16" if small else "uint32"
    file = BlockFile(path, length, dtype)
    for part in parts:
        file.append(np.array(part, np.int64))
    file.drop_rest()
    file.append(np.full(length, 5))
    file.close()
    tokens = np.array([token for part in parts for token in part], np.int64).astype(dtype)
    full = len(tokens) // length
    expected = np.concatenate([tokens[: full * length].reshape(full, length), np.full((1, length), 5)])
    found = np.load(path)
    np.testing.assert_array_equal(found, expected)
    assert (found.dtype, file.blocks) == (dtype, full + 1)


def test_a_loaded_tokenizer_and_bpe(corpora, blocks, tmp_path):
    loaded = prepared(data_of(corpora, tokenizer=str(blocks.directory / "tokenizer")), tmp_path)
    assert loaded.directory.name != blocks.directory.name
    np.testing.assert_array_equal(loaded.train, blocks.train)
    bpe = prepared(data_of(corpora[:1], tokenizer="bpe"), tmp_path)
    assert (bpe.mask, bpe.separator, bpe.special) == (None, 0, (0,))
    text = bpe.tokenizer().decode(bpe.train.ravel())
    assert text.split("<|endoftext|>")[0] in FIRST


def test_a_large_vocabulary_takes_four_bytes(corpora, tmp_path):
    shutil.copytree(prepared(data_of(corpora, length=8), tmp_path).directory / "tokenizer", tmp_path / "large")
    path = tmp_path / "large" / "tokenizer.json"
    content = json.loads(path.read_bytes())
    content["model"]["vocab"] |= {f"extra{i}": 320 + i for i in range(70_000)}
    path.write_text(json.dumps(content))
    large = prepared(data_of(corpora[1:], tokenizer=str(tmp_path / "large")), tmp_path)
    assert large.train.dtype == np.uint32
    assert large.vocabulary == 70_320


def test_blocks_of_other_arguments_have_another_place(corpora, tmp_path):
    changes = [{}, {"length": 17}, {"held_out": 0.1}, {"vocabulary": 400}, {"tokenizer": "bpe"}]
    places = {place_of(data_of(corpora, **change), tmp_path) for change in changes}
    places |= {place_of(data_of(some), tmp_path) for some in (corpora[:1], corpora[::-1])}
    assert len(places) == 7
    assert place_of(data_of(corpora, tokenizer="bpe"), tmp_path) in places


# Killed, in company, damaged

PREPARE = """
import sys, time
from pathlib import Path
from common.text import preparation
from common.text.blocks import TextData
preparation.BATCH_CHARACTERS = 3000
original, batches = preparation._batches, []
def slowly(corpus):
    for batch in original(corpus):
        batches.append(batch)
        if len(batches) == 3:
            print("in the middle", flush=True)
            while not Path(sys.argv[3]).exists():
                time.sleep(0.01)
        yield batch
preparation._batches = slowly
data = TextData(corpora=(sys.argv[2],), vocabulary=320, length=16, held_out=0.2)
blocks = preparation.prepared(data, Path(sys.argv[1]))
print(len(batches), flush=True)
"""


def start(folder, corpus, resume):
    """A process that stops in the middle until there is a file."""
    return Forked("-c", PREPARE, folder, corpus, resume)


def wait_until(process, is_reached):
    while not is_reached():
        assert process.returncode is None, process.stderr
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_preparation_starts_again(corpora, tmp_path):
    data = data_of(corpora[:1])
    process = start(tmp_path / "store", corpora[0], tmp_path / "never")
    wait_until(process, lambda: process.stdout == "in the middle\n")
    process.process.kill()
    process.wait()
    assert all(path.name.startswith(".") for path in (tmp_path / "store").iterdir())
    assert any(path.name.endswith(".unfinished") for path in (tmp_path / "store").iterdir())
    again, fresh = prepared(data, tmp_path / "store"), prepared(data, tmp_path / "fresh")
    for name in ("train.npy", "held_out.npy", "tokenizer/tokenizer.json"):
        assert (again.directory / name).read_bytes() == (fresh.directory / name).read_bytes()
    assert [path.name for path in (tmp_path / "store").glob("*") if path.name[0] != "."] == [again.directory.name]
    assert not list((tmp_path / "store").glob(".*.unfinished"))


@pytest.mark.slow
def test_a_second_process_waits_and_uses_what_the_first_made(corpora, tmp_path):
    store, resume = tmp_path / "store", tmp_path / "resume"
    first = start(store, corpora[0], resume)
    wait_until(first, lambda: first.stdout == "in the middle\n")
    second = start(store, corpora[0], resume)
    wait_until(second, lambda: "waiting for another process that prepares" in second.stderr)
    resume.touch()
    assert second.wait().stdout == "0\n"
    assert first.wait().stdout != "in the middle\n0\n"
    assert (first.returncode, second.returncode) == (0, 0)
    (made,) = store.iterdir()  # and no lock
    open_blocks(made)


def test_a_lock_that_is_no_file_is_refused(corpora, tmp_path):
    data = data_of(corpora)
    lock = tmp_path / f".{place_of(data, tmp_path).name}.lock"
    os.mkfifo(lock)
    with pytest.raises(UserError, match=f"{lock} is no regular file: replace or remove it"):
        prepared(data, tmp_path)


def test_prepared_blocks_are_used_again(blocks, corpora, monkeypatch):
    monkeypatch.setattr(module, "_prepare", None)
    again = prepared(data_of(corpora), blocks.directory.parent)
    assert again == blocks


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def replace_by_fifo(path):
    path.unlink()
    os.mkfifo(path)


def rewrite(path):
    np.save(path, np.zeros((3, 16), np.uint16))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train.npy", truncate, r"train\.npy is missing or damaged"),
        ("train.npy", os.unlink, r"train\.npy is missing or damaged"),
        ("train.npy", replace_by_fifo, r"train\.npy is missing or damaged"),
        ("held_out.npy", rewrite, r"held_out\.npy is missing or damaged"),
        ("held_out.npy", lambda path: path.write_bytes(b""), r"held_out\.npy is missing or damaged"),
        ("blocks.json", truncate, r"blocks\.json is truncated or damaged"),
        ("blocks.json", os.unlink, r"blocks\.json is missing"),
        ("blocks.json", lambda path: path.write_text('{"length": 3}'), r"blocks\.json is missing or damaged"),
        ("tokenizer", shutil.rmtree, "tokenizer is missing or damaged"),
    ],
)
def test_damaged_blocks_are_one_line(blocks, corpora, tmp_path, name, damage, message):
    copy = tmp_path / blocks.directory.name
    shutil.copytree(blocks.directory, copy)
    damage(copy / name)
    with pytest.raises(UserError, match=f"{message}: remove {copy}, and its blocks are prepared again$"):
        prepared(data_of(corpora), tmp_path)
    shutil.rmtree(copy)
    assert prepared(data_of(corpora), tmp_path).corpora == blocks.corpora


def overwrite(path):
    tokens = np.load(path, mmap_mode="r+")
    tokens[:] = 7
    tokens.flush()


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_other_tokens_are_refused_wherever_they_were_prepared(blocks, corpora, tmp_path, split):
    copy = shutil.copytree(blocks.directory, tmp_path / blocks.directory.name)
    assert prepared(data_of(corpora), tmp_path).digests == blocks.digests
    forget_digests(copy)
    assert open_blocks(copy).digests == blocks.digests
    described = [json.loads((place / "blocks.json").read_bytes()) for place in (copy, blocks.directory)]
    assert described[0] == described[1]
    overwrite(copy / f"{split}.npy")
    with pytest.raises(UserError, match=rf"{split}\.npy is missing or damaged: remove {copy}, and its blocks"):
        prepared(data_of(corpora), tmp_path)


def test_blocks_that_cannot_be_written_are_used(blocks, tmp_path, monkeypatch):
    copy = shutil.copytree(blocks.directory, tmp_path / "copy")
    forget_digests(copy)

    def refuse(path, content):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("common.text.blocks.write_file", refuse)
    assert open_blocks(copy).digests == blocks.digests


def test_a_damaged_tokenizer_is_one_line(blocks, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(blocks.directory, copy)
    path = copy / "tokenizer" / "tokenizer.json"
    content = path.read_text()
    for damaged in (content[:-20], content.replace('"##s"', '"##S"')):
        path.write_text(damaged)
        with pytest.raises(UserError, match="tokenizer is missing or damaged: remove"):
            open_blocks(copy).tokenizer()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 1}, "--length must be at least 2 tokens, got 1"),
        ({"held_out": 0}, "--held-out must be between 0 and 1, both excluded, got 0"),
        ({"corpora": ()}, "--corpus must be one or more different corpora, not none"),
        ({"corpora": ("docs", "docs")}, "--corpus must be one or more different corpora, not docs, docs"),
        ({"corpora": ("missing.txt",)}, r"missing\.txt is missing"),
        ({"vocabulary": 100}, "--vocabulary must be from 300 to 1,048,576, got 100"),
        ({"vocabulary": 10**20}, "--vocabulary must be from 300 to 1,048,576, got 1"),
        (
            {"length": 100_000},
            "has no train block of 100000 tokens: give a larger corpus or a smaller --length; blank lines",
        ),
        (
            {"length": 1000, "held_out": 0.01},
            "has no held-out block of 1000 tokens: .* or a larger --held-out; blank lines",
        ),
        ({"tokenizer": "missing/directory/"}, "cannot load the tokenizer missing/directory/"),
    ],
)
def test_what_cannot_be_prepared_is_one_line_and_leaves_nothing(corpora, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message) as caught:
        prepared(data_of(corpora, **changes), tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bytes_at_most", [5_000, 40_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, bytes_at_most):
    """While the tokenizer is saved, and while blocks are written."""
    corpus = write_text(tmp_path / "a.txt", documents(600))
    code = "import resource, runpy, sys; import numba; import transformers; import common.text.report; "
    code += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_at_most}, resource.RLIM_INFINITY)); "
    code += "runpy.run_module('text_mlm.data', run_name='__main__')"
    words = ["prepare", "--corpus", corpus, "--vocabulary", "300", "--length", "12", "--held-out", "0.2"]
    done = forked("-c", code, *words, env={**os.environ, "TEXT_BLOCKS": str(tmp_path / "blocks")})
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == "error: File too large; once this is fixed, rerun the command to resume"
    assert len(done.stderr.splitlines()) == 2  # and the line that preparation begins
    assert not (tmp_path / "blocks").exists()


def test_a_file_that_changes_while_it_is_prepared_is_not_used(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, FIRST)
    prepare = module._prepare

    def change_after(*arguments):
        prepare(*arguments)
        write_text(path, FIRST[:150])

    monkeypatch.setattr(module, "_prepare", change_after)
    with pytest.raises(UserError, match="a corpus was changed while it was prepared: rerun the command"):
        prepared(data_of((str(path),)), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_changed_file_is_prepared_again(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, FIRST[:40])
    before = prepared(data_of((str(path),)), tmp_path / "store")
    time.sleep(0.02)
    write_text(path, FIRST[40:80])
    after = prepared(data_of((str(path),)), tmp_path / "store")
    assert before.directory != after.directory
    assert after.corpora[0].sha256 == hash_of(FIRST[40:80])
