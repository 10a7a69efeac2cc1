"""Figures from committed data and from runs, and the notebooks."""

import importlib
import itertools
import json
import os
import re
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import export_runs
import finding_runs
import make_figures
import nbformat
import numpy as np
import parity_figures
import pcfg_figures
import pytest
import text_figures
import tyro
from nbclient import NotebookClient

import parity_gpt2.distill
import parity_gpt2.train
import parity_mlp.distill
import parity_mlp.train
import PCFG_autoregressive.distill
import PCFG_autoregressive.train
import PCFG_autoregressive.training
import PCFG_mlm.distill
import PCFG_mlm.train
import PCFG_mlm.training
import text_autoregressive.distill
import text_autoregressive.train
import text_mlm.distill
import text_mlm.train
from common.errors import UserError
from common.language_models.setting import config_of, task_of
from common.text import docstrings
from tests.commands import cut, start
from tests.documents import documents
from tests.made_up_runs import make_up_run, write

ROOT = Path(__file__).resolve().parents[1]
PNG = b"\x89PNG\r\n"


def collected(runs, setting, preset="laptop"):
    collect, _ = make_figures.SETTINGS[setting]
    return collect(finding_runs.find_runs(runs), preset)


def collect(runs, setting):
    """The data behind the figures of a setting of which no part is missing."""
    found = collected(runs, setting)
    assert found.errors == {}
    return found.data


def what_is_missing(runs, setting):
    """The reasons why parts are missing, by part, or why the teacher is."""
    try:
        return collected(runs, setting).errors
    except UserError as error:
        return {"teacher": error}


def is_missing(error):
    """Whether a run or a probe does not exist yet, rather than twice."""
    return isinstance(error, finding_runs.MissingError)


@pytest.mark.parametrize("data", sorted((ROOT / "figures" / "data").glob("*.json")), ids=lambda path: path.stem)
def test_committed_data_make_the_committed_figures(data, tmp_path):
    setting, preset = data.stem.rsplit("_", 1)
    assert json.loads(data.read_text())["setting"] == setting
    make_figures.main(make_figures.Arguments(setting, preset=preset, out=tmp_path))
    drawn = {path.name for path in tmp_path.iterdir()}
    committed = {path.name for path in (ROOT / "figures").glob(f"*_{setting}_{preset}.png")}
    assert drawn == committed - {f"figure_methods_{setting}_{preset}.png"}  # of methods.py
    assert all((tmp_path / name).read_bytes().startswith(PNG) for name in drawn)


PARITY_FIGURES = ("figure1", "figure2", "figure2_degrees")
WITHOUT_STUDENTS = {"figure2_degrees", "figure3_windows", "figure_nonterminals", "figure_generation", "figure_contexts"}
SMOKE = {
    "parity_mlp": (["--samples 1000"], "--checkpoint before inside after", PARITY_FIGURES),
    "parity_gpt2": (["--samples 1000"], "--checkpoint before inside after", PARITY_FIGURES),
    "PCFG_mlm": (
        [
            "bayes-optimal",
            "ngrams --sentences 16 --exact 2",
            "windows --positions 8",
            "nonterminals --training 64 --heldout 16 --epochs 1",
        ],
        "--checkpoint 20 40",
        ("figure1", "figure3", "figure3_windows", "figure_nonterminals"),
    ),
    "PCFG_autoregressive": (
        [
            "bayes-optimal",
            "ngrams --sentences 16",
            "windows --positions 8",
            "generation --continuations 20 --tokens 5",
        ],
        "--checkpoint 20 40",
        ("figure1", "figure3", "figure3_windows", "figure_generation"),
    ),
    **dict.fromkeys(
        ("text_mlm", "text_autoregressive"),
        (
            ["ngrams --samples 16", "ngrams --unit word --samples 16", "kneser-ney --samples 16 --order 2"],
            None,
            ("figure4", "figure_contexts"),
        ),
    ),
}
"""Arguments of the probes and of two-shot students, if there are any, and the figures."""


@pytest.fixture(scope="module")
def few_documents():
    """Instead of all docstrings, which would take a minute."""
    return docstrings.Docstrings(tuple(documents(2000)), duplicates=0, unreadable=0)


