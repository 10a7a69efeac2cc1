"""What a first target must have: made-up runs and data against numbers computed by hand, and the smoke sweep."""

import importlib
import json
import shlex
import subprocess
from dataclasses import asdict
from pathlib import Path

import designed
import pytest
from designed import collect_designed as collect, describe, draw, label_of, main_groups
from finding_runs import MissingError, find_runs

import parity_mlp.distill
import PCFG_mlm.distill
from common.errors import UserError
from common.pcfg import window_targets
from tests.commands import ROOT, succeed
from tests.made_up_runs import make_up_run

SEEDS = range(40, 46)
AT_ONCE, LATE, NEVER = [0.5, 0.96, 1.0, 1.0], [0.5, 0.7, 0.7, 0.96], [0.5, 0.5, 0.9, 0.5]
"""Accuracies; evaluations are 100 steps apart."""


def make_up(place, package, setting, method, accuracies, seed=40, singular=(), **changed):
    """A student of a package's laptop preset."""
    usual = asdict(package.PRESETS["laptop"])
    one = {name: usual[name][:1] for name in ("widths", "student_heads", "lr") if isinstance(usual.get(name), tuple)}
    arguments = {**usual, **one, "methods": [method], "seeds": [seed], "checkpoint": [], "first_steps": 100}
    arguments |= {"teacher_id": "id of teacher", **changed}
    name = "-".join(str(part) for part in (method, *changed.values(), seed)).replace("/", "")
    make_up_run(place / name, setting, accuracies, **json.loads(json.dumps(arguments, default=str)))


@pytest.fixture
def parity(tmp_path):
    """Degree 1 passes at once with all seeds, or late with one of them; other coordinates and the labels never."""
    make_up_run(tmp_path / "teacher", "parity_mlp", [0.5, 1.0], seed=7)
    for seed in SEEDS:
        make_up(tmp_path, parity_mlp.distill, "parity_mlp", "ce", NEVER, seed)
        for coordinates, then in (("support", "labels"), ("support", "teacher"), ("others", "labels")):
            accuracies = NEVER if coordinates == "others" else LATE if (then, seed) == ("teacher", 43) else AT_ONCE
            given = {"monomials": ["1:0.16"], "coordinates": coordinates, "then": then}
            make_up(tmp_path, parity_mlp.distill, "parity_mlp", "designed", accuracies, seed, **given)
    return tmp_path


def groups_by(data, **arguments):
    return [group for group in data["groups"] if arguments.items() <= group["arguments"].items()]


def test_students_are_grouped_by_how_they_are_supervised(parity):
    data = collect(find_runs(parity), "parity_mlp", "laptop")
    assert [(group["method"], group["arguments"].get("then")) for group in data["groups"]] == [
        ("ce", None),
        ("designed", "labels"),
        ("designed", "labels"),
        ("designed", "teacher"),
    ]
    (taught,) = groups_by(data, then="teacher")
    assert taught["steps"] == 600_000
    assert (taught["first_steps"], taught["teacher_steps"]) == (100, 599_900)
    assert [run["seed"] for run in taught["runs"]] == [*SEEDS]
    late = {"teacher": 7, "stream": 1000, "seed": 43, "passed": 300, "at_switch": 0.7, "accuracy": 0.96}
    assert taught["runs"][3] == late
    (own, other) = groups_by(data, then="labels")
    assert {run["teacher"] for group in (own, other) for run in group["runs"]} == {None}
    assert [group["teacher_steps"] for group in (own, other)] == [0, 0]


def test_statements_are_sign_tests_over_seeds(parity):
    data = collect(find_runs(parity), "parity_mlp", "laptop") | {"first_steps": 100}
    finding = describe(data)
    at_once, late = ("+0.500, 95% interval +0.500 to +0.500", "+0.493, 95% interval +0.460 to +0.500")
    assert [(verdict.statement, verdict.holds, verdict.numbers) for verdict in finding.verdicts] == [
        (
            f"Students of degree 1 on the support, then the {then}, pass 95% before {than}",
            True,
            f"6 of 6 seeds; p = 0.031; final accuracy: mean difference {difference}; 6 of 6 pairs; p = 0.031",
        )
        for then, than, difference in (
            ("labels", "those of degree 1 on other coordinates", at_once),
            ("labels", "those of the labels alone", at_once),
            ("final teacher", "those of the labels alone", late),
        )
    ]
    (table,) = finding.tables
    rows = {(row[0], row[1], row[2]): row[3:] for row in table.rows}
    assert rows["degree 1", "", "teacher"] == ["100", "0.917 (0.700 to 0.960)", "0.993 (0.960 to 1.000)", PASSED]
    assert rows["degree 1", "others", "labels"][-1] == ", ".join(["–"] * 6)
    assert rows["cross entropy", "", ""][:2] == ["–", ""]


PASSED = "100, 100, 100, 300, 100, 100"


def test_a_target_that_does_not_help_is_said_not_to(parity):
    for seed in SEEDS:
        for coordinates in ("support", "others"):
            given = {"monomials": ["3:0.16"], "coordinates": coordinates, "then": "labels"}
            make_up(parity, parity_mlp.distill, "parity_mlp", "designed", NEVER, seed, **given)
    data = collect(find_runs(parity), "parity_mlp", "laptop") | {"first_steps": 100}
    verdicts = [verdict for verdict in describe(data).verdicts if "degree 3" in verdict.statement]
    assert [verdict.holds for verdict in verdicts] == [False] * 2
    assert all(verdict.numbers.startswith("0 of 6 seeds; p = 1; ") for verdict in verdicts)
    assert [label_of(group) for group in main_groups(data)] == [
        *("cross entropy", "degree 1", "degree 1", "degree 3", "others: degree 1", "others: degree 3")
    ]


