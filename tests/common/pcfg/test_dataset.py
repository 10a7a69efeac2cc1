"""Datasets on disk: read back by us and by `datasets`, damaged, of another grammar, cut off, and in company."""

import json
import os
import shutil

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from common.errors import UserError
from common.pcfg import dataset as module
from common.pcfg.dataset import open_dataset
from common.pcfg.grammar_files import load_grammar, parse_grammar
from common.pcfg.sampler import sample
from common.pcfg.task import rules_of
from PCFG_mlm.data import main
from tests.commands import start

SMALL = load_grammar("small")
LETTERS = parse_grammar("S -> S S [0.4] | a [0.2] | b [0.2] | c [0.1] | d [0.1]", "letters")


def export(capsys, *words):
    """Run `data.py export` in this process; exit code, stdout and stderr."""
    return start(capsys, main, "export", *words)


def refuse(capsys, *words):
    code, _, stderr = export(capsys, *words)
    assert code == 2
    assert stderr.count("\n") == 1
    return stderr


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """250 sentences in files of 70 and row groups of 16, which no batch size of the tests divides."""
    path = tmp_path_factory.mktemp("datasets") / "small"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROW_GROUP", 16)
        module.export(module.ExportArguments(sentences=250, out=path, grammar="small", validation=20, seed=4, shard=70))
    return path


@given(first=st.integers(0, 250), count=st.integers(0, 250))
@settings(deadline=None)
def test_any_stretch_of_a_dataset_can_be_read(dataset, first, count):
    count = min(count, 250 - first)
    read = open_dataset(dataset, SMALL, 250).sentences(first, count)
    drawn = sample(SMALL, 4, "train", first, count)
    np.testing.assert_array_equal(read.tokens, drawn.tokens)
    np.testing.assert_array_equal(read.offsets, drawn.offsets)
    assert read.tokens.dtype == np.uint8


def test_a_dataset_with_trees_says_which_tokens_end_spans(tmp_path):
    (tmp_path / "uneven.cfg").write_text("S -> A S [0.4] | a [0.6]\nA -> b | B b\nB -> a b")
    for name in ("small", str(tmp_path / "uneven.cfg")):
        grammar, path = load_grammar(name), tmp_path / f"dataset of {len(name)}"
        module.export(
            module.ExportArguments(sentences=150, out=path, grammar=name, validation=3, seed=4, shard=70, trees=True)
        )
        drawn = sample(grammar, 4, "train", 0, 150, trees=True, levels=8)
        read = open_dataset(path, grammar, 150, trees=True).sentences(60, 80)
        tokens = slice(drawn.offsets[60], drawn.offsets[140])
        np.testing.assert_array_equal(read.tokens, drawn.tokens[tokens])
        np.testing.assert_array_equal(read.span_ends, drawn.span_ends[tokens])
        assert open_dataset(path, grammar, 150).sentences(60, 80).span_ends is None
        loaded = datasets.load_dataset(str(path), cache_dir=str(tmp_path / "cache"))["train"][7]
        ends = drawn.span_ends[drawn.offsets[7] : drawn.offsets[8]]
        assert [[number >> level & 1 for level in range(8)] for number in loaded["span_ends"]] == ends.tolist()
        assert "--seed 4 --trees --out" in (path / "README.md").read_text()
        assert "bit L is set" in (path / "README.md").read_text()


def test_a_dataset_without_trees_is_refused_where_they_are_needed(dataset):
    with pytest.raises(UserError, match=r"does not say which tokens end spans: export a dataset with --trees$"):
        open_dataset(dataset, SMALL, 1, trees=True)


