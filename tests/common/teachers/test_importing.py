"""`python -m common.teachers import`: MLPs by other names and folders of pickles become checkpoints."""

import json
import math
import os
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from common.parity.frozen import frozen_logits, load_network
from common.parity.mlp import load_model
from common.parity.task import make_task, unpack_signs
from common.runs.files import write_file
from common.teachers import importing, pickles
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
    convert, rename, calls = importing._converted, os.rename, []
    monkeypatch.setattr(importing, "_converted", lambda path: calls.append(path.name) or convert(path))

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
        ({"w": torch.zeros(4, 3), "b": torch.zeros(4).int(), "v": torch.zeros(2, 4)}, "bias after w has the dtype"),
        ({"w": torch.zeros(0, 3), "v": torch.zeros(2, 0)}, "is not an MLP with hidden layers of one width"),
        ({"w": torch.full((4, 3), math.nan), "v": torch.zeros(2, 4)}, "weights that are NaN or infinite, such as w"),
        ({"w": torch.zeros(4, 3), "v": torch.full((2, 4), -math.inf)}, "weights that are NaN or infinite, such as v"),
        (
            {"w": torch.zeros(4, 3), "v": torch.full((2, 4), 1e300, dtype=torch.float64)},
            "are NaN or infinite, such as output.weight",
        ),
        ({"w": torch.zeros(4, 3).to_sparse(), "v": torch.zeros(2, 4)}, "has w, which is not a dense tensor"),
        ({"w": torch.zeros(4, 3, device="meta"), "v": torch.zeros(2, 4)}, "has w, which is not a dense tensor"),
        ({"w": torch.zeros(4, 3).cfloat(), "v": torch.zeros(2, 4)}, "has w in the dtype torch.complex64"),
        ({"w": torch.zeros(1).expand(10**6, 10**6)}, "with w of shape [1000000, 1000000] needs at least 8.0 TB"),
        ({(1, 2): torch.zeros(4, 3)}, "is not a state dict"),
        ({"__metadata__": torch.zeros(4, 3)}, "a tensor with the name '__metadata__'"),
        ({"\ud800": torch.zeros(4, 3)}, "a tensor with the name '\\ud800'"),
        (b"PK\x03\x04cut", "is damaged or not a torch file"),
        (b"junk", "is damaged or not a torch file"),
        (b"", "is damaged or not a torch file (EOFError)"),
        (b"hello world this is text", "is damaged or not a torch file"),
    ],
)
def test_what_is_not_an_mlp_is_refused_by_name(tmp_path, capsys, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "published" / "step5.pt"
    path.parent.mkdir()
    torch.save(content, path)
    if isinstance(content, bytes):
        write_file(path, content)
    line = fail_in_one_line(capsys, main, "import", path.parent, "--out", tmp_path / "teacher")
    assert str(path) in line
    assert message in line
    assert not (tmp_path / "harm").exists()
    assert not (tmp_path / "teacher").exists()


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


def save_mlp(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(Published(seed).state_dict(), path)


def shown(directory):
    """The weights of each checkpoint of MLPs, as one number."""
    return {
        path.parent.name: load_file(path)["hidden.0.weight"].sum().item()
        for path in sorted(directory.glob("*/model.safetensors"))
    }


def weight_sum(seed):
    return Published(seed).fc1.weight.sum().item()


def test_what_has_changed_is_converted_again(tmp_path, capsys, monkeypatch):
    for step in (1, 2):
        save_mlp(tmp_path / "published" / f"{step}.pt", step)
    words = ["import", tmp_path / "published", "--out", tmp_path / "teacher"]
    succeed(capsys, main, *words)
    convert, calls = importing._converted, []
    monkeypatch.setattr(importing, "_converted", lambda path: calls.append(path.name) or convert(path))
    save_mlp(tmp_path / "published" / "2.pt", 7)
    save_mlp(tmp_path / "published" / "3.pt", 3)
    succeed(capsys, main, *words)
    assert calls == ["2.pt", "3.pt"]
    expected = {"checkpoint-1": weight_sum(1), "checkpoint-2": weight_sum(7), "checkpoint-3": weight_sum(3)}
    assert shown(tmp_path / "teacher") == pytest.approx(expected)
    (tmp_path / "published" / "1.pt").unlink()  # it is converted, so it may go
    (tmp_path / "teacher" / "checkpoint-3" / "model.safetensors").unlink()
    succeed(capsys, main, *words)
    assert calls == ["2.pt", "3.pt", "3.pt"]
    assert shown(tmp_path / "teacher") == pytest.approx(expected)


def test_a_conversion_without_digests_is_made_again(tmp_path, capsys):
    """As earlier versions left them."""
    save_mlp(tmp_path / "published" / "1.pt", 1)
    words = ["import", tmp_path / "published", "--out", tmp_path / "teacher"]
    succeed(capsys, main, *words)
    save_mlp(tmp_path / "published" / "1.pt", 2)
    for files_of in ({}, {"files": [1]}, {"files": {"checkpoint-1": "x"}}):
        record = {"source": str(tmp_path / "published"), **files_of}
        (tmp_path / "teacher" / "imported.json").write_text(json.dumps(record))
        succeed(capsys, main, *words)
        assert shown(tmp_path / "teacher") == pytest.approx({"checkpoint-1": weight_sum(2)})


@pytest.mark.parametrize("where", [".", "checkpoint-5"])
def test_a_folder_that_has_changed_is_converted_again(tmp_path, capsys, where):
    folder = tmp_path / "published" / where
    words = ["import", tmp_path / "published", "--out", tmp_path / "teacher"]
    for seed in (0, 1):
        model = gpt2(seed)
        save_folder(model, folder)
        succeed(capsys, main, *words)
        stored = load_file(tmp_path / "teacher" / where / "model.safetensors")
        assert torch.equal(stored["transformer.wte.weight"], model.transformer.wte.weight)
        shutil.rmtree(folder)
    save_folder(model, folder, {"n_ctx": 17})
    succeed(capsys, main, *words)
    assert json.loads((tmp_path / "teacher" / where / "config.json").read_text())["n_ctx"] == 17


def test_an_import_that_was_killed_while_it_converts_again_resumes(tmp_path, capsys, monkeypatch):
    for step in (1, 2):
        save_mlp(tmp_path / "published" / f"{step}.pt", step)
    words = ["import", tmp_path / "published", "--out", tmp_path / "teacher"]
    succeed(capsys, main, *words)
    for step in (1, 2):
        save_mlp(tmp_path / "published" / f"{step}.pt", step + 5)
    for function in ("write_file", "write_directory"):
        with monkeypatch.context() as patch:

            def killed(*_):
                raise Killed

            patch.setattr(importing, function, killed)
            with pytest.raises(Killed):
                start(capsys, main, *words)
        assert shown(tmp_path / "teacher") == {}
    succeed(capsys, main, *words)
    expected = {"checkpoint-1": weight_sum(6), "checkpoint-2": weight_sum(7)}
    assert shown(tmp_path / "teacher") == pytest.approx(expected)


def test_a_file_that_changes_while_it_is_converted_is_refused(tmp_path, capsys, monkeypatch):
    save_mlp(tmp_path / "published" / "1.pt", 1)
    words = ["import", tmp_path / "published", "--out", tmp_path / "teacher"]
    convert = importing._converted

    def change(path):
        converted = convert(path)
        save_mlp(path, 2)
        return converted

    with monkeypatch.context() as patch:
        patch.setattr(importing, "_converted", change)
        line = fail_in_one_line(capsys, main, *words)
    assert "1.pt changes while it is read" in line
    assert shown(tmp_path / "teacher") == {}
    succeed(capsys, main, *words)
    assert shown(tmp_path / "teacher") == pytest.approx({"checkpoint-1": weight_sum(2)})


def test_a_refused_import_leaves_nothing_and_changes_nothing(tmp_path, capsys):
    save_mlp(tmp_path / "published" / "1.pt", 1)
    (tmp_path / "published" / "2.pt").write_bytes(b"junk")
    words = ["import", tmp_path / "published", "--out", tmp_path / "new" / "teacher"]
    assert "2.pt is damaged" in fail_in_one_line(capsys, main, *words)
    assert not (tmp_path / "new").exists()
    save_mlp(tmp_path / "published" / "2.pt", 2)
    succeed(capsys, main, *words)
    before = files(tmp_path / "new")
    save_mlp(tmp_path / "published" / "1.pt", 7)
    (tmp_path / "published" / "2.pt").write_bytes(b"junk")
    assert "2.pt is damaged" in fail_in_one_line(capsys, main, *words)
    assert files(tmp_path / "new") == before


def test_what_an_import_left_that_was_killed_before_its_record_is_no_obstacle(tmp_path, capsys, monkeypatch):
    save_mlp(tmp_path / "published" / "1.pt", 1)
    words = ["import", tmp_path / "published", "--out", tmp_path / "teacher"]

    def killed(*_):
        (tmp_path / "teacher" / ".imported.json.123.unfinished").touch()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(importing, "write_file", killed)
        with pytest.raises(Killed):
            start(capsys, main, *words)
    succeed(capsys, main, *words)
    assert shown(tmp_path / "teacher") == pytest.approx({"checkpoint-1": weight_sum(1)})


def test_other_steps_do_not_join_those_of_another_pattern(tmp_path, capsys):
    save_mlp(tmp_path / "published" / "d6_step10.pt")
    words = ["import", tmp_path / "published", "--out", tmp_path / "teacher", "--teacher-pattern"]
    succeed(capsys, main, *words, "d(?P<step>[0-9]+)_step10")
    line = fail_in_one_line(capsys, main, *words, "d6_step(?P<step>[0-9]+)")
    assert "checkpoint-6 was converted from d6_step10.pt, which is no longer that checkpoint" in line
    assert "--teacher-pattern" in line


def test_a_file_and_a_folder_with_the_same_step(tmp_path, capsys):
    save_mlp(tmp_path / "published" / "5.pt")
    save_folder(gpt2(0), tmp_path / "published" / "checkpoint-5")
    line = fail_in_one_line(capsys, main, "import", tmp_path / "published", "--out", tmp_path / "teacher")
    assert "checkpoint-5 and 5.pt have the same step" in line


INDEX = "pytorch_model.bin.index.json"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight_map": {"a": "{outside}"}}, "not a .bin file beside it"),
        ({"weight_map": {"a": "../../secret.bin"}}, "names ../../secret.bin, not a .bin file beside it"),
        ({"weight_map": {"a": "./pytorch_model.bin"}}, "names ./pytorch_model.bin, not a .bin file"),
        ({"weight_map": {"a": "config.json"}}, "names config.json, not a .bin file beside it"),
        ({"weight_map": {"a": ".."}}, "names .., not a .bin file beside it"),
        ({"weight_map": {"a": 1000 * "x" + ".bin"}}, f"names {80 * 'x'}, not a .bin file beside it"),
        ({"weight_map": {"a": "\0.bin"}}, r"lacks \x00.bin, which its index names"),
        ({"weight_map": {"a": "\ud800.bin"}}, r"lacks \ud800.bin, which its index names"),
        ({"weight_map": {"a": "folder.bin"}}, "folder.bin is not a file"),
        ({"weight_map": {"a": "fifo.bin"}}, "fifo.bin is not a file"),
        ({"weight_map": ["x"]}, f"{INDEX} is damaged (no weight_map)"),
        ({"weight_map": None}, f"{INDEX} is damaged (no weight_map)"),
        ({"weight_map": {}}, f"{INDEX} is damaged (no weight_map)"),
        ({}, f"{INDEX} is damaged (no weight_map)"),
        ({"weight_map": {"a": 1}}, f"{INDEX} names 1, not a .bin file beside it"),
        ({"weight_map": {"a": 1, "b": "pytorch_model.bin"}}, f"{INDEX} names 1, not a .bin file beside it"),
        ({"weight_map": {"a": {}}}, f"{INDEX} names {{}}, not a .bin file beside it"),
        ([], f"{INDEX} is truncated or damaged"),
    ],
)
def test_an_index_that_names_anything_but_files_beside_it_is_refused(tmp_path, capsys, content, message):
    folder = tmp_path / "published" / "step1"
    save_folder(gpt2(0), folder)
    (folder / "folder.bin").mkdir()
    os.mkfifo(folder / "fifo.bin")
    torch.save({"secret": torch.zeros(3)}, tmp_path / "secret.bin")
    text = json.dumps(content).replace("{outside}", str(tmp_path / "secret.bin"))
    (folder / INDEX).write_text(text)
    line = fail_in_one_line(capsys, main, "import", tmp_path / "published", "--out", tmp_path / "teacher")
    assert str(folder) in line
    assert message in line
    assert not (tmp_path / "teacher").exists()


