"""What distillation is worth by the teacher's plateau: made-up data and runs against numbers computed by hand."""

import importlib
import json
import math
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import plateaus
import pytest
import studies
from finding_runs import MissingError, find_runs
from paired_students import steps_to_reach
from plateau_data import collect
from plateaus import describe, draw, plateau_of, steps_saved
from studies import markdown

import PCFG_autoregressive.distill
import PCFG_autoregressive.probe
import PCFG_autoregressive.train
import PCFG_autoregressive.training
from common.errors import UserError
from common.language_models.setting import config_of, task_of
from tests.commands import ROOT, succeed
from tests.made_up_runs import make_up_run, write

BUDGETS = [300, 600, 1200, 2400]
SWEEP = {"budgets": BUDGETS, "budget": 600, "teacher_range": [1, 650], "teacher_every": 12}
LABELS = np.array([[0.4, 0.5, 0.6, 0.7], [0.5, 0.6, 0.7, 0.8]])
"""Of two seeds; each doubling of the steps adds 0.1."""
STEPS = [*range(0, 1300, 100)]
DROP = {knee: [1.0 if step <= knee else 0.0 for step in STEPS] for knee in (300, 500)}
"""A tenth of the drop is made ten steps after the knee."""
CONVEX = [0.5**number for number in range(13)]
ACCURACY = [0.1, *[0.8] * 12]


def made_up_task(losses, gain, grammar="cfg3f", label_level=1, accuracy=ACCURACY):
    """Progressive students are above those of the labels with the same steps by `gain`, one-shot students by 0."""
    return {
        "teacher": {
            "arguments": {"label_level": label_level, "grammar": grammar, "start": "18", "steps": 1200, "seed": 3},
            "steps": STEPS,
            "loss": losses,
            "accuracy": accuracy,
        },
        "best": 0.9,
        "seeds": [30, 31],
        "accuracy": {
            "ce": LABELS.tolist(),
            "one-shot": LABELS[:, 1:2].tolist(),
            "progressive": (LABELS[:, 1:2] + gain).tolist(),
        },
    }


@pytest.fixture
def data():
    """Gains of 0.1 and of more than CE reaches with plateaus, and of -0.05 and 0 without; two tasks of no known one."""
    tasks = [
        made_up_task(CONVEX, -0.05, label_level="all"),
        made_up_task(CONVEX, 0.0, "cfg3b", "all"),
        made_up_task(DROP[300], 0.1),
        made_up_task(DROP[500], 0.3, "cfg3b"),
        made_up_task(CONVEX, 0.1, label_level=2, accuracy=[0.1, *[0.4] * 12]),
        made_up_task([1.0] * 12 + [0.0], 0.1, "cfg3b", 2),
    ]
    return {
        "preset": "laptop",
        "settings": {"PCFG_autoregressive": {**SWEEP, "tasks": tasks}},
    }


def found_of(data):
    return data["settings"]["PCFG_autoregressive"]


def test_plateaus_end_where_the_transition_starts(data):
    assert [plateau_of(task) for task in found_of(data)["tasks"]] == [0, 0, pytest.approx(310), 510, None, None]


@pytest.mark.parametrize(("final", "plateau"), [(0.49, None), (0.51, 0)])
def test_a_teacher_without_a_transition_has_had_no_plateau_if_it_has_come_half_of_the_way(final, plateau):
    assert plateau_of(made_up_task(CONVEX, 0, accuracy=[0.1, *[final] * 12])) == plateau


def test_steps_saved_are_those_of_the_labels_for_equal_accuracy(data):
    found = found_of(data)
    expected = [2**-0.5, 1, 2, math.inf]
    for task, ratio in zip(found["tasks"], expected, strict=False):
        assert steps_saved(found, task, "progressive") == (pytest.approx(ratio), pytest.approx([ratio, ratio]))
        assert steps_saved(found, task, "one-shot") == (pytest.approx(1), pytest.approx([1, 1]))
    below = made_up_task(CONVEX, -0.2)
    assert steps_saved(found, below, "progressive") == (0, [0, 0])
    below["accuracy"]["progressive"] = [[0.55], [0.55]]  # steps for it are 600 * 2**0.5 and 300 * 2**0.5 by seed
    middle, by_seed = steps_saved(found, below, "progressive")
    assert by_seed == pytest.approx([2**0.5, 2**-0.5])
    assert middle == steps_to_reach(BUDGETS, LABELS.mean(axis=0), np.array([0.55]))[0] / 600 == pytest.approx(1)


