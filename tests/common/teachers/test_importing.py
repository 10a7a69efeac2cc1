"""`python -m common.teachers import`: MLPs by other names and folders of pickles become checkpoints."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from common.parity.frozen import frozen_logits, load_network
from common.parity.mlp import load_model
from common.parity.task import make_task, unpack_signs
from common.runs.files import write_file
from common.teachers import importing
from common.teachers.__main__ import main
from common.teachers.discovery import find_checkpoints
from common.teachers.loading import build_model, read_model
from tests.commands import Killed, fail_in_one_line, files, start, succeed


class Published(nn.Module):
    def __init__(self, seed, bias=True, hidden=1):
        super().__init__()
        torch.manual_seed(seed)
        self.fc1 = nn.Linear(6, 5)
        self.middle = nn.ModuleList(nn.Linear(5, 5) for _ in range(hidden - 1))
        self.out = nn.Linear(5, 2, bias=bias)

    def forward(self, x):
        x = torch.relu(self.fc1(x))
        for layer in self.middle:
            x = torch.relu(layer(x))
        return self.out(x)


def gpt2(seed, tied=True):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 7, "n_positions": 5, "n_embd": 8, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=1, tie_word_embeddings=tied))


def save_folder(model, folder, config=None):
    folder.mkdir(parents=True)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({**model.config.to_dict(), **(config or {})}))
    torch.save({"state": 1}, folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 7}))


@pytest.mark.parametrize(("bias", "hidden"), [(True, 1), (False, 1), (True, 3)])
@pytest.mark.parametrize("wrapper", [None, "state_dict"])
def test_mlps_compute_the_same(tmp_path, capsys, bias, hidden, wrapper):
    models = {step: Published(step, bias, hidden) for step in (0, 100, 2000)}
    (tmp_path / "published").mkdir()
    for name, step in (("model_step0.pt", 0), ("step100.pth", 100), ("ckpt_2000.bin", 2000)):
        state = models[step].state_dict()
        torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, tmp_path / "published" / name)
    torch.save(models[0].state_dict(), tmp_path / "published" / "best.pt")
    torch.save({}, tmp_path / "published" / "optimizer_100.pt")
    before = files(tmp_path / "published")
    stdout = succeed(capsys, main, "import", tmp_path / "published", "--out", tmp_path / "teacher")
    assert stdout == f"skipped, as their names have no step: best.pt\n{tmp_path / 'teacher'}: 3 checkpoints\n"
    assert files(tmp_path / "published") == before
    found = find_checkpoints(tmp_path / "teacher")
    assert [checkpoint.step for checkpoint in found] == [0, 100, 2000]
    task = make_task(6, 2)
    bits = task.sample(0, "probe", 0, 50)
    for checkpoint in found:
        x = unpack_signs(bits, 6, "cpu", torch.float32)
        expected = models[checkpoint.step](x)
        torch.testing.assert_close(load_model(checkpoint.location)(x), expected)
        logits = frozen_logits(load_network(checkpoint.location, task), 6, "cpu")(bits)
        torch.testing.assert_close(torch.from_numpy(logits), expected.double())
    assert json.loads((found[0].location / "config.json").read_text()) == {
        **{"model_type": "parity_mlp", "d": 6, "width": 5, "layers": hidden, "classes": 2, "dtype": "float32"}
    }


def test_an_import_that_was_killed_resumes(tmp_path, capsys, monkeypatch):
    (tmp_path / "published").mkdir()
    for step in (1, 2, 3):
        torch.save(Published(step).state_dict(), tmp_path / "published" / f"{step}.pt")
    words = ["import", tmp_path / "published", "--out", tmp_path / "teacher"]
    read, rename, calls = importing._read, os.rename, []
    monkeypatch.setattr(importing, "_read", lambda path: calls.append(path.name) or read(path))

    def killed(source, target):
        if str(target).endswith("checkpoint-2"):
            raise Killed
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(Killed):
            start(capsys, main, *words)
    assert [checkpoint.step for checkpoint in find_checkpoints(tmp_path / "teacher")] == [1]
    succeed(capsys, main, *words)
    assert calls == ["1.pt", "2.pt", "2.pt", "3.pt"]
    assert [checkpoint.step for checkpoint in find_checkpoints(tmp_path / "teacher")] == [1, 2, 3]
    assert not list((tmp_path / "teacher").glob(".*unfinished"))


@pytest.mark.parametrize("tied", [True, False])
def test_folders_of_transformers_are_the_same_with_safetensors(tmp_path, capsys, tied):
    models = {step: gpt2(step, tied) for step in (5, 6)}
    for step, model in models.items():
        save_folder(model, tmp_path / "published" / f"checkpoint-{step}", {"tie_word_embeddings": int(tied)})
    save_folder(gpt2(7, tied), tmp_path / "final")
    for path in (tmp_path / "final").iterdir():
        shutil.move(path, tmp_path / "published" / path.name)
    before = files(tmp_path / "published")
    words = ["import", tmp_path / "published", "--out", tmp_path / "teacher"]
    assert succeed(capsys, main, *words) == f"{tmp_path / 'teacher'}: 3 checkpoints\n"
    assert files(tmp_path / "published") == before
    checkpoints = find_checkpoints(tmp_path / "teacher")
    assert [checkpoint.step for checkpoint in checkpoints] == [5, 6, 7]
    for checkpoint, model in zip(checkpoints, [*models.values(), gpt2(7, tied)], strict=True):
        loaded = build_model(read_model(checkpoint.location), "causal")
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)
        loaded.save_pretrained(tmp_path / "saved")
        saved = load_file(tmp_path / "saved" / "model.safetensors")
        assert load_file(checkpoint.location / "model.safetensors").keys() == saved.keys()
    count = sum(parameter.numel() for parameter in gpt2(7, tied).parameters())
    assert f"parameters    {count:,}\n" in start(capsys, main, "check", tmp_path / "teacher")[1]
    assert not list((tmp_path / "teacher").rglob("optimizer.pt"))
    made = files(tmp_path / "teacher")
    succeed(capsys, main, *words)
    assert files(tmp_path / "teacher") == made


@pytest.mark.parametrize("place", ["", "checkpoint-7"])
def test_a_teacher_in_safetensors_needs_no_conversion(tmp_path, capsys, place):
    gpt2(7).save_pretrained(tmp_path / "published" / place)
    torch.save({"state": 1}, tmp_path / "published" / place / "optimizer.pt")
    line = fail_in_one_line(capsys, main, "import", tmp_path / "published", "--out", tmp_path / "teacher")
    name = place or "published"
    assert line.endswith(
        f"published has its weights in safetensors already ({name}): nothing needs converting, use it as it is"
    )
    assert not (tmp_path / "teacher").exists()


def test_tensors_of_one_memory_are_written_twice_if_the_model_needs_both(tmp_path, capsys):
    """As of a model that was tied in training, but whose config says that it is not."""
    save_folder(gpt2(5), tmp_path / "published" / "checkpoint-5", {"tie_word_embeddings": False})
    succeed(capsys, main, "import", tmp_path / "published", "--out", tmp_path / "teacher")
    loaded = build_model(read_model(tmp_path / "teacher" / "checkpoint-5"), "causal")
    torch.testing.assert_close(loaded.state_dict(), gpt2(5).state_dict(), rtol=0, atol=0)


def test_shards_are_put_together(tmp_path, capsys):
    model = gpt2(0, tied=False)
    folder = tmp_path / "published" / "step10"
    save_folder(model, folder)
    (folder / "pytorch_model.bin").unlink()
    items = list(model.state_dict().items())
    parts = {f"pytorch_model-0000{i + 1}-of-00002.bin": dict(items[i::2]) for i in range(2)}
    for name, part in parts.items():
        torch.save(part, folder / name)
    index = {"weight_map": {key: name for name, part in parts.items() for key in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    succeed(capsys, main, "import", tmp_path / "published", "--out", tmp_path / "teacher")
    stored = load_file(tmp_path / "teacher" / "step10" / "model.safetensors")
    assert stored.keys() == dict(items).keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in items)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    line = fail_in_one_line(capsys, main, "import", tmp_path / "published", "--out", tmp_path / "other")
    assert "lacks pytorch_model-00002-of-00002.bin" in line


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Harmful(), "cannot be read without running code"),
        (Published(0), "cannot be read without running code"),
        ([1, 2], "is not a state dict"),
        ({"w": torch.zeros(2, 3, 4)}, "is not an MLP: w of shape"),
        ({"w": torch.zeros(4, 3), "b": torch.zeros(4)}, "is not an MLP with hidden layers of one width"),
        ({"w": torch.zeros(4, 3), "b": torch.zeros(3), "v": torch.zeros(2, 4)}, "the bias after w has 3 entries"),
        ({"w": torch.zeros(4, 3), "v": torch.zeros(1, 4)}, "is an MLP with one output"),
        (b"cut", "is damaged or not a torch file"),
    ],
)
def test_what_is_not_an_mlp_is_refused_by_name(tmp_path, capsys, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "published" / "step5.pt"
    path.parent.mkdir()
    torch.save(content, path)
    if isinstance(content, bytes):
        write_file(path, b"PK\x03\x04" + content)
    line = fail_in_one_line(capsys, main, "import", path.parent, "--out", tmp_path / "teacher")
    assert str(path) in line
    assert message in line
    assert not (tmp_path / "harm").exists()
    assert not list((tmp_path / "teacher").glob("checkpoint-*"))


def test_names_that_do_not_say_the_step(tmp_path, capsys):
    (tmp_path / "published").mkdir()
    words = ["import", tmp_path / "published", "--out", tmp_path / "teacher"]
    assert "found nothing" in fail_in_one_line(capsys, main, *words)
    torch.save(Published(0).state_dict(), tmp_path / "published" / "d6_step10.pt")
    assert "--teacher-pattern" in fail_in_one_line(capsys, main, *words)
    torch.save(Published(0).state_dict(), tmp_path / "published" / "d7_step10.pt")
    line = fail_in_one_line(capsys, main, *words, "--teacher-pattern", "d._step(?P<step>[0-9]+)")
    assert "both have step 10" in line
    succeed(capsys, main, *words, "--teacher-pattern", "d6_step(?P<step>[0-9]+)")
    assert [checkpoint.step for checkpoint in find_checkpoints(tmp_path / "teacher")] == [10]


def test_another_place_is_left_as_it_is(tmp_path, capsys):
    for name in ("published", "other"):
        (tmp_path / name).mkdir()
        torch.save(Published(0).state_dict(), tmp_path / name / "1.pt")
    words = ["import", tmp_path / "published", "--out"]
    assert "is in" in fail_in_one_line(capsys, main, *words, tmp_path / "published" / "teacher")
    assert "is not a converted teacher" in fail_in_one_line(capsys, main, *words, tmp_path / "other")
    assert "is not a directory" in fail_in_one_line(capsys, main, "import", tmp_path / "no", "--out", tmp_path / "x")
    succeed(capsys, main, *words, tmp_path / "teacher")
    line = fail_in_one_line(capsys, main, "import", tmp_path / "other", "--out", tmp_path / "teacher")
    assert f"was converted from {tmp_path / 'published'}" in line
