"""Figures from committed data and from runs, the notebooks, and the commands that the READMEs print."""

import importlib
import json
import re
import shlex
import subprocess
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
from common.pcfg import training
from parity_mlp import distill, probe, train
from parity_mlp.arguments import model_of_command_line

ROOT = Path(__file__).resolve().parents[1]
PNG = b"\x89PNG\r\n"


def make_figures(*arguments, setting="parity_mlp"):
    command = [sys.executable, ROOT / "figures" / "make_figures.py", setting, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def parity_figures(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "figures")
    return importlib.import_module("parity_figures")


@pytest.fixture
def pcfg_figures(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "figures")
    return importlib.import_module("pcfg_figures")


@pytest.mark.parametrize("data", sorted((ROOT / "figures" / "data").glob("*.json")), ids=lambda path: path.stem)
def test_committed_data_make_the_committed_figures(data, tmp_path):
    setting, preset = data.stem.rsplit("_", 1)
    result = make_figures("--preset", preset, "--out", tmp_path, setting=setting)
    assert result.returncode == 0, result.stderr
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (ROOT / "figures").glob(f"*_{setting}_{preset}.png")}
    assert all((tmp_path / name).read_bytes().startswith(PNG) for name in drawn)


def test_the_smoke_runs_become_figures(tmp_path):
    runs = tmp_path / "runs"
    root = runs / "parity_mlp"
    for module, arguments in (
        ("train", ["smoke", "--out", root / "smoke"]),
        ("probe", ["--run", root / "smoke"]),
    ):
        subprocess.run([sys.executable, "-m", f"parity_mlp.{module}", *arguments], check=True, capture_output=True)
    missing = make_figures("--preset", "smoke", "--runs", runs, "--out", tmp_path / "figures")
    assert missing.returncode == 2
    assert "python -m parity_mlp.distill smoke" in missing.stderr
    assert len(missing.stderr.splitlines()) == 1
    assert not (tmp_path / "figures").exists()

    for methods in (["ce", "one-shot", "progressive"], ["two-shot", "--checkpoint", "before", "inside", "after"]):
        arguments = [
            "smoke",
            "--teacher",
            root / "smoke",
            "--seeds",
            "0",
            "1",
            "--out",
            tmp_path,
            "--methods",
            *methods,
        ]
        subprocess.run([sys.executable, "-m", "parity_mlp.distill", *arguments], check=True, capture_output=True)
    for directory in tmp_path.glob("*-seed?"):
        directory.rename(root / f"smoke-{directory.name}")
    result = make_figures("--preset", "smoke", "--runs", runs, "--out", tmp_path / "figures")
    assert result.returncode == 0, result.stderr
    data = json.loads((tmp_path / "figures" / "data" / "parity_mlp_smoke.json").read_text())
    assert data["students"]["progressive"]["seeds"] == [0, 1]
    assert data["candidates"]["before"] < data["candidates"]["inside"] < data["candidates"]["after"]
    records = [json.loads(line) for line in (root / "smoke" / "metrics.jsonl").read_text().splitlines()]
    assert data["teacher"]["accuracy"] == [record["accuracy"] for record in records]


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
    write(directory / "config.json", {"arguments": arguments, "versions": {}})
    write(directory / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    write(directory / "done.json", {})


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
    assert "python -m parity_mlp.distill smoke --model gpt2" in missing.stderr
    assert len(missing.stderr.splitlines()) == 1
    assert not (tmp_path / "figures").exists()

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
    name: str
    """Of the teacher's run."""
    words: str
    """That choose the preset on the command line."""
    size: str
    """A teacher's argument."""
    sizes: str
    """A student's."""
    made_with: dict
    """Arguments of the teacher, whatever the preset's are."""


PARITY = [
    Parity("mlp", "laptop", "laptop", "width", "widths", {"d": 100, "k": 4, "width": 70}),
    Parity(
        "gpt2",
        "gpt2-laptop",
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
def made_up_parity(request, tmp_path):
    """Runs of a laptop preset whose students' accuracies say who they are; checkpoints every 50 steps."""
    parity = request.param
    root = tmp_path / "parity_mlp"
    students = distill.PRESETS[parity.model]["laptop"]
    teacher = replace(train.PRESETS[parity.model]["laptop"], **parity.made_with)
    make_up_run(root / parity.name, PARITY_ACCURACIES, **asdict(teacher))
    probed = range(50, 4001, 50)
    for step in probed:
        for name in ("config.json", "model.safetensors"):
            write(root / parity.name / f"checkpoint-{step}" / name, {})
    write(root / parity.name / "probes" / "monomials.json", monomials(probed, teacher.k))
    for method in STUDENTS:
        for seed in (0, 1, 2):
            directory = root / f"{parity.name}-{method}-{parity.size}{getattr(students, parity.sizes)[0]}-seed{seed}"
            make_up_run(directory, [0.5, who_is(method, seed)], **{**asdict(students), "seeds": [seed]})
    return tmp_path, parity


def who_is(method, seed):
    return 0.5 + 0.05 * STUDENTS.index(method) + 0.01 * seed


def test_parity_data_are_those_of_the_runs(made_up_parity, parity_figures):
    runs, parity = made_up_parity
    data = parity_figures.collect(runs, "laptop", parity.model)
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
        f"python -m parity_mlp.probe --run runs/parity_mlp/{parity.name} --samples 7",
        f"python -m parity_mlp.distill {parity.words}",
        f"python -m parity_mlp.distill {parity.words} --methods two-shot --checkpoint before inside after",
    ]


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("{name}/done.json", "python -m parity_mlp.train {words}$"),
        ("{name}/probes/monomials.json", r"python -m parity_mlp.probe --run \S+/{name}$"),
        ("{name}-progressive-*-seed?", "python -m parity_mlp.distill {words}$"),
        ("{name}-ce-*-seed1/done.json", "python -m parity_mlp.distill {words}$"),
        ("{name}-two-shot-inside-*-seed?", "distill {words} --methods two-shot --checkpoint before inside after$"),
    ],
)
def test_a_missing_parity_run_or_probe_is_named_with_its_command(made_up_parity, parity_figures, missing, command):
    runs, parity = made_up_parity
    for path in [*(runs / "parity_mlp").glob(missing.format(name=parity.name))]:
        path.rename(runs / f"removed-{path.name}")
    with pytest.raises(UserError, match=command.format(name=parity.name, words=parity.words)) as error:
        parity_figures.collect(runs, "laptop", parity.model)
    assert "\n" not in str(error.value)