def test_statements_and_table(data):
    finding = describe(data)
    rising, saving, rising_one_shot, saving_one_shot, advantage = finding.verdicts
    assert rising.statement == (
        "The longer the teacher's plateau, the more steps progressive students save (PCFG_autoregressive)"
    )
    # ranks 1.5, 1.5, 3, 4 and 1 to 4: of 24 orders, two give this sum and two its opposite
    assert rising.numbers == f"Spearman's rho = +{4.5 / math.sqrt(4.5 * 5):.2f}, p = 0.17, n = 4"
    assert (saving.numbers, saving.holds) == ("on 2 of 2 tasks with a plateau, 0 of 2 tasks without", True)
    assert rising_one_shot.numbers.startswith("not tested: a rank correlation needs at least two different values")
    assert (saving_one_shot.numbers, saving_one_shot.holds) == (
        "on 0 of 2 tasks with a plateau, 0 of 2 tasks without",
        False,
    )
    assert advantage.statement.startswith(
        "The longer the teacher's plateau, the further progressive students end above"
    )
    assert advantage.numbers == rising.numbers
    (table,) = finding.tables
    assert len(table.rows) == 6
    row = ["ends at depth 1", "310", "0.800", "0.900", "0.550 (0.500 to 0.600)", "0.650 (0.600 to 0.700)"]
    assert table.rows[2] == [
        "cfg3f",
        "18",
        *row,
        "0.550 (0.500 to 0.600)",
        "2.00 (2.00 to 2.00)",
        "1.00 (1.00 to 1.00)",
    ]
    assert table.rows[3][-2] == "above 4 (above 4 to above 4)"
    assert [row[3] for row in table.rows] == ["0", "0", "310", "510", "not over", "not over"]
    lines = markdown(finding).splitlines()
    assert f"* {saving.statement}: yes ({saving.numbers})" in lines
    assert f"| {' | '.join(table.rows[2])} |" in lines


def test_a_long_plateau_that_saves_more_on_many_tasks_is_said_to_do_so(data):
    gains = {knee: 0.02 * number for number, knee in enumerate((300, 500))}
    tasks = [made_up_task(DROP[knee], gain + 0.01) for knee, gain in gains.items() for _ in range(4)]
    found_of(data)["tasks"] = tasks
    assert [verdict.holds for verdict in describe(data).verdicts] == [True, True, False, False, True]


def points(axis):
    return {
        (line.get_marker(), line.get_color()): (line.get_xdata()[0], line.get_ydata()[0])
        for line in axis.lines
        if line.get_linestyle() == "None" and len(line.get_xdata())
    }


def test_the_figure_has_a_point_for_each_task_whose_plateau_is_known(data):
    found_of(data)["tasks"][2]["accuracy"]["progressive"] = [[0.5], [0.8]]
    progressive, one_shot = draw(data).axes
    expected = [(-0.06 * 510, 2**-0.5), (-0.03 * 510, 1), (310, 2), (510, 4)]
    np.testing.assert_allclose(sorted(points(progressive).values()), expected)
    np.testing.assert_allclose([y for _, y in points(one_shot).values()], 1)
    ranges = [
        line.get_ydata() for line in progressive.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 2
    ]
    np.testing.assert_allclose(ranges[2], [1, 4])  # one seed needs the steps of CE, the other the largest budget
    assert [[text.get_text() for text in axis.texts] for axis in (progressive, one_shot)] == [["", "none"], ["none"]]
    assert {marker for marker, _ in points(progressive)} == {"o", "s"}
    (legend,) = progressive.figure.legends
    names = ["cfg3b", "cfg3f", "ends at depth 1", "ends at depth 2", "next tokens"]
    assert [text.get_text() for text in legend.get_texts()] == names


