"""Configurations as published, as transformers reads them; and entries that cannot be, or choose what runs."""

import json
import re

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from common.errors import UserError
from common.teachers.configs import NOT_ARCHITECTURE, config_of, read_config
from common.teachers.loading import build_model, read_model
from tests.models import save_suite

PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"],
    **{"bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu", "hidden_size": 512, "initializer_range": 0.02},
    **{"intermediate_size": 2048, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "model_type": "gpt_neox"},
    **{"num_attention_heads": 8, "num_hidden_layers": 6, "rotary_emb_base": 10000, "rotary_pct": 0.25},
    **{"tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.24.0", "use_cache": True},
    **{"use_parallel_residual": True, "vocab_size": 50304},
}
OLMO = {
    "architectures": ["OlmoForCausalLM"],
    **{"attention_bias": False, "attention_dropout": 0.0, "clip_qkv": None, "eos_token_id": 50279},
    **{"hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192},
    **{"max_position_embeddings": 2048, "model_type": "olmo", "num_attention_heads": 16, "num_hidden_layers": 16},
    **{"num_key_value_heads": 16, "pad_token_id": 1, "rope_scaling": None, "rope_theta": 10000.0},
    **{"tie_word_embeddings": True, "torch_dtype": "float32", "use_cache": True, "vocab_size": 50304},
}
BERT = {
    "architectures": ["BertForMaskedLM"],
    **{"attention_probs_dropout_prob": 0.1, "gradient_checkpointing": False, "hidden_act": "gelu", "hidden_size": 768},
    **{"hidden_dropout_prob": 0.1, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-12},
    **{"max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": 12},
    **{"pad_token_id": 0, "position_embedding_type": "absolute", "type_vocab_size": 2, "use_cache": True},
    **{"classifier_dropout": None, "transformers_version": "4.6.0.dev0", "vocab_size": 30522},
}
GPT2 = {
    "activation_function": "gelu_new",
    **{"architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1},
    **{"eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2"},
    **{"n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_inner": None, "n_layer": 12, "n_positions": 1024},
    **{"resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1, "summary_type": "cls_index"},
    **{"summary_proj_to_labels": True, "summary_use_proj": True, "vocab_size": 50257},
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}
ROBERTA = {
    **{"architectures": ["RobertaForMaskedLM"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 0},
    **{"eos_token_id": 2, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768},
    **{"initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 514},
    **{"model_type": "roberta", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1},
    **{"type_vocab_size": 1, "vocab_size": 50265},
}
LLAMA = {
    **{"architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0},
    **{"bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu"},
    **{"hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072},
    **{"mlp_bias": False, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16},
    **{"num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0},
    "rope_scaling": {
        **{"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0},
        **{"original_max_position_embeddings": 8192, "rope_type": "llama3"},
    },
    **{"tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 128256},
}
PUBLISHED = {
    "pythia": PYTHIA,
    "olmo": OLMO,
    "olmo2": {k: v for k, v in OLMO.items() if k != "clip_qkv"}
    | {"model_type": "olmo2", "rms_norm_eps": 1e-6, "rope_theta": 500000},
    "bert": BERT,
    "gpt2": GPT2,
    "roberta": ROBERTA,
    "llama": LLAMA,
    "llama, new": {k: v for k, v in LLAMA.items() if k not in ("rope_scaling", "rope_theta")}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "dtype": "bfloat16"},
    "llama, linear": {**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "modernbert": {
        **{"architectures": ["ModernBertForMaskedLM"], "model_type": "modernbert", "hidden_size": 768},
        **{"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_attention": 128},
        **{"local_rope_theta": 5000.0, "num_hidden_layers": 7, "num_attention_heads": 12, "vocab_size": 50368},
    },
    "deberta": {
        **{"model_type": "deberta-v2", "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_size": 768},
        **{"relative_attention": True, "max_relative_positions": -1, "position_buckets": 256, "share_att_key": True},
        **{"norm_rel_ebd": "layer_norm", "pos_att_type": "p2c|c2p", "type_vocab_size": 0, "vocab_size": 128100},
        **{"num_attention_heads": 12, "num_hidden_layers": 12, "position_biased_input": False},
    },
    "mamba2": {"model_type": "mamba2", "time_step_limit": [0.0, float("inf")], "num_heads": 128, "head_dim": 64},
    "numbers": {**OLMO, "tie_word_embeddings": 0, "use_cache": 1, "attention_bias": 0},
}
DIFFERENT = NOT_ARCHITECTURE | {"task_specific_params", "gradient_checkpointing", "position_embedding_type", "n_ctx"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_read_as_by_transformers(name):
    values = PUBLISHED[name]
    found = config_of(values, "config.json")
    truths = {key: bool(values[key]) for key in ("tie_word_embeddings", "use_cache", "attention_bias") if key in values}
    expected = AutoConfig.for_model(**{**values, **truths})
    assert type(found) is type(expected)
    one, other = ({k: v for k, v in vars(each).items() if k not in DIFFERENT} for each in (found, expected))
    assert one == other


def refused(values, *words):
    with pytest.raises(UserError) as caught:
        config_of(values, "folder/config.json")
    (line,) = str(caught.value).splitlines()
    assert line.startswith("folder/config.json")
    assert len(line) < 500
    for word in words:
        assert str(word) in line


@pytest.mark.parametrize(
    ("kind", "entries"),
    [
        (GPT2, {"vocab_size": "abc"}),
        (GPT2, {"vocab_size": None}),
        (GPT2, {"vocab_size": 8.5}),
        (GPT2, {"vocab_size": True}),
        (GPT2, {"n_head": 0}),
        (GPT2, {"n_layer": -1}),
        (BERT, {"num_hidden_layers": -1}),
        (BERT, {"num_hidden_layers": 10**9}),
        (BERT, {"hidden_size": [768]}),
        (BERT, {"hidden_size": 2**40}),
        (LLAMA, {"num_attention_heads": 0, "head_dim": None}),
        (LLAMA, {"num_key_value_heads": 0}),
        (PYTHIA, {"torch_dtype": "float7"}),
        (PYTHIA, {"torch_dtype": "__builtins__"}),
        (PYTHIA, {"dtype": 3}),
        (PYTHIA, {"hidden_act": "swoosh"}),
        (PYTHIA, {"hidden_act": ["gelu"]}),
        (GPT2, {"activation_function": None}),
        (GPT2, {"resid_pdrop": 1.5}),
        (GPT2, {"resid_pdrop": float("nan")}),
        (BERT, {"hidden_dropout_prob": -0.1}),
        (BERT, {"hidden_dropout_prob": "0.1"}),
        (BERT, {"layer_norm_eps": float("inf")}),
        (BERT, {"layer_norm_eps": "small"}),
        (BERT, {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}),
        (BERT, {"tie_word_embeddings": "false"}),
        (BERT, {"tie_word_embeddings": 2}),
        (BERT, {"architectures": "BertForMaskedLM"}),
        (BERT, {"is_causal": "no"}),
    ],
)
def test_an_entry_that_cannot_be_is_one_line_that_names_the_file_and_the_entry(kind, entries):
    refused({**kind, **entries}, next(iter(entries)))


@pytest.mark.parametrize(
    ("kind", "entries"), [(LLAMA, {"num_attention_heads": 5, "head_dim": None}), (GPT2, {"n_head": 7})]
)
def test_heads_must_divide_the_hidden_size(kind, entries):
    refused({**kind, **entries}, "hidden size", "heads")


def test_entries_that_are_not_read_may_be_anything():
    entries = {"some\nname": float("nan"), "their_dropout": 7, "hidden_layers": -1, "big": 10**400}
    found, expected = config_of({**BERT, **entries}, "config.json"), config_of(BERT, "config.json")
    assert found.to_dict() == expected.to_dict()


def test_a_model_type_of_ones_own(tmp_path):
    class OwnConfig(transformers.LlamaConfig):
        model_type = "own-llama-of-this-test"

        def __init__(self, depth=3, **options):
            super().__init__(**options)
            self.depth = depth

    AutoConfig.register(OwnConfig.model_type, OwnConfig)
    entries = {
        "model_type": OwnConfig.model_type,
        "depth": 5,
        "hidden_size": 64,
        "attn_implementation": "theirs/kernel",
    }
    config = config_of(entries, "config.json")
    assert (type(config), config.depth, config.hidden_size) == (OwnConfig, 5, 64)
    assert config._attn_implementation is None


@pytest.mark.parametrize("kind", [None, 3, ["bert"], "t5", "no-such-model", "x" * 10_000])
def test_other_model_types_are_refused(kind):
    refused({"model_type": kind}, "encoder-decoder" if kind == "t5" else "does not describe a transformers model")


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, '{"model_type"', "NaN"])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config.json is truncated or damaged: save or download"):
        read_config(tmp_path)


# What chooses how a model computes


@pytest.mark.parametrize(
    "entries",
    [
        {"attn_implementation": "theirs/kernel"},
        {"_attn_implementation": "theirs/kernel"},
        {"_attn_implementation_internal": "theirs/kernel"},
        {"_attn_implementation": "theirs/kernel", "attn_implementation": {"": "theirs/kernel"}},
        {"experts_implementation": "theirs/kernel", "_experts_implementation": "theirs/kernel"},
        {"auto_map": {"AutoConfig": "theirs--code.Config", "AutoModelForCausalLM": "theirs--code.Model"}},
        {
            "trust_remote_code": True,
            "custom_pipelines": {},
            "use_kernels": True,
            "kernel_config": {"x": "theirs/kernel"},
        },
        {"transformers_weights": "../../outside.safetensors", "_name_or_path": "theirs/model"},
        {"sub_configs": {"a": "b"}, "attribute_map": {"hidden_size": "__class__"}, "to_dict": 1, "__class__": 1},
        {"output_attentions": True, "return_dict": False, "output_hidden_states": True, "chunk_size_feed_forward": 3},
    ],
)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_how_a_model_computes_is_not_chosen_by_its_checkpoint(tmp_path, kind, entries):
    path = save_suite(tmp_path, kind, (10,)) / "checkpoint-10"
    expected = AutoModelForCausalLM.from_pretrained(path).eval()
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **entries}))
    model = build_model(read_model(path), "causal")
    assert model.config._attn_implementation == expected.config._attn_implementation
    assert model.config._experts_implementation == expected.config._experts_implementation
    ids = torch.arange(6)[None]
    assert torch.equal(model(ids).logits, expected(ids).logits)
    assert not re.search("theirs|outside", json.dumps(model.config.to_dict()))


def test_a_nested_configuration_chooses_nothing_either():
    nested = {"text_config": {"attn_implementation": "theirs/kernel", "_attn_implementation": "theirs/kernel"}}
    config = config_of({"model_type": "gemma3", **nested}, "config.json")
    assert config.text_config._attn_implementation is None
    assert "theirs" not in str(config.to_dict())
