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
from tests.damage import change_weights, fill, point_elsewhere
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


def test_weights_that_are_not_those_of_the_first_time_are_refused():
    """Each of the two is read by one, and known to both."""
    seeds = {1: 1, 2: 2}

    def teachers():
        return Teachers(
            [Checkpoint(step, Path(f"/teacher/{step}")) for step in seeds], lambda p: Plain(seeds[int(p.name)])
        )

    one, other = teachers(), teachers()
    other.share_weight_digests(one)
    one.load(1, None, CPU)
    other.load(2, None, CPU)
    known = dict(one.weight_digests)
    assert known.keys() == {1, 2}
    assert len(set(known.values())) == 2
    one.load(2, None, CPU)
    again = teachers()
    again.expect_weights(known)
    again.load(1, None, CPU)
    seeds[2] = 3
    message = (
        "^the weights in /teacher/2 have changed since they were first read: restore them, or start over with --force"
    )
    with pytest.raises(UserError, match=message):
        again.load(2, None, CPU)
    late = teachers()
    late.load(2, None, CPU)
    with pytest.raises(UserError, match=message):
        late.expect_weights(known)


def test_what_a_teacher_keeps_beside_tensors_belongs_to_its_weights():
    class Counting(Plain):
        count = 0

        def get_extra_state(self):
            return {"count": self.count}

        def set_extra_state(self, state):
            self.count = state["count"]

    chosen = Teachers([Checkpoint(1, Path("/teacher/1")), Checkpoint(2, Path("/teacher/2"))], lambda path: Counting(1))
    chosen.load(1, None, CPU)
    Counting.count = 7
    chosen.load(2, None, CPU)
    assert chosen.weight_digests[1] != chosen.weight_digests[2]


def test_a_config_of_a_far_larger_model_is_refused_before_it_is_built(tmp_path):
    path = save_suite(tmp_path, "gpt_neox", (10,)) / "checkpoint-10"
    config = json.loads((path / "config.json").read_text())
    del config["hidden_size"]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"^.*its config\.json describes a model of [0-9,]{9,} parameters, and it has "):
        build_model(read_model(path), "causal")


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


@pytest.mark.parametrize("name", ["evil.bin", "../outside.safetensors"])
def test_only_safetensors_beside_the_index_are_read(tmp_path, name):
    path = save_suite(tmp_path, "llama", (10,)) / "checkpoint-10"
    point_elsewhere(path, name)
    with pytest.raises(UserError, match=f"names {name}, not a safetensors file beside it"):
        read_model(path)


@pytest.mark.parametrize("kind", ["gpt2", "bert", *MORE])
def test_integers_in_place_of_weights_are_refused(tmp_path, kind):
    path = save_suite(tmp_path, kind, (10,)) / "checkpoint-10"
    change_weights(path, lambda tensor: tensor.long() if tensor.ndim == 1 else tensor)
    with pytest.raises(UserError, match=r"checkpoint-10 is not a checkpoint of .*: it has integers as the weights"):
        build_model(read_model(path), "masked" if "bert" in kind else "causal")


def test_integers_that_are_no_weights_are_ignored_as_in_published_checkpoints(tmp_path):
    path = save_suite(tmp_path, "bert", (10,)) / "checkpoint-10"
    weights = load_file(path / "model.safetensors")
    ids = {"bert.embeddings.position_ids": torch.arange(6)[None]}
    save_file({**weights, **ids}, path / "model.safetensors", {"format": "pt"})
    assert_same_model(build_model(read_model(path), "masked"), AutoModelForMaskedLM.from_pretrained(path), atol=0)


def test_weights_of_two_dtypes_are_loaded_in_the_one_of_most(tmp_path):
    path = save_suite(tmp_path, "gpt2", (10,)) / "checkpoint-10"
    change_weights(path, lambda tensor: tensor.double() if tensor.ndim == 1 else tensor)
    model = build_model(read_model(path), "causal")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_same_model(model, AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), atol=0)


@pytest.mark.parametrize("kind", ["gpt2", "bert", *MORE])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, kind, value):
    path = save_suite(tmp_path, kind, (10,)) / "checkpoint-10"
    change_weights(path, fill(value))
    with pytest.raises(UserError, match="checkpoint-10 has weights that are NaN or infinite, such as"):
        build_model(read_model(path), "masked" if "bert" in kind else "causal")


def test_weights_that_overflow_in_the_dtype_asked_for_are_refused(tmp_path):
    path = save_suite(tmp_path, "gpt2", (10,)) / "checkpoint-10"
    change_weights(path, fill(1e6))
    build_model(read_model(path), "causal")
    with pytest.raises(UserError, match="NaN or infinite"):
        build_model(read_model(path), "causal", dtype=torch.float16)


def test_a_mask_that_is_infinite_is_no_weight(tmp_path):
    """Of GPT-2 and GPT-NeoX, as earlier versions of transformers saved it in float16."""
    path = save_suite(tmp_path, "gpt_neox", (10,)) / "checkpoint-10"
    mask = {"gpt_neox.layers.0.attention.masked_bias": torch.tensor(-torch.inf)}
    weights = load_file(path / "model.safetensors")
    save_file({**weights, **mask}, path / "model.safetensors", {"format": "pt"})
    assert_same_model(build_model(read_model(path), "causal"), AutoModelForCausalLM.from_pretrained(path), atol=0)
