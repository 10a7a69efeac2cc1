"""Datasets and tokenizers that were downloaded before, without a network; no test uses the hub itself."""

import json
import os
import re
from pathlib import Path

import datasets
import pytest
from transformers import AutoTokenizer

from common.errors import UserError
from common.runs.run import Run
from common.text.corpora import Corpus
from common.text.tokenization import train_tokenizer
from tests.commands import python
from tests.documents import documents
from tests.hub import cache_by_hand, cache_dataset, parquet, use
from tests.text import MASKED, TEXT_SETTINGS

ARTICLES, SENTENCES = documents(60), [f"sentence {i} of a book ." for i in range(5000)]
COMMIT, OTHER = "a" * 40, "b" * 40
CARD = """---
dataset_info:
  splits:
  - name: train
    num_examples: {}
---
"""


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty caches of the hub and of `datasets`, and no network."""
    use(monkeypatch, tmp_path / "hub")
    for place in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{place}.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return tmp_path


def test_a_dataset_in_the_cache_of_datasets(caches):
    cache_dataset(caches / "datasets", "org/name", "20.en", COMMIT, ARTICLES)
    corpus = Corpus("org/name:20.en")
    for _ in range(2):
        assert list(corpus.documents()) == ARTICLES
    assert corpus.notes() == {"commits": {"org/name:20.en": COMMIT}}
    assert list(Corpus(f"org/name:20.en@{COMMIT}").documents()) == ARTICLES
    with pytest.raises(UserError, match=rf"is only in the cache with commit {COMMIT}: give this one, or no revision$"):
        list(Corpus(f"org/name:20.en@{OTHER}").documents())
    with pytest.raises(UserError, match=r"org/name:21\.en cannot be read from the hub, with HF_HUB_OFFLINE set"):
        list(Corpus("org/name:21.en").documents())


def test_a_dataset_in_the_cache_of_the_hub(caches):
    halves = {f"train/{i}.parquet": parquet(ARTICLES[30 * i : 30 * i + 30]) for i in range(2)}
    snapshot = cache_by_hand(caches / "hub", "v1/a", halves, "org/name", "datasets")
    corpus = Corpus("org/name@v1/a")
    assert list(corpus.documents()) == ARTICLES
    assert corpus.notes() == {"commits": {"org/name@v1/a": snapshot.name}}
    with pytest.raises(UserError, match="org/name cannot be read from the hub"):
        list(Corpus("org/name").documents())


def test_a_dataset_that_was_downloaded_in_part_is_one_line(caches):
    files = {"README.md": CARD.format(60).encode(), "train/0.parquet": parquet(ARTICLES[:30])}
    cache_by_hand(caches / "hub", "main", files, "org/name", "datasets")
    with pytest.raises(UserError, match=r"^org/name has 30 of 60 rows in the cache: download all of its files$"):
        list(Corpus("org/name").documents())


# The paper's preset

SIZES = "--length 16 --held-out 0.3"
MODEL = "--layers 1 --head-dim 8 --steps 4 --batch-size 4 --eval-samples 8 --eval-every 2 --checkpoint-every 0"


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory):
    """The environment of commands without a network, with all that the paper's preset needs in caches."""
    home = tmp_path_factory.mktemp("home")
    cache_dataset(home / "datasets", "wikimedia/wikipedia", "20231101.en", COMMIT, ARTICLES)
    books = {"plain_text/train/0000.parquet": parquet(SENTENCES)}
    cache_by_hand(home / "hub", "refs/convert/parquet", books, "bookcorpus/bookcorpus", "datasets")
    for name, kind, model in (
        ("bert-base-uncased", "wordpiece", "bert"),
        ("EleutherAI/pythia-160m", "bpe", "gpt_neox"),
    ):
        train_tokenizer(lambda: ARTICLES, kind, 400).save_pretrained(home / kind)
        (home / kind / "config.json").write_text(json.dumps({"model_type": model}))
        cache_by_hand(home / "hub", "main", {path.name: path.read_bytes() for path in (home / kind).iterdir()}, name)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {**kept, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "TEXT_BLOCKS": str(home / "blocks")}


IN_TURN = """
import json
import runpy
import sys

for number, words in enumerate(json.loads(sys.argv[1])):
    sys.argv = words
    sys.stderr.write(f"command {number}\\n")
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory, downloaded, one_torch_thread):
    """What the commands of each setting write on stderr, the folder of its run, and its preset.

    They run in one process, as huggingface_hub reads its environment when it is imported.
    """
    runs, commands = tmp_path_factory.mktemp("runs"), []
    presets = [setting.module("train").PRESETS["paper"] for setting in TEXT_SETTINGS]
    for setting, preset in zip(TEXT_SETTINGS, presets, strict=True):
        prepare = ["--corpus", *preset.corpus, "--tokenizer", preset.tokenizer, *SIZES.split()]
        out = ["--out", runs / setting.name, "--heads", 1, *MODEL.split(), *SIZES.split()]
        commands += [[f"{setting.name}.data", "prepare", *prepare], [f"{setting.name}.train", "paper", *out]]
    done = python("-c", IN_TURN, json.dumps([[*map(str, words)] for words in commands]), env=downloaded)
    assert done.returncode == 0, done.stderr
    _, *parts = re.split("^command [0-9]\n", done.stderr, flags=re.MULTILINE)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {s: (*pair, runs / s.name, preset) for s, pair, preset in zip(TEXT_SETTINGS, pairs, presets, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("setting", TEXT_SETTINGS, ids=lambda setting: setting.name)
def test_the_papers_preset_from_what_was_downloaded(setting, downloaded, said):
    of_data, of_train, directory, preset = said[setting]
    assert f"preparing {preset.corpus[0]} in " in of_data
    assert "preparing" not in of_train
    run = Run(directory)
    assert run.complete
    commits = run.config["arguments"]["commits"]
    assert commits["wikimedia/wikipedia:20231101.en"] == COMMIT
    (books,) = (Path(downloaded["HF_HOME"]) / "hub/datasets--bookcorpus--bookcorpus/snapshots").iterdir()
    assert commits["bookcorpus/bookcorpus@refs/convert/parquet"] == books.name
    own = AutoTokenizer.from_pretrained(directory / "checkpoint-4").get_vocab()
    kind = "wordpiece" if setting is MASKED else "bpe"
    assert own == AutoTokenizer.from_pretrained(Path(downloaded["HF_HOME"]) / kind).get_vocab()


def test_the_papers_preset_without_a_download_is_one_line(caches, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TEXT_BLOCKS", str(tmp_path / "blocks"))
    for words, named in (
        ([], "cannot load the tokenizer bert-base-uncased "),
        (["--tokenizer", "wordpiece"], "the dataset wikimedia/wikipedia:20231101.en cannot be read from the hub"),
    ):
        code, (*notes, line) = MASKED.start(capsys, "train", "paper", *words, "--out", tmp_path / "run")
        assert code == 2
        assert line.startswith("error: ")
        assert named in line
        assert all(note.startswith("preparing ") for note in notes)
    assert not (tmp_path / "run").exists()