def test_weights_and_durations_are_counted(parity):
    for seed in SEEDS:
        for weight, first_steps in (("0.04", 100), ("0.04", 200), ("0.16", 200)):
            accuracies = AT_ONCE if (weight, first_steps) != ("0.04", 100) or seed == 42 else NEVER
            given = {"monomials": [f"1:{weight}"], "coordinates": "support", "then": "labels"}
            make_up(
                parity, parity_mlp.distill, "parity_mlp", "designed", accuracies, seed, **given, first_steps=first_steps
            )
    data = collect(find_runs(parity), "parity_mlp", "laptop") | {"first_steps": 100}
    weights, durations, passed, most = designed._durations(data)
    assert (weights, durations, passed.tolist(), most) == ([0.04, 0.16], [100, 200], [[1, 6], [6, 6]], 6)
    assert len(draw(data).axes) == 2
    assert {label_of(group) for group in main_groups(data)} == {"cross entropy", "degree 1", "others: degree 1"}


def test_on_grammars_final_accuracies_are_compared(tmp_path):
    for seed in SEEDS:
        extra = 0.001 * seed
        make_up(tmp_path, PCFG_mlm.distill, "PCFG_mlm", "ce", [0.5, 0.6 + extra], seed, steps=[700])
        for source, gain in (("grammar", 0.02), ("cfg3f:18", -0.01)):
            given = {"windows": ["3+5"], "windows_of": source, "windows_with": ["position"], "then": "labels"}
            final = 0.6 + gain + extra
            make_up(tmp_path, PCFG_mlm.distill, "PCFG_mlm", "designed", [0.5, final], seed, steps=[700], **given)
    data = collect(find_runs(tmp_path), "PCFG_mlm", "laptop") | {"first_steps": 100}
    assert [(verdict.statement, verdict.numbers) for verdict in describe(data).verdicts] == [
        (
            f"Students of windows of 3, 5 of the grammar, then the labels, end above {than}",
            f"mean difference {gain}, 95% interval {gain} to {gain}; 6 of 6 pairs; p = 0.031",
        )
        for than, gain in (("those of cfg3f:18: windows of 3, 5", "+0.030"), ("those of the labels alone", "+0.020"))
    ]
    assert len(draw(data).axes) == 1


def test_students_of_another_preset_or_size_do_not_count(parity):
    expected = collect(find_runs(parity), "parity_mlp", "laptop")
    for changed in ({"widths": [20]}, {"k": 5}, {"lr": [0.5]}, {"preset": "paper"}):
        make_up(parity, parity_mlp.distill, "parity_mlp", "ce", NEVER, 45, **changed)
    make_up(parity, parity_mlp.distill, "parity_mlp", "ce", NEVER, 50)
    assert collect(find_runs(parity), "parity_mlp", "laptop") == expected


def test_missing_and_ambiguous_runs_are_refused(parity, tmp_path):
    with pytest.raises(
        MissingError, match=r"no such students of parity_mlp paper; .*scripts/sweep_designed.sh parity_mlp pap"
    ):
        collect(find_runs(parity), "parity_mlp", "paper")
    make_up(parity / "copy", parity_mlp.distill, "parity_mlp", "ce", NEVER, 40)
    with pytest.raises(UserError, match=r"ce.* with teacher -1, stream 1000 and seed 40: keep only one of them"):
        collect(find_runs(parity), "parity_mlp", "laptop")


def test_a_teacher_elsewhere_is_missed(parity):
    (parity / "teacher").rename(parity.parent / "elsewhere")
    with pytest.raises(MissingError, match=r"the teacher of .*designed-.*, , is not in the directory of runs"):
        collect(find_runs(parity), "parity_mlp", "laptop")


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["parity_mlp", "PCFG_mlm"])
def test_the_smoke_sweep_becomes_a_figure(setting, tmp_path, monkeypatch, capsys, one_torch_thread):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(window_targets, "SENTENCES", 4096)
    script = [ROOT / "scripts" / "sweep_designed.sh", setting, "smoke", "--dry-run"]
    for line in subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines():
        _, _, name, *words = shlex.split(line, comments=True)
        succeed(capsys, importlib.import_module(name).main, *words)
    designed.main(designed.Arguments(setting=setting, runs=Path("runs"), preset="smoke"))
    picture, *text = capsys.readouterr().out.splitlines()
    assert Path(picture).read_bytes().startswith(b"\x89PNG\r\n")
    assert sum(line.startswith("* Students of ") for line in text) >= 4


def test_committed_data_are_drawn(tmp_path):
    paths = sorted((ROOT / "figures" / "data" / "designed").glob("*.json"))
    for path in paths:
        setting, _, preset = path.stem.rpartition("_")
        designed.main(designed.Arguments(setting=setting, preset=preset, out=tmp_path))
        assert (tmp_path / f"figure_designed_{path.stem}.png").read_bytes().startswith(b"\x89PNG\r\n")
