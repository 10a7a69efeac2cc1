"""Figures from committed data and from runs, the notebooks, and the commands that the READMEs print."""

import importlib
import json
import os
import re
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import tyro
from nbclient import NotebookClient

import PCFG_autoregressive.distill
import PCFG_autoregressive.probe
import PCFG_autoregressive.train
import PCFG_mlm.distill
import PCFG_mlm.probe
import PCFG_mlm.train
from common.errors import UserError
from common.parity.arguments import model_of_command_line
from common.pcfg import training
from parity_mlp import distill, probe, train
from tests.commands import python

ROOT = Path(__file__).resolve().parents[1]
PNG = b"\x89PNG\r\n"


def make_figures(*arguments, setting="parity_mlp"):
    settings = [setting] if setting else []
    return python(ROOT / "figures" / "make_figures.py", *settings, *arguments)


@pytest.fixture(autouse=True)
def scripts_of_figures(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "figures")


@pytest.fixture
def parity_figures():
    return importlib.import_module("parity_figures")


@pytest.fixture
def pcfg_figures():
    return importlib.import_module("pcfg_figures")


@pytest.fixture
def finding_runs():
    return importlib.import_module("finding_runs")


def collect(figures, runs, *arguments):
    """What is behind the figures of a setting of which nothing is missing."""
    collected = figures.collect(importlib.import_module("finding_runs").find_runs(runs), "laptop", *arguments)
    assert collected.errors == {}
    return collected.data


def what_is_missing(figures, runs, *arguments):
    """The reasons why parts are not there, by part, or that of the teacher."""
    found = importlib.import_module("finding_runs").find_runs(runs)
    try:
        return figures.collect(found, "laptop", *arguments).errors
    except UserError as error:
        return {"teacher": error}


@pytest.mark.parametrize("data", sorted((ROOT / "figures" / "data").glob("*.json")), ids=lambda path: path.stem)
def test_committed_data_make_the_committed_figures(data, tmp_path):
    setting, preset = data.stem.rsplit("_", 1)
    result = make_figures("--preset", preset, "--out", tmp_path, setting=setting)
    assert result.returncode == 0, result.stderr
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (ROOT / "figures").glob(f"*_{setting}_{preset}.png")}
    assert all((tmp_path / name).read_bytes().startswith(PNG) for name in drawn)


