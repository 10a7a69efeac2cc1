"""Designed targets on grammars: against exact posteriors, against counting by hand, their controls and refusals."""

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

import PCFG_autoregressive.bayes_optimal
import PCFG_mlm.bayes_optimal
from common.distillation.batches import batch_tensors
from common.distillation.labelled_head import labelled_positions
from common.distillation.losses import IGNORED_LABEL
from common.errors import UserError
from common.pcfg import window_targets
from common.pcfg.batches import TrainingBatches, evaluation_batches
from common.pcfg.grammar_files import load_grammar
from common.pcfg.window_targets import SEED, SMOOTHING, WindowDesign, window_model
from common.pcfg.windows import divergences
from tests.pcfg import AUTOREGRESSIVE, MLM, SETTINGS, SMALL

OPTIMA = {"PCFG_mlm": PCFG_mlm.bayes_optimal, "PCFG_autoregressive": PCFG_autoregressive.bayes_optimal}
BOTH = ("position", "length")


@pytest.fixture(params=SETTINGS, ids=lambda setting: setting.name)
def pcfg(request):
    return request.param


@pytest.fixture
def few_sentences(monkeypatch):
    """Targets are estimated from 512 sentences."""
    monkeypatch.setattr(window_targets, "SENTENCES", 512)
    window_model.cache_clear()
    yield
    window_model.cache_clear()


def knows(pcfg):
    return BOTH if pcfg is MLM else ("position",)


def model_of(pcfg, task, tokens, known=None, source="grammar"):
    return window_model(task, WindowDesign(tokens, knows(pcfg) if known is None else known, source), pcfg is not MLM)


def logits_at_labels(pcfg, model, batch):
    tensors = batch_tensors(batch)
    labels = tensors.pop("labels").clone()
    labels[:, 0] = IGNORED_LABEL  # BOS is always there
    positions = labelled_positions(labels, pcfg is not MLM)
    return model(**tensors)["logits"].flatten(0, 1)[positions], labels


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_target_is_near_the_exact_posterior_of_its_window_and_of_no_other(pcfg, tokens):
    task = pcfg.task(SMALL)
    (batch,) = evaluation_batches(task, 48, 48)
    logits, labels = logits_at_labels(pcfg, model_of(pcfg, task, tokens), batch)
    places = [(row, column) for row, column in (labels != IGNORED_LABEL).nonzero().tolist()]
    predict = OPTIMA[pcfg.name].window_posteriors_of_label
    exact = torch.from_numpy(np.array([predict(task, batch, *place, (1, 3, 5)) for place in places]))
    found = divergences(exact, logits).mean(dim=0)
    at = (1, 3, 5).index(tokens)
    assert found[at] < 0.02  # it is estimated
    assert all(found[other] > 10 * found[at] for other in range(4) if other != at)


