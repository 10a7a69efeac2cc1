"""Teachers as they must not be: the model that their files describe, or a refusal that names the checkpoint."""

import json
import math
import shutil

import pytest
import safetensors
import torch
from hypothesis import example, given, strategies as st
from safetensors.torch import load as tensors_of, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from common.teachers import tensors
from common.teachers.curves import read_curve
from common.teachers.importing import INDEX, ImportArguments, import_teacher
from common.teachers.loading import build_model, read_model
from common.teachers.tensors import read_weights
from tests.hostile.contract import attempt, cases
from tests.hostile.damage import damaged, json_files
from tests.models import save_suite


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert bytes_of(found[name]) == bytes_of(tensor)


def bytes_of(tensor):
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


# config.json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.sampled_from([0.5, -1.0, 1e300, float("nan"), float("inf")])
    | st.sampled_from(["", "abc", "gelu", "float32", "default", "full_attention"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["rope_type", "a"]), inner, max_size=2),
    max_leaves=3,
)
NAMES = {
    kind: sorted(
        {*AutoConfig.for_model(kind).to_dict(), "rope_theta", "rope_scaling", "head_dim", "num_labels", "auto_map"}
    )
    for kind in ("gpt2", "llama", "gpt_neox")
}


@pytest.fixture(scope="module")
def suites(tmp_path_factory):
    """A checkpoint of each kind, its config, and its weights as transformers reads them."""
    found = {}
    for kind in NAMES:
        path = save_suite(tmp_path_factory.mktemp(kind), kind, (10,)) / "checkpoint-10"
        weights = AutoModelForCausalLM.from_pretrained(path).state_dict()
        found[kind] = path, (path / "config.json").read_bytes(), weights
    return found


def load(path):
    return build_model(read_model(path), "causal").state_dict()


def use(suites, kind, content):
    path, _, expected = suites[kind]
    (path / "config.json").write_bytes(content)
    if (found := attempt(load, path, names=str(path))) is not None:
        assert_same(found, expected)


@given(
    st.sampled_from(sorted(NAMES)).flatmap(
        lambda kind: st.tuples(
            st.just(kind), st.dictionaries(st.sampled_from(NAMES[kind]), VALUES, min_size=1, max_size=2)
        )
    )
)
@cases(200)
@example(("llama", {"pad_token_id": 70}))
@example(("llama", {"rope_parameters": {"rope_type": "abc"}}))
@example(("gpt2", {"type_vocab_size": -5, "n_inner": 0}))
def test_entries_of_configurations(suites, case):
    kind, entries = case
    use(suites, kind, json.dumps({**json.loads(suites[kind][1]), **entries}).encode())


@given(st.sampled_from(sorted(NAMES)), st.data())
@cases(200)
def test_configurations(suites, kind, data):
    use(suites, kind, data.draw(json_files(json.loads(suites[kind][1]))))


# Weights

numbers = st.integers(-2, 20) | st.sampled_from([True, 1.0, None, 2**70])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*tensors.DTYPES, "F33", 4, None]),
        "shape": st.lists(numbers, max_size=3) | st.none(),
        "data_offsets": st.lists(numbers, min_size=1, max_size=3) | st.none(),
    }
)
headers = st.dictionaries(st.sampled_from(["a", "b", "c", "__metadata__"]), entries | st.none(), max_size=3)