def test_an_index_that_is_too_large_is_refused_before_it_is_read(tmp_path, capsys):
    save_folder(gpt2(0), tmp_path / "published" / "step1")
    index = tmp_path / "published" / "step1" / INDEX
    index.touch()
    os.truncate(index, 20 * 10**9)
    line = fail_in_one_line(capsys, main, "import", tmp_path / "published", "--out", tmp_path / "teacher")
    assert f"{index} has 20.0 GB, more than 100.0 MB" in line


def test_weight_files_that_are_none(tmp_path, capsys):
    folder = tmp_path / "published" / "step1"
    save_folder(gpt2(0), folder)
    words = ["import", tmp_path / "published", "--out", tmp_path / "teacher"]
    shutil.copy(folder / "pytorch_model.bin", folder / "pytorch_model-00001-of-00002.bin")
    line = fail_in_one_line(capsys, main, *words)
    assert f"{folder / 'pytorch_model.bin'} has lm_head.weight, which another file of {folder} has too" in line
    (folder / "pytorch_model-00001-of-00002.bin").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    assert f"{folder} has no weights in pytorch_model.bin" in fail_in_one_line(capsys, main, *words)
    (folder / "pytorch_model.bin").unlink()
    os.mkfifo(folder / "pytorch_model.bin")
    assert f"{folder / 'pytorch_model.bin'} is not a file" in fail_in_one_line(capsys, main, *words)
    assert not (tmp_path / "teacher").exists()


