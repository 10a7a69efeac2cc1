"""Checkpoints: saved, read back, read by transformers, truncated and damaged."""

from contextlib import suppress

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from common.errors import UserError
from common.runs.checkpoints import read_checkpoint, save_checkpoint
from tests.files import CONFIG, TENSORS, content


def test_a_checkpoint_comes_back_whatever_its_memory_order(tmp_path):
    save_checkpoint(tmp_path, 7, TENSORS, CONFIG)
    config, tensors = read_checkpoint(tmp_path / "checkpoint-7")
    assert config == CONFIG
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], tensor)
        assert tensors[name].shape == tensor.shape
        assert tensors[name].dtype == tensor.dtype


def test_from_pretrained_reads_a_checkpoint(tmp_path):
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=2, n_positions=4, n_embd=8, n_layer=1, n_head=1, tie_word_embeddings=False)
    )
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    save_checkpoint(tmp_path, 0, tensors, model.config.to_dict() | {"architectures": ["GPT2LMHeadModel"]})
    with safetensors.safe_open(tmp_path / "checkpoint-0" / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path / "checkpoint-0")
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=0)


def test_saving_a_checkpoint_again_replaces_it(tmp_path):
    save_checkpoint(tmp_path, 7, TENSORS, CONFIG)
    save_checkpoint(tmp_path, 7, {"weight": np.ones(2)}, CONFIG)
    assert read_checkpoint(tmp_path / "checkpoint-7")[1]["weight"].tolist() == [1, 1]
    assert sorted(content(tmp_path)) == ["checkpoint-7/config.json", "checkpoint-7/model.safetensors"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_truncated_or_missing_file_is_one_line_that_names_it(tmp_path, name):
    save_checkpoint(tmp_path, 7, TENSORS, CONFIG)
    path = tmp_path / "checkpoint-7" / name
    whole = path.read_bytes().rstrip(b"\n")
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"^.*checkpoint-7/{name} is truncated or damaged: remove .*$"):
            read_checkpoint(path.parent)
    path.unlink()
    with pytest.raises(UserError, match=rf"^.*checkpoint-7/{name} is missing: remove .*$"):
        read_checkpoint(path.parent)


@given(st.data())
def test_a_damaged_header_is_a_user_error_or_harmless(tmp_path_factory, data):
    run = tmp_path_factory.mktemp("run")
    save_checkpoint(run, 7, TENSORS, CONFIG)
    path = run / "checkpoint-7" / "model.safetensors"
    damaged = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(damaged[:8], "little")
    damaged[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    with suppress(UserError):
        read_checkpoint(path.parent)


@pytest.mark.parametrize(
    ("written", "message"), [("[]", "is truncated or damaged"), ("{", "is truncated or damaged"), (None, "is missing")]
)
def test_a_damaged_config_is_refused(tmp_path, written, message):
    save_checkpoint(tmp_path, 7, TENSORS, CONFIG)
    directory = tmp_path / "checkpoint-7"
    (directory / "config.json").unlink()
    if written is not None:
        (directory / "config.json").write_text(written)
    with pytest.raises(UserError, match=rf"^.*checkpoint-7/config.json {message}: remove .*$"):
        read_checkpoint(directory)


def test_bfloat16_weights_are_refused_with_advice(tmp_path):
    save_checkpoint(tmp_path, 7, TENSORS, CONFIG)
    path = tmp_path / "checkpoint-7"
    safetensors.torch.save_file({"a": torch.zeros(2, dtype=torch.bfloat16)}, path / "model.safetensors")
    with pytest.raises(UserError, match=r"bfloat16.*float32"):
        read_checkpoint(path)