def test_datasets_reads_it(dataset, tmp_path):
    for loaded in (
        datasets.load_dataset(str(dataset), cache_dir=str(tmp_path)),
        datasets.load_dataset(
            "parquet",
            data_files={split: str(dataset / "data" / f"{split}-*.parquet") for split in ("train", "validation")},
            cache_dir=str(tmp_path),
        ),
    ):
        assert set(loaded) == {"train", "validation"}
        assert loaded["train"].features["tokens"] == datasets.List(datasets.Value("uint8"))
        for split, seed, stream in (("train", 4, "train"), ("validation", 0, "evaluation")):
            drawn = sample(SMALL, seed, stream, 0, len(loaded[split]))
            assert loaded[split]["tokens"][:] == [drawn.sentence(i).tolist() for i in range(len(drawn))]
        assert (len(loaded["train"]), len(loaded["validation"])) == (250, 20)


def test_the_card_tells_how_the_dataset_was_made(dataset):
    card = (dataset / "README.md").read_text()
    command_line = (
        "python data.py export --grammar small --sentences 250 \\\n        --validation 20 --seed 4 --out small"
    )
    assert command_line in card
    for token, symbol in enumerate(SMALL.terminals):
        assert f"| {token} | {symbol} |" in card
    rules = card.split("```")[1]
    assert parse_grammar(rules, "card").rules == SMALL.rules


def test_the_rules_are_a_grammar_file():
    for grammar in (SMALL, LETTERS, load_grammar("cfg3f", "19")):
        again = parse_grammar("\n".join(rules_of(grammar)), grammar.name)
        assert again.nonterminals == grammar.nonterminals
        for rule, there in zip(again.rules, grammar.rules, strict=True):
            assert (rule.left, rule.right) == (there.left, there.right)
            assert rule.probability == pytest.approx(there.probability, rel=1e-15)


def test_a_dataset_of_another_grammar_or_too_small_is_refused(dataset):
    for grammar in (load_grammar("cfg3b"), load_grammar("small", "12")):
        with pytest.raises(UserError, match="holds sentences of small from 13, which is not this run's"):
            open_dataset(dataset, grammar, 1)
    same = parse_grammar("\n".join(rules_of(SMALL)), "under another name")
    assert len(open_dataset(dataset, same, 250)) == 250
    with pytest.raises(UserError, match=r"has 250 sentences and the run needs 1,000, .* --sentences 1000"):
        open_dataset(dataset, SMALL, 1000)


def test_what_is_not_a_dataset_of_ours_is_refused(tmp_path, dataset):
    (tmp_path / "description.json").write_text("[]")
    for directory in (tmp_path, tmp_path / "missing", dataset / "README.md", dataset / "data"):
        with pytest.raises(UserError, match="is not a dataset that data"):
            open_dataset(directory, SMALL, 1)
    (tmp_path / "description.json").unlink()
    os.mkfifo(tmp_path / "description.json")
    with pytest.raises(UserError, match="is not a dataset that data"):
        open_dataset(tmp_path, SMALL, 1)
    mine = shutil.copytree(dataset, tmp_path / "mine")
    file = next((mine / "data").glob("train-*"))
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match=f"{file} is no regular file: replace or remove it"):
        open_dataset(mine, SMALL, 1)


def test_damaged_datasets_are_refused(tmp_path, capsys):
    words = ("--grammar", "small", "--sentences", 50, "--validation", 3, "--shard", 20, "--out", tmp_path / "small")
    assert export(capsys, *words)[0] == 0
    last = tmp_path / "small" / "data" / "train-00002-of-00003.parquet"
    content = last.read_bytes()
    last.write_bytes(content[:-20])
    with pytest.raises(UserError, match=r"train-00002-of-00003\.parquet is damaged"):
        open_dataset(tmp_path / "small", SMALL, 1)
    last.write_bytes(content[:20] + bytes(40) + content[60:])
    with pytest.raises(UserError, match=r"train-00002-of-00003\.parquet is damaged"):
        open_dataset(tmp_path / "small", SMALL, 1).sentences(0, 50)
    last.unlink()
    with pytest.raises(UserError, match="has 40 of 50 sentences: remove it and export it again"):
        open_dataset(tmp_path / "small", SMALL, 1)
    assert "has 40 of 50 sentences" in refuse(capsys, *words)
    last.write_bytes(content)
    assert export(capsys, *words) == (0, f"{tmp_path / 'small'} is complete\n", "")


