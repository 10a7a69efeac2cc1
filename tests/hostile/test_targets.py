"""A teacher's targets on disk as they must not be: what is read is what was written, or a refusal names the file."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from common.distillation.labelled_head import LabelledOutput
from common.distillation.losses import LossArguments
from common.distillation.target_cache import Place, TargetCache
from tests.hostile.contract import attempt, cases
from tests.hostile.damage import damaged, json_files
from tests.trainers import arguments

KINDS = {"exact": LossArguments(), "sampled": LossArguments(), "top-k": LossArguments(top_k=3)}
SHARD = "checkpoint-10-0-3.safetensors"
PLACES = [Place(10, "digest", step, part, bytes([step] * 16), 5, 9) for step in range(3) for part in range(2)]


def prepared(directory, kind):
    cache = TargetCache(directory, kind)
    cache.prepare(arguments(directory.parent), KINDS[kind])
    return cache


@pytest.fixture(scope="module", params=KINDS)
def written(request, tmp_path_factory):
    """A cache's directory, its kind, and its targets."""
    directory = tmp_path_factory.mktemp(request.param) / "targets"
    cache = prepared(directory, request.param)
    logits = torch.randn(len(PLACES), 5, 9, generator=torch.Generator().manual_seed(0))
    stored = [
        cache.add(place, LabelledOutput(each), "weights").fields for place, each in zip(PLACES, logits, strict=True)
    ]
    cache.flush()
    return directory, request.param, stored


def copied(written, name, content):
    directory = written[0].with_name("copy")
    shutil.copytree(written[0], directory, dirs_exist_ok=True)
    (directory / name).write_bytes(content)
    return directory


def read(directory, kind):
    cache = prepared(directory, kind)
    cache.require_teacher({"10": "digest"}, 9)
    return [cache.find(place) for place in PLACES]


def use(written, name, content):
    directory, kind = copied(written, name, content), written[1]
    if (found := attempt(read, directory, kind, names=str(directory))) is not None:
        for stored, fields in zip(found, written[2], strict=True):
            assert stored.fields.keys() == fields.keys()
            assert all(np.array_equal(stored.fields[field], fields[field]) for field in fields)


@given(st.data())
@cases(200)
def test_shards(written, data):
    use(written, SHARD, data.draw(damaged((written[0] / SHARD).read_bytes())))


@given(st.data())
@cases(200)
def test_descriptions(written, data):
    description = json.loads((written[0] / "targets.json").read_bytes())
    use(written, "targets.json", data.draw(json_files(description)))
