"""GPT-2 of the sizes asked for, from a seed alone; who sees whom; checkpoints that load, and those that cannot."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, GPT2LMHeadModel

from common.distillation.state import configuration, weights
from common.errors import UserError
from common.pcfg.batches import evaluation_batches
from common.pcfg.grammar_files import load_grammar, parse_grammar
from common.pcfg.task import UNBOUNDED_POSITIONS
from common.runs.checkpoints import save_checkpoint
from PCFG_autoregressive.batches import NextTokenTask
from PCFG_autoregressive.models import load_model, new_model
from tests.commands import change_config, cut

SMALL = NextTokenTask(load_grammar("small"))


def model_of(task=SMALL, layers=2, heads=2, head_dim=4, dropout=0.1, seed=0):
    return new_model(task, layers, heads, head_dim, dropout, seed).eval()


def logits(model, input_ids):
    with torch.no_grad():
        return model(input_ids=input_ids).logits


def test_sizes_are_those_asked_for():
    model = model_of(layers=3, heads=5, head_dim=4, dropout=0.25)
    hidden, vocabulary, positions = 20, 8, 33 + 2
    block = 4 * (hidden * hidden + hidden) + 2 * 4 * hidden * hidden + 5 * hidden + 4 * hidden
    embeddings = (vocabulary + positions) * hidden
    assert sum(parameter.numel() for parameter in model.parameters()) == embeddings + 3 * block + 2 * hidden
    dropouts = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert dropouts == {0.25}
    assert (model.config.bos_token_id, model.config.eos_token_id) == (3, 4)


@pytest.mark.parametrize(
    ("text", "positions"),
    [("S -> a", 3), ("S -> a | A A\nA -> b | b b b", 8), ("S -> S S [0.4] | a [0.6]", UNBOUNDED_POSITIONS)],
)
def test_there_is_room_for_bos_the_longest_sentence_and_eos(text, positions):
    assert model_of(NextTokenTask(parse_grammar(text, "grammar"))).config.n_positions == positions


def test_the_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = model_of(seed=2**62 + 1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    again, other = (model_of(seed=seed).state_dict() for seed in (2**62 + 1, 2**62))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not any(torch.equal(value, other[name]) for name, value in first.items() if value.std() > 0)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_no_token_sees_what_follows_and_padding_changes_nothing(dropout):
    model = model_of(dropout=dropout).train()
    (batch,) = evaluation_batches(SMALL, 12, 12)
    torch.manual_seed(0)
    before = logits(model, batch.input_ids)
    for column in (1, 5, 17):
        changed = batch.input_ids.clone()
        changed[:, column] = (changed[:, column] + 1) % SMALL.vocabulary
        torch.manual_seed(0)
        after = logits(model, changed)
        assert torch.equal(after[:, :column], before[:, :column])
        assert ((after - before)[:, column].abs().amax(-1) > 1e-6).all()
    model.eval()
    together = logits(model, batch.input_ids)
    for row, ids in enumerate(batch.input_ids):
        alone = ids[ids != SMALL.pad]
        torch.testing.assert_close(together[row, : len(alone)], logits(model, alone[None])[0], rtol=0, atol=1e-6)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint as a run writes it, and its model."""
    model = model_of(seed=3)
    save_checkpoint(tmp_path, 10, weights(model), configuration(model))
    return tmp_path / "checkpoint-10", model


def test_a_checkpoint_loads_in_transformers_and_here(saved):
    path, model = saved
    plain, found = GPT2LMHeadModel.from_pretrained(path, output_loading_info=True)
    assert not any(found.values())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    ours = load_model(path, SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    (batch,) = evaluation_batches(SMALL, 5, 5)
    for loaded in (plain, ours):
        assert (loaded.config.n_embd, loaded.config.n_layer, loaded.config.n_head) == (8, 2, 2)
        assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
        torch.testing.assert_close(logits(loaded.eval(), batch.input_ids), logits(model, batch.input_ids))


def make_bert(path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=8, **sizes)).save_pretrained(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (make_bert, "is a model of type bert: give a GPT-2 that was trained on this grammar"),
        (lambda path: change_config(path, vocab_size=7), "has a vocabulary of 7, but small .* 3 terminals .* one of 8"),
        (lambda path: change_config(path, n_positions=34), "has 34 positions, but sentences .* need 35"),
        (lambda path: change_config(path, n_layer=3), r"lacks the weights transformer\.h\.2\..* and 11 more"),
        (lambda path: cut(path / "model.safetensors"), "model.safetensors is truncated: it has .*; save or"),
        (lambda path: (path / "config.json").unlink(), "config.json is missing: save or download"),
        (lambda path: cut(path / "config.json"), "config.json is truncated or damaged: save or"),
    ],
)
def test_a_checkpoint_that_cannot_be_a_teacher_is_one_line(saved, damage, message):
    path, _ = saved
    damage(path)
    with pytest.raises(UserError, match=f"^.*{path}.*$") as caught:
        load_model(path, SMALL)
    assert caught.match(message)
    assert len(str(caught.value).splitlines()) == 1
