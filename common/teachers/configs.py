"""The config.json of a teacher's checkpoint, reduced to what describes its architecture, and checked.

A config.json is data from elsewhere. Of its entries, those remain that the code of its model type reads, and of these
not the ones that choose how a model computes (`NOT_ARCHITECTURE`), some of which make transformers download and run
code. What they choose is chosen here.
"""

import dataclasses
import inspect
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.activations import ACT2FN

from common.errors import UserError
from common.runs.files import read_json

NOT_ARCHITECTURE = frozenset(
    "attn_implementation experts_implementation quantization_config auto_map trust_remote_code dtype torch_dtype "
    "chunk_size_feed_forward output_attentions output_hidden_states return_dict id2label label2id num_labels "
    "problem_type name_or_path transformers_version transformers_weights kernel_config use_kernels".split()
)
"""Entries that say how a model computes, from where it is loaded, or what belongs to other tasks."""
SHARED = frozenset(
    "rope_theta rope_scaling partial_rotary_factor head_dim is_causal sliding_window attention_chunk_size".split()
)
"""Entries that code of transformers reads for all model types, fields of theirs or not."""
SIZES = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "max_position_embeddings n_inner".split()
)
"""Entries that are positive integers, by the names that all model types share."""
ACTIVATIONS = frozenset(["hidden_act", "hidden_activation", "activation_function"])
DTYPES = frozenset(["float64", "float32", "float16", "bfloat16", "auto"])
MOST_LAYERS = 10_000
"""Lists with an entry for each layer are made before anything can be compared with the weights."""
INVALID = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What code of transformers raises for entries that make no sense."""
ADVICE = "correct it, or save the checkpoint again"

NOTHING: Mapping[str, Any] = MappingProxyType({})


def read_config(path: Path, own: Mapping[str, bool] = NOTHING) -> PretrainedConfig:
    """The configuration in a checkpoint's directory; see `config_of`.

    Raises:
        UserError: config.json is missing or damaged, or as for `config_of`.
    """
    file = path / "config.json"
    return config_of(read_json(file, "save or download the checkpoint again"), file, own)


def config_of(values: Mapping[str, Any], file: object, own: Mapping[str, bool] = NOTHING) -> PretrainedConfig:
    """The configuration that the content of a config.json describes.

    Numbers 0 and 1 in place of booleans, as in some published checkpoints, are converted to them.

    Args:
        values: the content.
        file: its name, for messages.
        own: entries that the configurations of this model type lack, with defaults; the result has them as attributes.

    Raises:
        UserError: the model type is unknown or an encoder-decoder, or an entry is invalid: the message names
            the file and the entry.
    """
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UserError(
            f"{file} does not describe a transformers model (model_type {kind!r:.40}): give load_teacher for other "
            "models"
        )
    try:
        config_class = CONFIG_MAPPING[kind]
        default = config_class()
    except INVALID as error:
        raise UserError(
            f"{file} is of the model type {kind}, which transformers cannot make: {one_line(error)}"
        ) from error
    known = _read_by(kind) - NOT_ARCHITECTURE
    kept = {name: _plain(value) for name, value in values.items() if name in known}
    kept = {name: _truth(value, getattr(default, name, None)) for name, value in kept.items()}
    for complaint in (*_refused(values), *_complaints(kept, default)):
        raise UserError(f"{file}: {complaint}: {ADVICE}")
    try:
        config = config_class(**kept)
    except (StrictDataclassError, *INVALID) as error:
        raise UserError(f"{file} does not describe a {kind} model ({one_line(error)}): {ADVICE}") from error
    heads, hidden = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    if type(heads) is type(hidden) is int and getattr(config, "head_dim", None) is None and hidden % heads:
        raise UserError(f"{file}: a hidden size of {hidden} is not divisible by {heads} heads: {ADVICE}")
    if config.is_encoder_decoder:
        raise UserError(f"{file}: this is a {kind} model, an encoder-decoder: give a causal or masked language model")
    for name, value in {**({"is_causal": True} if "is_causal" in kept else {}), **own}.items():
        given = _truth(values.get(name, value), value)
        if not isinstance(given, bool):
            raise UserError(f"{file}: {name} must be true or false, got {given!r:.40}: {ADVICE}")
        setattr(config, name, given)
    return config


def one_line(error: BaseException) -> str:
    """An error's message in one line; its first line does not always say what is wrong."""
    return " ".join((str(error) or type(error).__name__).split())[:300]


def _refused(values: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with entries that are not kept, but say that the weights are not numbers as we know them."""
    if values.get("quantization_config") is not None:
        yield "quantization_config is given, but quantised teachers are not supported"
    for name in ("dtype", "torch_dtype"):
        dtype = values.get(name)
        if dtype is not None and not (isinstance(dtype, str) and dtype.removeprefix("torch.") in DTYPES):
            yield f"{name} is {dtype!r:.40}, not one of {', '.join(sorted(DTYPES))}"


def _complaints(values: Mapping[str, Any], default: PretrainedConfig) -> Iterator[str]:
    """What is wrong with entries whose types alone do not say it."""
    names = values.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        yield f"architectures must be a list of names, got {names!r:.40}"
    shared = {name: shared for shared, name in default.attribute_map.items()}
    for name, value in values.items():
        canonical = shared.get(name, name)
        if value is None or value == getattr(default, name, None):
            continue
        if canonical in SIZES and not all(map(_is_positive, value if isinstance(value, list) else [value])):
            yield f"{name} must be a positive integer, got {value!r:.40}"
        elif canonical == "num_hidden_layers" and _is_number(value) and value > MOST_LAYERS:
            yield f"{name} must be at most {MOST_LAYERS:,}, got {value!r:.40}"
        elif canonical in ACTIVATIONS and not (isinstance(value, str) and value in ACT2FN):
            yield f"{name} is {value!r:.40}, which is no activation that transformers has"
        elif re.search("drop(out)?(_|$)", name) and _is_number(value) and not 0 <= value <= 1:
            yield f"{name} must be between 0 and 1, got {value!r:.40}"
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{name} must be finite, got {value!r:.40}"


def _is_positive(value: object) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _truth(value: Any, default: object) -> Any:
    return bool(value) if isinstance(default, bool) and _is_number(value) and value in (0, 1) else value


def _plain(value: Any) -> Any:
    """The value, without entries in it that choose how a model computes, such as those of a nested configuration."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k not in NOT_ARCHITECTURE and not k.startswith("_")}
    return [_plain(item) for item in value] if isinstance(value, list) else value


@cache
def _read_by(kind: str) -> frozenset[str]:
    """Names of the entries that the code of a model type reads: fields, and names that it looks up beside them."""
    config_class = CONFIG_MAPPING[kind]
    fields = {field.name for field in dataclasses.fields(config_class)} | {*config_class.attribute_map, *SHARED}
    if not config_class.__module__.startswith("transformers."):
        return frozenset({*fields, *inspect.signature(config_class).parameters})
    modules = {config_class.__module__, config_class.__module__.replace(".configuration_", ".modeling_")}
    files = [spec.origin for spec in map(find_spec, modules) if spec is not None and spec.origin]
    source = "".join(Path(file).read_text("utf-8") for file in files)
    looked_up = re.findall(r'(?:kwargs\.(?:get|pop)\(|getattr\((?:self\.)?config, )"(\w+)"', source)
    return frozenset({*fields, *looked_up})
