"""What neurons hold over training, and the animation of a transition: small runs, and the committed data."""

import json
from dataclasses import asdict, replace

import animation
import neurons
import parity_data
import pytest
import studies
from finding_runs import MissingError, find_runs
from neurons import collect, describe, draw
from PIL import Image

import parity_mlp.distill
import parity_mlp.train
from common.errors import UserError
from common.parity.networks import read_arrays
from common.probes.neurons import probe_neurons
from tests.commands import ROOT, exit_code

SIZES = {"d": 40, "k": 2, "steps": 3000, "eval_every": 100, "checkpoint_every": 100, "eval_samples": 512}
TEACHER = replace(parity_mlp.train.PRESETS["smoke"], **SIZES, width=64, lr=0.05)
STUDENTS = replace(
    parity_mlp.distill.PRESETS["smoke"], **{**SIZES, "checkpoint_every": 0}, widths=(4,), lr=(0.05,), first_steps=1000
)


def words_of(arguments):
    return [
        word
        for name, value in arguments.items()
        for word in (f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value]))
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A teacher, and students of the labels and of degree 1 with checkpoints."""
    place = tmp_path_factory.mktemp("runs")
    words = words_of({**SIZES, "width": 64, "lr": 0.05, "out": place / "teacher"})
    assert exit_code(parity_mlp.train.main, "smoke", *words) == 0
    words = words_of({**SIZES, "widths": 4, "lr": 0.05, "first_steps": 1000, "seeds": (0, 1)})
    words += ["--teacher", place / "teacher", "--methods", "ce", "designed"]
    assert exit_code(parity_mlp.distill.main, "smoke", *words, "--out", place / "students") == 0
    return place


@pytest.fixture
def data(runs, monkeypatch):
    package = parity_data.PACKAGES["parity_mlp"]
    presets = {"teachers": {"smoke": TEACHER}, "students": {"smoke": STUDENTS}}
    monkeypatch.setitem(parity_data.PACKAGES, "parity_mlp", replace(package, **presets))
    return collect(find_runs(runs), "smoke")


def test_the_data_are_what_the_probe_says_of_each_checkpoint(data, runs):
    assert list(data["networks"]) == ["teacher", "ce", "designed"]
    for name, network in data["networks"].items():
        assert network["width"] == (64 if name == "teacher" else 4)
        assert network["seeds"] == ([0] if name == "teacher" else [0, 1])
        assert network["steps"] == [*range(100, 3100, 100)]
    run = runs / "students" / "designed-1_0.16-width4-seed1"
    records = {record["step"]: record for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}
    for step in (100, 3000):
        tensors = read_arrays(run / f"checkpoint-{step}")
        found = probe_neurons(tensors["hidden.0.weight"], tensors["output.weight"], [0, 1])
        expected = {**asdict(found), "accuracy": records[step]["accuracy"]}
        at = data["networks"]["designed"]["steps"].index(step)
        assert {name: data["networks"]["designed"][name][1][at] for name in expected} == pytest.approx(
            expected, abs=1e-4
        )


def test_statements_follow_from_the_data(data):
    finding = describe(data)
    assert [verdict.holds for verdict in finding.verdicts] == [True, True]
    assert "in 5 of 5 networks" in finding.verdicts[1].numbers
    assert [row[0] for row in finding.tables[0].rows] == ["teacher", "cross entropy", "designed: degree 1"]
    data["networks"]["ce"]["share"][1][-1] = 0.3
    assert not describe(data).verdicts[0].holds
    data["networks"]["designed"]["support"][0] = [0.0] * 29 + [1.0]
    assert not describe(data).verdicts[1].holds
    assert "in 4 of 5 networks" in describe(data).verdicts[1].numbers
    data["networks"]["ce"]["accuracy"][1] = [0.5] * 30
    assert "at most 0.30 in 1 others" in describe(data).verdicts[0].numbers


def test_there_is_a_panel_for_each_network(data):
    titles = [axis.get_title(loc="left") for axis in draw(data).axes]
    assert titles == ["teacher, 64 neurons", "cross entropy, 4 neurons", "designed: degree 1, 4 neurons"]


def test_missing_runs_are_named(data, runs):
    found = find_runs(runs)
    with pytest.raises(MissingError, match=r"create it with python -m parity_mlp.train smoke"):
        collect([run for run in found if run.is_student], "smoke")
    with pytest.raises(MissingError, match=r"no students of .* saved checkpoints; .*--checkpoint-every N"):
        collect([run for run in found if not run.is_student], "smoke")


def test_committed_data_are_drawn(tmp_path):
    for path in (ROOT / "figures" / "data" / "neurons").glob("*.json"):
        neurons.main(studies.StudyArguments(preset=path.stem, out=tmp_path))
        assert (tmp_path / f"figure_neurons_{path.stem}.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_a_run_is_animated_around_its_transition(runs, tmp_path, capsys):
    out = tmp_path / "transition.gif"
    animation.main(animation.Arguments(runs / "teacher", neurons=8, coordinates=6, frames=5, out=out))
    assert capsys.readouterr().out.strip() == str(out)
    with Image.open(out) as picture:
        assert picture.n_frames == 5
        assert picture.info["duration"] == 1000 // animation.FRAMES_PER_SECOND // 10 * 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"setting": "PCFG_mlm"}, "is a run of PCFG_mlm: give one of parity_mlp"),
        ({"labels": 4, "k": 2}, "has 4 labels: give a run with two"),
    ],
)
def test_a_run_that_cannot_be_animated_is_refused(runs, tmp_path, change, message):
    config = json.loads((runs / "teacher" / "config.json").read_text())
    config["setting"] = change.pop("setting", "parity_mlp")
    config["arguments"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "metrics.jsonl").write_bytes((runs / "teacher" / "metrics.jsonl").read_bytes())
    with pytest.raises(UserError, match=message):
        animation.main(animation.Arguments(tmp_path))


def test_a_run_without_checkpoints_in_its_transition_is_refused(runs, tmp_path):
    run = tmp_path / "run"
    for name in ("config.json", "metrics.jsonl", "done.json"):
        run.mkdir(exist_ok=True)
        (run / name).write_bytes((runs / "teacher" / name).read_bytes())
    (run / "checkpoint-3000").symlink_to(runs / "teacher" / "checkpoint-3000")
    with pytest.raises(UserError, match="has 0 checkpoints around its transition: save more of them"):
        animation.main(animation.Arguments(run))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"frames": 0}, "--frames must be at least 1"),
        ({"neurons": -5}, "--neurons must be at least 1"),
        ({"coordinates": 1}, "--coordinates must be from 2, the support, to 40; got 1"),
        ({"out": "picture.png"}, "--out must be a .gif file in a directory that exists"),
        ({"out": "nowhere/picture.gif"}, "--out must be a .gif file in a directory that exists"),
    ],
)
def test_arguments_of_the_animation_that_do_not_fit_are_refused(runs, tmp_path, changed, message):
    changed = {name: tmp_path / value if name == "out" else value for name, value in changed.items()}
    with pytest.raises(UserError, match=message):
        animation.main(animation.Arguments(runs / "teacher", **changed))
