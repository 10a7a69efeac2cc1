"""BERT of the sizes asked for, from a seed alone; who sees whom; checkpoints that load, and those that cannot."""

import logging

import pytest
import safetensors.torch
import torch
import transformers
from transformers import BertConfig, BertForMaskedLM

from common.distillation.state import configuration, weights
from common.errors import UserError
from common.pcfg.grammar_files import load_grammar, parse_grammar
from common.pcfg.models import require_room
from common.pcfg.sampler import sample
from common.pcfg.task import UNBOUNDED_POSITIONS
from common.runs.checkpoints import save_checkpoint
from PCFG_mlm.batches import Batch, MaskedTask, mask_batch
from PCFG_mlm.models import load_model, new_model
from tests.commands import change_config, cut

SMALL = MaskedTask(load_grammar("small"))
UNBOUNDED = MaskedTask(parse_grammar("S -> S S [0.4] | a [0.3] | b [0.3]", "unbounded"))


def model_of(task=SMALL, layers=2, heads=2, head_dim=4, dropout=0.1, seed=0):
    return new_model(task, layers, heads, head_dim, dropout, seed).eval()


def logits(model, batch):
    with torch.no_grad():
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


def batch_of(task, sentences=12):
    drawn = sample(task.grammar, 0, "train", 0, sentences)
    return mask_batch(task, 0, "train", drawn, 0, torch.arange(sentences).numpy())


# Made


def test_sizes_are_those_asked_for():
    model = model_of(layers=3, heads=5, head_dim=4, dropout=0.25)
    hidden, vocabulary, positions = 20, 8, 34
    linear = hidden * hidden + hidden
    feed_forward = hidden * 4 * hidden + 4 * hidden + 4 * hidden * hidden + hidden
    embeddings = (vocabulary + positions + 2) * hidden + 2 * hidden
    blocks = 3 * (4 * linear + feed_forward + 4 * hidden)
    head = linear + 2 * hidden + vocabulary  # its matrix is that of the embeddings
    assert sum(parameter.numel() for parameter in model.parameters()) == embeddings + blocks + head
    assert {(name, module.p) for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)} >= {
        ("bert.embeddings.dropout", 0.25),
        ("bert.encoder.layer.2.output.dropout", 0.25),
    }
    config = model.config
    assert (config.num_attention_heads, config.attention_probs_dropout_prob) == (5, 0.25)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (3, 4, 5)


def test_the_vocabulary_follows_the_terminals():
    letters = MaskedTask(parse_grammar("S -> a b c d e", "letters"))
    assert model_of(letters).config.vocab_size == 5 + 5
    assert logits(model_of(letters), batch_of(letters)).shape == (12, 6, 10)


@pytest.mark.parametrize(
    ("text", "positions"),
    [("S -> a", 2), ("S -> a | A A\nA -> b | b b b", 7), ("S -> S S [0.4] | a [0.6]", UNBOUNDED_POSITIONS)],
)
def test_there_is_room_for_bos_and_the_longest_sentence(text, positions):
    task = MaskedTask(parse_grammar(text, "grammar"))
    assert task.positions == positions
    assert model_of(task).config.max_position_embeddings == positions


def test_the_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = model_of(seed=2**62 + 1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again, other = (model_of(seed=seed).state_dict() for seed in (2**62 + 1, 2**62))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not any(torch.equal(value, other[name]) for name, value in first.items() if value.std() > 0)


def test_a_sentence_without_room_is_refused():
    require_room(UNBOUNDED.positions, UNBOUNDED)
    with pytest.raises(UserError, match=r"unbounded made a sentence of 1,024 tokens, and a model has 1,024 positions"):
        require_room(UNBOUNDED.positions + 1, UNBOUNDED)


# Attention


def test_no_one_attends_to_hidden_positions():
    model, batch = model_of(), batch_of(SMALL)
    hidden = (batch.attention_mask == 0) & (batch.input_ids != SMALL.pad)
    visible = ~hidden & (batch.input_ids != SMALL.pad)
    assert hidden.sum() > 50
    before = logits(model, batch)
    for shift in range(1, SMALL.vocabulary):
        shown = torch.where(hidden, (batch.input_ids + shift) % SMALL.vocabulary, batch.input_ids)
        after = logits(model, Batch(shown, batch.attention_mask, batch.labels))
        torch.testing.assert_close(after[visible], before[visible], rtol=0, atol=1e-6)
    for row, place in hidden.nonzero()[:10].tolist():
        shown = batch.input_ids.clone()
        shown[row, place] = (shown[row, place] + 1) % SMALL.vocabulary
        after = logits(model, Batch(shown, batch.attention_mask, batch.labels))
        differs = (after - before).abs().amax(-1) > 1e-6
        assert differs.nonzero().tolist() == [[row, place]]


def test_without_the_switch_masked_positions_are_attended_to():
    model, batch = model_of(), batch_of(MaskedTask(load_grammar("small"), hide_masked=False))
    chosen = (batch.labels != -100) & (torch.arange(batch.labels.shape[1]) > 0)
    shown = torch.where(chosen, (batch.input_ids + 1) % SMALL.terminals, batch.input_ids)
    differs = (logits(model, Batch(shown, batch.attention_mask, batch.labels)) - logits(model, batch)).abs().amax(-1)
    attended = batch.attention_mask == 1
    assert (attended & ~chosen).any()
    assert (differs[attended] > 1e-6).all()


@pytest.mark.parametrize("hide_masked", [True, False])
def test_padding_changes_no_logits(hide_masked):
    model, batch = model_of(), batch_of(MaskedTask(load_grammar("small"), hide_masked=hide_masked))
    lengths = (batch.input_ids != SMALL.pad).sum(1).tolist()
    assert len(set(lengths)) > 3
    together = logits(model, batch)
    for row, length in enumerate(lengths):
        alone = Batch(*(tensor[row : row + 1, :length] for tensor in vars(batch).values()))
        torch.testing.assert_close(together[row, :length], logits(model, alone)[0], rtol=0, atol=1e-6)


# Loaded


@pytest.fixture
def saved(tmp_path):
    """A checkpoint as a run writes it, and its model."""
    model = model_of(seed=3)
    save_checkpoint(tmp_path, 10, weights(model), configuration(model))
    return tmp_path / "checkpoint-10", model


def test_a_checkpoint_loads_in_transformers_and_here(saved):
    path, model = saved
    plain, found = BertForMaskedLM.from_pretrained(path, output_loading_info=True)
    assert not any(found.values())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    ours = load_model(path, SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    expected = model.state_dict()
    for loaded in (plain, ours):
        assert loaded.config.hidden_size == 8
        assert loaded.config.num_hidden_layers == 2
        assert loaded.config.num_attention_heads == 2
        state = loaded.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], value) for name, value in expected.items())
        torch.testing.assert_close(logits(loaded.eval(), batch_of(SMALL)), logits(model, batch_of(SMALL)))


