"""Weights read into memory, against safetensors; files that lie or change; what must be finite."""

import ast
import json
import math
import os
import re
import signal

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import load_file, save_file

from common.errors import UserError
from common.teachers import tensors
from common.teachers.tensors import read_weights, require_finite_logits, require_finite_weights
from common.teachers.weights import read_header
from tests.commands import ROOT, python

DTYPES = [dtype for dtype in tensors.DTYPES.values() if dtype not in (torch.uint16, torch.uint32, torch.uint64)]


def checkpoint(folder, weights=None, name="model.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    if weights is not None:
        save_file(weights, folder / name, {"format": "pt"})
    return folder


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert bytes_of(found[name]) == bytes_of(tensor)


def bytes_of(tensor):
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_as_safetensors_reads_them(tmp_path, dtype):
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"tensor {shape}": (50 * torch.rand(shape, generator=generator)).to(dtype)
        for shape in [(), (1,), (0, 3), (5, 7), (2, 3, 4)]
    }
    folder = checkpoint(tmp_path, weights)
    found = read_weights(folder)
    assert_same(found, weights)
    assert_same(found, load_file(folder / "model.safetensors"))


def test_shards_are_one_set_of_weights(tmp_path):
    parts = [{"a": torch.ones(2)}, {"b": torch.zeros(3)}]
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for part, name in zip(parts, names, strict=True):
        checkpoint(tmp_path, part, name)
    index = {"weight_map": dict(zip("ab", names, strict=True))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(read_weights(tmp_path), parts[0] | parts[1])
    checkpoint(tmp_path, parts[0], names[1])
    with pytest.raises(UserError, match=f"{names[1]} has a, which another file of {tmp_path} has too"):
        read_weights(tmp_path)


def test_weights_are_in_memory_of_their_own(tmp_path):
    folder = checkpoint(tmp_path, {"a": torch.ones(100_000)})
    found = read_weights(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(10)
    assert found["a"].eq(1).all()
    found["a"] += 1


TRUNCATES = """
import os, sys
from pathlib import Path
from common.cli import command
from common.teachers.tensors import read_weights

folder, real = Path(sys.argv.pop()), os.preadv

def preadv(*arguments):
    os.truncate(folder / "model.safetensors", 4096)
    return real(*arguments)

os.preadv = preadv
command(lambda: read_weights(folder))
"""


def test_a_file_that_is_truncated_while_it_is_read_is_one_line(tmp_path):
    folder = checkpoint(tmp_path, {"a": torch.ones(1_000_000)})
    done = python("-c", TRUNCATES, folder)
    assert done.returncode == 2 != -signal.SIGBUS
    (line,) = done.stderr.splitlines()
    assert f"{folder / 'model.safetensors'} changes while it is read" in line


def rewrite(path):
    """The same size and header, other values."""
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + bytes(4))


def grow(path):
    with path.open("ab") as file:
        file.write(b"0")


def rename(path):
    """Another header of the same length at the same time."""
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b'"a"', b'"b"', 1))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [rewrite, grow, rename])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, change):
    path = checkpoint(tmp_path, {"a": torch.ones(1000)}) / "model.safetensors"
    os.utime(path, (1, 1))
    real = os.preadv

    def preadv(*arguments):
        change(path)
        return real(*arguments)

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(UserError, match=f"^{path} changes while it is read: wait"):
        read_weights(tmp_path)


def test_a_file_that_is_replaced_while_it_is_read_is_the_old_one(tmp_path, monkeypatch):
    path = checkpoint(tmp_path, {"a": torch.ones(1000)}) / "model.safetensors"
    save_file({"b": torch.zeros(5)}, tmp_path / "new")
    real = os.preadv

    def preadv(*arguments):
        if (tmp_path / "new").exists():
            (tmp_path / "new").replace(path)
        return real(*arguments)

    monkeypatch.setattr(os, "preadv", preadv)
    assert_same(read_weights(tmp_path), {"a": torch.ones(1000)})


# Headers that lie


def stored(header, data, length=None):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(content) if length is None else length).to_bytes(8, "little") + content + data