def test_correlations_of_a_denser_run_are_taken_in_if_it_follows_the_same_path(made_up_parity, parity_figures):
    runs, parity = made_up_parity
    teacher = runs / "parity_mlp" / parity.name
    arguments = json.loads((teacher / "config.json").read_text())["arguments"]
    for step, changed in ((2055, {}), (2065, {"steps": 3000}), (2075, {"lr": 1.0})):
        dense = teacher.with_name(f"{parity.name}-dense{step}")
        make_up_run(dense, [0.5], **{**arguments, "checkpoint_every": 5, **changed})
        write(dense / "probes" / "monomials.json", monomials([step], arguments["k"]))
    steps = parity_figures.collect(runs, "laptop", parity.model)["monomials"]["steps"]
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
    preset = replace(PCFG_mlm.distill.PRESETS["laptop"], student_heads=(2,), steps=(500, 1000, 2000))
    monkeypatch.setitem(PCFG_mlm.distill.PRESETS, "laptop", preset)
    root = tmp_path / "PCFG_mlm"
    teacher = asdict(replace(PCFG_mlm.train.PRESETS["laptop"], steps=1200))
    make_up_run(root / "laptop", [0.9] * 13, TEACHER_LOSSES, **teacher)
    probed = range(200, 1201, 200)
    for step in probed:
        for name in ("config.json", "model.safetensors"):
            write(root / "laptop" / f"checkpoint-{step}" / name, {})
    levels = [{"level": level, "tokens": 10, "accuracy": level / 10, "majority": level / 20} for level in (1, 2)]
    nonterminals = {"seed": 0, "training": 2048, "levels": None}
    probes = root / "laptop" / "probes"
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
    write(
        probes / "nonterminals-training2048.json",
        {"settings": nonterminals, "checkpoints": [{"step": step, "levels": levels} for step in probed]},
    )
    for seed in (0, 1, 2):
        for steps in preset.steps:
            for place, method in enumerate(("ce", "one-shot", "progressive")):
                name = f"laptop-{method}-heads2-steps{steps}-seed{seed}"
                make_up_run(root / name, [0, 0.1 * place + steps / 1e4 + seed / 100], seeds=[seed])
        for name, step in TWO_SHOT.items():
            name = f"laptop-two-shot-{name}-heads2-steps1000-seed{seed}"
            make_up_run(root / name, [0, 0.6 + step / 1e4 + seed / 100], seeds=[seed], first_steps=300)
    return tmp_path


