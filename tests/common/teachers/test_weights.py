"""Headers, digests and comparisons of tensors in safetensors files, against safetensors and torch."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from common.errors import UserError
from common.runs.files import to_safetensors
from common.teachers.weights import SAMPLE, digest, read_header, same_up_to_rounding, weight_files

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def stored(tmp_path, tensor, name="a"):
    """A tensor in a file, with another one before it."""
    save_file({name: tensor, "before": torch.zeros(3, dtype=torch.float64)}, tmp_path / f"{name}.safetensors")
    return read_header(tmp_path / f"{name}.safetensors")[name]


def test_a_header_is_as_safetensors_reads_it(tmp_path):
    tensors = {"a": torch.ones(2, 3), "b": torch.ones((), dtype=torch.bfloat16), "c": torch.zeros(0, 4).half()}
    save_file(tensors, tmp_path / "file", metadata={"format": "pt"})
    header = read_header(tmp_path / "file")
    with safe_open(tmp_path / "file", "pt") as file:
        assert header.keys() == set(file.keys())
        for name, tensor in header.items():
            part = file.get_slice(name)
            assert (tensor.dtype, list(tensor.shape)) == (part.get_dtype(), part.get_shape())
    assert (header["b"].elements, header["c"].elements) == (1, 0)
    assert (tmp_path / "file").read_bytes()[header["a"].begin : header["a"].end] == tensors["a"].numpy().tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda whole: whole[:-1], "is truncated: it has .* bytes, but its header describes"),
        (lambda whole: whole[: len(whole) // 2], "is truncated"),
        (lambda whole: whole + b"0", "is damaged: it has .* bytes"),
        (lambda whole: whole[:20], "is truncated or damaged"),
        (lambda whole: b"", "is truncated or damaged"),
        (lambda whole: b"\xff" * 8 + whole[8:], "is truncated or damaged"),
        (lambda whole: whole.replace(b"data_offsets", b"data_0ffsets"), "is truncated or damaged"),
        (lambda whole: (2).to_bytes(8, "little") + b"[]", "is truncated or damaged"),
        (
            lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
            "is truncated or damaged",
        ),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(change(to_safetensors({"a": np.arange(1000.0)})))
    with pytest.raises(UserError, match=f"^{path} {message}"):
        read_header(path)


@pytest.mark.parametrize("count", [1, 3 * SAMPLE, 3 * SAMPLE + 1, 10_001])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_and_the_middle_are_sampled_and_full_digests_see_all(tmp_path, count, dtype):
    tensor = torch.randn(count, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = stored(tmp_path, tensor)
    digests = digest(before), digest(before, full=True)
    seen = set()
    for place in {0, 2 * SAMPLE, count // 2, count - 1} & set(range(count)):
        changed = tensor.clone()
        changed[place] += 1
        after = stored(tmp_path, changed)
        assert digest(after, full=True) != digests[1]
        if digest(after) != digests[0]:
            seen.add(place)
    assert {0, count // 2, count - 1} <= seen
    assert (2 * SAMPLE in seen) == (count == 3 * SAMPLE)


def test_a_digest_is_of_dtype_and_shape_too(tmp_path):
    zeros = [torch.zeros(4), torch.zeros(4).int(), torch.zeros(2, 2), torch.zeros(2).double()]
    assert len({digest(stored(tmp_path, tensor)) for tensor in zeros}) == 4


@pytest.mark.parametrize("other", DTYPES)
@pytest.mark.parametrize("one", DTYPES)
def test_rounding_is_recognised(tmp_path, one, other):
    exact = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 10 ** torch.linspace(-9, 3, 20_000)
    pair = [stored(tmp_path, exact.to(dtype), name) for dtype, name in ((one, "a"), (other, "b"))]
    assert same_up_to_rounding(*pair)
    moved = stored(tmp_path, (exact * 1.02).to(other), "c")
    assert not same_up_to_rounding(pair[0], moved)


def test_other_shapes_and_integers_are_not_the_same_by_rounding(tmp_path):
    ones = stored(tmp_path, torch.ones(4), "a")
    assert not same_up_to_rounding(ones, stored(tmp_path, torch.ones(2, 2).half(), "b"))
    assert not same_up_to_rounding(ones, stored(tmp_path, torch.ones(4).int(), "c"))


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "pytorch_model.bin", "/model.safetensors", f"{5000 * 'x'}.safetensors"]
)
def test_an_index_that_names_files_elsewhere_is_refused(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="not a safetensors file beside it") as caught:
        weight_files(tmp_path)
    assert len(str(caught.value)) < 500