@pytest.mark.parametrize("setting", SMOKE)
def test_the_smoke_runs_become_figures(request, tmp_path, monkeypatch, capsys, setting):
    probes, two_shot, names = SMOKE[setting]
    runs, out, commands = tmp_path / "runs", tmp_path / "figures", []
    teacher = runs / "a_teacher"
    monkeypatch.setattr(docstrings, "collect", lambda: request.getfixturevalue("few_documents"))

    def run(command, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{command}.py", *map(str, arguments)])
        importlib.import_module(f"{setting}.{command}").main()
        commands.append(shlex.join(["python", "-m", f"{setting}.{command}", *map(str, arguments)]))

    def draw():
        words = [setting, "--preset", "smoke", "--runs", runs, "--out", out]
        return start(capsys, lambda: make_figures.main(tyro.cli(make_figures.Arguments)), *words)

    run("train", "smoke", "--out", teacher)
    for probe in probes:
        run("probe", *probe.split(), "--run", teacher)
    code, stdout, stderr = draw()
    assert code == 2
    alone = [str(out / f"{name}_{setting}_smoke.png") for name in names if name in WITHOUT_STUDENTS]
    assert stdout.split() == alone
    assert sorted(map(str, out.glob("*.png"))) == sorted(alone)
    assert len(stderr.splitlines()) == 1
    assert all(f"{name}_{setting}_smoke" in stderr for name in names if name not in WITHOUT_STUDENTS)
    assert f"python -m {setting}.distill smoke" in stderr

    students = ("--teacher", teacher, "--seeds", 1)
    run("distill", "smoke", *students, "--out", runs / "students")
    if two_shot:
        others = ("--methods", "two-shot", *two_shot.split())
        run("distill", "smoke", *others, *students, "--out", runs / "deep" / "two_shot")
    code, stdout, stderr = draw()
    assert code == 0, stderr
    drawn = [Path(line) for line in stdout.splitlines()]
    assert [path.name for path in drawn] == [f"{name}_{setting}_smoke.png" for name in names]
    assert all(path.read_bytes().startswith(PNG) for path in drawn)

    def accuracies(directory):
        records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        return [record["accuracy"] for record in records]

    data = json.loads((out / "data" / f"{setting}_smoke.json").read_text())
    assert data["commands"] == commands
    assert data["teacher"]["accuracy"] == pytest.approx(accuracies(teacher), abs=1e-5)
    progressive = data["students"]["progressive"]
    (directory,) = runs.glob("students/progressive-*seed1*")
    assert progressive["seeds"] == [1]
    assert progressive["accuracy"][0][-1] == pytest.approx(accuracies(directory)[-1], abs=1e-5)


def test_a_figure_that_committed_data_lack_is_one_line_and_the_others_are_drawn(tmp_path, monkeypatch, capsys):
    data = json.loads((ROOT / "figures" / "data" / "PCFG_mlm_laptop.json").read_text())
    write(tmp_path / "data" / "PCFG_mlm_laptop.json", {key: data[key] for key in data if key != "nonterminals"})
    monkeypatch.setattr(make_figures, "FIGURES", tmp_path)
    make_figures.main(make_figures.Arguments("PCFG_mlm", out=tmp_path))
    said = capsys.readouterr()
    assert f"{tmp_path / 'figure1_PCFG_mlm_laptop.png'}" in said.out.split()
    assert "figure_nonterminals_PCFG_mlm_laptop: PCFG_mlm_laptop.json has no nonterminals" in said.err.splitlines()
    write(tmp_path / "data" / "PCFG_mlm_laptop.json", {"setting": "PCFG_mlm"})
    with pytest.raises(UserError, match=r"figure1_PCFG_mlm_laptop.*: PCFG_mlm_laptop.json has no bayes_optimal"):
        make_figures.main(make_figures.Arguments("PCFG_mlm", out=tmp_path))


def test_a_directory_without_runs_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing of the preset laptop"):
        make_figures.main(make_figures.Arguments(runs=tmp_path))
    with pytest.raises(UserError, match=f"no directory {tmp_path / 'typo'}"):
        make_figures.main(make_figures.Arguments("parity_mlp", runs=tmp_path / "typo"))


def make_up_checkpoints(run, steps):
    for step in steps:
        for name in ("config.json", "model.safetensors"):
            write(run / f"checkpoint-{step}" / name, {})


def remove(path, runs):
    """Move from a directory of runs to a place beside it."""
    path.rename(runs.with_name(f"removed-{path.parent.name}-{path.name}"))


@dataclass(frozen=True)
class Parity:
    """What differs between the two settings."""

    setting: str
    size: str
    """A teacher's argument."""
    sizes: str
    """A student's."""
    made_with: dict
    """Arguments of the preset's teacher in these tests."""

    @property
    def package(self):
        return {"parity_mlp": parity_mlp, "parity_gpt2": parity_gpt2}[self.setting]

    def student(self, method, seed, taught_by="teacher"):
        """Arguments of a student of the laptop preset."""
        preset = asdict(self.package.distill.PRESETS["laptop"])
        method, _, place = method.partition("two-shot-") if "two-shot" in method else (method, "", "")
        own = {"methods": [method or "two-shot"], "checkpoint": [place] if place else [], "seeds": [seed]}
        return {**preset, **own, "teacher_id": f"id of {taught_by}"}


PARITY = [
    Parity("parity_mlp", "width", "widths", {"d": 100, "k": 4, "width": 70}),
    Parity("parity_gpt2", "heads", "student_heads", {"d": 30, "k": 5, "heads": 7, "batch_size": 32, "warmup": 0.06}),
]
PARITY_ACCURACIES = [0.5] * 20 + [0.6, 0.9] + [1.0] * 19
"""The transition lies between steps 1,900 and 2,200."""
SPIKE_AT = 2050
METHODS = ("ce", "one-shot", "progressive")
PLACES = ("before", "inside", "after")
STUDENTS = (*METHODS, *(f"two-shot-{place}" for place in PLACES))


def monomials(steps, k, *argv):
    """Correlations that are the degree in hundredths at `SPIKE_AT`, and a thousandth elsewhere."""
    return {
        "argv": argv,
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


@pytest.fixture(params=PARITY, ids=lambda parity: parity.setting)
def made_up_parity(request, tmp_path, monkeypatch):
    """Runs of a laptop preset whose students' accuracies say who they are; checkpoints every 50 steps."""
    parity = request.param
    runs = tmp_path / "runs"
    teacher = replace(parity.package.train.PRESETS["laptop"], **parity.made_with)
    monkeypatch.setitem(parity.package.train.PRESETS, "laptop", teacher)
    make_up_run(runs / "teacher", parity.setting, PARITY_ACCURACIES, argv=["train"], **asdict(teacher))
    probed = range(50, 4001, 50)
    make_up_checkpoints(runs / "teacher", probed)
    write(runs / "teacher" / "probes" / "monomials.json", monomials(probed, teacher.k, "probe", "a b"))
    for method in STUDENTS:
        for seed in (0, 1, 2):
            directory = runs / "some" / "where" / f"{method}_{seed}"
            argv = ["distill", method] if seed else []  # as if it were made without a command
            accuracies = [0.5, who_is(method, seed)]
            make_up_run(directory, parity.setting, accuracies, argv=argv, **parity.student(method, seed))
    return runs, parity


def who_is(method, seed):
    return 0.5 + 0.05 * STUDENTS.index(method) + 0.01 * seed


def test_parity_data_are_those_of_the_runs(made_up_parity):
    runs, parity = made_up_parity
    data = collect(runs, parity.setting)
    assert data["setting"] == parity.setting
    arguments = data["teacher"]["arguments"]
    assert {name: arguments[name] for name in ("d", "k", parity.size)}.items() <= parity.made_with.items()
    assert data["teacher"]["accuracy"] == PARITY_ACCURACIES
    assert 1900 <= data["phases"]["start"] <= 2000 <= data["phases"]["end"] <= 2200
    assert data["candidates"]["inside"] == 2050
    for method in METHODS:
        found = data["students"][method]
        assert found["seeds"] == [0, 1, 2]
        assert found[parity.size] == getattr(parity.package.distill.PRESETS["laptop"], parity.sizes)[0]
        assert [accuracy[-1] for accuracy in found["accuracy"]] == [who_is(method, seed) for seed in (0, 1, 2)]
    for place in PLACES:
        accuracies = [accuracy[-1] for accuracy in data["two_shot"][place]["accuracy"]]
        assert accuracies == [who_is(f"two-shot-{place}", seed) for seed in (0, 1, 2)]
    assert [entry["degree"] for entry in data["monomials"]["degrees"]] == [*range(1, arguments["k"] + 1)]
    assert data["monomials"]["degrees"][2]["inside"][40] == [0.03] * 3
    assert data["commands"] == ["train", "probe 'a b'", *(f"distill {method}" for method in STUDENTS)]
    assert data["commits"] == ["c0ffee"]


def test_all_settings_are_drawn_as_far_as_their_runs_exist(made_up_parity, capsys, tmp_path):
    runs, parity = made_up_parity
    arguments = make_figures.Arguments(runs=runs, out=tmp_path / "figures")
    make_figures.main(arguments)
    said = capsys.readouterr()
    assert said.out.split() == [str(arguments.out / f"{name}_{parity.setting}_laptop.png") for name in PARITY_FIGURES]
    others = [setting for setting in SMOKE if setting != parity.setting]
    assert [line.split(", ")[0] for line in said.err.splitlines()] == [
        f"{SMOKE[setting][2][0]}_{setting}_laptop" for setting in others
    ]
    for line, setting in zip(said.err.splitlines(), others, strict=True):
        assert line.endswith(f"python -m {setting}.train laptop")

    shutil.copytree(runs / "teacher", runs / "copy")
    with pytest.raises(UserError, match=f"are both the teacher of {parity.setting} laptop"):
        make_figures.main(arguments)


@pytest.mark.parametrize(
    ("missing", "part", "command"),
    [
        ("teacher/done.json", "teacher", "train laptop$"),
        ("teacher/probes/monomials.json", "monomials", r"probe --run \S+/teacher$"),
        ("some/where/progressive_*", "students", "distill laptop$"),
        ("some/where/ce_*/done.json", "students", "distill laptop$"),
        (
            "some/where/two-shot-inside_*",
            "two_shot",
            "distill laptop --methods two-shot --checkpoint before inside after$",
        ),
    ],
)
def test_a_missing_parity_run_or_probe_is_named_with_its_command(made_up_parity, missing, part, command):
    runs, parity = made_up_parity
    for path in list(runs.glob(missing)):
        remove(path, runs)
    ((found, error),) = what_is_missing(runs, parity.setting).items()
    assert found == part
    assert is_missing(error)
    assert re.search(f"python -m {parity.setting}.{command}", str(error))
    assert "\n" not in str(error)


def test_only_students_of_the_teacher_and_of_the_preset_as_it_is_are_drawn(made_up_parity):
    runs, parity = made_up_parity
    before = collect(runs, parity.setting)
    arguments = parity.student("progressive", 3)
    for name, changed in (
        ("of_another_teacher", {"teacher_id": "id of another"}),
        ("of_another_place", {"teacher_id": None, "teacher": "no/such/run"}),
        ("at_another_rate", {"lr": [0.5]}),
        ("on_another_stream", {"stream_seed": 5}),
        ("of_another_preset", {"preset": "smoke"}),
    ):
        make_up_run(runs / name, parity.setting, [0.5, 0.9], **{**arguments, **changed})
    make_up_run(runs / "of_another_setting", "another", [0.5, 0.9], **arguments)
    make_up_run(runs / "unfinished", parity.setting, [0.5, 0.9], **arguments)
    (runs / "unfinished" / "done.json").unlink()
    make_up_run(runs.with_name("elsewhere") / "linked", parity.setting, [0.5, 0.9], **arguments)
    (runs / "link").symlink_to(runs.with_name("elsewhere"))
    assert collect(runs, parity.setting) == before

    elsewhere = {"device": "cuda", "wandb": "offline", "out": "/somewhere"}
    make_up_run(runs / "on_a_gpu", parity.setting, [0.5, 0.9], **{**arguments, **elsewhere})
    by_path = {"teacher_id": None, "teacher": os.path.relpath(runs / "teacher", ROOT), "seeds": [4]}
    make_up_run(runs / "of_a_path", parity.setting, [0.5, 0.8], **{**arguments, **by_path})
    after = collect(runs, parity.setting)["students"]["progressive"]
    assert after["seeds"] == [0, 1, 2, 3, 4]
    assert [accuracy[-1] for accuracy in after["accuracy"][3:]] == [0.9, 0.8]


def test_two_runs_that_would_be_the_same_point_are_refused(made_up_parity):
    runs, parity = made_up_parity
    make_up_run(runs / "copy", parity.setting, [0.5, 0.9], **parity.student("progressive", 1))
    ((part, error),) = what_is_missing(runs, parity.setting).items()
    assert part == "students"
    assert re.search("/copy and .*/progressive_1 are both progressive students of .* with seed 1", str(error))
    assert not is_missing(error)


def test_correlations_of_a_denser_run_are_added_if_it_has_the_same_trajectory(made_up_parity):
    runs, parity = made_up_parity
    arguments = json.loads((runs / "teacher" / "config.json").read_text())["arguments"]
    for step, changed in ((2055, {}), (2065, {"steps": 3000}), (2075, {"lr": 1.0})):
        dense = runs / "dense" / str(step)
        argv = ["train", str(step)]
        make_up_run(dense, parity.setting, [0.5], argv=argv, **{**arguments, "checkpoint_every": 5, **changed})
        write(dense / "probes" / "monomials.json", monomials([step], arguments["k"], "probe", str(step)))
    data = collect(runs, parity.setting)
    steps = data["monomials"]["steps"]
    # GPT-2 warms up for a share of its steps, the MLP learns at a constant rate
    added = [2055] if parity.setting == "parity_gpt2" else [2055, 2065]
    assert steps == sorted([*range(50, 4001, 50), *added])
    of_added = [f"{command} {step}" for step in added for command in ("train", "probe")]
    assert data["commands"][:-6] == ["train", "probe 'a b'", *of_added]


def quartiles(low, middle, high):
    of_three = {"25": low, "50": middle, "75": high, "90": 2}
    return [{"n": 2, "percentiles": {**of_three, "50": middle / 2}}, {"n": 3, "percentiles": of_three}]


TEACHER_LOSSES = [2, 1, 1, 1, 1, 0.9, 0.5, 0.1, 0, 0, 0, 0, 0]
TWO_SHOT = {"200": 200, "inside": 600, "1000": 1000}
"""The transition of these losses lies around step 600."""


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """Runs of a laptop preset whose students' accuracies say who they are."""
    return make_up_pcfg(tmp_path / "runs", PCFG_mlm, monkeypatch)


WINDOWS = (1, 3, None)


def kl_of(tokens, step):
    """The divergence from a window is least at step 200 for one token, at 600 for three, at 1,200 for all."""
    return 0.1 + abs(step - {1: 200, 3: 600, None: 1200}[tokens]) / 1e3


def make_up_pcfg(runs, package, monkeypatch, **arguments):
    """Runs of a laptop preset on a grammar; further arguments are the teacher's and the students'."""
    own = replace(package.distill.PRESETS["laptop"], student_heads=(2,), steps=(500, 1000, 2000), **arguments)
    trained = replace(package.train.PRESETS["laptop"], steps=1200, **arguments)
    monkeypatch.setitem(package.distill.PRESETS, "laptop", own)
    monkeypatch.setitem(package.train.PRESETS, "laptop", trained)
    make_up_teacher(runs / "teacher", package, [0.9] * 13, trained)
    probed = range(200, 1201, 200)
    make_up_checkpoints(runs / "teacher", probed)
    probes = runs / "teacher" / "probes"
    best = {"loss": 0.05, "accuracy": 0.98, "expected_accuracy": 0.97}
    write(probes / "bayes_optimal.json", {"argv": ["probe", "best"], **best})
    write(
        probes / "ngrams.json",
        {
            "argv": ["probe", "ngrams"],
            "settings": {"sizes": [2, 3]},
            "bayes_optimal": {"robust": quartiles(0, 0, 0.5)},
            "checkpoints": [
                {"step": step, "pairs": 8, "robust": quartiles(step / 1e4, step / 5e3, step / 2e3)} for step in probed
            ],
        },
    )
    write(
        probes / "windows.json",
        {
            "argv": ["probe", "windows"],
            "positions": 7,
            "windows": [
                {"tokens": tokens, "entropy": entropy, "loss": 1, "accuracy": 0.5, "expected_accuracy": 1 - entropy}
                for tokens, entropy in zip(WINDOWS, (0.9, 0.5, 0.1), strict=True)
            ],
            "checkpoints": [
                {"step": step, "windows": [{"tokens": tokens, "kl": kl_of(tokens, step)} for tokens in WINDOWS]}
                for step in probed
            ],
        },
    )
    levels = [{"level": level, "tokens": 10, "accuracy": level / 10, "majority": level / 20} for level in (1, 2)]
    write(
        probes / "nonterminals-training2048.json",
        {
            "argv": ["probe", "nonterminals"],
            "settings": {"seed": 0, "training": 2048, "levels": None},
            "checkpoints": [{"step": step, "levels": levels} for step in probed],
        },
    )
    for seed in (0, 1, 2):
        for steps in own.steps:
            for place, method in enumerate(METHODS):
                accuracy = 0.1 * place + steps / 1e4 + seed / 100
                make_up_student(runs / "taught" / f"{method}_{steps}_{seed}", package, method, steps, seed, accuracy)
        for name, step in TWO_SHOT.items():
            accuracy = 0.6 + step / 1e4 + seed / 100
            make_up_two_shot(runs / f"two-shot_{name}_{seed}", package, name, 1000, seed, accuracy)
    return runs


def name_of(package):
    return package.training.SETTING.name


def with_rules(arguments, package):
    setting = package.training.SETTING
    return config_of(arguments, task_of(arguments, setting), setting)


def make_up_teacher(directory, package, accuracies, arguments):
    losses = TEACHER_LOSSES[: len(accuracies)]
    argv = ["train", directory.name]
    make_up_run(directory, name_of(package), accuracies, losses, argv, **with_rules(arguments, package))


def make_up_student(directory, package, method, steps, seed, accuracy, taught_by="teacher", task=None, **others):
    """A student of the laptop preset, or one that differs from it in its task."""
    own = {"methods": [method], "steps": [steps], "seeds": [seed], "checkpoint": [], "teacher_id": f"id of {taught_by}"}
    arguments = with_rules(replace(package.distill.PRESETS["laptop"], **(task or {})), package)
    argv = ["distill", *others.get("checkpoint", ["students"]), "of", taught_by]
    make_up_run(directory, name_of(package), [0, accuracy], argv=argv, **{**arguments, **own, **others})


def make_up_two_shot(directory, package, name, steps, seed, accuracy):
    make_up_student(directory, package, "two-shot", steps, seed, accuracy, checkpoint=[name], first_steps=300)


def test_pcfg_data_are_those_of_the_runs(made_up):
    data = collect(made_up, "PCFG_mlm")
    assert data["setting"] == "PCFG_mlm"
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
    assert (data["ngrams"]["sizes"], data["ngrams"]["medians"][0][:2]) == ([2, 3], [0.02, 0.04])
    steps = [*range(200, 1201, 200)]
    assert data["windows"] == {
        "positions": 7,
        "tokens": [1, 3, None],
        "entropy": [0.9, 0.5, 0.1],
        "accuracy": pytest.approx([0.1, 0.5, 0.9]),
        "steps": steps,
        "kl": [pytest.approx([kl_of(tokens, step) for step in steps]) for tokens in WINDOWS],
    }
    assert [entry["accuracy"] for entry in data["nonterminals"]["levels"]] == [[0.1] * 6, [0.2] * 6]
    assert data["commands"] == [
        "train teacher",
        *("probe best", "probe ngrams", "probe windows", "probe nonterminals"),
        "distill students of teacher",
        *("distill 200 of teacher", "distill inside of teacher", "distill 1000 of teacher"),
    ]


def make_up_workstation(runs):
    """Two teachers, and their students of two seeds on two streams, whose accuracies say who they are."""
    preset, trained = (module.PRESETS["workstation"] for module in (PCFG_mlm.distill, PCFG_mlm.train))
    for teacher in (1, 2):
        make_up_teacher(runs / f"teacher{teacher}", PCFG_mlm, [0.9] * 13, replace(trained, seed=teacher))
        for method in METHODS if teacher == 1 else METHODS[1:]:
            for steps, stream, seed in itertools.product(preset.steps, (3000, 4000), (10, 11)):
                who = {"methods": [method], "steps": [steps], "seeds": [seed], "stream_seed": stream, "checkpoint": []}
                accuracy = 0.2 * METHODS.index(method) + 0.1 * teacher + steps / 1e5 + stream / 1e6 + seed / 1e4
                directory = runs / f"{method}_{teacher}_{steps}_{stream}_{seed}"
                arguments = {**with_rules(preset, PCFG_mlm), **who, "teacher_id": f"id of teacher{teacher}"}
                make_up_run(directory, "PCFG_mlm", [0, accuracy], argv=["distill", method], **arguments)


def test_students_of_several_teachers_and_streams_are_paired(tmp_path):
    make_up_workstation(tmp_path)
    paired = collected(tmp_path, "PCFG_mlm", "workstation").data["paired"]
    assert paired["steps"] == list(PCFG_mlm.distill.PRESETS["workstation"].steps)
    assert paired["teacher_seeds"] == [1, 2]
    assert paired["pairs"] == [[3000, 10], [3000, 11], [4000, 10], [4000, 11]]
    base = np.add.outer([0.003 + 0.001, 0.003 + 0.0011, 0.004 + 0.001, 0.004 + 0.0011], np.array(paired["steps"]) / 1e5)
    np.testing.assert_allclose(paired["accuracy"]["ce"], base[:, None] + 0.1)
    for method, place in (("one-shot", 1), ("progressive", 2)):
        expected = np.stack([base + 0.2 * place + 0.1, base + 0.2 * place + 0.2], axis=1)
        np.testing.assert_allclose(paired["accuracy"][method], expected)


def test_a_teacher_without_students_is_not_compared(tmp_path):
    make_up_workstation(tmp_path)
    trained = PCFG_mlm.train.PRESETS["workstation"]
    make_up_teacher(tmp_path / "teacher3", PCFG_mlm, [0.9] * 13, replace(trained, seed=3))
    assert collected(tmp_path, "PCFG_mlm", "workstation").data["paired"]["teacher_seeds"] == [1, 2]


def test_a_missing_or_doubled_student_of_a_pair_is_named(tmp_path):
    make_up_workstation(tmp_path)
    one = tmp_path / "one-shot_2_1000_4000_11"
    shutil.copytree(one, tmp_path / "copy")
    error = collected(tmp_path, "PCFG_mlm", "workstation").errors["paired"]
    assert "are both one-shot students of" in str(error)
    assert "teacher2 and 1000 steps with stream and seed (4000, 11)" in str(error)
    shutil.rmtree(tmp_path / "copy")
    shutil.rmtree(one)
    error = collected(tmp_path, "PCFG_mlm", "workstation").errors["paired"]
    assert is_missing(error)
    assert "teacher2 and 1000 steps with stream 4000 and seed 11" in str(error)
    assert "create it with scripts/reproduce.sh PCFG_mlm workstation" in str(error)


def test_settings_without_a_preset_are_left_out(tmp_path):
    drawn = make_figures.draw_settings(get_args(make_figures.SettingName), "workstation", tmp_path)
    assert [figures.setting for figures in drawn] == ["PCFG_mlm", "PCFG_autoregressive"]
    with pytest.raises(UserError, match=r"^text_mlm has no preset workstation"):
        make_figures.main(make_figures.Arguments(setting="text_mlm", runs=tmp_path, preset="workstation"))
    with pytest.raises(UserError, match=r"run scripts/reproduce.sh PCFG_mlm workstation first"):
        make_figures.main(make_figures.Arguments(runs=tmp_path, preset="workstation"))


def test_two_shot_students_are_those_of_the_budget_with_most_checkpoints(made_up):
    for name in ("200", "1000"):
        make_up_two_shot(made_up / "longer" / name, PCFG_mlm, name, 2000, 0, 1)
    assert collect(made_up, "PCFG_mlm")["two_shot"]["steps"] == 1000


def test_of_two_names_for_a_checkpoint_the_number_is_drawn(made_up):
    for seed in (0, 1, 2):
        make_up_two_shot(made_up / f"number_{seed}", PCFG_mlm, "600", 1000, seed, 0.1)
    data = collect(made_up, "PCFG_mlm")
    assert data["two_shot"]["checkpoints"] == [200, 600, 1000]
    assert data["two_shot"]["accuracy"][0][1] == 0.1
    assert data["commands"][-2] == "distill 600 of teacher"


MISSING_ON_PCFG = [
    ("teacher/done.json", "teacher", "python -m PCFG_mlm.train laptop"),
    ("teacher/probes/bayes_optimal.json", "bayes_optimal", r"python -m PCFG_mlm.probe bayes-optimal --run \S+/teacher"),
    ("teacher/probes/ngrams.json", "ngrams", r"python -m PCFG_mlm.probe ngrams --run \S+/teacher"),
    ("teacher/probes/windows.json", "windows", r"python -m PCFG_mlm.probe windows --run \S+/teacher"),
    (
        "teacher/probes/nonterminals-training2048.json",
        "nonterminals",
        r"python -m PCFG_mlm.probe nonterminals --run \S+/teacher",
    ),
    ("taught/ce_500_1/done.json", "students", "ce students .* 500 steps with seed 1; .* PCFG_mlm.distill laptop"),
    ("taught/ce_500_*", "students", "ce students .* 500 steps; create it with python -m PCFG_mlm.distill laptop"),
    ("two-shot_inside_2", "two_shot", "distill laptop --methods two-shot --steps 1000 --checkpoint 200 inside 1000"),
    ("two-shot_*", "two_shot", "distill laptop --methods two-shot"),
]


@pytest.mark.parametrize(("missing", "part", "command"), MISSING_ON_PCFG)
def test_a_missing_run_or_probe_is_named_with_its_command(made_up, missing, part, command):
    for path in list(made_up.glob(missing)):
        remove(path, made_up)
    ((found, error),) = what_is_missing(made_up, "PCFG_mlm").items()
    assert found == part
    assert is_missing(error)
    assert re.search(command, str(error))
    assert "\n" not in str(error)


def test_a_probe_that_lacks_checkpoints_or_was_made_twice_is_refused(made_up):
    probes = made_up / "teacher" / "probes"
    content = json.loads((probes / "ngrams.json").read_text())
    write(probes / "ngrams-sentences64.json", content)
    assert "has ngrams-sentences64.json, ngrams.json" in str(what_is_missing(made_up, "PCFG_mlm")["ngrams"])
    (probes / "ngrams-sentences64.json").unlink()
    write(probes / "ngrams.json", {**content, "checkpoints": content["checkpoints"][:-1]})
    assert "lacks checkpoints" in str(what_is_missing(made_up, "PCFG_mlm")["ngrams"])
    cut(probes / "ngrams.json")
    missing = what_is_missing(made_up, "PCFG_mlm")
    assert set(missing) == {"ngrams"}
    assert "ngrams.json is truncated or damaged: remove it, and probe again" in str(missing["ngrams"])


def test_a_probe_of_another_run_is_refused(made_up):
    path = made_up / "teacher" / "probes" / "ngrams.json"
    content = json.loads(path.read_text())
    write(path, {**content, "id": "id of teacher"})
    assert "ngrams" not in what_is_missing(made_up, "PCFG_mlm")
    write(path, {**content, "id": "id of another"})
    missing = what_is_missing(made_up, "PCFG_mlm")
    assert set(missing) == {"ngrams"}
    assert f"{path} holds a probe of another run: remove it, and probe again" in str(missing["ngrams"])


def lines_of(axis):
    """What an axis shows as lines, by label; values only."""
    return {line.get_label(): line.get_ydata() for line in axis.lines}


def shaded(axis):
    return [patch.get_x() for patch in axis.patches if patch.get_label() == "transition"]


def test_the_parity_figures_draw_the_data(made_up_parity):
    runs, parity = made_up_parity
    d, k = parity.made_with["d"], parity.made_with["k"]
    is_gpt2 = parity.setting == "parity_gpt2"
    data = collect(runs, parity.setting)
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


def test_the_pcfg_overview_draws_the_data(made_up):
    data = collect(made_up, "PCFG_mlm")
    (axis,) = pcfg_figures.overview(data).axes
    lines = lines_of(axis)
    np.testing.assert_allclose(lines["progressive"], [0.26, 0.31, 0.41])
    np.testing.assert_allclose(lines["cross entropy"], [0.06, 0.11, 0.21])
    levels = [line.get_ydata()[0] for line in axis.lines if list(line.get_xdata()) == [0, 1]]
    assert levels == [0.9, 0.98]
    assert [text.get_text() for text in axis.texts] == ["teacher, 1.2k steps", "Bayes-optimal"]


def test_the_curriculum_draws_the_data(made_up):
    data = collect(made_up, "PCFG_mlm")
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


def test_windows_are_drawn_with_their_minima_and_ngrams_with_their_peaks(made_up):
    data = collect(made_up, "PCFG_mlm")
    data["ngrams"]["medians"] = [[0.1, 0.4, 0.2, 0.05, 0.03, 0.02], [0.1, 0.2, 0.3, 0.4, 0.5, 0.2]]
    figure = pcfg_figures.windows(data)
    divergence, robust = figure.axes
    curves = [line for line in divergence.lines if len(line.get_xdata()) == 6]
    minima = [line.get_xydata()[0] for line in divergence.lines if len(line.get_xdata()) == 1]
    for line, tokens in zip(curves, WINDOWS, strict=True):
        np.testing.assert_allclose(line.get_ydata(), [kl_of(tokens, step) for step in range(200, 1201, 200)])
    np.testing.assert_allclose(minima, [[200, 0.1], [600, 0.1], [1200, 0.1]])
    assert [text.get_text() for text in divergence.texts] == ["n", "all", "3", "1"]
    places = [text.xyann[1] for text in divergence.texts[1:]]
    assert min(np.diff(places)) >= pcfg_figures.GAP - 1e-9
    assert max(places) <= 1
    colour_of = dict(zip(WINDOWS, [line.get_color() for line in curves], strict=True))
    assert [text.get_color() for text in divergence.texts[1:]] == [colour_of[None], colour_of[3], colour_of[1]]

    np.testing.assert_allclose(lines_of(robust)["n = 2"], [0.25, 1, 0.5, 0.125, 0.075, 0.05])
    np.testing.assert_allclose(lines_of(robust)["n = 3"], [0.2, 0.4, 0.6, 0.8, 1, 0.4])
    peaks = {line.get_label(): line.get_markevery() for line in robust.lines if line.get_label().startswith("n =")}
    assert peaks == {"n = 2": [1], "n = 3": [4]}
    falls = [line.get_xydata()[0].tolist() for line in robust.lines if len(line.get_xdata()) == 1]
    assert falls == [[1000, pytest.approx(0.075)]]
    assert next(line.get_color() for line in robust.lines if line.get_label() == "n = 3") == colour_of[3]
    for axis in figure.axes:
        assert shaded(axis) == [data["phases"]["start"]]
        assert axis.get_xlim() == (200, 1200)
    data["ngrams"]["medians"][0] = [0.0] * 6
    np.testing.assert_allclose(lines_of(pcfg_figures.windows(data).axes[1])["n = 2"], 0)


def test_nonterminals_are_drawn_level_by_level(made_up):
    data = collect(made_up, "PCFG_mlm")
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
    (axis,) = pcfg_figures.nonterminals(collect(made_up, "PCFG_mlm")).axes
    assert "Bayes-optimal" in lines_of(axis)
    drawn = [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "-." and len(line.get_ydata())]
    assert drawn == [0.99, 0.98]


OTHER_TASK = {"label_level": 2, "grammar": "cfg3b"}
OTHER_STUDENTS = (
    r"python -m PCFG_autoregressive.distill laptop --label-level 2 --grammar cfg3b --steps 500 1000 "
    r"--teacher \S+/at_depth_2$"
)


@pytest.fixture
def made_up_gpt2(tmp_path, monkeypatch):
    """The same runs of GPT-2, and some on cfg3b with labels at depth 2 whose accuracies are 0.5 higher."""
    runs = make_up_pcfg(tmp_path / "runs", PCFG_autoregressive, monkeypatch, label_level="all")
    make_up_generation(runs / "teacher")
    task = {**OTHER_TASK, "teacher_range": None}
    for place, method in enumerate(METHODS):
        for steps in (500, 1000):
            directory, accuracy = runs / "depth_2" / f"{method}_{steps}", 0.5 + 0.1 * place + steps / 1e4
            make_up_student(directory, PCFG_autoregressive, method, steps, 0, accuracy, "at_depth_2", task)
    other = replace(PCFG_autoregressive.train.PRESETS["laptop"], **OTHER_TASK, checkpoint_every=100)
    make_up_teacher(runs / "at_depth_2", PCFG_autoregressive, [0.95] * 3, other)
    best = {"loss": 0.01, "accuracy": 0.99, "expected_accuracy": 0.99, "without_label": {"loss": 1, "accuracy": 0.5}}
    write(runs / "at_depth_2" / "probes" / "bayes_optimal.json", {"argv": ["probe", "depth 2"], **best})
    return runs


def make_up_generation(run):
    accepted = [{"step": step, "accepted": step / 1e4} for step in range(200, 1201, 200)]
    make_up_checkpoints(run, range(200, 1201, 200))
    settings = {"seed": 0, "continuations": 500, "given": None, "tokens": 100, "batch_size": 250}
    content = {"argv": ["probe", "generation"], "settings": settings, "given": 50, "checkpoints": accepted}
    write(run / "probes" / "generation.json", content)


def test_gpt2_data_on_pcfg_are_those_of_the_runs(made_up_gpt2):
    data = collect(made_up_gpt2, "PCFG_autoregressive")
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
        "train teacher",
        *("probe best", "probe ngrams", "probe windows", "probe generation"),
        "distill students of teacher",
        *("distill 200 of teacher", "distill inside of teacher", "distill 1000 of teacher"),
        *("train at_depth_2", "probe 'depth 2'", "distill students of at_depth_2"),
    ]


def test_a_model_of_all_tokens_generates_where_the_preset_has_labels_at_a_depth(tmp_path, monkeypatch):
    runs = make_up_pcfg(tmp_path / "runs", PCFG_autoregressive, monkeypatch, label_level=2)
    (error,) = what_is_missing(runs, "PCFG_autoregressive").values()
    assert str(error).endswith("python -m PCFG_autoregressive.train laptop --label-level all")
    preset = PCFG_autoregressive.train.PRESETS["laptop"]
    of_all_tokens = replace(preset, label_level="all", checkpoint_every=200, eval_every=100)
    make_up_teacher(runs / "probed", PCFG_autoregressive, [0.9] * 13, of_all_tokens)
    (error,) = what_is_missing(runs, "PCFG_autoregressive").values()
    assert re.search(r"PCFG_autoregressive.probe generation --run \S+/probed$", str(error))

    make_up_generation(runs / "probed")
    another = replace(preset, label_level="all", checkpoint_every=400)
    make_up_teacher(runs / "not_probed", PCFG_autoregressive, [0.9] * 13, another)
    data = collect(runs, "PCFG_autoregressive")
    assert data["generation"]["accepted"][0] == 0.02
    assert data["other_tasks"] == []
    assert data["commands"][4:6] == ["train probed", "probe generation"]

    make_up_generation(runs / "not_probed")
    (error,) = what_is_missing(runs, "PCFG_autoregressive").values()
    assert "are both a teacher of all tokens" in str(error)
    assert not is_missing(error)


@pytest.mark.parametrize(
    ("missing", "part", "command"),
    [
        ("teacher/probes/generation.json", "generation", r"PCFG_autoregressive.probe generation --run \S+/teacher"),
        ("teacher/probes/bayes_optimal.json", "bayes_optimal", r"probe bayes-optimal --run \S+/teacher$"),
        ("at_depth_2/probes/bayes_optimal.json", "other_tasks", r"probe bayes-optimal --run \S+/at_depth_2$"),
        ("depth_2/one-shot_500", "other_tasks", OTHER_STUDENTS),
        ("taught/ce_500_1", "students", "python -m PCFG_autoregressive.distill laptop$"),
        ("two-shot_*", "two_shot", "python -m PCFG_autoregressive.distill laptop --methods two-shot"),
    ],
)
def test_a_missing_run_or_probe_of_gpt2_is_named_with_its_command(made_up_gpt2, missing, part, command):
    for path in list(made_up_gpt2.glob(missing)):
        remove(path, made_up_gpt2)
    ((found, error),) = what_is_missing(made_up_gpt2, "PCFG_autoregressive").items()
    assert found == part
    assert re.search(command, str(error))


def test_the_figures_of_gpt2_on_pcfg_draw_the_data(made_up_gpt2):
    data = collect(made_up_gpt2, "PCFG_autoregressive")
    depth, every = pcfg_figures.overview(data).axes
    titles = [axis.get_title(loc="left") for axis in (depth, every)]
    assert titles == ["cfg3b, ends at depth 2", "cfg3f, next tokens"]
    np.testing.assert_allclose(lines_of(depth)["progressive"], [0.75, 0.8])
    np.testing.assert_allclose(lines_of(every)["progressive"], [0.26, 0.31, 0.41])
    for axis, best, teacher in ((depth, 0.99, "teacher, 200 steps"), (every, 0.98, "teacher, 1.2k steps")):
        levels = [line.get_ydata()[0] for line in axis.lines if list(line.get_xdata()) == [0, 1]]
        assert levels[1] == best
        assert [text.get_text() for text in axis.texts] == [teacher, "Bayes-optimal"]
    (axis,) = pcfg_figures.overview({**data, "other_tasks": []}).axes
    assert axis.get_title(loc="left") == "cfg3f, next tokens"

    (axis,) = pcfg_figures.generation(data).axes
    np.testing.assert_allclose(lines_of(axis)["teacher"], data["generation"]["accepted"])
    assert shaded(axis) == [data["phases"]["start"]]
    assert (axis.get_xlim(), axis.get_ylim()) == ((200, 1200), (0, 1))
    assert axis.get_title(loc="left") == "cfg3f, 50 tokens given, 100 written"


TEXT_SOFT_LOSSES = [8, 5.5, 5.2, 5.1, 5, 4.2, 3.3, 3.1, 3.05, 3, 2.99, 2.98, 2.97]
"""Against the logarithm of the step: a descent, a plateau, and a drop."""
TEXT = {"text_mlm": text_mlm, "text_autoregressive": text_autoregressive}


@pytest.fixture(params=sorted(TEXT))
def made_up_text(request, tmp_path):
    """Runs of a laptop preset whose students' accuracies say who they are."""
    setting, runs = request.param, tmp_path / "runs"
    identity = {"documents": ["0" * 64], "tokenizer_sha256": "1" * 64}
    arguments = asdict(TEXT[setting].train.PRESETS["laptop"])
    make_up_run(
        runs / "teacher", setting, [0.4] * 13, TEXT_SOFT_LOSSES, ["train", "teacher"], **{**arguments, **identity}
    )
    probed = range(200, 1201, 200)
    make_up_checkpoints(runs / "teacher", probed)
    for unit, size in (("token", 1), ("word", 2)):
        medians = {step: size * min(step, 1800 - step) / 1e3 for step in probed}
        content = {
            "argv": ["probe", unit],
            "settings": {"sizes": [3], "unit": unit},
            "checkpoints": [
                {"step": step, "pairs": 8, "robust": quartiles(0, median, 1)} for step, median in medians.items()
            ],
        }
        write(runs / "teacher" / "probes" / f"ngrams{'-unitword' if unit == 'word' else ''}.json", content)
    content = {
        "argv": ["probe", "models"],
        "ngrams": [{"n": n, "loss": 6 - n, "accuracy": n / 10} for n in (1, 2)],
        "checkpoints": [
            {
                "step": step,
                "ngrams": [
                    {"n": n, "positions": 8, "model_to_ngram": {"mean": abs(step - 400 * n) / 1e3}} for n in (1, 2)
                ],
            }
            for step in probed
        ],
    }
    write(runs / "teacher" / "probes" / "kneser_ney.json", content)
    preset = asdict(TEXT[setting].distill.PRESETS["laptop"])
    for seed in (0, 1, 2):
        for steps in preset["steps"]:
            for place, method in enumerate(METHODS):
                own = {"methods": [method], "steps": [steps], "seeds": [seed], "checkpoint": []}
                accuracies = [0, 0.1 * place + steps / 1e4 + seed / 100]
                argv = ["distill", method]
                name = runs / f"{method}_{steps}_{seed}"
                own |= {"teacher_id": "id of teacher", **identity}
                make_up_run(name, setting, accuracies, argv=argv, **{**preset, **own})
    return runs, setting


def test_text_data_are_those_of_the_runs(made_up_text):
    runs, setting = made_up_text
    data = collect(runs, setting)
    assert data["documents"] == ["0" * 16]
    assert data["teacher"]["loss"] == TEXT_SOFT_LOSSES
    assert 400 <= data["phases"]["start"] <= 500 <= data["phases"]["end"] <= 700
    progressive, steps = data["students"]["progressive"], TEXT[setting].distill.PRESETS["laptop"].steps
    assert (progressive["steps"], progressive["seeds"]) == ([*steps], [0, 1, 2])
    np.testing.assert_allclose(progressive["accuracy"][1], [0.21 + number / 1e4 for number in steps])
    medians = [0.2, 0.4, 0.6, 0.8, 0.8, 0.6]
    assert data["ngrams"]["medians"] == [medians]
    assert data["word_ngrams"]["medians"][0] == [2 * value for value in medians]
    assert data["kneser_ney"]["kl"] == [[0.2, 0, 0.2, 0.4, 0.6, 0.8], [0.6, 0.4, 0.2, 0, 0.2, 0.4]]
    assert data["commands"] == [
        *("train teacher", "probe token", "probe word", "probe models"),
        *(f"distill {method}" for method in METHODS),
    ]
    for part, path, command in (
        ("word_ngrams", "teacher/probes/ngrams-unitword.json", f"{setting}.probe ngrams .*/teacher --unit word$"),
        ("kneser_ney", "teacher/probes/kneser_ney.json", f"{setting}.probe kneser-ney --run .*/teacher$"),
        ("students", "ce_600_1/done.json", f"600 steps with seed 1; create it with python -m {setting}.distill laptop"),
    ):
        remove(runs / path, runs)
        assert re.search(command, str(what_is_missing(runs, setting)[part]))


def test_the_text_figures_draw_the_data(made_up_text):
    data = collect(*made_up_text)
    loss, robust, students = text_figures.curriculum(data).axes
    np.testing.assert_allclose(lines_of(loss)["teacher"], TEXT_SOFT_LOSSES[1:])  # step 0 has no logarithm
    np.testing.assert_allclose(lines_of(robust)["median and 25% to 75%"], data["ngrams"]["medians"][0])
    mean = [0.21 + steps / 1e4 for steps in data["students"]["progressive"]["steps"]]
    np.testing.assert_allclose(lines_of(students)["progressive"], mean)
    for axis in (loss, robust):
        assert shaded(axis) == [data["phases"]["start"]]
    assert not shaded(students)

    models, tokens, words = text_figures.contexts(data).axes
    np.testing.assert_allclose(lines_of(tokens)["n = 3"], data["ngrams"]["medians"][0])
    np.testing.assert_allclose(lines_of(words)["n = 3"], data["word_ngrams"]["medians"][0])
    np.testing.assert_allclose(lines_of(models)["n = 1"], data["kneser_ney"]["kl"][0])
    assert {axis.get_xlim() for axis in (tokens, words, models)} == {(200, 1200)}


def test_exported_runs_are_those_of_a_setting_and_preset_with_fewer_records(made_up_parity, tmp_path):
    runs, parity = made_up_parity
    make_up_run(runs / "another_preset", parity.setting, [0.5], preset="smoke")
    make_up_run(runs / "another_setting", "another", [0.5], preset="laptop")
    arguments = export_runs.Arguments(runs, parity.setting, "laptop", every=1500, out=tmp_path / "out")
    export_runs.main(arguments)
    names = {"teacher", *(f"{method}_{seed}" for method in STUDENTS for seed in (0, 1, 2))}
    assert {path.name for path in arguments.out.iterdir()} == names
    exported = arguments.out / "teacher"
    assert (exported / "config.json").read_bytes() == (runs / "teacher" / "config.json").read_bytes()
    records = [json.loads(line) for line in (exported / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 1500, 3000, 4000]
    for changed, message in (
        ({"every": 0}, "--every must be at least 1"),
        ({"runs": runs / "typo"}, f"{runs / 'typo'}"),
        ({"preset": "paper"}, f"no complete run of {parity.setting} paper"),
    ):
        with pytest.raises(UserError, match=message):
            export_runs.main(replace(arguments, **changed))
    shutil.copytree(runs / "teacher", runs / "deep" / "teacher")
    with pytest.raises(UserError, match="same name"):
        export_runs.main(arguments)


@pytest.fixture(scope="module")
def kernel(one_torch_thread):
    """A client whose process imports torch once for all notebooks."""
    client = NotebookClient(
        nbformat.v4.new_notebook(), timeout=300, resources={"metadata": {"path": str(ROOT / "figures")}}
    )
    with client.setup_kernel():
        yield client


@pytest.mark.parametrize("path", sorted((ROOT / "figures").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run_and_print_what_is_committed(path, kernel):
    committed = nbformat.read(path, as_version=4)
    again = nbformat.read(path, as_version=4)
    kernel.nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("%reset -f"), *again.cells])
    for number, cell in enumerate(kernel.nb.cells):
        kernel.execute_cell(cell, number)
    assert printed(again) == printed(committed)
    assert not printed(committed, "stderr")  # warnings, with paths of one machine in them
    assert any("image/png" in output.get("data", {}) for cell in again.cells for output in cell.get("outputs", []))


def printed(notebook, stream="stdout"):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output["text"] for output in outputs if output.get("name") == stream)
