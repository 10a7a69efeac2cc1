"""The examples run, on models made here."""

import re
import runpy

import pytest
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

from common.errors import UserError
from tests.commands import ROOT
from tests.forked import forked
from tests.hub import use
from tests.models import PYTHIA, TEXT, byte_pairs, cache_pythia, make, save_pythia


def main_of(name):
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"]


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return save_pythia(tmp_path_factory.mktemp("pythia"))


@pytest.mark.parametrize("where", ["directory", "cache"])
def test_pythia(tmp_path, capsys, monkeypatch, suite, where):
    use(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cache_pythia(tmp_path / "cache", suite)
    (tmp_path / "text.txt").write_text("\n\n".join(3 * TEXT))
    teacher = str(suite) if where == "directory" else PYTHIA
    options = {"layers": 2, "steps": 6, "every": 1, "batch_size": 4, "length": 16}
    main_of("pythia")(teacher, tmp_path / "text.txt", out=tmp_path / "student", **options)
    out = capsys.readouterr().out
    assert "there is no training curve: 5 checkpoints at equal spacing in the logarithm of the step" in out
    assert "teacher step 64: accuracy" in out
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert student.config.num_hidden_layers == 2
    tokens = byte_pairs()(TEXT[0], return_tensors="pt")
    assert student(**tokens).logits.shape == (*tokens["input_ids"].shape, student.config.vocab_size)


def test_a_teacher_without_checkpoints_is_refused_in_one_line(tmp_path):
    make("llama", 0).config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no checkpoint-<step> directory or the like"):
        main_of("pythia")(str(tmp_path), tmp_path / "text.txt")


def test_plain_torch(tmp_path, one_torch_thread):
    words = ("--directory", tmp_path / "teacher", "--steps", 200, "--every", 20)
    done = forked(ROOT / "examples" / "plain_torch.py", *words)
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"(\w[\w ]*?) +accuracy ([0-9.]+)", done.stdout))
    assert list(found) == ["labels", "final teacher", "progressive"]
    assert len(list((tmp_path / "teacher").iterdir())) == 10