def test_probabilities_are_smoothed_counts(pcfg, few_sentences):
    """Of windows of 1 and of 3 tokens, by dictionaries of contexts as tuples."""
    task, causal = pcfg.task(SMALL), pcfg is not MLM
    model = model_of(pcfg, task, 3, known=("position",))
    counts = {size: defaultdict(Counter) for size in (1, 2, 3)}
    batches = TrainingBatches(task, SEED, window_targets.BATCH_SIZE)
    labelled = []
    for step in range(2):
        batch = batches.batch(step)
        ids = batch.input_ids.tolist()
        hidden = (batch.attention_mask == 0).tolist() if not causal else [[False] * len(row) for row in ids]
        for row, labels in enumerate(batch.labels.tolist()):
            for column, label in enumerate(labels):
                if label != IGNORED_LABEL:
                    at = column - causal
                    labelled.append((step, row, at, label))
                    for size in counts:
                        counts[size][context(ids[row], hidden[row], at, size, task, causal)][label] += 1
    total = Counter(label for *_, label in labelled)
    base = np.array([total[token] + 0.5 for token in range(task.vocabulary)])
    for step, row, at, _ in labelled[:: len(labelled) // 50]:
        batch = batches.batch(step)
        ids = batch.input_ids[row].tolist()
        hidden = (batch.attention_mask[row] == 0).tolist() if not causal else [False] * len(ids)
        expected = base / base.sum()
        for size in (1, 2, 3) if causal else (1, 3):
            found = counts[size][context(ids, hidden, at, size, task, causal)]
            row_of = np.array([found[token] for token in range(task.vocabulary)])
            expected = (row_of + SMOOTHING * expected) / (row_of.sum() + SMOOTHING)
        logits = model(**{name: t[[row]] for name, t in batch_tensors(batch).items() if name != "labels"})["logits"]
        np.testing.assert_allclose(logits[0, at].double().exp().numpy(), expected, rtol=1e-5)


def context(ids, hidden, at, size, task, causal):
    """The position, and the tokens of the window: None outside the sentence."""
    offsets = range(2 - size, 1) if causal else range(-(size // 2), size // 2 + 1)
    shown = []
    for place in (at + offset for offset in offsets):
        if not 0 <= place < len(ids) or ids[place] == task.pad:
            shown.append(None)
        else:
            shown.append(task.mask if hidden[place] and place != at else ids[place])
    return at, tuple(shown)


def test_an_unseen_context_has_the_distribution_of_a_smaller_window(pcfg, few_sentences):
    task = pcfg.task(SMALL)
    small, large = (model_of(pcfg, task, tokens, known=("position",)) for tokens in (1, 3))
    ids = torch.full((1, 4), task.eos)  # no sentence has several of them
    seen = {"attention_mask": torch.ones_like(ids)} if pcfg is MLM else {}
    assert torch.equal(large(ids, **seen)["logits"][0, 2], small(ids, **seen)["logits"][0, 2])


def test_permuted_targets_have_the_same_distributions_in_other_places(pcfg, few_sentences):
    task = pcfg.task(SMALL)
    own, permuted = (model_of(pcfg, task, 3, source=source) for source in ("grammar", "permuted"))
    last = max(int(name[-1]) for name, _ in own.named_buffers() if name[-1].isdigit())
    tables = [model.get_buffer(f"log_probabilities{last}") for model in (own, permuted)]
    assert not torch.equal(*tables)
    assert sorted(tables[0].tolist()) == sorted(tables[1].tolist())
    assert torch.equal(*(model.get_buffer(f"numbers{last}") for model in (own, permuted)))


def test_another_grammar_with_the_same_terminals_can_be_the_source(pcfg, few_sentences):
    task = pcfg.task(load_grammar("cfg3b", "18"))
    tables = [
        model_of(pcfg, task, 3, known=(), source=source).get_buffer("log_probabilities0")
        for source in ("grammar", "cfg3f:18")
    ]
    assert not torch.equal(*tables)


@pytest.mark.parametrize(
    ("tokens", "known", "source", "message"),
    [
        (100_001, (), "grammar", "--windows of 100001 tokens are too large"),
        (25, (), "grammar", "--windows of 25 tokens are too large"),
        (3, (), "nonsense", "--windows-of is grammar, permuted, or one of .*cfg3b, .*; got nonsense"),
        (3, (), "cfg3b:nothing", "--windows-of cfg3b:nothing: "),
        (3, (), "small", "--windows-of small is the task's own grammar"),
    ],
)
def test_targets_that_cannot_be_made_are_refused(pcfg, tokens, known, source, message):
    with pytest.raises(UserError, match=message):
        model_of(pcfg, pcfg.task(SMALL), tokens, known=known, source=source)


def test_windows_that_the_task_does_not_have_are_refused():
    with pytest.raises(UserError, match="--windows around a masked position are odd numbers of tokens, got 4"):
        model_of(MLM, MLM.task(SMALL), 4)
    with pytest.raises(UserError, match="--windows-with length is for masked tokens"):
        model_of(AUTOREGRESSIVE, AUTOREGRESSIVE.task(SMALL), 4, known=BOTH)