def test_export_never_overwrites(tmp_path, capsys):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for name in ("thesis", "file"):
        assert "is not a dataset that data.py export wrote" in refuse(
            capsys, "--grammar", "small", "--sentences", 5, "--out", tmp_path / name
        )
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["chapter.tex", "file", "thesis"]
    assert export(capsys, "--grammar", "small", "--sentences", 5, "--out", tmp_path / "small")[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "small").rglob("*.*")}
    for words in (["--sentences", 6], ["--sentences", 5, "--seed", 1], ["--sentences", 5, "--start", "12"]):
        message = refuse(capsys, "--grammar", "small", *words, "--out", tmp_path / "small")
        assert "holds another dataset: give another --out, or remove it" in message
    assert {path: path.read_bytes() for path in (tmp_path / "small").rglob("*.*")} == before


def test_an_export_that_is_cut_off_leaves_nothing_visible_and_can_be_repeated(tmp_path, capsys, monkeypatch):
    words = ("--grammar", "small", "--sentences", 50, "--shard", 20, "--out", tmp_path / "small")
    real, calls = module.sample, []

    def sample_until_killed(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "sample", sample_until_killed)
    assert export(capsys, *words)[0] == 130
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    assert export(capsys, *words)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["README.md", "data", "description.json"]
    assert len(open_dataset(tmp_path / "small", SMALL, 50)) == 50


def test_two_exports_to_one_place_do_not_mix(tmp_path, capsys, monkeypatch):
    words = ("--grammar", "small", "--sentences", 50, "--out", tmp_path / "small")
    real, messages = module.sample, []

    def sample_with_company(*arguments):
        if not messages:
            messages.append(None)
            messages[0] = refuse(capsys, *words)
        return real(*arguments)

    monkeypatch.setattr(module, "sample", sample_with_company)
    assert export(capsys, *words)[0] == 0
    assert "another process is writing" in messages[0]
    assert len(open_dataset(tmp_path / "small", SMALL, 50)) == 50


def test_sentences_are_drawn_and_read_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROW_GROUP", 10)
    real, counts = module.sample, []
    monkeypatch.setattr(module, "sample", lambda *arguments: counts.append(arguments[4]) or real(*arguments))
    module.export(module.ExportArguments(sentences=95, out=tmp_path / "small", grammar="small", validation=0, shard=50))
    assert max(counts) == 10
    assert sum(counts) == 95
    for file, rows in (("train-00000-of-00002.parquet", 50), ("train-00001-of-00002.parquet", 45)):
        metadata = pq.read_metadata(tmp_path / "small" / "data" / file)
        assert metadata.num_rows == rows
        assert metadata.num_row_groups == 5
    assert "validation" not in (tmp_path / "small" / "README.md").read_text().split("---")[1]
    assert not list((tmp_path / "small" / "data").glob("validation*"))
    assert json.loads((tmp_path / "small" / "description.json").read_bytes())["sentences"] == 95


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--sentences 0", "--sentences must be at least 1, got 0"),
        ("--sentences 5 --validation -1", "--validation must be at least 0, got -1"),
        ("--sentences 5 --shard 0", "--shard must be at least 1, got 0"),
        ("--sentences 5 --seed -1", "--seed must be at least 0, got -1"),
        (f"--sentences 5 --seed {2**63}", "--seed must be below 2^63"),
        ("--sentences 5 --grammar cfg9z", "cfg9z is neither a grammar file nor one of"),
    ],
)
def test_wrong_arguments_are_one_line_and_write_nothing(tmp_path, capsys, words, message):
    assert message in refuse(capsys, *words.split(), "--out", tmp_path / "there")
    assert list(tmp_path.iterdir()) == []