def test_pcfg_data_are_those_of_the_runs(made_up, pcfg_figures):
    data = pcfg_figures.collect(made_up, "laptop")
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
        "python -m PCFG_mlm.probe nonterminals --run runs/PCFG_mlm/laptop --training 2048",
        "python -m PCFG_mlm.distill laptop",
        "python -m PCFG_mlm.distill laptop --methods two-shot --steps 1000 --checkpoint 200 inside 1000",
    ]


def test_two_shot_students_are_those_of_the_budget_with_most_checkpoints(made_up, pcfg_figures):
    for name in ("200", "1000"):
        directory = made_up / "PCFG_mlm" / f"laptop-two-shot-{name}-heads2-steps2000-seed0"
        make_up_run(directory, [0, 1], seeds=[0], first_steps=300)
    assert pcfg_figures.collect(made_up, "laptop")["two_shot"]["steps"] == 1000


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("laptop/done.json", "python -m PCFG_mlm.train laptop"),
        ("laptop/probes/bayes_optimal.json", r"python -m PCFG_mlm.probe bayes-optimal --run \S+/laptop"),
        ("laptop/probes/ngrams.json", r"python -m PCFG_mlm.probe ngrams --run \S+/laptop"),
        ("laptop/probes/nonterminals-training2048.json", r"python -m PCFG_mlm.probe nonterminals --run \S+/laptop"),
        ("laptop-ce-heads2-steps500-seed1/done.json", "python -m PCFG_mlm.distill laptop"),
        ("laptop-ce-heads2-steps500-seed1", "python -m PCFG_mlm.distill laptop"),
        (
            "laptop-two-shot-inside-heads2-steps1000-seed2",
            "distill laptop --methods two-shot --steps 1000 --checkpoint 200 inside 1000",
        ),
        ("laptop-two-shot-*", "distill laptop --methods two-shot"),
    ],
)
def test_a_missing_run_or_probe_is_named_with_its_command(made_up, pcfg_figures, missing, command):
    for path in (made_up / "PCFG_mlm").glob(missing):
        path.rename(made_up / f"removed-{path.name}")
    with pytest.raises(UserError, match=command) as error:
        pcfg_figures.collect(made_up, "laptop")
    assert "\n" not in str(error.value)


def test_a_probe_that_lacks_checkpoints_or_was_made_twice_is_refused(made_up, pcfg_figures):
    probes = made_up / "PCFG_mlm" / "laptop" / "probes"
    content = json.loads((probes / "ngrams.json").read_text())
    write(probes / "ngrams-sentences64.json", content)
    with pytest.raises(UserError, match=r"has ngrams-sentences64\.json, ngrams\.json"):
        pcfg_figures.collect(made_up, "laptop")
    (probes / "ngrams-sentences64.json").unlink()
    write(probes / "ngrams.json", {**content, "checkpoints": content["checkpoints"][:-1]})
    with pytest.raises(UserError, match="lacks checkpoints"):
        pcfg_figures.collect(made_up, "laptop")


def lines_of(axis):
    """What an axis shows as lines, by label; values only."""
    return {line.get_label(): line.get_ydata() for line in axis.lines}


def shaded(axis):
    return [patch.get_x() for patch in axis.patches if patch.get_label() == "transition"]


def test_the_parity_figures_draw_the_data(made_up_parity, parity_figures):
    runs, parity = made_up_parity
    d, k = parity.made_with["d"], parity.made_with["k"]
    is_gpt2 = parity.model == "gpt2"
    data = parity_figures.collect(runs, "laptop", parity.model)
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
    data = pcfg_figures.collect(made_up, "laptop")
    (axis,) = pcfg_figures.overview(data).axes
    lines = lines_of(axis)
    np.testing.assert_allclose(lines["progressive"], [0.26, 0.31, 0.41])
    np.testing.assert_allclose(lines["cross entropy"], [0.06, 0.11, 0.21])
    levels = [line.get_ydata()[0] for line in axis.lines if list(line.get_xdata()) == [0, 1]]
    assert levels == [0.98, 0.9]
    assert [text.get_text() for text in axis.texts] == ["Bayes-optimal", "teacher, 1.2k steps"]


