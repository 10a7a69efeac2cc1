"""Other people's teachers of both settings: reported by `distill.py`, and probed."""

import json
import math
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from common.distillation.losses import IGNORED_LABEL
from common.errors import UserError
from common.pcfg.batches import evaluation_batches
from common.probes import checkpoints
from common.runs.run import Run
from tests.commands import assert_named, files
from tests.damage import change_weights, enlarge, fill, point_elsewhere
from tests.pcfg import DISTILL, MLM, SETTINGS, SMALL

PROBES = {
    "ngrams": "ngrams --sentences 12",
    "nonterminals": "nonterminals --training 64 --heldout 20 --epochs 1 --heads 2 --dimension 8",
    "generation": "generation --continuations 20 --tokens 5",
    "windows": "windows --positions 12 --sizes 1 3",
    "bayes-optimal": "bayes-optimal",
}


@pytest.fixture(params=SETTINGS, ids=lambda setting: setting.name)
def pcfg(request, one_torch_thread):
    return request.param


@pytest.fixture
def foreign(pcfg, teacher_of, tmp_path, monkeypatch):
    """The checkpoints of a run without the run."""
    monkeypatch.setattr(checkpoints, "RUNS", tmp_path / "runs")
    for checkpoint in teacher_of(pcfg).glob("checkpoint-*"):
        shutil.copytree(checkpoint, tmp_path / "theirs" / checkpoint.name)
    return tmp_path / "theirs"


def notes(pcfg, capsys, *words):
    """What a command that succeeds writes on stderr about its teacher."""
    code, lines = pcfg.start(capsys, *words)
    assert code == 0, lines
    return [line for line in lines if "teacher step" in line or line.startswith("warning: ")]


def accuracy(pcfg, checkpoint, samples):
    """Of a checkpoint, and the share of the most frequent label, one sentence at a time."""
    task = pcfg.task(SMALL)
    model, right, labels = pcfg.setting.load_model(checkpoint, task).double().eval(), 0, []
    for batch in evaluation_batches(task, samples, samples):
        tensors = vars(batch)
        for i in range(samples):
            row = {name: tensor[i : i + 1] for name, tensor in tensors.items()}
            truth = row.pop("labels")[0]
            with torch.no_grad():
                predicted = model(**row).logits[0].argmax(-1)
            if pcfg is not MLM:
                truth, predicted = truth[1:], predicted[:-1]
            labels += truth[truth != IGNORED_LABEL].tolist()
            right += int((truth == predicted).sum())
    return right / len(labels), max(map(labels.count, labels)) / len(labels)


def test_the_accuracy_of_the_last_checkpoint_in_use_is_printed_once(pcfg, capsys, tmp_path, foreign):
    words = [*DISTILL, "--methods", "custom", "ce", "--segments", "10:2", "20", "--seeds", 0, 1]
    words += ["--teacher", foreign, "--out", tmp_path / "students"]
    (line,) = notes(pcfg, capsys, *words)
    right, chance = accuracy(pcfg, foreign / "checkpoint-20", 32)
    assert f"teacher step 20: accuracy {right:.3f} on the student's evaluation data" in line
    assert f"chance {chance:.3f}" in line.replace("at chance (", "chance ")
    assert notes(pcfg, capsys, *words) == []