def test_two_settings_have_a_column_each(data):
    masked = made_up_task(DROP[300], 0.1)
    del masked["teacher"]["arguments"]["label_level"]
    data["settings"]["PCFG_mlm"] = {**SWEEP, "tasks": [masked]}
    titles = [axis.get_title(loc="left") for axis in draw(data).axes]
    assert titles == [
        f"{setting}: {method}"
        for method in ("progressive", "one-shot")
        for setting in ("PCFG_autoregressive", "PCFG_mlm")
    ]
    assert describe(data).verdicts[5].numbers.startswith("not tested")
    assert describe(data).tables[1].rows[0][2] == "masked tokens"


def test_committed_data_make_the_committed_figures(tmp_path):
    for path in (ROOT / "figures" / "data" / "plateaus").glob("*.json"):
        plateaus.main(studies.StudyArguments(preset=path.stem, out=tmp_path))
        name = f"figure_plateaus_{path.stem}.png"
        assert (tmp_path / name).exists() == (ROOT / "figures" / name).exists()


def test_data_that_are_not_there_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "FIGURES", tmp_path)
    with pytest.raises(MissingError, match=r"has no data/plateaus/paper.json: give --runs"):
        plateaus.main(studies.StudyArguments(preset="paper"))
    with pytest.raises(MissingError, match=r"scripts/sweep_plateaus.sh PCFG_autoregressive paper$"):
        plateaus.main(studies.StudyArguments(runs=tmp_path, preset="paper"))


SETTING = PCFG_autoregressive.training.SETTING
TASKS = (1, "all")
METHODS = ("ce", "one-shot", "progressive")


def resolved(arguments):
    return config_of(arguments, task_of(arguments, SETTING), SETTING)


def accuracy_of(level, method, steps, seed):
    return round(0.1 * (level == "all") + 0.2 * METHODS.index(method) + steps / 1e4 + seed / 1e3, 5)


def make_up_student(directory, level, method, steps, seed, **others):
    task = {"grammar": "cfg3b", "start": "18", "label_level": level}
    schedule = {} if method == "ce" else {"teacher_range": (1, 650), "teacher_every": 12}
    arguments = resolved(replace(PCFG_autoregressive.distill.PRESETS["laptop"], **task, **schedule))
    own = {
        "methods": [method],
        "steps": [steps],
        "seeds": [seed],
        "checkpoint": [],
        "teacher_id": f"id of teacher{level}",
    }
    accuracies = [0, accuracy_of(level, method, steps, seed)]
    make_up_run(directory, SETTING.name, accuracies, argv=["distill", method], **{**arguments, **own, **others})


@pytest.fixture
def made_up(tmp_path):
    """Runs of a sweep on two tasks whose students' accuracies say who they are, and teachers that do not count."""
    preset = PCFG_autoregressive.train.PRESETS["laptop"]
    for level in (*TASKS, 2):
        task = {"grammar": "cfg3b", "start": "18", "label_level": level}
        arguments = resolved(replace(preset, **task, seed=3))
        make_up_run(tmp_path / f"teacher{level}", SETTING.name, ACCURACY, DROP[300], ["train", str(level)], **arguments)
        write(tmp_path / f"teacher{level}" / "probes" / "bayes_optimal.json", {"argv": ["probe"], "accuracy": 0.9})
    for level in TASKS:
        for seed in (30, 31):
            for steps in BUDGETS:
                make_up_student(tmp_path / f"ce_{level}_{steps}_{seed}", level, "ce", steps, seed)
            for method in METHODS[1:]:
                make_up_student(tmp_path / f"{method}_{level}_{seed}", level, method, 600, seed)
    return tmp_path