def entry(begin, end, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


LIES = {
    "overlap": (stored({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "overlap or leave gaps, such as b"),
    "same place": (stored({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)), "overlap or leave gaps"),
    "gap": (stored({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "overlap or leave gaps, such as b"),
    "shape": (stored({"a": entry(0, 8, [3])}, bytes(8)), r"a has 8 bytes, but F32 \[3\] needs 12"),
    "dtype": (stored({"a": entry(0, 8, [2], "F64")}, bytes(8)), r"a has 8 bytes, but F64 \[2\] needs 16"),
    "unknown dtype": (stored({"a": entry(0, 8, [2], "F33")}, bytes(8)), "a in the dtype F33: save it in float32"),
    "backwards": (stored({"a": entry(8, 0, [2])}, bytes(8)), "damaged"),
    "negative": (stored({"a": entry(-8, 0, [2])}, bytes(8)), "no safetensors header"),
    "negative shape": (stored({"a": entry(0, 8, [-1, -2])}, bytes(8)), "no safetensors header"),
    "fractions": (stored({"a": entry(0, 8, [2.0])}, bytes(8)), "no safetensors header"),
    "large shape": (stored({"a": entry(0, 8, [2**20, 2**20])}, bytes(8)), "a has 8 bytes"),
    "huge shape": (stored({"a": entry(0, 8, [2**62, 2**62])}, bytes(8)), "no safetensors header"),
    "huge empty shape": (stored({"a": entry(0, 0, [2**62, 4, 0])}, b""), "no safetensors header"),
    "huge header": (stored({"a": entry(0, 8)}, bytes(8), 2**63), "no safetensors header"),
    "beyond": (stored({"a": entry(0, 80)}, bytes(8)), "is truncated: it has"),
    "duplicate": (stored(b'{"a":%b,"a":%b}' % ((json.dumps(entry(0, 8)).encode(),) * 2), bytes(8)), "no safetensors"),
    "nested": (stored(b"[" * 100_000, b""), "no safetensors header"),
    "other encoding": (stored(json.dumps({"a": entry(0, 8)}).encode("utf-16"), bytes(8)), "no safetensors header"),
    "no metadata": (stored({"__metadata__": [1], "a": entry(0, 8)}, bytes(8)), "metadata is not text"),
    "metadata": (stored({"__metadata__": {"format": 1}, "a": entry(0, 8)}, bytes(8)), "metadata is not text"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_one_line_that_names_the_file(tmp_path, lie):
    path = checkpoint(tmp_path) / "model.safetensors"
    content, message = LIES[lie]
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path} .*{message}") as caught:
        read_weights(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


# What must be finite


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(value, dtype):
    good = {"a": torch.full((3, 4), torch.finfo(dtype).max, dtype=dtype), "ids": torch.arange(3), "none": torch.ones(0)}
    require_finite_weights(good, "here")
    for place in (0, 5, 11):
        bad = good["a"].clone()
        bad.view(-1)[place] = value
        with pytest.raises(UserError, match=r"^here has weights that are NaN or infinite, such as b: leave"):
            require_finite_weights({**good, "b": bad}, "here")


@given(st.lists(st.sampled_from([0.0, -3.0, 1e30, -math.inf, math.inf, math.nan]), min_size=1, max_size=4))
def test_logits_may_exclude_classes_but_not_all(row):
    logits = torch.tensor([[0.0] * len(row), row])
    is_fine = not any(math.isnan(x) or x == math.inf for x in row) and any(map(math.isfinite, row))
    if is_fine:
        require_finite_logits(logits, "here")
        require_finite_logits(logits[:0], "here")
    else:
        with pytest.raises(UserError, match=r"^here predicts NaN or infinity"):
            require_finite_logits(logits, "here")


# Nothing passes by


OTHERS = {
    "common/runs/files.py": {"safetensors.numpy.load_file"},  # states of runs
    "common/distillation/state.py": {"load_file"},  # checkpoints of a Trainer that is resumed
    "common/distillation/adapters.py": {"load_file"},
    "common/teachers/pickles.py": {"torch.load"},  # with weights_only=True
    "common/teachers/loading.py": {"chosen.from_pretrained"},  # without a path
    "common/distillation/vocabulary.py": {"AutoTokenizer.from_pretrained"},
    "common/text/tokenization.py": {"AutoTokenizer.from_pretrained"},
}
"""Functions that read weights or a tokenizer, where they are called."""


def test_weights_of_teachers_are_read_in_one_place():
    found = {}
    settings = [path.parent.name for path in ROOT.glob("*/distill.py")]
    for path in (file for folder in ("common", *settings) for file in (ROOT / folder).rglob("*.py")):
        calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        for called in (ast.unparse(call.func) for call in calls):
            if re.search(r"(\b|\.)(load_file|safe_open|torch\.load|from_pretrained)$", called):
                found.setdefault(path.relative_to(ROOT).as_posix(), set()).add(called)
    assert found == OTHERS
    assert "from_pretrained(\n                None,\n" in (ROOT / "common/teachers/loading.py").read_text()


def test_the_order_of_a_header_is_that_of_the_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(stored({"b": entry(4, 8), "a": entry(0, 4)}, bytes(8)))
    assert list(read_header(path)) == ["a", "b"]