def test_weights_of_a_folder_are_finite_in_any_dtype(tmp_path, capsys):
    folder = tmp_path / "published" / "step1"
    save_folder(gpt2(0), folder)
    words = ["import", tmp_path / "published", "--out", tmp_path / "teacher"]
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        torch.save({"good": torch.ones(9).to(dtype), "bad": torch.full((9,), math.nan).to(dtype)}, folder / "x.bin")
        os.replace(folder / "x.bin", folder / "pytorch_model.bin")
        assert "weights that are NaN or infinite, such as bad" in fail_in_one_line(capsys, main, *words)
        torch.save({"good": torch.ones(9).to(dtype), "count": torch.ones(3).long()}, folder / "pytorch_model.bin")
        succeed(capsys, main, *words)
        assert load_file(tmp_path / "teacher" / "step1" / "model.safetensors")["good"].dtype == dtype
        shutil.rmtree(tmp_path / "teacher")


def fail_for_memory(capsys, tmp_path, monkeypatch, free):
    monkeypatch.setattr(pickles, "free_memory", lambda: (free, "on this machine"))
    return fail_in_one_line(capsys, main, "import", tmp_path / "published", "--out", tmp_path / "teacher")


def test_what_does_not_fit_into_memory_is_refused_before_it_is_read(tmp_path, capsys, monkeypatch):
    path = tmp_path / "published" / "1.pt"
    path.parent.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", None)
        path.touch()
        os.truncate(path, 20 * 10**9)
        line = fail_for_memory(capsys, tmp_path, patch, 10**9)
        assert f"{path} needs at least 20.0 GB of memory to be converted, but 1.0 GB are free on this machine" in line
        path.unlink()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x/data/0", bytes(10**8))
        assert path.stat().st_size < 10**6
        assert f"{path} needs at least 100.0 MB of memory" in fail_for_memory(capsys, tmp_path, patch, 10**7)
        path.unlink()
        folder = tmp_path / "published" / "step1"
        save_folder(gpt2(0), folder)
        (folder / "tokenizer.json").touch()
        os.truncate(folder / "tokenizer.json", 20 * 10**9)
        assert f"{folder} needs at least 20.0 GB of memory" in fail_for_memory(capsys, tmp_path, patch, 10**9)