def test_the_curriculum_draws_the_data(made_up, pcfg_figures):
    data = pcfg_figures.collect(made_up, "laptop")
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
    data = pcfg_figures.collect(made_up, "laptop")
    (axis,) = pcfg_figures.nonterminals(data).axes
    for level in (1, 2):
        (line,) = [line for line in axis.lines if line.get_label() == f"level {level}"]
        np.testing.assert_allclose(line.get_ydata(), [level / 10] * 6)
        others = [other for other in axis.lines if other.get_color() == line.get_color() and other is not line]
        assert [(other.get_linestyle(), other.get_ydata()[0]) for other in others] == [(":", level / 20)]
    assert "Bayes-optimal" not in lines_of(axis)

    path = made_up / "PCFG_mlm" / "laptop" / "probes" / "nonterminals-training2048.json"
    optimal = {"levels": [{"level": level, "accuracy": 1 - level / 100} for level in (1, 2)]}
    write(path, {**json.loads(path.read_text()), "bayes_optimal": optimal})
    (axis,) = pcfg_figures.nonterminals(pcfg_figures.collect(made_up, "laptop")).axes
    assert "Bayes-optimal" in lines_of(axis)
    drawn = [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "-." and len(line.get_ydata())]
    assert drawn == [0.99, 0.98]


LABELS_AT_2 = "-teacher=runs+%50%43%46%47%5fautoregressive+laptop_label%5flevel2-label_level2"
"""At the end of the names of students with this label level."""
DISTILL_AT_2 = (
    "python -m PCFG_autoregressive.distill laptop --label-level 2 "
    "--teacher runs/PCFG_autoregressive/laptop-label_level2"
)


@pytest.fixture
def made_up_gpt2(made_up, monkeypatch):
    """The same runs as those of GPT-2, and some with labels at depth 2 whose accuracies are 0.5 higher."""
    own = replace(PCFG_autoregressive.distill.PRESETS["laptop"], student_heads=(2,), steps=(500, 1000, 2000))
    monkeypatch.setitem(PCFG_autoregressive.distill.PRESETS, "laptop", replace(own, label_level="all"))
    root = (made_up / "PCFG_mlm").rename(made_up / "PCFG_autoregressive")
    teacher = replace(PCFG_autoregressive.train.PRESETS["laptop"], steps=1200, label_level="all")
    write(root / "laptop" / "config.json", {"arguments": asdict(teacher), "versions": {}})
    written = [{"step": step, "accepted": step / 1e4} for step in range(200, 1201, 200)]
    settings = {"seed": 0, "continuations": 500, "given": None, "tokens": 100, "batch_size": 250}
    write(root / "laptop" / "probes" / "generation.json", {"settings": settings, "given": 50, "checkpoints": written})
    for place, method in enumerate(("ce", "one-shot", "progressive")):
        for steps in own.steps:
            name = f"laptop-{method}-heads2-steps{steps}-seed0{LABELS_AT_2}"
            make_up_run(root / name, [0, 0.5 + 0.1 * place + steps / 1e4], seeds=[0])
    make_up_run(root / "laptop-label_level2", [0.95] * 3, **asdict(replace(teacher, label_level=2, steps=200)))
    best = {"loss": 0.01, "accuracy": 0.99, "expected_accuracy": 0.99, "without_label": {"loss": 1, "accuracy": 0.5}}
    write(root / "laptop-label_level2" / "probes" / "bayes_optimal.json", best)
    return made_up


def collect_gpt2(pcfg_figures, runs):
    return pcfg_figures.collect(runs, "laptop", "PCFG_autoregressive")


def test_names_of_students_with_another_label_level_are_those_of_distill():
    own = replace(PCFG_autoregressive.distill.PRESETS["laptop"], label_level="all")
    single = replace(own, methods=("ce",), steps=(500,), seeds=(0,), student_heads=(2,), checkpoint=(), label_level=2)
    directory = training._run_directory(
        replace(single, seeds=(0, 1)),
        replace(single, teacher="runs/PCFG_autoregressive/laptop-label_level2"),
        {"laptop": own},
        PCFG_autoregressive.distill.SETTING,
    )
    assert directory.name == f"laptop-ce-heads2-steps500-seed0{LABELS_AT_2}"


def test_gpt2_data_on_pcfg_are_those_of_the_runs(made_up_gpt2, pcfg_figures):
    data = collect_gpt2(pcfg_figures, made_up_gpt2)
    assert data["label_level"] == "all"
    np.testing.assert_allclose(data["students"]["progressive"]["accuracy"][0], [0.25, 0.3, 0.4])
    assert data["two_shot"]["checkpoints"] == [200, 600, 1000]
    accepted = [0.02, 0.04, 0.06, 0.08, 0.1, 0.12]
    written = {"steps": [*range(200, 1201, 200)], "accepted": accepted, "given": 50, "tokens": 100}
    assert data["generation"] == {**written, "continuations": 500, "phases": data["phases"]}
    (other,) = data["other_levels"]
    assert (other["label_level"], other["bayes_optimal"]["accuracy"]) == (2, 0.99)
    assert other["teacher"]["steps"] == [0, 100, 200]
    np.testing.assert_allclose(other["students"]["ce"]["accuracy"], [[0.55, 0.6, 0.7]])
    assert data["commands"] == [
        "python -m PCFG_autoregressive.train laptop",
        "python -m PCFG_autoregressive.probe bayes-optimal --run runs/PCFG_autoregressive/laptop",
        "python -m PCFG_autoregressive.probe ngrams --run runs/PCFG_autoregressive/laptop",
        "python -m PCFG_autoregressive.probe generation --run runs/PCFG_autoregressive/laptop --continuations 500",
        "python -m PCFG_autoregressive.distill laptop",
        "python -m PCFG_autoregressive.distill laptop --methods two-shot --steps 1000 --checkpoint 200 inside 1000",
    ]


