"""Teachers in memory: prefetched, or loaded when needed; models of transformers as it loads them itself."""

import json
import threading
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from common.distillation.schedules import ce_only, checkpoint_at, next_checkpoint
from common.errors import UserError
from common.teachers.discovery import Checkpoint
from common.teachers.loading import Teachers, build_model, read_model
from tests.models import MORE, save_suite
from tests.trainers import Plain, assert_same_model, make_batch

CPU = torch.device("cpu")


def test_the_next_teacher_is_loaded_while_the_current_one_is_in_use():
    begun, resume = threading.Event(), threading.Event()

    def load(path):
        if path.name == "2":
            begun.set()
            assert resume.wait(60)
        return Plain(int(path.name))

    chosen = Teachers([Checkpoint(step, Path(str(step))) for step in (1, 2)], load)
    first = chosen.load(1, 2, CPU)
    assert begun.wait(60)
    assert chosen.load(1, 2, CPU) is first
    assert chosen.current_step == 1
    assert not first.training
    assert not any(parameter.requires_grad for parameter in first.parameters())
    resume.set()
    second = chosen.load(2, None, CPU)
    assert chosen.current_step == 2
    assert_same_model(second, Plain(2), atol=0)


def test_a_teacher_that_was_not_prefetched_is_loaded_when_it_is_needed():
    loaded = []

    def load(path):
        loaded.append(int(path.name))
        return Plain(int(path.name))

    chosen = Teachers([Checkpoint(step, Path(str(step))) for step in (1, 2, 3)], load)
    models = [chosen.load(step, then, CPU) for step, then in ((1, 2), (1, 2), (3, None))]
    assert models[0] is models[1]
    assert_same_model(models[2], Plain(3), atol=0)
    assert loaded == [1, 2, 3]


def test_no_teacher_is_loaded_for_steps_without_one():
    chosen = Teachers([], Plain)
    assert chosen.load(checkpoint_at(ce_only(), 0), next_checkpoint(ce_only(), 0)) is None
    assert chosen.current_step is None


# Models of transformers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["gpt2", "bert", *MORE])
def test_a_checkpoint_is_the_model_that_transformers_loads(tmp_path, kind, dtype):
    path = save_suite(tmp_path, kind, (10,), dtype) / "checkpoint-10"
    objective, auto = "causal", AutoModelForCausalLM
    if kind in ("bert", "modernbert"):
        objective, auto = "masked", AutoModelForMaskedLM
    model = build_model(read_model(path), objective).eval()
    expected = auto.from_pretrained(path, dtype=dtype).eval()
    assert type(model) is type(expected)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    batch = {name: tensor for name, tensor in make_batch(0).items() if name != "labels"}
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, expected(**batch).logits, rtol=0, atol=0)


@pytest.mark.parametrize("verbosity", [transformers.logging.DEBUG, transformers.logging.ERROR])
@pytest.mark.parametrize("damage", ["lacks", "that the model lacks", "shapes do not match"])
def test_weights_that_are_not_the_model_s_are_refused_whatever_the_verbosity(tmp_path, damage, verbosity):
    path = save_suite(tmp_path, "llama", (10,)) / "checkpoint-10"
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    match damage:
        case "lacks":
            del tensors[name]
        case "that the model lacks":
            name = "model.layers.7.mlp.up_proj.weight"
            tensors[name] = torch.zeros(2)
        case _:
            tensors[name] = torch.zeros(2, 2)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(verbosity)
    try:
        with pytest.raises(UserError, match=f"not a checkpoint of a LlamaForCausalLM: it .*{damage}.* {name}"):
            build_model(read_model(path), "causal")
        assert transformers.logging.get_verbosity() == verbosity
    finally:
        transformers.logging.set_verbosity(before)


def test_files_that_no_index_names_are_not_loaded(tmp_path):
    path = save_suite(tmp_path, "llama", (10,)) / "checkpoint-10"
    expected = load_file(path / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in expected.items()}, path / "model_ema.safetensors")
    tensors = read_model(path).tensors
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


def test_text_is_no_truth_value(tmp_path):
    path = save_suite(tmp_path, "qwen3", (10,)) / "checkpoint-10"
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "use_sliding_window": "false"}))
    with pytest.raises(UserError, match="use_sliding_window"):
        read_model(path)