def test_shards_that_fit_into_memory_only_one_at_a_time_are_refused(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "published" / "step1"
    save_folder(gpt2(0), folder)
    for i in range(2):
        torch.save({f"w{i}": torch.zeros(1).expand(1000, 1000)}, folder / f"pytorch_model-{i}.bin")
    (folder / "pytorch_model.bin").unlink()
    line = fail_for_memory(capsys, tmp_path, monkeypatch, 10**7)
    assert f"{folder} needs at least 16.0 MB of memory" in line


def test_what_does_not_fit_on_the_disk_is_refused(tmp_path, capsys, monkeypatch):
    for step in (1, 2):
        save_mlp(tmp_path / "published" / f"{step}.pt", step)
    size = 4 * (6 * 5 + 5 + 5 * 2 + 2)
    words = ["import", tmp_path / "published", "--out", tmp_path / "teacher"]
    monkeypatch.setattr(importing, "free_disk", lambda path: 2 * size - 1)
    line = fail_in_one_line(capsys, main, *words)
    assert f"--out {tmp_path / 'teacher'} needs at least 376 bytes, but 375 bytes are free there" in line
    assert not (tmp_path / "teacher").exists()
    monkeypatch.setattr(importing, "free_disk", lambda path: 2 * size)
    succeed(capsys, main, *words)
    monkeypatch.setattr(importing, "free_disk", lambda path: 0)
    save_mlp(tmp_path / "published" / "2.pt", 7)
    succeed(capsys, main, *words)  # instead of the old one