def test_a_model_of_all_tokens_writes_where_the_preset_has_labels_at_a_depth(made_up_gpt2, pcfg_figures, monkeypatch):
    root = made_up_gpt2 / "PCFG_autoregressive"
    presets = PCFG_autoregressive.distill.PRESETS
    monkeypatch.setitem(presets, "laptop", replace(presets["laptop"], label_level=2))
    with pytest.raises(UserError, match=r"python -m PCFG_autoregressive.train laptop --label-level all"):
        collect_gpt2(pcfg_figures, made_up_gpt2)
    writer = replace(PCFG_autoregressive.train.PRESETS["laptop"], label_level="all")
    make_up_run(root / "laptop-label_level=all", [0.9] * 13, **asdict(writer))
    with pytest.raises(UserError, match=r"PCFG_autoregressive.probe generation --run \S+/laptop-label_level=all"):
        collect_gpt2(pcfg_figures, made_up_gpt2)


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("laptop/probes/generation.json", r"python -m PCFG_autoregressive.probe generation --run \S+/laptop"),
        ("laptop/probes/bayes_optimal.json", r"PCFG_autoregressive.probe bayes-optimal --run \S+/laptop$"),
        ("laptop-label_level2/probes/bayes_optimal.json", r"probe bayes-optimal --run \S+/laptop-label_level2$"),
        (f"laptop-one-shot-heads2-steps500-seed0{LABELS_AT_2}", re.escape(DISTILL_AT_2)),
        ("laptop-ce-heads2-steps500-seed1", "python -m PCFG_autoregressive.distill laptop$"),
        ("laptop-two-shot-*", "python -m PCFG_autoregressive.distill laptop --methods two-shot"),
    ],
)
def test_a_missing_run_or_probe_of_gpt2_is_named_with_its_command(made_up_gpt2, pcfg_figures, missing, command):
    for path in (made_up_gpt2 / "PCFG_autoregressive").glob(missing):
        path.rename(made_up_gpt2 / f"removed-{path.name}")
    with pytest.raises(UserError, match=command):
        collect_gpt2(pcfg_figures, made_up_gpt2)


def test_the_figures_of_gpt2_on_pcfg_draw_the_data(made_up_gpt2, pcfg_figures):
    data = collect_gpt2(pcfg_figures, made_up_gpt2)
    depth, every = pcfg_figures.overview(data).axes
    titles = [axis.get_title(loc="left") for axis in (depth, every)]
    grammar = PCFG_autoregressive.train.PRESETS["laptop"].grammar
    assert titles == [f"{grammar}, ends at depth 2", f"{grammar}, next tokens"]
    np.testing.assert_allclose(lines_of(depth)["progressive"], [0.75, 0.8, 0.9])
    np.testing.assert_allclose(lines_of(every)["progressive"], [0.26, 0.31, 0.41])
    for axis, best, teacher in ((depth, 0.99, "teacher, 200 steps"), (every, 0.98, "teacher, 1.2k steps")):
        assert next(line.get_ydata()[0] for line in axis.lines if list(line.get_xdata()) == [0, 1]) == best
        assert [text.get_text() for text in axis.texts] == ["Bayes-optimal", teacher]
    (axis,) = pcfg_figures.overview({**data, "other_levels": []}).axes
    assert axis.get_title(loc="left") == f"{grammar}, next tokens"

    (axis,) = pcfg_figures.generation(data).axes
    np.testing.assert_allclose(lines_of(axis)["teacher"], data["generation"]["accepted"])
    assert shaded(axis) == [data["phases"]["start"]]
    assert (axis.get_xlim(), axis.get_ylim()) == ((200, 1200), (0, 1))
    assert axis.get_title(loc="left") == "50 tokens given, up to 100 written"


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
    assert any("image/png" in output.get("data", {}) for cell in again.cells for output in cell.get("outputs", []))


def printed(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output["text"] for output in outputs if output.get("name") == "stdout"]


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