def test_weights_in_half_precision_are_loaded_in_float32(saved):
    path, model = saved
    half = {name: value.bfloat16() for name, value in safetensors.torch.load_file(path / "model.safetensors").items()}
    safetensors.torch.save_file(half, path / "model.safetensors", metadata={"format": "pt"})
    state = load_model(path, SMALL).state_dict()
    for name, value in model.state_dict().items():
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], value.bfloat16().float())


def change_weights(path, change):
    tensors = safetensors.torch.load_file(path / "model.safetensors")
    safetensors.torch.save_file(change(tensors), path / "model.safetensors", metadata={"format": "pt"})


def make_gpt2(path):
    config = transformers.GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=3, eos_token_id=4)
    transformers.GPT2LMHeadModel(config).save_pretrained(path)


def make_headless(path):
    transformers.BertModel(BertConfig.from_pretrained(path)).save_pretrained(path)


def make_pickle(path):
    torch.save(BertForMaskedLM.from_pretrained(path).state_dict(), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


DENSE = "cls.predictions.transform.dense.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (make_gpt2, "is a model of type gpt2"),
        (make_headless, "lacks the weights cls.predictions.bias and 5 more"),
        (make_pickle, r"has only pickled weights \(pytorch_model.bin\): convert them"),
        (lambda path: change_config(path, vocab_size=7), "has a vocabulary of 7, but small .* 3 terminals .* one of 8"),
        (lambda path: change_config(path, max_position_embeddings=33), "has 33 positions, but sentences .* need 34"),
        (lambda path: change_config(path, num_hidden_layers=3), r"lacks the weights bert.encoder.layer\.2\."),
        (
            lambda path: change_config(path, num_attention_heads=3),
            "config.json: a hidden size of 8 is not divisible by 3",
        ),
        (
            lambda path: change_weights(path, lambda t: {**t, DENSE: t[DENSE][:5].clone()}),
            f"shapes do not match .* {DENSE}",
        ),
        (
            lambda path: change_weights(path, lambda t: {name: t[name] for name in t if name != DENSE}),
            f"lacks the weights {DENSE}",
        ),
        (lambda path: cut(path / "model.safetensors"), "model.safetensors is truncated: it has .*; save or"),
        (lambda path: (path / "model.safetensors").write_bytes(b""), "model.safetensors is truncated or damaged"),
        (lambda path: (path / "model.safetensors").unlink(), "lacks model.safetensors: finish saving"),
        (lambda path: (path / "config.json").unlink(), "config.json is missing: save or"),
        (lambda path: cut(path / "config.json"), "config.json is truncated or damaged: save or"),
        (lambda path: (path / "config.json").write_text("[]"), "config.json is truncated or damaged: save or"),
    ],
)
def test_a_checkpoint_that_cannot_be_a_teacher_is_one_line(saved, caplog, damage, message):
    path, _ = saved
    damage(path)
    log = logging.getLogger("transformers")
    log.addHandler(caplog.handler)
    transformers.logging.set_verbosity_warning()
    try:
        with pytest.raises(UserError, match=f"^.*{path}.*$") as caught:
            load_model(path, SMALL)
    finally:
        log.removeHandler(caplog.handler)
    assert caught.match(message)
    assert len(str(caught.value).splitlines()) == 1
    assert caplog.records == []


def test_a_model_with_more_positions_than_needed_is_accepted(tmp_path):
    short = MaskedTask(parse_grammar("S -> 1 2 3", "short"))
    model = model_of()
    save_checkpoint(tmp_path, 10, weights(model), configuration(model))
    loaded = load_model(tmp_path / "checkpoint-10", short)
    assert loaded.config.max_position_embeddings == 34
    assert torch.equal(logits(loaded, batch_of(SMALL)), logits(model, batch_of(SMALL)))
