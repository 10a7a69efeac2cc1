"""Outputs at labelled positions are those of the whole output, in logits or in hidden states and a layer."""

import warnings

import pytest
import torch
from torch import nn
from transformers import BertForMaskedLM, Gemma2Config, Gemma2ForCausalLM, GPT2LMHeadModel

from common.distillation import labelled_head
from common.distillation.labelled_head import LabelledHead
from tests.trainers import BATCH, CLASSES, LENGTH, STUDENTS, Plain, bert, gpt2, make_batch


def batch_and_positions():
    batch = make_batch(0)
    labels = batch.pop("labels")
    return batch, (labels.flatten() != -100).nonzero()[:, 0]


def gemma2():
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes = {"head_dim": 4, "intermediate_size": 8, "vocab_size": CLASSES, "pad_token_id": 0}
    return Gemma2ForCausalLM(Gemma2Config(**shape, **sizes))


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_head_at_labelled_positions_has_the_logits_and_gradients_of_the_whole_output(kind, chunked):
    batch, positions = batch_and_positions()
    model, whole = STUDENTS[kind](5), STUDENTS[kind](5)
    head = LabelledHead(model)
    head.check(batch)
    computed = []
    model.get_output_embeddings().register_forward_hook(lambda module, given, made: computed.append(len(given[0])))
    logits = head(model, batch, positions, chunked).logits()
    expected = whole(**batch).logits.flatten(0, 1)[positions]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-7)
    directions = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    (logits * directions).sum().backward()
    (expected * directions).sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: n + text)
    assert computed == [0 if chunked else len(positions)]
    assert model(**batch).logits.shape == (BATCH, LENGTH, CLASSES)


class Doubled(BertForMaskedLM):
    def forward(self, **inputs):
        return {"logits": 2 * super().forward(**inputs).logits}


class Averaged(GPT2LMHeadModel):
    """Needs the logits of all positions."""

    def forward(self, **inputs):
        logits = super().forward(**inputs).logits
        return {"logits": logits + logits.mean(-2, keepdim=True)}


class Mixing(nn.Linear):
    """An output layer for which every position counts."""

    def forward(self, states):
        return super().forward(states + states.mean(-2, keepdim=True))


class WithMixing(GPT2LMHeadModel):
    def __init__(self, config):
        super().__init__(config)
        self.lm_head = Mixing(config.n_embd, config.vocab_size)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Plain(2),
        lambda: Doubled(bert(2).config),
        lambda: Averaged(gpt2(2).config),
        lambda: WithMixing(gpt2(2).config),
        gemma2,
    ],
    ids=["unknown head", "logits doubled", "logits averaged", "positions mixed", "soft cap"],
)
def test_a_model_that_does_more_than_its_output_layer_gives_the_logits_of_the_whole_output(make):
    batch, positions = batch_and_positions()
    model = make().eval()
    expected = model(**batch)["logits"].flatten(0, 1)[positions]
    head = LabelledHead(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        head.check(batch)
    assert [type(model).__name__ in str(warning.message) for warning in caught] == [True] * (type(model) is not Plain)
    output = head(model, batch, positions, chunked=True)
    assert output.layer is None
    torch.testing.assert_close(output.logits(), expected, rtol=1e-5, atol=1e-6)


def test_only_the_classes_that_count_are_computed():
    batch, positions = batch_and_positions()
    model = gpt2(0)
    for chunked in (False, True):
        output = LabelledHead(model, classes=7)(model, batch, positions, chunked)
        assert output.logits().shape == (len(positions), output.number_of_classes) == (len(positions), 7)


def test_hidden_states_are_given_when_there_are_many_logits(monkeypatch):
    batch, positions = batch_and_positions()
    model = gpt2(0)
    head = LabelledHead(model)
    assert head(model, batch, positions).layer is None
    monkeypatch.setattr(labelled_head, "CHUNK", 3 * CLASSES)
    output = head(model, batch, positions)
    assert output.layer is model.lm_head
    rows = list(output.chunks())
    assert [part.start for part in rows] == list(range(0, len(positions), 3))
    parts = torch.cat([output.logits(part) for part in rows])
    torch.testing.assert_close(parts, model(**batch).logits.flatten(0, 1)[positions], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("dropout", "training", "selects"), [(0.0, True, True), (0.5, False, True), (0.5, True, False)]
)
def test_berts_last_block_computes_labelled_positions_unless_it_draws_random_numbers(dropout, training, selects):
    batch, positions = batch_and_positions()
    model = bert(0, dropout=dropout)
    head = LabelledHead(model)
    head.check(batch)
    computed = []
    block = model.bert.encoder.layer[-1]
    block.output.register_forward_hook(lambda module, given, made: computed.append(made.shape[:-1].numel()))
    model.train(training)
    torch.manual_seed(0)
    logits = head(model, batch, positions).logits()
    torch.manual_seed(0)
    torch.testing.assert_close(logits, model(**batch).logits.flatten(0, 1)[positions], rtol=1e-5, atol=1e-6)
    assert computed == [len(positions) if selects else BATCH * LENGTH, BATCH * LENGTH]


def test_berts_last_block_can_be_computed_again_for_the_backward_pass():
    batch, positions = batch_and_positions()
    gradients = []
    for again in (False, True):
        model = bert(0)
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        LabelledHead(model)(model, batch, positions).logits().logsumexp(-1).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("classes", "rows"), [(100, 2**20 // 100), (50_000, 64), (500_000, 2**22 // 500_000)])
def test_chunks_on_a_cpu_are_small_but_have_several_rows(classes, rows):
    parts = list(labelled_head.chunks(2 * rows + 1, classes, torch.device("cpu")))
    assert parts == [slice(0, rows), slice(rows, 2 * rows), slice(2 * rows, 2 * rows + 1)]