def test_the_smoke_runs_become_figures(tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    for module in (train, distill):
        monkeypatch.setattr(module, "RUNS", runs / "somewhere")
    monkeypatch.setattr(distill, "ROOT", tmp_path)
    teacher = runs / "a_teacher"
    train.train(replace(train.PRESETS["mlp"]["smoke"], out=teacher))
    probe.probe(probe.ProbeArguments(run=teacher, samples=1000))
    arguments = ("--preset", "smoke", "--runs", runs, "--out", tmp_path / "figures")
    missing = make_figures(*arguments)
    assert missing.returncode == 2
    assert "python -m parity_mlp.distill smoke; " in missing.stderr
    assert len(missing.stderr.splitlines()) == 1
    assert pictures(tmp_path / "figures") == ["figure2_degrees_parity_mlp_smoke.png"]
    assert missing.stdout.split() == [str(tmp_path / "figures" / "figure2_degrees_parity_mlp_smoke.png")]

    students = replace(distill.PRESETS["mlp"]["smoke"], seeds=(0, 1), teacher=str(teacher))
    distill.distill(students)
    distill.distill(replace(students, methods=("two-shot",), checkpoint=("before", "inside", "after")))
    result = make_figures(*arguments)
    assert result.returncode == 0, result.stderr
    data = json.loads((tmp_path / "figures" / "data" / "parity_mlp_smoke.json").read_text())
    assert data["students"]["progressive"]["seeds"] == [0, 1]
    assert data["candidates"]["before"] < data["candidates"]["inside"] < data["candidates"]["after"]
    records = [json.loads(line) for line in (teacher / "metrics.jsonl").read_text().splitlines()]
    assert data["teacher"]["accuracy"] == [record["accuracy"] for record in records]

    arguments = (*arguments[:4], "--out", tmp_path / "all")
    every = make_figures(*arguments, setting=None)
    assert every.returncode == 0, every.stderr
    assert pictures(tmp_path / "all") == pictures(tmp_path / "figures")
    lines = every.stderr.splitlines()
    assert [line.split(", ")[0] for line in lines] == [
        f"figure1_{setting}_smoke" for setting in ("parity_gpt2", "PCFG_mlm", "PCFG_autoregressive")
    ]
    assert lines[0].endswith("make it by python -m parity_mlp.train smoke --model gpt2")

    shutil.copytree(teacher, runs / "copy")
    twice = make_figures(*arguments, setting=None)
    assert twice.returncode == 2
    assert "are both the teacher of smoke: leave one of them" in twice.stderr.splitlines()[-1]


def test_a_folder_without_runs_is_named(tmp_path):
    nothing = make_figures("--runs", tmp_path, setting=None)
    assert nothing.returncode == 2
    assert nothing.stderr.splitlines()[-1] == "error: there is nothing of the preset laptop to draw"
    no_folder = make_figures("--runs", tmp_path / "typo")
    assert (no_folder.returncode, no_folder.stderr) == (2, f"error: there is no folder {tmp_path / 'typo'}\n")


def pictures(directory):
    return sorted(path.name for path in directory.glob("*.png"))


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def make_up_run(directory, accuracies, losses=None, **arguments):
    """A complete run as far as figures read it, evaluated every 100 steps."""
    losses = [1 - accuracy for accuracy in accuracies] if losses is None else losses
    records = [
        {"step": 100 * i, "loss": loss, "accuracy": accuracy}
        for i, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
    ]
    config = {"arguments": arguments, "versions": {}, "commit": "c0ffee", "id": f"id of {directory.name}"}
    write(directory / "config.json", config)
    write(directory / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    write(directory / "done.json", {})


def remove(path, runs):
    """From a folder of runs, to beside it."""
    path.rename(runs.with_name(f"removed-{path.parent.name}-{path.name}"))


def test_the_smoke_runs_of_gpt2_become_figures(tmp_path, monkeypatch):
    root = tmp_path / "runs" / "parity_mlp"
    for module in (train, distill):
        monkeypatch.setattr(module, "RUNS", root)
    monkeypatch.setattr(distill, "ROOT", tmp_path)
    train.train(train.PRESETS["gpt2"]["smoke"])
    probe.probe(probe.ProbeArguments(run=root / "gpt2-smoke", samples=1000))
    probes = root / "gpt2-smoke" / "probes"
    (probes / "monomials-samples1000.json").rename(probes / "monomials.json")  # as if it were the default's
    students = replace(distill.PRESETS["gpt2"]["smoke"], seeds=(0, 1))
    distill.distill(replace(students, methods=("two-shot",), checkpoint=("before", "inside", "after")))
    arguments = ("--preset", "smoke", "--runs", tmp_path / "runs", "--out", tmp_path / "figures")
    missing = make_figures(*arguments, setting="parity_gpt2")
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: figure1_parity_gpt2_smoke: ")
    assert missing.stderr.endswith("python -m parity_mlp.distill smoke --model gpt2\n")
    assert len(missing.stderr.splitlines()) == 1
    others = ["figure2_degrees_parity_gpt2_smoke.png", "figure2_parity_gpt2_smoke.png"]
    assert pictures(tmp_path / "figures") == others

    distill.distill(students)
    result = make_figures(*arguments, setting="parity_gpt2")
    assert result.returncode == 0, result.stderr
    drawn = [Path(line) for line in result.stdout.splitlines()]
    assert [path.name for path in drawn] == [
        f"{name}_parity_gpt2_smoke.png" for name in ("figure1", "figure2", "figure2_degrees")
    ]
    assert all(path.read_bytes().startswith(PNG) for path in drawn)
    data = json.loads((tmp_path / "figures" / "data" / "parity_gpt2_smoke.json").read_text())
    last = (root / "gpt2-smoke-progressive-heads1-seed1" / "metrics.jsonl").read_text().splitlines()[-1]
    assert data["students"]["progressive"]["accuracy"][1][-1] == json.loads(last)["accuracy"]
    assert [degree["degree"] for degree in data["monomials"]["degrees"]] == [1, 2]


@dataclass(frozen=True)
class Parity:
    """What differs between the two models."""

    model: str
    words: str
    """That choose the preset on the command line."""
    size: str
    """A teacher's argument."""
    sizes: str
    """A student's."""
    made_with: dict
    """Arguments of the preset's teacher in these tests."""


PARITY = [
    Parity("mlp", "laptop", "width", "widths", {"d": 100, "k": 4, "width": 70}),
    Parity(
        "gpt2",
        "laptop --model gpt2",
        "heads",
        "student_heads",
        {"d": 30, "k": 5, "heads": 7, "batch_size": 32, "warmup": 0.06},
    ),
]
PARITY_ACCURACIES = [0.5] * 20 + [0.6, 0.9] + [1.0] * 19
"""The transition lies between steps 1,900 and 2,200."""
SPIKE_AT = 2050
METHODS = ("ce", "one-shot", "progressive")
PLACES = ("before", "inside", "after")
STUDENTS = (*METHODS, *(f"two-shot-{place}" for place in PLACES))


def monomials(steps, k):
    """Correlations that are the degree in hundredths at `SPIKE_AT`, and a thousandth elsewhere."""
    return {
        "settings": {"samples": 7, "degrees": [*range(1, k + 2)]},
        "checkpoints": [
            {
                "step": step,
                "degrees": [
                    {
                        "inside": [] if degree > k else [degree / 100 if step == SPIKE_AT else 0.001] * 3,
                        "outside": [0, 0.0002, 0.0007],
                    }
                    for degree in range(1, k + 2)
                ],
            }
            for step in steps
        ],
    }


@pytest.fixture(params=PARITY, ids=lambda parity: parity.model)
def made_up_parity(request, tmp_path, monkeypatch):
    """Runs of a laptop preset whose students' accuracies say who they are; checkpoints every 50 steps."""
    parity = request.param
    runs = tmp_path / "runs"
    teacher = replace(train.PRESETS[parity.model]["laptop"], **parity.made_with)
    monkeypatch.setitem(train.PRESETS[parity.model], "laptop", teacher)
    make_up_run(runs / "teacher", PARITY_ACCURACIES, **asdict(teacher))
    probed = range(50, 4001, 50)
    for step in probed:
        for name in ("config.json", "model.safetensors"):
            write(runs / "teacher" / f"checkpoint-{step}" / name, {})
    write(runs / "teacher" / "probes" / "monomials.json", monomials(probed, teacher.k))
    for method in STUDENTS:
        for seed in (0, 1, 2):
            directory = runs / "some" / "where" / f"{method}_{seed}"
            make_up_run(directory, [0.5, who_is(method, seed)], **parity_student(parity.model, method, seed))
    return runs, parity


def parity_student(model, method, seed, taught_by="teacher"):
    """Arguments of a student of the laptop preset."""
    preset = asdict(distill.PRESETS[model]["laptop"])
    method, _, place = method.partition("two-shot-") if "two-shot" in method else (method, "", "")
    one = {"methods": [method or "two-shot"], "checkpoint": [place] if place else [], "seeds": [seed]}
    return {**preset, **one, "teacher_id": f"id of {taught_by}"}


def who_is(method, seed):
    return 0.5 + 0.05 * STUDENTS.index(method) + 0.01 * seed


def test_parity_data_are_those_of_the_runs(made_up_parity, parity_figures):
    runs, parity = made_up_parity
    data = collect(parity_figures, runs, parity.model)
    arguments = data["teacher"]["arguments"]
    assert {name: arguments[name] for name in ("d", "k", parity.size)}.items() <= parity.made_with.items()
    assert data["teacher"]["accuracy"] == PARITY_ACCURACIES
    assert 1900 <= data["phases"]["start"] <= 2000 <= data["phases"]["end"] <= 2200
    assert data["candidates"]["inside"] == 2050
    for method in METHODS:
        found = data["students"][method]
        assert found["seeds"] == [0, 1, 2]
        assert found[parity.size] == getattr(distill.PRESETS[parity.model]["laptop"], parity.sizes)[0]
        assert [accuracy[-1] for accuracy in found["accuracy"]] == [who_is(method, seed) for seed in (0, 1, 2)]
    for place in PLACES:
        accuracies = [accuracy[-1] for accuracy in data["two_shot"][place]["accuracy"]]
        assert accuracies == [who_is(f"two-shot-{place}", seed) for seed in (0, 1, 2)]
    assert [entry["degree"] for entry in data["monomials"]["degrees"]] == [*range(1, arguments["k"] + 1)]
    assert data["monomials"]["degrees"][2]["inside"][40] == [0.03] * 3
    assert data["commands"] == [
        f"python -m parity_mlp.train {parity.words}",
        "python -m parity_mlp.probe --run runs/teacher --samples 7",
        f"python -m parity_mlp.distill {parity.words}",
        f"python -m parity_mlp.distill {parity.words} --methods two-shot --checkpoint before inside after",
    ]
    assert data["commits"] == ["c0ffee"]


@pytest.mark.parametrize(
    ("missing", "part", "command"),
    [
        ("teacher/done.json", "teacher", "python -m parity_mlp.train {words}$"),
        ("teacher/probes/monomials.json", "monomials", r"python -m parity_mlp.probe --run \S+/teacher$"),
        ("some/where/progressive_*", "students", "python -m parity_mlp.distill {words}$"),
        ("some/where/ce_*/done.json", "students", "python -m parity_mlp.distill {words}$"),
        (
            "some/where/two-shot-inside_*",
            "two_shot",
            "distill {words} --methods two-shot --checkpoint before inside after$",
        ),
    ],
)
def test_a_missing_parity_run_or_probe_is_named_with_its_command(
    made_up_parity, parity_figures, finding_runs, missing, part, command
):
    runs, parity = made_up_parity
    for path in list(runs.glob(missing)):
        remove(path, runs)
    ((found, error),) = what_is_missing(parity_figures, runs, parity.model).items()
    assert found == part
    assert isinstance(error, finding_runs.MissingError)
    assert re.search(command.format(words=parity.words), str(error))
    assert "\n" not in str(error)


def test_only_students_of_the_teacher_and_of_the_preset_as_it_is_are_drawn(made_up_parity, parity_figures):
    runs, parity = made_up_parity
    before = collect(parity_figures, runs, parity.model)
    arguments = parity_student(parity.model, "progressive", 3)
    for name, changed in (
        ("of_another_teacher", {"teacher_id": "id of another"}),
        ("of_another_place", {"teacher_id": None, "teacher": "no/such/run"}),
        ("at_another_rate", {"lr": [0.5]}),
        ("on_another_stream", {"stream_seed": 5}),
        ("of_another_preset", {"preset": "smoke"}),
    ):
        make_up_run(runs / name, [0.5, 0.9], **{**arguments, **changed})
    make_up_run(runs / "unfinished", [0.5, 0.9], **arguments)
    (runs / "unfinished" / "done.json").unlink()
    make_up_run(runs.with_name("elsewhere") / "linked", [0.5, 0.9], **arguments)
    (runs / "link").symlink_to(runs.with_name("elsewhere"))
    assert collect(parity_figures, runs, parity.model) == before

    elsewhere = {"device": "cuda", "wandb": "offline", "out": "/somewhere"}
    make_up_run(runs / "on_a_gpu", [0.5, 0.9], **{**arguments, **elsewhere})
    by_path = {"teacher_id": None, "teacher": os.path.relpath(runs / "teacher", ROOT), "seeds": [4]}
    make_up_run(runs / "told_by_its_path", [0.5, 0.8], **{**arguments, **by_path})
    after = collect(parity_figures, runs, parity.model)["students"]["progressive"]
    assert after["seeds"] == [0, 1, 2, 3, 4]
    assert [accuracy[-1] for accuracy in after["accuracy"][3:]] == [0.9, 0.8]


def test_commands_name_runs_from_the_root_or_from_runs(finding_runs, tmp_path, monkeypatch):
    root = tmp_path.resolve()
    make_up_run(root / "runs" / "deep" / "one", [0.5])
    for home, expected in ((root, "runs/deep/one"), (root / "elsewhere", "runs/one")):
        monkeypatch.setattr(finding_runs, "ROOT", home)
        (found,) = finding_runs.find_runs(root / "runs" / "deep")
        assert found.shown == expected


def test_two_runs_that_would_be_the_same_point_are_refused(made_up_parity, parity_figures, finding_runs):
    runs, parity = made_up_parity
    make_up_run(runs / "copy", [0.5, 0.9], **parity_student(parity.model, "progressive", 1))
    ((part, error),) = what_is_missing(parity_figures, runs, parity.model).items()
    assert part == "students"
    assert re.search("/copy and .*/progressive_1 are both progressive students of .* with seed 1: leave", str(error))
    assert not isinstance(error, finding_runs.MissingError)

    shutil.copytree(runs / "teacher", runs / "another")
    (error,) = what_is_missing(parity_figures, runs, parity.model).values()
    assert re.search(f"/another and .*/teacher are both the teacher of {parity.words}: leave", str(error))


def test_correlations_of_a_denser_run_are_taken_in_if_it_follows_the_same_path(made_up_parity, parity_figures):
    runs, parity = made_up_parity
    teacher = runs / "teacher"
    arguments = json.loads((teacher / "config.json").read_text())["arguments"]
    for step, changed in ((2055, {}), (2065, {"steps": 3000}), (2075, {"lr": 1.0})):
        dense = runs / "dense" / str(step)
        make_up_run(dense, [0.5], **{**arguments, "checkpoint_every": 5, **changed})
        write(dense / "probes" / "monomials.json", monomials([step], arguments["k"]))
    steps = collect(parity_figures, runs, parity.model)["monomials"]["steps"]
    # GPT-2 warms up for a share of its steps, the MLP learns at a constant rate
    assert set(steps) - {*range(50, 4001, 50)} == ({2055} if parity.model == "gpt2" else {2055, 2065})
    assert steps == sorted(steps)


def quartiles(low, middle, high):
    return [{"n": 2, "percentiles": {}}, {"n": 3, "percentiles": {"25": low, "50": middle, "75": high, "90": 2}}]


TEACHER_LOSSES = [2, 1, 1, 1, 1, 0.9, 0.5, 0.1, 0, 0, 0, 0, 0]
TWO_SHOT = {"200": 200, "inside": 600, "1000": 1000}
"""The transition of these losses lies around step 600."""


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """Runs of a laptop preset whose students' accuracies say who they are."""
    return make_up_pcfg(tmp_path / "runs", PCFG_mlm, monkeypatch)


def make_up_pcfg(runs, package, monkeypatch, **arguments):
    """Runs of a laptop preset on a grammar; further arguments are the teacher's and the students'."""
    own = replace(package.distill.PRESETS["laptop"], student_heads=(2,), steps=(500, 1000, 2000), **arguments)
    trained = replace(package.train.PRESETS["laptop"], steps=1200, **arguments)
    monkeypatch.setitem(package.distill.PRESETS, "laptop", own)
    monkeypatch.setitem(package.train.PRESETS, "laptop", trained)
    make_up_run(runs / "teacher", [0.9] * 13, TEACHER_LOSSES, **with_rules(trained, package))
    probed = range(200, 1201, 200)
    for step in probed:
        for name in ("config.json", "model.safetensors"):
            write(runs / "teacher" / f"checkpoint-{step}" / name, {})
    probes = runs / "teacher" / "probes"
    write(probes / "bayes_optimal.json", {"loss": 0.05, "accuracy": 0.98, "expected_accuracy": 0.97})
    write(
        probes / "ngrams.json",
        {
            "settings": {"sizes": [2, 3, 4, 5]},
            "bayes_optimal": {"robust": quartiles(0, 0, 0.5)},
            "checkpoints": [
                {"step": step, "pairs": 8, "robust": quartiles(step / 1e4, step / 5e3, step / 2e3)} for step in probed
            ],
        },
    )
    levels = [{"level": level, "tokens": 10, "accuracy": level / 10, "majority": level / 20} for level in (1, 2)]
    write(
        probes / "nonterminals-training2048.json",
        {
            "settings": {"seed": 0, "training": 2048, "levels": None},
            "checkpoints": [{"step": step, "levels": levels} for step in probed],
        },
    )
    for seed in (0, 1, 2):
        for steps in own.steps:
            for place, method in enumerate(METHODS):
                made_with = pcfg_student(package, method, steps, seed)
                accuracy = 0.1 * place + steps / 1e4 + seed / 100
                make_up_run(runs / "taught" / f"{method}_{steps}_{seed}", [0, accuracy], **made_with)
        for name, step in TWO_SHOT.items():
            made_with = pcfg_student(package, "two-shot", 1000, seed, checkpoint=[name], first_steps=300)
            make_up_run(runs / f"two-shot_{name}_{seed}", [0, 0.6 + step / 1e4 + seed / 100], **made_with)
    return runs


def with_rules(arguments, package):
    return training.config_of(arguments, training.task_of(arguments, package.training.SETTING))


def pcfg_student(package, method, steps, seed, taught_by="teacher", task=None, **others):
    """Arguments of a student of the laptop preset, or of one that differs from it in its task."""
    one = {"methods": [method], "steps": [steps], "seeds": [seed], "checkpoint": []}
    rules = with_rules(replace(package.distill.PRESETS["laptop"], **(task or {})), package)
    return {**rules, **one, "teacher_id": f"id of {taught_by}", **others}


def test_pcfg_data_are_those_of_the_runs(made_up, pcfg_figures):
    data = collect(pcfg_figures, made_up)
    assert data["teacher"]["loss"] == TEACHER_LOSSES
    assert 500 <= data["phases"]["start"] <= 600 <= data["phases"]["end"] <= 800
    assert data["bayes_optimal"] == {"loss": 0.05, "accuracy": 0.98, "expected_accuracy": 0.97}
    progressive = data["students"]["progressive"]
    assert (progressive["steps"], progressive["seeds"]) == ([500, 1000, 2000], [0, 1, 2])
    np.testing.assert_allclose(progressive["accuracy"], [[0.25, 0.3, 0.4], [0.26, 0.31, 0.41], [0.27, 0.32, 0.42]])
    two_shot = data["two_shot"]
    assert (two_shot["steps"], two_shot["first_steps"], two_shot["checkpoints"]) == (1000, 300, [200, 600, 1000])
    np.testing.assert_allclose(two_shot["accuracy"][2], [0.64, 0.68, 0.72])
    assert data["ngrams"]["percentiles"][1] == [0.04, 0.08, 0.2]
    assert data["ngrams"]["bayes_optimal"] == [0, 0, 0.5]
    assert [entry["accuracy"] for entry in data["nonterminals"]["levels"]] == [[0.1] * 6, [0.2] * 6]
    assert data["commands"][3:] == [
        "python -m PCFG_mlm.probe nonterminals --run runs/teacher --training 2048",
        "python -m PCFG_mlm.distill laptop",
        "python -m PCFG_mlm.distill laptop --methods two-shot --steps 1000 --checkpoint 200 inside 1000",
    ]


def test_two_shot_students_are_those_of_the_budget_with_most_checkpoints(made_up, pcfg_figures):
    for name in ("200", "1000"):
        arguments = pcfg_student(PCFG_mlm, "two-shot", 2000, 0, checkpoint=[name], first_steps=300)
        make_up_run(made_up / "longer" / name, [0, 1], **arguments)
    assert collect(pcfg_figures, made_up)["two_shot"]["steps"] == 1000


def test_of_two_names_for_a_checkpoint_the_number_is_drawn(made_up, pcfg_figures):
    for seed in (0, 1, 2):
        arguments = pcfg_student(PCFG_mlm, "two-shot", 1000, seed, checkpoint=["600"], first_steps=300)
        make_up_run(made_up / f"number_{seed}", [0, 0.1], **arguments)
    data = collect(pcfg_figures, made_up)
    assert data["two_shot"]["checkpoints"] == [200, 600, 1000]
    assert data["two_shot"]["accuracy"][0][1] == 0.1
    assert data["commands"][-1].endswith("--checkpoint 200 600 1000")


MISSING_ON_PCFG = [
    ("teacher/done.json", "teacher", "python -m PCFG_mlm.train laptop"),
    ("teacher/probes/bayes_optimal.json", "bayes_optimal", r"python -m PCFG_mlm.probe bayes-optimal --run \S+/teacher"),
    ("teacher/probes/ngrams.json", "ngrams", r"python -m PCFG_mlm.probe ngrams --run \S+/teacher"),
    (
        "teacher/probes/nonterminals-training2048.json",
        "nonterminals",
        r"python -m PCFG_mlm.probe nonterminals --run \S+/teacher",
    ),
    ("taught/ce_500_1/done.json", "students", "ce students .* 500 steps with seed 1; .* PCFG_mlm.distill laptop"),
    ("taught/ce_500_*", "students", "ce students .* 500 steps; make it by python -m PCFG_mlm.distill laptop"),
    (
        "two-shot_inside_2",
        "two_shot",
        "distill laptop --methods two-shot --steps 1000 --checkpoint 200 inside 1000",
    ),
    ("two-shot_*", "two_shot", "distill laptop --methods two-shot"),
]


@pytest.mark.parametrize(("missing", "part", "command"), MISSING_ON_PCFG)
def test_a_missing_run_or_probe_is_named_with_its_command(made_up, pcfg_figures, finding_runs, missing, part, command):
    for path in list(made_up.glob(missing)):
        remove(path, made_up)
    ((found, error),) = what_is_missing(pcfg_figures, made_up).items()
    assert found == part
    assert isinstance(error, finding_runs.MissingError)
    assert re.search(command, str(error))
    assert "\n" not in str(error)


def test_a_probe_that_lacks_checkpoints_or_was_made_twice_is_refused(made_up, pcfg_figures):
    probes = made_up / "teacher" / "probes"
    content = json.loads((probes / "ngrams.json").read_text())
    write(probes / "ngrams-sentences64.json", content)
    assert "has ngrams-sentences64.json, ngrams.json" in str(what_is_missing(pcfg_figures, made_up)["ngrams"])
    (probes / "ngrams-sentences64.json").unlink()
    write(probes / "ngrams.json", {**content, "checkpoints": content["checkpoints"][:-1]})
    assert "lacks checkpoints" in str(what_is_missing(pcfg_figures, made_up)["ngrams"])


def lines_of(axis):
    """What an axis shows as lines, by label; values only."""
    return {line.get_label(): line.get_ydata() for line in axis.lines}


def shaded(axis):
    return [patch.get_x() for patch in axis.patches if patch.get_label() == "transition"]


def test_the_parity_figures_draw_the_data(made_up_parity, parity_figures):
    runs, parity = made_up_parity
    d, k = parity.made_with["d"], parity.made_with["k"]
    is_gpt2 = parity.model == "gpt2"
    data = collect(parity_figures, runs, parity.model)
    (axis,) = parity_figures.overview(data).axes
    lines = lines_of(axis)
    np.testing.assert_allclose(lines["teacher"], PARITY_ACCURACIES)
    np.testing.assert_allclose(lines["progressive"], [0.5, who_is("progressive", 1)])
    assert axis.get_title(loc="left") == f"({d}, {k})-parity{', GPT-2' if is_gpt2 else ''}"

    teacher, correlations, students = parity_figures.spike(data).axes
    markers = [line.get_xydata()[0].tolist() for line in teacher.lines[1:]]
    assert [step for step, _ in markers] == [*data["candidates"].values()]
    np.testing.assert_allclose([accuracy for _, accuracy in markers], [0.5, 0.75, 1])  # between two evaluations
    np.testing.assert_allclose(max(lines_of(correlations)["support"]), 0.01)
    np.testing.assert_allclose(lines_of(correlations)["others"], 0.0002)
    np.testing.assert_allclose(lines_of(students)["inside"], [0.5, who_is("two-shot-inside", 1)])

    in_degrees = parity_figures.degrees(data).axes
    assert [max(lines_of(axis)["support"]) for axis in in_degrees] == [degree / 100 for degree in range(1, k)]
    start, end = data["phases"]["start"], data["phases"]["end"]
    for axis in [*in_degrees, *([correlations] if is_gpt2 else [])]:
        left, right = axis.get_xlim()
        assert start - 2 * (end - start) < left < start < end < right < end + 2 * (end - start)
    assert is_gpt2 or correlations.get_xlim() == (50, 4000)
    label = "training steps (batch 32)" if is_gpt2 else "training steps"
    assert {axis.get_xlabel() for axis in (teacher, correlations, students, *in_degrees)} == {label}


def test_the_pcfg_overview_draws_the_data(made_up, pcfg_figures):
    data = collect(pcfg_figures, made_up)
    (axis,) = pcfg_figures.overview(data).axes
    lines = lines_of(axis)
    np.testing.assert_allclose(lines["progressive"], [0.26, 0.31, 0.41])
    np.testing.assert_allclose(lines["cross entropy"], [0.06, 0.11, 0.21])
    levels = [line.get_ydata()[0] for line in axis.lines if list(line.get_xdata()) == [0, 1]]
    assert levels == [0.98, 0.9]
    assert [text.get_text() for text in axis.texts] == ["Bayes-optimal", "teacher, 1.2k steps"]


def test_the_curriculum_draws_the_data(made_up, pcfg_figures):
    data = collect(pcfg_figures, made_up)
    loss, robust, students = pcfg_figures.curriculum(data).axes
    np.testing.assert_allclose(lines_of(loss)["teacher"], TEACHER_LOSSES[2:])  # from the first checkpoint on
    np.testing.assert_allclose(lines_of(loss)["Bayes-optimal"], 0.05)
    np.testing.assert_allclose(lines_of(robust)["median and 25% to 75%"], [0.04, 0.08, 0.12, 0.16, 0.2, 0.24])
    assert [text.get_text() for text in robust.texts] == ["Bayes-optimal: 0 ↓"]
    np.testing.assert_allclose(lines_of(students)["two-shot"], [0.63, 0.67, 0.71])
    np.testing.assert_allclose(lines_of(students)["one-shot"], 0.21)
    for axis in (loss, robust, students):
        assert shaded(axis) == [data["phases"]["start"]]
        assert axis.get_xlim() == (200, 1200)

    data["ngrams"]["bayes_optimal"] = [0.01, 0.1, 0.5]
    data["phases"] = None
    _, robust, students = pcfg_figures.curriculum(data).axes
    np.testing.assert_allclose(lines_of(robust)["Bayes-optimal"], 0.1)
    assert not robust.texts
    assert not shaded(students)


def test_nonterminals_are_drawn_level_by_level(made_up, pcfg_figures):
    data = collect(pcfg_figures, made_up)
    (axis,) = pcfg_figures.nonterminals(data).axes
    for level in (1, 2):
        (line,) = [line for line in axis.lines if line.get_label() == f"level {level}"]
        np.testing.assert_allclose(line.get_ydata(), [level / 10] * 6)
        others = [other for other in axis.lines if other.get_color() == line.get_color() and other is not line]
        assert [(other.get_linestyle(), other.get_ydata()[0]) for other in others] == [(":", level / 20)]
    assert "Bayes-optimal" not in lines_of(axis)

    path = made_up / "teacher" / "probes" / "nonterminals-training2048.json"
    optimal = {"levels": [{"level": level, "accuracy": 1 - level / 100} for level in (1, 2)]}
    write(path, {**json.loads(path.read_text()), "bayes_optimal": optimal})
    (axis,) = pcfg_figures.nonterminals(collect(pcfg_figures, made_up)).axes
    assert "Bayes-optimal" in lines_of(axis)
    drawn = [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "-." and len(line.get_ydata())]
    assert drawn == [0.99, 0.98]


OTHER_TASK = {"label_level": 2, "grammar": "cfg3b"}
OTHER_STUDENTS = (
    "python -m PCFG_autoregressive.distill laptop --label-level 2 --grammar cfg3b --teacher-range None "
    "--teacher runs/at_depth_2 --steps 500 1000"
)


@pytest.fixture
def made_up_gpt2(tmp_path, monkeypatch):
    """The same runs of GPT-2, and some on cfg3b with labels at depth 2 whose accuracies are 0.5 higher."""
    runs = make_up_pcfg(tmp_path / "runs", PCFG_autoregressive, monkeypatch, label_level="all")
    make_up_writing(runs / "teacher")
    own = PCFG_autoregressive.distill.PRESETS["laptop"]
    for place, method in enumerate(METHODS):
        for steps in own.steps[:2]:
            task = {**OTHER_TASK, "teacher_range": None}
            arguments = pcfg_student(PCFG_autoregressive, method, steps, 0, "at_depth_2", task)
            make_up_run(runs / "depth_2" / f"{method}_{steps}", [0, 0.5 + 0.1 * place + steps / 1e4], **arguments)
    other = replace(PCFG_autoregressive.train.PRESETS["laptop"], **OTHER_TASK, checkpoint_every=100)
    make_up_run(runs / "at_depth_2", [0.95] * 3, **with_rules(other, PCFG_autoregressive))
    best = {"loss": 0.01, "accuracy": 0.99, "expected_accuracy": 0.99, "without_label": {"loss": 1, "accuracy": 0.5}}
    write(runs / "at_depth_2" / "probes" / "bayes_optimal.json", best)
    return runs


def make_up_writing(run):
    written = [{"step": step, "accepted": step / 1e4} for step in range(200, 1201, 200)]
    for entry in written:
        for name in ("config.json", "model.safetensors"):
            write(run / f"checkpoint-{entry['step']}" / name, {})
    settings = {"seed": 0, "continuations": 500, "given": None, "tokens": 100, "batch_size": 250}
    write(run / "probes" / "generation.json", {"settings": settings, "given": 50, "checkpoints": written})


def collect_gpt2(pcfg_figures, runs):
    return collect(pcfg_figures, runs, "PCFG_autoregressive")


def test_gpt2_data_on_pcfg_are_those_of_the_runs(made_up_gpt2, pcfg_figures):
    data = collect_gpt2(pcfg_figures, made_up_gpt2)
    assert data["label_level"] == "all"
    np.testing.assert_allclose(data["students"]["progressive"]["accuracy"][0], [0.25, 0.3, 0.4])
    assert data["two_shot"]["checkpoints"] == [200, 600, 1000]
    accepted = [0.02, 0.04, 0.06, 0.08, 0.1, 0.12]
    written = {"steps": [*range(200, 1201, 200)], "accepted": accepted, "given": 50, "tokens": 100}
    assert data["generation"] == {**written, "continuations": 500, "grammar": "cfg3f", "phases": data["phases"]}
    (other,) = data["other_tasks"]
    assert (other["label_level"], other["bayes_optimal"]["accuracy"]) == (2, 0.99)
    assert other["teacher"]["steps"] == [0, 100, 200]
    np.testing.assert_allclose(other["students"]["ce"]["accuracy"], [[0.55, 0.6]])
    assert data["commands"] == [
        "python -m PCFG_autoregressive.train laptop",
        "python -m PCFG_autoregressive.probe bayes-optimal --run runs/teacher",
        "python -m PCFG_autoregressive.probe ngrams --run runs/teacher",
        "python -m PCFG_autoregressive.probe generation --run runs/teacher --continuations 500",
        "python -m PCFG_autoregressive.distill laptop",
        "python -m PCFG_autoregressive.distill laptop --methods two-shot --steps 1000 --checkpoint 200 inside 1000",
        "python -m PCFG_autoregressive.train laptop --label-level 2 --grammar cfg3b --checkpoint-every 100",
        "python -m PCFG_autoregressive.probe bayes-optimal --run runs/at_depth_2",
        OTHER_STUDENTS,
    ]


def test_a_model_of_all_tokens_writes_where_the_preset_has_labels_at_a_depth(
    tmp_path, pcfg_figures, finding_runs, monkeypatch
):
    runs = make_up_pcfg(tmp_path / "runs", PCFG_autoregressive, monkeypatch, label_level=2)
    (error,) = what_is_missing(pcfg_figures, runs, "PCFG_autoregressive").values()
    assert str(error).endswith("make it by python -m PCFG_autoregressive.train laptop --label-level all")
    preset = PCFG_autoregressive.train.PRESETS["laptop"]
    writer = replace(preset, label_level="all", checkpoint_every=200, eval_every=100)
    make_up_run(runs / "writer", [0.9] * 13, TEACHER_LOSSES, **with_rules(writer, PCFG_autoregressive))
    (error,) = what_is_missing(pcfg_figures, runs, "PCFG_autoregressive").values()
    assert re.search(r"PCFG_autoregressive.probe generation --run \S+/writer$", str(error))

    make_up_writing(runs / "writer")
    another = replace(preset, label_level="all", checkpoint_every=400)
    make_up_run(runs / "not_probed", [0.9] * 13, TEACHER_LOSSES, **with_rules(another, PCFG_autoregressive))
    data = collect_gpt2(pcfg_figures, runs)
    assert data["generation"]["accepted"][0] == 0.02
    assert data["other_tasks"] == []
    writers = f"train laptop --label-level all --eval-every 100 --checkpoint-every {writer.checkpoint_every}"
    assert [line for line in data["commands"] if "label-level" in line] == [f"python -m PCFG_autoregressive.{writers}"]

    make_up_writing(runs / "not_probed")
    (error,) = what_is_missing(pcfg_figures, runs, "PCFG_autoregressive").values()
    assert "are both the writer" in str(error)
    assert not isinstance(error, finding_runs.MissingError)


@pytest.mark.parametrize(
    ("missing", "part", "command"),
    [
        ("teacher/probes/generation.json", "generation", r"PCFG_autoregressive.probe generation --run \S+/teacher"),
        ("teacher/probes/bayes_optimal.json", "bayes_optimal", r"probe bayes-optimal --run \S+/teacher$"),
        ("at_depth_2/probes/bayes_optimal.json", "other_tasks", r"probe bayes-optimal --run \S+/at_depth_2$"),
        ("depth_2/one-shot_500", "other_tasks", f"{OTHER_STUDENTS}$"),
        ("taught/ce_500_1", "students", "python -m PCFG_autoregressive.distill laptop$"),
        ("two-shot_*", "two_shot", "python -m PCFG_autoregressive.distill laptop --methods two-shot"),
    ],
)
def test_a_missing_run_or_probe_of_gpt2_is_named_with_its_command(made_up_gpt2, pcfg_figures, missing, part, command):
    for path in list(made_up_gpt2.glob(missing)):
        remove(path, made_up_gpt2)
    ((found, error),) = what_is_missing(pcfg_figures, made_up_gpt2, "PCFG_autoregressive").items()
    assert found == part
    assert re.search(command, str(error))


def test_the_figures_of_gpt2_on_pcfg_draw_the_data(made_up_gpt2, pcfg_figures):
    data = collect_gpt2(pcfg_figures, made_up_gpt2)
    depth, every = pcfg_figures.overview(data).axes
    titles = [axis.get_title(loc="left") for axis in (depth, every)]
    assert titles == ["cfg3b, ends at depth 2", "cfg3f, next tokens"]
    np.testing.assert_allclose(lines_of(depth)["progressive"], [0.75, 0.8])
    np.testing.assert_allclose(lines_of(every)["progressive"], [0.26, 0.31, 0.41])
    for axis, best, teacher in ((depth, 0.99, "teacher, 200 steps"), (every, 0.98, "teacher, 1.2k steps")):
        assert next(line.get_ydata()[0] for line in axis.lines if list(line.get_xdata()) == [0, 1]) == best
        assert [text.get_text() for text in axis.texts] == ["Bayes-optimal", teacher]
    (axis,) = pcfg_figures.overview({**data, "other_tasks": []}).axes
    assert axis.get_title(loc="left") == "cfg3f, next tokens"

    (axis,) = pcfg_figures.generation(data).axes
    np.testing.assert_allclose(lines_of(axis)["teacher"], data["generation"]["accepted"])
    assert shaded(axis) == [data["phases"]["start"]]
    assert (axis.get_xlim(), axis.get_ylim()) == ((200, 1200), (0, 1))
    assert axis.get_title(loc="left") == "cfg3f, 50 tokens given, 100 written"


SMOKE_PROBES = {
    "PCFG_mlm": (
        PCFG_mlm,
        ("bayes-optimal", "ngrams --sentences 16 --exact 2", "nonterminals --training 64 --heldout 16 --epochs 1"),
        ("figure1", "figure3", "figure_nonterminals"),
    ),
    "PCFG_autoregressive": (
        PCFG_autoregressive,
        ("bayes-optimal", "ngrams --sentences 16", "generation --continuations 20 --tokens 5"),
        ("figure1", "figure3", "figure_generation"),
    ),
}
"""The package, what is measured of its teacher, and its figures."""


@pytest.mark.parametrize("setting", SMOKE_PROBES)
def test_the_smoke_runs_of_pcfg_become_figures(tmp_path, monkeypatch, setting):
    package, probes, names = SMOKE_PROBES[setting]
    root = tmp_path / "runs" / setting
    monkeypatch.setattr(training, "ROOT", tmp_path)
    monkeypatch.setattr(package.distill, "SETTING", replace(package.distill.SETTING, runs=root))
    package.train.train(replace(package.train.PRESETS["smoke"], out=root / "smoke"))
    for words in probes:
        monkeypatch.setattr(sys, "argv", ["probe.py", *words.split(), "--run", str(root / "smoke")])
        package.probe.main()
    students = replace(package.distill.PRESETS["smoke"], seeds=(0,))
    package.distill.distill(students)
    package.distill.distill(replace(students, methods=("two-shot",), checkpoint=("20", "40")))
    arguments = ("--preset", "smoke", "--runs", tmp_path / "runs", "--out", tmp_path / "figures")
    result = make_figures(*arguments, setting=setting)
    assert result.returncode == 0, result.stderr
    drawn = [Path(line) for line in result.stdout.splitlines()]
    assert [path.name for path in drawn] == [f"{name}_{setting}_smoke.png" for name in names]
    assert all(path.read_bytes().startswith(PNG) for path in drawn)
    data = json.loads((tmp_path / "figures" / "data" / f"{setting}_smoke.json").read_text())
    assert data["two_shot"]["checkpoints"] == [20, 40]
    last = (root / "smoke-two-shot-40-heads2-steps60-seed0" / "metrics.jsonl").read_text().splitlines()[-1]
    assert data["two_shot"]["accuracy"][0][1] == pytest.approx(json.loads(last)["accuracy"], abs=1e-5)


@pytest.mark.parametrize("path", sorted((ROOT / "figures").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run_and_print_what_is_committed(path):
    committed = nbformat.read(path, as_version=4)
    again = nbformat.read(path, as_version=4)
    NotebookClient(again, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert printed(again) == printed(committed)
    assert printed(committed, "stderr") == []  # warnings, with paths of one machine in them
    assert any("image/png" in output.get("data", {}) for cell in again.cells for output in cell.get("outputs", []))


def printed(notebook, stream="stdout"):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output["text"] for output in outputs if output.get("name") == stream]


def commands():
    text = (ROOT / "README.md").read_text() + (ROOT / "parity_mlp" / "README.md").read_text()
    return sorted(set(re.findall(r"python (?:parity_mlp/)?((?:train|distill|probe)\.py [^`\n]*[^`\n ])(?=`|\n)", text)))


@pytest.mark.parametrize("line", commands())
def test_commands_in_the_readmes_parse(line, monkeypatch):
    script, *arguments = shlex.split(line)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    if script == "probe.py":
        tyro.cli(probe.ProbeArguments, args=arguments)
        return
    module = {"train.py": train, "distill.py": distill}[script]
    if "--help" in arguments:
        with pytest.raises(SystemExit, match="0"):
            tyro.extras.overridable_config_cli(presets(module), args=arguments)
        return
    parsed = tyro.extras.overridable_config_cli(presets(module), args=arguments)
    assert parsed.preset == arguments[0]


def presets(module):
    return {name: (name, preset) for name, preset in module.PRESETS[model_of_command_line()].items()}
