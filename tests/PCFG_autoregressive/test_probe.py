"""Probes of runs that train.py made: their files against naive computations, and what cannot be probed."""

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from common.language_models.setting import task_of_run
from common.pcfg.batches import evaluation_batches
from common.pcfg.grammar_files import load_grammar
from common.pcfg.sampler import sample
from common.runs.run import Run
from common.teachers.discovery import find_checkpoints
from common.teachers.trajectory import checkpoint_digests
from PCFG_autoregressive import train
from PCFG_autoregressive.batches import NextTokenTask
from PCFG_autoregressive.bayes_optimal import bayes_optimal
from PCFG_autoregressive.generation import acceptance, beginnings, continuations
from PCFG_autoregressive.training import SETTING
from tests.commands import assert_named, files, refusals
from tests.pcfg import AUTOREGRESSIVE

TASK = NextTokenTask(load_grammar("small"))
PROBES = {
    "ngrams": shlex.split("ngrams --sentences 12 --run"),
    "nonterminals": shlex.split("nonterminals --training 64 --heldout 20 --epochs 1 --heads 2 --dimension 8 --run"),
    "generation": shlex.split("generation --continuations 20 --tokens 5 --run"),
}


def succeed(capsys, *words):
    """Run probe.py and read the file that it names."""
    return json.loads(Path(AUTOREGRESSIVE.succeed(capsys, "probe", *words).strip()).read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on the smallest grammar of the package, with checkpoints at steps 10, 20 and 30."""
    directory = tmp_path_factory.mktemp("runs") / "small"
    train.train(replace(train.PRESETS["smoke"], steps=30, checkpoint_every=10, eval_every=30, out=directory))
    return directory


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A run with labels at depth 2."""
    directory = tmp_path_factory.mktemp("runs") / "labelled"
    sizes = {"steps": 2, "checkpoint_every": 0, "eval_every": 2, "eval_samples": 50}
    train.train(replace(train.PRESETS["smoke"], label_level=2, **sizes, out=directory))
    return directory


def test_ngrams_are_those_of_sequences_with_random_tokens(trained, capsys):
    """Each variant by itself; its tokens are drawn as the probe's docstring says."""
    sizes = (2, 3, 5)
    words = ["--values", "--positions", 0, "--seed", 5, "--spacing", 4, "--sizes", *sizes, "--columns", 700]
    content = succeed(capsys, *PROBES["ngrams"], trained, *words)
    drawn = sample(TASK.grammar, 5, "probe", 0, 12)
    sequences = [[TASK.bos, *drawn.sentence(i).tolist()] for i in range(12)]
    pairs = [(i, p) for i, sequence in enumerate(sequences) for p in range(4, len(sequence), 4) if p > 4]
    assert content["positions"] == [list(pair) for pair in pairs]
    for checkpoint, entry in zip(find_checkpoints(trained), content["checkpoints"], strict=True):
        assert entry["step"] == checkpoint.step
        model = GPT2LMHeadModel.from_pretrained(checkpoint.location).eval()

        def answer(tokens, model=model):
            with torch.no_grad():
                return model(torch.tensor([tokens])).logits[0, -1].softmax(dim=-1).numpy()

        for n, robust, close in zip(sizes, entry["robust"], entry["close"], strict=True):
            expected = []
            for pair, (i, p) in enumerate(pairs):
                before = sequences[i][:p]
                generator = np.random.Generator(np.random.Philox(key=[5, pair], counter=[0, 0, 0, 1]))
                random = [TASK.bos, *generator.integers(3, size=p).tolist()[1:]]
                cut = p - (n - 1)
                variants = (before, before[:cut] + random[cut:], random[:cut] + before[cut:])
                original, without, alone = map(answer, variants)
                expected.append([np.abs(other - original).sum() for other in (without, alone)])
            found = np.array([robust["values"], close["values"]]).T
            np.testing.assert_allclose(found, expected, atol=2e-5)
            assert robust["median"] == pytest.approx(np.median(found[:, 0]), abs=1e-6)


def test_nonterminals_of_each_checkpoint(trained, capsys):
    content = succeed(capsys, *PROBES["nonterminals"], trained)
    heldout = sample(TASK.grammar, 0, "probe", 64, 20, trees=True).ancestors
    for entry in content["checkpoints"]:
        assert [level["level"] for level in entry["levels"]] == [1, 2, 3]
        assert [level["tokens"] for level in entry["levels"]] == [len(heldout)] * 3
        assert all(0.2 < level["accuracy"] < 1 for level in entry["levels"])
    assert [level["accuracy"] for level in content["bayes_optimal"]["levels"][:2]] == pytest.approx([1, 1], abs=0.05)


def test_generation_is_what_each_checkpoint_writes(trained, capsys):
    content = succeed(capsys, *PROBES["generation"], trained, "--given", 7, "--seed", 3, "--batch-size", 6)
    given = beginnings(TASK.grammar, 3, 7, 20)
    assert content["given"] == 7
    for checkpoint, entry in zip(find_checkpoints(trained), content["checkpoints"], strict=True):
        model = GPT2LMHeadModel.from_pretrained(checkpoint.location)
        expected = acceptance(TASK, given, continuations(model, TASK, given, 5, seed=3, batch_size=20))
        (digest,) = checkpoint_digests([checkpoint]).values()
        assert entry == {"step": checkpoint.step, "digest": digest, **asdict(expected)}
    assert succeed(capsys, *PROBES["generation"], trained)["given"] == TASK.grammar.expected_length // 2


def test_the_best_evaluation_is_on_the_run_s_own_sentences(trained, labelled, capsys):
    content = succeed(capsys, "bayes-optimal", "--run", trained)
    best = bayes_optimal(TASK, evaluation_batches(TASK, 128, 3))
    assert content.pop("argv")[1:] == ["-m", "PCFG_autoregressive.probe", "bayes-optimal", "--run", str(trained)]
    assert (content.pop("id"), content.pop("settings")) == (Run(trained).config["id"], {"eval_samples": None})
    assert content == pytest.approx({"eval_samples": 128, **asdict(best)})
    task = task_of_run(labelled, SETTING)
    assert task.label_level == 2
    batches = evaluation_batches(task, 50, 50)
    content = succeed(capsys, "bayes-optimal", "--run", labelled)
    untold, _ = content.pop("without_label"), [content.pop(name) for name in ("argv", "id", "settings")]
    assert content == pytest.approx({"eval_samples": 50, **asdict(bayes_optimal(task, batches))})
    expected = bayes_optimal(task, batches, label_is_known=False)
    assert untold == pytest.approx({"loss": expected.loss, "accuracy": expected.accuracy})


@refusals(
    ("generation --continuations 0", "--continuations 0"),
    ("generation --tokens 0", "--tokens 0"),
    ("generation --given -1", "--given -1"),
    ("generation --given 40", "--given 33"),
    ("generation --seed -1", "--seed -1"),
)
def test_generation_that_cannot_be_is_one_line_and_writes_nothing(trained, capsys, words, named):
    before = files(trained)
    assert_named(AUTOREGRESSIVE.fail_in_one_line(capsys, "probe", *words.split(), "--run", trained), named)
    assert files(trained) == before


def test_a_model_of_some_tokens_cannot_write(labelled, capsys):
    line = AUTOREGRESSIVE.fail_in_one_line(capsys, "probe", *PROBES["generation"], labelled)
    assert "was trained on the tokens that close a span at depth 2 only and cannot generate sentences" in line