def test_a_teacher_that_knows_nothing_is_a_warning(pcfg, capsys, tmp_path, foreign):
    task = pcfg.task(SMALL)
    model = pcfg.new_model(task, 2, 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.save_pretrained(foreign / "checkpoint-40")
    words = [*DISTILL, "--methods", "one-shot", "--teacher", foreign, "--out", tmp_path / "student"]
    (line,) = notes(pcfg, capsys, *words)
    assert line.startswith("warning: teacher step 40: accuracy 0.")
    assert ", at chance (" in line


def test_checkpoints_of_another_step_are_refused_unless_they_are_trusted(pcfg, capsys, tmp_path, foreign):
    shutil.rmtree(foreign / "checkpoint-20")
    shutil.copytree(foreign / "checkpoint-30", foreign / "checkpoint-20")
    words = [*DISTILL, "--teacher", foreign, "--methods", "progressive", "--out", tmp_path / "students"]
    line = pcfg.fail_in_one_line(capsys, *words)
    assert_named(line, "'step 20' --trust-trajectory")
    assert not (tmp_path / "students").exists()
    found, _ = notes(pcfg, capsys, *words, "--trust-trajectory")
    assert found.startswith("warning: step 20 and the last step")
    assert Run(tmp_path / "students").complete


@pytest.mark.parametrize("name", PROBES)
def test_the_probe_of_a_foreign_teacher_is_that_of_the_same_run(pcfg, capsys, tmp_path, teacher_of, foreign, name):
    if pcfg is MLM and name == "generation":
        pytest.skip("BERT does not generate")
    before = files(foreign)
    words = ["probe", *shlex.split(PROBES[name]), "--run"]
    run = shutil.copytree(teacher_of(pcfg), tmp_path / "run")
    own = json.loads(Path(pcfg.succeed(capsys, *words, run).strip()).read_text())
    more = ["--eval-samples", 32] if name in ("bayes-optimal", "windows") else []
    assert_named(pcfg.fail_in_one_line(capsys, *words, foreign, *more), "'is not a run of this project' --grammar")
    assert_named(pcfg.fail_in_one_line(capsys, *words, run, "--grammar", "small"), "'is a run' --grammar")
    path = Path(pcfg.succeed(capsys, *words, foreign, "--grammar", "small", *more).strip())
    assert path.parent == tmp_path / "runs" / pcfg.name / "probes-of-theirs"
    theirs = json.loads(path.read_text())
    assert theirs["run"] == str(foreign)
    assert {key: theirs[key] for key in own if key not in ("argv", "id", "settings")} == {
        key: value for key, value in own.items() if key not in ("argv", "id", "settings")
    }
    assert "grammar" not in own.get("settings", {})
    assert theirs["settings"]["grammar"] == "small"
    assert files(foreign) == before


@pytest.fixture
def larger(pcfg, tmp_path):
    """A teacher with a vocabulary of 50 whose first tokens are those of the task, and the same with these alone."""
    task = pcfg.task(SMALL)
    for step in (4, 8):
        small = pcfg.new_model(task, 1, step)
        config = type(small.config).from_dict({**small.config.to_dict(), "vocab_size": 50, "pad_token_id": 49})
        large = type(small)(config)
        state = large.state_dict()
        for name, tensor in small.state_dict().items():
            if state[name].shape == tensor.shape:
                state[name] = tensor
            else:
                state[name] = torch.cat([tensor, torch.randn(50 - task.vocabulary, *tensor.shape[1:])])
        large.load_state_dict(state)
        for name, model in (("large", large), ("small", small)):
            model.save_pretrained(tmp_path / name / f"checkpoint-{step}")
    return tmp_path / "large", tmp_path / "small"


def test_a_larger_vocabulary_is_cut_to_the_tasks(pcfg, capsys, tmp_path, larger):
    runs = []
    for teacher in larger:
        words = [*DISTILL, "--methods", "progressive", "--temperature", 1, "--out", tmp_path / f"of {teacher.name}"]
        code, lines = pcfg.start(capsys, *words, "--teacher", teacher)
        assert code == 0, lines
        cut = [line for line in lines if "vocabulary" in line]
        runs.append(Run(tmp_path / f"of {teacher.name}").records())
        assert cut == (
            [f"{teacher / 'checkpoint-8'} has a vocabulary of 50, which is cut to the task's 8, its first tokens"]
            if teacher.name == "large"
            else []
        )
    assert runs[0] == runs[1]


def test_a_cut_model_is_the_small_one_and_draws_no_random_number(pcfg, larger):
    task = pcfg.task(SMALL)
    state = torch.get_rng_state()
    large, small = (pcfg.setting.load_model(path / "checkpoint-8", task).eval() for path in larger)
    assert torch.equal(torch.get_rng_state(), state)
    assert large.state_dict().keys() == small.state_dict().keys()
    for name, tensor in small.state_dict().items():
        torch.testing.assert_close(large.state_dict()[name], tensor, rtol=0, atol=0)
    assert large.config.vocab_size == 8
    (batch,) = evaluation_batches(task, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(large(**vars(batch)).loss, small(**vars(batch)).loss)


def test_a_cut_model_is_probed(pcfg, capsys, larger, monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints, "RUNS", tmp_path / "runs")
    found = []
    for teacher in larger:
        words = ["probe", *shlex.split(PROBES["ngrams"]), "--grammar", "small", "--run", teacher]
        found.append(json.loads(Path(pcfg.succeed(capsys, *words).strip()).read_text())["checkpoints"])
    for one, other in zip(*found, strict=True):
        assert one.pop("digest") != other.pop("digest")
    assert found[0] == found[1]


def test_the_final_model_beside_its_checkpoints_is_the_last_one(pcfg, capsys, tmp_path, foreign):
    """As `Trainer.save_model` and `Trainer.save_state` leave it."""
    for path in (foreign / "checkpoint-30").iterdir():
        shutil.move(path, foreign / path.name)
    (foreign / "checkpoint-30").rmdir()
    (foreign / "trainer_state.json").write_text(json.dumps({"global_step": 30}))
    words = [*DISTILL, "--methods", "one-shot", "--teacher", foreign, "--out", tmp_path / "student"]
    (line,) = notes(pcfg, capsys, *words)
    assert "teacher step 30: accuracy" in line
    assert {record["teacher"] for record in Run(tmp_path / "student").records()} == {30}


# Damaged teachers

NOT_FINITE = {
    "nan": (fill(math.nan), "has weights that are NaN or infinite, such as"),
    "inf": (fill(-math.inf), "has weights that are NaN or infinite, such as"),
    "absurd": (enlarge, "predicts NaN or infinity"),
}


@pytest.mark.parametrize(("damage", "temperature"), [("nan", 0), ("inf", 1), ("absurd", 0), ("absurd", 1)])
def test_a_teacher_that_is_not_finite_is_refused_before_anything_is_written(
    pcfg, capsys, tmp_path, foreign, damage, temperature
):
    change, message = NOT_FINITE[damage]
    change_weights(foreign / "checkpoint-30", change)
    words = ["--methods", "one-shot", "--temperature", temperature, "--teacher", foreign, "--out", tmp_path / "student"]
    line = pcfg.fail_in_one_line(capsys, *DISTILL, *words)
    assert f"{foreign / 'checkpoint-30'} {message}" in line
    assert not list(tmp_path.glob("student/checkpoint-*"))


@pytest.mark.parametrize("damage", NOT_FINITE)
def test_a_later_checkpoint_that_is_not_finite_is_refused_when_it_is_used(pcfg, capsys, tmp_path, foreign, damage):
    change, message = NOT_FINITE[damage]
    change_weights(foreign / "checkpoint-20", change)
    words = ["--methods", "custom", "--segments", "10:2", "20:2", "30", "--trust-trajectory"]
    code, lines = pcfg.start(capsys, *DISTILL, *words, "--teacher", foreign, "--out", tmp_path / "student")
    assert code == 2
    assert f"{foreign / 'checkpoint-20'} {message}" in lines[-1]
    assert not Run(tmp_path / "student").complete


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("ngrams", damage) for damage in NOT_FINITE),
        *((name, damage) for name in ("nonterminals", "generation") for damage in ("nan", "absurd")),
    ],
)
def test_a_checkpoint_that_is_not_finite_is_not_probed(pcfg, capsys, tmp_path, foreign, name, damage):
    if pcfg is MLM and name == "generation":
        pytest.skip("BERT does not generate")
    change, message = NOT_FINITE[damage]
    change_weights(foreign / "checkpoint-20", change)
    words = ["probe", *shlex.split(PROBES[name]), "--grammar", "small", "--run", foreign, "--out", tmp_path / "probe"]
    code, lines = pcfg.start(capsys, *words)
    assert code == 2
    assert f"{foreign / 'checkpoint-20'} {message}" in lines[-1]
    entries = json.loads((tmp_path / "probe").read_text(), parse_constant=pytest.fail)["checkpoints"]
    assert [entry["step"] for entry in entries] == [10]


@pytest.mark.parametrize("name", ["evil.bin", "../outside.safetensors"])
def test_only_safetensors_of_the_checkpoint_are_read(pcfg, capsys, tmp_path, foreign, name):
    point_elsewhere(foreign / "checkpoint-30", name)
    with pytest.raises(UserError, match="not a safetensors file beside it"):
        pcfg.setting.load_model(foreign / "checkpoint-30", pcfg.task(SMALL))
    words = ["--methods", "one-shot", "--teacher", foreign, "--out", tmp_path / "student"]
    assert name in pcfg.fail_in_one_line(capsys, *DISTILL, *words)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_checkpoint_in_shards_is_the_model_that_transformers_loads(pcfg, tmp_path, dtype):
    task = pcfg.task(SMALL)
    path = tmp_path / "checkpoint-1"
    saved = pcfg.new_model(task, 2, 7).to(dtype)
    saved.save_pretrained(path, max_shard_size="2KB")
    assert len(list(path.glob("model-*-of-*.safetensors"))) > 2
    model = pcfg.setting.load_model(path, task)
    expected = type(saved).from_pretrained(path, dtype=torch.float32)
    assert model.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0)
