"""The table of all methods, from made-up runs."""

import methods
import pytest
from finding_runs import find_runs
from method_data import collect
from methods import describe, parse

import parity_mlp.distill
from common.errors import UserError
from tests.commands import ROOT
from tests.made_up_runs import make_up_run
from tests.test_designed import make_up

SEEDS = range(50, 55)
PASSING = {at: [0.5] * at + [0.96] * (9 - at) for at in range(1, 9)}
"""Accuracies that pass at 100 times as many steps."""


@pytest.fixture
def runs(tmp_path):
    """Two teachers; automatic students pass at 200 and 400, two-shot at 600, those of the labels never."""
    for number, teacher in enumerate((5, 6)):
        make_up_run(tmp_path / f"teacher{teacher}", "parity_mlp", [0.5, 1.0], seed=teacher)
        for seed in SEEDS:
            given = {"teacher_id": f"id of teacher{teacher}"}
            passes = PASSING[2 + 2 * number]
            make_up(tmp_path, parity_mlp.distill, "parity_mlp", "auto", passes, seed, **given)
            given["checkpoint"] = ["inside"]
            make_up(tmp_path, parity_mlp.distill, "parity_mlp", "two-shot", PASSING[6], seed, **given)
    for seed in SEEDS:
        make_up(tmp_path, parity_mlp.distill, "parity_mlp", "ce", [0.5] * 9, seed)
    return tmp_path


def collected(runs, changed=None):
    return collect(find_runs(runs), "parity_mlp", "laptop", "the sweep", SEEDS, changed)


def test_each_method_has_a_row_and_the_automatic_schedule_is_compared_with_all(runs):
    finding = describe(collected(runs))
    assert [row[:4] for row in finding.tables[0].rows] == [
        ["cross entropy", "5", "never", "0.500 (0.500 to 0.500)"],
        ["two-shot", "10", "600 (600 to 600)", "0.960 (0.960 to 0.960)"],
        ["auto", "10", "300 (200 to 400)", "0.960 (0.960 to 0.960)"],
    ]
    assert "2 teachers" in finding.tables[0].caption
    labels, two_shot = finding.verdicts
    assert labels.statement == "Students of the automatic schedule pass 95% before those of cross entropy"
    assert labels.numbers.startswith("not all students pass; 5 of 5 seeds; p = 0.062; ")
    assert two_shot.numbers.startswith("0.50 times the steps; 5 of 5 seeds; p = 0.062; ")
    assert two_shot.holds


def test_students_that_pass_are_counted_where_some_do_not(runs):
    make_up(runs / "longer", parity_mlp.distill, "parity_mlp", "ce", PASSING[3], 54, steps=700_000)
    rows = describe(collected(runs)).tables[0].rows
    assert rows[0][:3] == ["cross entropy", "5", "never"]


def test_other_sizes_are_given_by_name(runs):
    for seed in SEEDS:
        make_up(runs, parity_mlp.distill, "parity_mlp", "ce", PASSING[1], seed, d=50, k=5)
    data = collected(runs, parse(["d=50", "k=5"]))
    assert [(group["method"], len(group["runs"])) for group in data["groups"]] == [("ce", 5)]


def test_what_changed_is_read_as_numbers_where_it_is_one():
    assert parse(["d=50", "lr=0.5", "support=1,2", "grammar=cfg3f"]) == {
        "d": 50,
        "lr": 0.5,
        "support": "1,2",
        "grammar": "cfg3f",
    }
    with pytest.raises(UserError, match="--changed takes name=value, such as d=50; got 'd50'"):
        parse(["d50"])


def test_committed_data_are_shown(tmp_path, capsys):
    for path in (ROOT / "figures" / "data" / "methods").glob("*.json"):
        setting = next(name for name in ("parity_mlp", "PCFG_mlm", "PCFG_autoregressive") if name in path.stem)
        preset, *changed = path.stem.removeprefix(f"{setting}_").split("_")
        words = tuple(f"{text.rstrip('0123456789')}={text.lstrip('abcdefghijklmnopqrstuvwxyz')}" for text in changed)
        methods.main(methods.Arguments(setting=setting, preset=preset, changed=words, out=tmp_path))
        assert "| auto |" in capsys.readouterr().out