def test_data_are_those_of_the_runs(made_up):
    data = collect(find_runs(made_up), "laptop")
    assert data["preset"] == "laptop"
    (found,) = data["settings"].values()
    assert (found["budgets"], found["budget"]) == (BUDGETS, 600)
    assert (found["teacher_range"], found["teacher_every"]) == ([1, 650], 12)
    assert found["commands"] == [
        "train 1",
        "probe",
        "distill ce",
        "distill one-shot",
        "distill progressive",
        "train all",
    ]
    assert [task["teacher"]["arguments"]["label_level"] for task in found["tasks"]] == [*TASKS]
    for task, level in zip(found["tasks"], TASKS, strict=True):
        assert (task["seeds"], task["best"], task["teacher"]["loss"]) == ([30, 31], 0.9, DROP[300])
        for method in METHODS:
            budgets = BUDGETS if method == "ce" else [600]
            expected = [[accuracy_of(level, method, steps, seed) for steps in budgets] for seed in (30, 31)]
            assert task["accuracy"][method] == expected


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("ce_1_2400_31", "no complete run of ce students of .*teacher1 and 2400 steps with seed 31; .*sweep_plateaus"),
        ("one-shot_all_3?", "no complete run of one-shot students of .*teacherall and 600 steps; .*sweep_plateaus"),
        ("progressive_1_31", "ce and progressive students of .*teacher1 have different seeds; .*sweep_plateaus"),
        ("teacher1/probes/*", r"python -m PCFG_autoregressive.probe bayes-optimal --run .*/teacher1$"),
    ],
)
def test_a_missing_run_or_probe_is_named_with_its_command(made_up, missing, message):
    for path in made_up.glob(missing):
        path.rename(made_up.with_name(f"removed-{made_up.name}-{path.name}"))
    with pytest.raises(MissingError, match=message):
        collect(find_runs(made_up), "laptop")


def test_points_that_are_ambiguous_are_refused(made_up):
    make_up_student(made_up / "another", 1, "progressive", 1200, 30)
    with pytest.raises(UserError, match="have 600 and 1200 steps: keep only those of one budget") as raised:
        collect(find_runs(made_up), "laptop")
    assert not isinstance(raised.value, MissingError)


def test_schedules_that_differ_are_refused(made_up):
    make_up_student(made_up / "another", 1, "progressive", 600, 32, teacher_every=50)
    with pytest.raises(UserError, match="progressive students of PCFG_autoregressive laptop have different schedules"):
        collect(find_runs(made_up), "laptop")


@pytest.mark.slow
def test_the_smoke_sweep_becomes_a_figure(tmp_path, monkeypatch, capsys, one_torch_thread):
    monkeypatch.chdir(tmp_path)
    script = [ROOT / "scripts" / "sweep_plateaus.sh", "PCFG_autoregressive", "smoke", "--dry-run"]
    for line in subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines():
        _, _, name, *words = shlex.split(line, comments=True)
        succeed(capsys, importlib.import_module(name).main, *words)
        if name.endswith("train"):
            succeed(capsys, PCFG_autoregressive.probe.main, "bayes-optimal", "--run", words[-1])
    plateaus.main(studies.StudyArguments(runs=Path("runs"), preset="smoke"))
    picture, *text = capsys.readouterr().out.splitlines()
    assert Path(picture).read_bytes().startswith(b"\x89PNG\r\n")
    assert sum(line.startswith("| small |") for line in text) == 2
    data = json.loads((tmp_path / "runs" / "figures" / "data" / "plateaus" / "smoke.json").read_text())
    task = data["settings"]["PCFG_autoregressive"]["tasks"][1]
    assert task["teacher"]["arguments"]["label_level"] == "all"
    name = "plateaus-PCFG_autoregressive-smoke/small-13-all-distilled/progressive-heads2-steps40-seed31"
    records = (tmp_path / "runs" / "PCFG_autoregressive" / "sweeps" / name / "metrics.jsonl").read_text().splitlines()
    assert task["accuracy"]["progressive"][1] == [pytest.approx(json.loads(records[-1])["accuracy"], abs=1e-5)]