@st.composite
def true_headers(draw):
    """Headers that safetensors may accept, with at most one lie."""
    header, end = {}, 0
    for name in draw(st.permutations(["a", "b", "c"])):
        dtype, shape = draw(st.sampled_from([*tensors.DTYPES])), draw(st.lists(st.integers(0, 3), max_size=3))
        size = math.prod(shape) * torch.empty(0, dtype=tensors.DTYPES[dtype]).element_size()
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    if draw(st.booleans()):
        chosen = header[draw(st.sampled_from("abc"))]
        key = draw(st.sampled_from([*chosen]))
        chosen[key] = draw(entries)[key]
    return header, end + draw(st.sampled_from([0, 0, 0, 1, -1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("weights")
    (directory / "config.json").write_text("{}")
    return directory


@given(st.tuples(headers, st.integers(0, 40)) | true_headers())
@cases(300)
def test_headers(folder, case):
    """They are read as safetensors reads them, or refused where it refuses them."""
    header, size = case
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(i % 251 for i in range(max(size, 0)))
    (folder / "model.safetensors").write_bytes(content)
    found = attempt(read_weights, folder, names=str(folder))
    try:
        expected = tensors_of(content)
    except (safetensors.SafetensorError, KeyError):
        assert found is None
    else:
        assert_same(found, expected)


SHARDS = {
    "model-1.safetensors": {"a": torch.arange(3.0)},
    "model-2.safetensors": {"b": torch.ones(2, 2), "c": torch.ones(1)},
}
ALL = {name: tensor for shard in SHARDS.values() for name, tensor in shard.items()}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A checkpoint of two shards, beside which is a file that no index of it may name."""
    directory = tmp_path_factory.mktemp("sharded") / "checkpoint"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    for name, shard in SHARDS.items():
        save_file(shard, directory / name, {"format": "pt"})
    save_file({"z": torch.ones(1)}, directory.parent / "outside.safetensors")
    return directory


ELSEWHERE = ("../outside.safetensors", "evil.bin", "/etc/passwd", "", ".", "\0", "model-3.safetensors")


def index_of(shards):
    return {
        "metadata": {"total_size": 32},
        "weight_map": {key: name for name, shard in shards.items() for key in shard},
    }


@given(
    json_files(index_of(SHARDS))
    | st.dictionaries(st.sampled_from("abc"), st.sampled_from([*SHARDS, *ELSEWHERE])).map(
        lambda parts: json.dumps({"weight_map": parts}).encode()
    )
)
@cases(200)
def test_indices(sharded, content):
    """All weights of the files that it names are read, and nothing else."""
    (sharded / "model.safetensors.index.json").write_bytes(content)
    if (found := attempt(read_weights, sharded, names=str(sharded))) is not None:
        assert found
        assert_same(found, {name: ALL[name] for name in found})


# Teachers that are imported


@pytest.fixture(scope="module")
def pickled(tmp_path_factory):
    """A teacher with pickled weights in two files, and a copy of its checkpoint."""
    teacher = tmp_path_factory.mktemp("pickled") / "teacher"
    checkpoint = teacher / "step10"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text('{"model_type": "gpt2"}')
    parts = {name.replace("safetensors", "bin"): shard for name, shard in SHARDS.items()}
    for name, shard in parts.items():
        torch.save(shard, checkpoint / name)
    (checkpoint / INDEX).write_text(json.dumps(index_of(parts)))
    shutil.copytree(checkpoint, teacher.with_name("whole"))
    return teacher


@given(st.sampled_from([INDEX, "model-1.bin", "model-2.bin", "config.json"]), st.data())
@cases(200)
def test_imports(pickled, name, data):
    """A refused import writes nothing; what is imported are tensors of the teacher."""
    checkpoint, out = pickled / "step10", pickled.with_name("out")
    shutil.rmtree(checkpoint)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(pickled.with_name("whole"), checkpoint)
    whole = (checkpoint / name).read_bytes()
    content = json_files(json.loads(whole)) if name.endswith(".json") else damaged(whole)
    (checkpoint / name).write_bytes(data.draw(content))
    arguments = ImportArguments(source=pickled, out=out)
    if attempt(lambda: import_teacher(arguments) or out, names=str(pickled)) is None:
        assert not out.exists()
    else:
        found = tensors_of((out / "checkpoint-10" / "model.safetensors").read_bytes())
        assert found
        assert all(tensor.isfinite().all() for tensor in found.values())
        if name == INDEX:
            assert_same(found, {key: ALL[key] for key in found})


# Logs


@given(
    st.sampled_from(["metrics.jsonl", "trainer_state.json", "log.csv"]),
    st.one_of(
        st.binary(max_size=40),
        st.text(st.sampled_from('step,loss\n\r"{}:[]0123456789.-eE_ \0'), max_size=60).map(str.encode),
        st.lists(st.tuples(st.text(max_size=4), st.text(max_size=4)), max_size=4).map(
            lambda rows: "\n".join(["step,loss", *map(",".join, rows)]).encode(errors="replace")
        ),
        json_files({"step": 5, "loss": 0.5}),
        json_files({"log_history": [{"step": 5, "loss": 0.5}, {"step": 9, "eval_loss": 0.25}]}),
    ),
)
@cases(300)
def test_logs(folder, name, content):
    (folder / name).write_bytes(content)
    if (curve := attempt(read_curve, folder / name, names=name)) is not None:
        assert len(curve.steps) == len(curve.losses) > 0
        assert list(curve.steps) == sorted(set(curve.steps))
        assert all(map(math.isfinite, curve.losses))
