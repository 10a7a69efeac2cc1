"""The head at labelled positions gives what the whole output has there."""

import pytest
import torch
from transformers import BertForMaskedLM

from common.distillation.labelled_head import LabelledHead, labelled_logits
from tests.trainers import BATCH, CLASSES, LENGTH, STUDENTS, Plain, bert, make_batch


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_head_at_labelled_positions_has_the_logits_and_gradients_of_the_whole_output(kind):
    batch = make_batch(0)
    labels = batch.pop("labels")
    positions = (labels.flatten() != -100).nonzero()[:, 0]
    model, whole = STUDENTS[kind](5), STUDENTS[kind](5)
    head = LabelledHead.of(model)
    widths = []
    model.get_output_embeddings().register_forward_hook(lambda module, given, made: widths.append(tuple(made.shape)))
    logits = labelled_logits(model, batch, positions, head)
    expected = whole(**batch).logits.flatten(0, 1)[positions]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-7)
    directions = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    (logits * directions).sum().backward()
    (expected * directions).sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: n + text)
    assert widths == [(len(positions), CLASSES)]
    assert model(**batch).logits.shape == (BATCH, LENGTH, CLASSES)


def test_a_model_whose_head_is_unknown_is_computed_everywhere():
    class Changed(BertForMaskedLM):
        def forward(self, **inputs):
            outputs = super().forward(**inputs)
            return {"logits": 2 * outputs.logits}

    batch = make_batch(0)
    positions = (batch.pop("labels").flatten() != -100).nonzero()[:, 0]
    for model in (Plain(2), Changed(bert(2).config)):
        assert LabelledHead.of(model) is None
        expected = model(**batch)["logits"].flatten(0, 1)[positions]
        torch.testing.assert_close(labelled_logits(model, batch, positions, None), expected, rtol=0, atol=0)
