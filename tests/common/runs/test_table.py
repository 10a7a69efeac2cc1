"""Tables and comparisons of runs that are made up, whose numbers are known, and of one that a command makes."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.errors import UserError
from common.runs.__main__ import main
from common.runs.finding import find_runs, passed_at
from common.runs.table import aligned
from parity_mlp import train
from tests.commands import ROOT, cut, fail_in_one_line, python, start, succeed

TEACHER = {"preset": "laptop", "d": 100, "k": 6, "support": "first", "width": 1000, "layers": 1}
TEACHER |= {"steps": 200, "lr": 0.01, "seed": 0}
STUDENT = {name: value for name, value in TEACHER.items() if name not in ("width", "seed")}
STUDENT |= {"teacher": "runs/parity_mlp/laptop", "widths": [10], "lr": [0.002], "teacher_every": 40, "checkpoint": []}
BERT = {"mask_rate": 0.3, "methods": ["two-shot"], "teacher": "some/BERT", "checkpoint": ["inside"], "layers": 2}
BERT |= {"student_heads": [3], "steps": [1000], "lr": 0.005, "seeds": [0], "first_steps": 300, "teacher_range": [2, 6]}


def student(method, seed):
    return {**STUDENT, "methods": [method], "seeds": [seed]}


def make_up_run(directory, arguments, records, seconds=0, complete=True, setting="parity_mlp", **config):
    """A run as its files say: (step, loss, accuracy) for each record."""
    directory.mkdir(parents=True)
    lines = [{"step": step, "loss": loss, "accuracy": accuracy} for step, loss, accuracy in records]
    (directory / "config.json").write_text(
        json.dumps({"setting": setting, "argv": [], "arguments": arguments, **config})
    )
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if complete:
        (directory / "done.json").write_text("{}")
    os.utime(directory / "config.json", (0, 5000))
    os.utime(directory / ("done.json" if complete else "metrics.jsonl"), (0, 5000 + seconds))


@pytest.fixture
def root(tmp_path):
    """Runs below a directory, whose names say nothing."""
    runs = tmp_path / "runs"
    make_up_run(runs / "a", TEACHER, [(0, 0.7, 0.5), (100, 0.25, 0.95), (200, 0.125, 0.96)], seconds=3723.4)
    passes = [(0, 0.7, 0.5), (100, 0.01, 0.96), (200, 0.001, 1.0)]
    make_up_run(runs / "b" / "c", student("progressive", 1), passes, seconds=5)
    make_up_run(runs / "b" / "d", student("ce", 10), [(0, 0.7, 0.5), (200, 0.69, 0.515625)], seconds=7)
    make_up_run(runs / "b" / "e", student("ce", 2), [(0, 0.7, 0.5), (100, None, 0.5)], seconds=3, complete=False)
    make_up_run(runs / "f", BERT, [], complete=False, setting="PCFG_mlm")
    return runs


def test_a_table_has_a_line_for_each_run(root, capsys):
    assert succeed(capsys, main, "table", root).splitlines() == [
        line.replace("RUNS", str(root))
        for line in (
            "setting     method       checkpoint  width  heads  layers  seed     lr  steps  passed_at  final_accuracy"
            "  final_loss     time  state       run",
            "PCFG_mlm    two-shot     inside                 3       2     0  0.005   1000                          "
            "               0:00:00  0 of 1000   RUNS/f",
            "parity_mlp  ce                          10              1     2  0.002    200                     0.5000"
            "              0:00:03  100 of 200  RUNS/b/e",
            "parity_mlp  ce                          10              1    10  0.002    200                     0.5156"
            "      0.6900  0:00:07  complete    RUNS/b/d",
            "parity_mlp  progressive                 10              1     1  0.002    200        100          1.0000"
            "      0.0010  0:00:05  complete    RUNS/b/c",
            "parity_mlp  train                     1000              1     0   0.01    200        200          0.9600"
            "      0.1250  1:02:03  complete    RUNS/a",
        )
    ]


def names_of(capsys, root, *words):
    lines = succeed(capsys, main, "table", root, *words, "--columns", "run").splitlines()
    assert lines[0] == "run"
    return "".join(Path(line).name for line in lines[1:])


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("--where method=ce", "de"),
        ("--where method=ce method=train", "ade"),
        ("--where method=ce seed=2", "e"),
        ("--where method=ce method!=train", "de"),
        ("--where state!=complete", "ef"),
        ("--where method!=ce method!=train", "cf"),
        ("--where lr=2e-3 state=complete", "cd"),
        ("--where lr=0.0020 heads=", "cde"),
        ("--where width!=", "acde"),
        ("--where seed=zwei", ""),
        ("--where teacher=laptop", "c"),
        ("--where teacher_every=40", "c"),
        ("--where first_steps=300", "f"),
        ("--where passed_at=100 preset=LAPTOP", "c"),
        ("--sort seed", "afced"),
        ("--sort final_loss", "efcad"),
        ("--sort final_loss --reverse", "dacef"),
        ("--sort method seed", "edcaf"),
        ("--sort time --reverse --where setting=parity_mlp", "adce"),
    ],
)
def test_runs_are_filtered_and_sorted_by_columns(root, capsys, words, names):
    assert names_of(capsys, root, *words.split()) == names


def test_csv_has_all_digits_and_empty_fields(root, capsys, tmp_path):
    columns = ("run", "time", "final_accuracy", "teacher_range", "passed_at", "checkpoint")
    words = ("--columns", *columns, "--sort", "run")
    text = succeed(capsys, main, "table", root, *words, "--csv", "-")
    lines = list(csv.DictReader(text.splitlines()))
    assert [Path(line["run"]).name for line in lines] == ["a", "c", "d", "e", "f"]
    assert [line["time"] for line in lines] == ["3723.4", "5.0", "7.0", "3.0", "0.0"]
    assert [line["final_accuracy"] for line in lines] == ["0.96", "1.0", "0.515625", "0.5", ""]
    assert [line["passed_at"] for line in lines] == ["200", "100", "", "", ""]
    assert [line["checkpoint"] for line in lines] == ["", "", "", "", "inside"]
    assert {line["teacher_range"] for line in lines} == {""}
    path = tmp_path / "new" / "runs.csv"
    assert succeed(capsys, main, "table", root, *words, "--csv", path) == f"5 runs in {path}\n"
    assert path.read_text() == text


def test_a_terminal_gets_lines_that_fit_and_a_file_gets_the_whole(root, capsys, monkeypatch):
    rows = [{"run": f"runs/{'x' * 50}/seed{seed}", "lr": 0.1} for seed in (1, 23)]
    assert aligned(("lr", "run"), rows, None)[1] == f"0.1  runs/{'x' * 50}/seed1"
    for width in (60, 40, 21):
        lines = aligned(("lr", "run"), rows, width)
        assert max(map(len, lines)) == width
        for line, seed in zip(lines[1:], ("1", "23"), strict=True):
            assert line.startswith("0.1  run")
            assert "…" in line
            assert line.endswith(f"x/seed{seed}")
    monkeypatch.setenv("COLUMNS", "160")
    whole = succeed(capsys, main, "table", root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(sys.stdout), "isatty", lambda stream: True)
        shown = succeed(capsys, main, "table", root)
    assert max(map(len, whole.splitlines())) > 160 >= max(map(len, shown.splitlines()))
    assert aligned(("lr", "run"), rows, 10) == aligned(("lr", "run"), rows, 3 + 2 + 12)  # as narrow as it gets
    assert aligned(("lr",), rows, 1) == [" lr", "0.1", "0.1"]


def test_runs_are_found_by_their_files_only(root, tmp_path):
    model = {"model_type": "bert"}
    for inside in ("a/checkpoint-100", "hub/checkpoint-5", "hub"):
        (root / inside).mkdir(parents=True, exist_ok=True)
        (root / inside / "config.json").write_text(json.dumps(model))
        (root / inside / "metrics.jsonl").write_text("")
    make_up_run(root / "a" / "checkpoint-200" / "copy", TEACHER, [])
    make_up_run(root / "a" / "students" / "g", TEACHER, [])
    make_up_run(tmp_path / "elsewhere", TEACHER, [])
    (root / "link").symlink_to(tmp_path / "elsewhere")
    found = [run.directory.relative_to(root).as_posix() for run in find_runs(root)]
    assert found == ["a", "a/students/g", "b/c", "b/d", "b/e", "f"]
    assert [run.directory for run in find_runs(root / "b" / "c")] == [root / "b" / "c"]


def test_a_damaged_run_is_a_line_of_the_table(root, capsys):
    cut(root / "a" / "config.json")
    (root / "b" / "c" / "metrics.jsonl").write_text('{"step": 0}\n{"st\n')
    assert names_of(capsys, root, "--where", "state=damaged") == "ac"
    assert names_of(capsys, root, "--sort", "run") == "acdef"


DAMAGES = {
    "arguments a list": ("config.json", json.dumps({"setting": "parity_mlp", "argv": [], "arguments": [1]})),
    "setting a number": ("config.json", json.dumps({"setting": 7, "argv": [], "arguments": {}})),
    "versions a list": ("config.json", json.dumps({"setting": "a", "argv": [], "arguments": {}, "versions": [1]})),
    "seconds a text": ("config.json", json.dumps({"setting": "a", "argv": [], "arguments": {}, "seconds": "1"})),
    "empty config": ("config.json", ""),
    "step a text": ("metrics.jsonl", '{"step": "0"}\n'),
    "no step": ("metrics.jsonl", '{"loss": 0.5}\n'),
    "loss a text": ("metrics.jsonl", '{"step": 0, "loss": ""}\n'),
    "accuracy a list": ("metrics.jsonl", '{"step": 0, "accuracy": []}\n'),
    "record a list": ("metrics.jsonl", "[1]\n"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_refused_only_if_it_is_named(root, capsys, damage):
    name, text = DAMAGES[damage]
    (root / "a" / name).write_text(text)
    code, stdout, stderr = start(capsys, main, "table", root)
    assert code == 0
    assert len(stdout.splitlines()) == 6
    (line,) = stderr.splitlines()
    message = rf"{root / 'a' / name} is damaged( in line 1)?: to start over, rerun its command with --force"
    assert re.fullmatch(f"warning: {message}", line)
    for words in (["table", root / "a"], ["compare", root / "a", root / "f"], ["compare", root / "f", root / "a"]):
        assert re.fullmatch(f"error: {message}", fail_in_one_line(capsys, main, *words))


def test_what_a_file_says_does_not_change_what_a_terminal_shows(root, capsys):
    evil = "x\x1b[2J\nerror: \u202efake"
    make_up_run(root / evil / "g", {**TEACHER, "lr": evil, evil: 1}, [(0, 0.7, 0.5)], commit=evil)
    columns = ("--where", f"{evil}=1", "--columns", evil, "lr", "run")
    header, line = succeed(capsys, main, "table", root, *columns).splitlines()
    assert header.split("  ")[0] == r"x\x1b[2J error: \u202efake"
    assert line.split("  ")[-1] == rf"{root}/x\x1b[2J error: \u202efake/g"
    text = succeed(capsys, main, "table", root, *columns, "--csv", "-")
    assert list(csv.reader(io.StringIO(text))) == [[evil, "lr", "run"], ["1", evil, f"{root}/{evil}/g"]]
    shown = succeed(capsys, main, "compare", root / "a", root / evil / "g")
    assert shown.isascii()
    assert "\x1b" not in shown
    assert not [line for line in shown.splitlines() if line.startswith("error")]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["absent"], "there is no directory absent"),
        (["EMPTY"], "there is no run in EMPTY"),
        (["RUNS", "--columns", "accuracy"], "unknown column 'accuracy': choose from checkpoint, "),
        (["RUNS", "--sort", "accuracy"], "unknown column 'accuracy': choose from checkpoint, "),
        (["RUNS", "--where", "accuracy=1"], "unknown column 'accuracy': choose from checkpoint, "),
        (["RUNS", "--where", "seed"], "--where takes column=value or column!=value, got 'seed'"),
    ],
)
def test_wrong_input_of_a_table_is_one_line(root, tmp_path, capsys, words, line):
    (tmp_path / "empty").mkdir()
    places = {"RUNS": str(root), "EMPTY": str(tmp_path / "empty")}
    given = fail_in_one_line(capsys, main, "table", *(places.get(word, word) for word in words))
    assert given.startswith(f"error: {line}".replace("EMPTY", places["EMPTY"]))


def test_a_run_of_an_earlier_version_is_damaged_and_one_line_says_how_to_bring_it_over(root, capsys):
    path = root / "a" / "config.json"
    path.write_text(json.dumps({"arguments": json.loads(path.read_text())["arguments"]}))
    code, _, stderr = start(capsys, main, "table", root, "--where", "state=damaged")
    (line,) = stderr.splitlines()
    assert code == 0
    assert line.startswith(f"warning: {path} was written by an earlier version")
    assert names_of(capsys, root, "--sort", "run") == "acdef"


def test_a_transition_is_passed_above_95_percent_only():
    assert passed_at([{"step": 5, "accuracy": 0.95}, {"step": 6, "accuracy": None}, {"step": 7}]) is None
    assert passed_at([{"step": 5, "accuracy": 0.5}, {"step": 7, "accuracy": 0.951}, {"step": 9, "accuracy": 1}]) == 7


def test_a_run_that_a_command_made_is_tabled_with_its_time(tmp_path, capsys):
    begin = time.time()
    arguments = ("smoke", "--steps", "3000", "--out", tmp_path / "x")
    succeed(capsys, train.main, *arguments)
    elapsed = time.time() - begin
    text = succeed(capsys, main, "table", tmp_path, "--csv", "-")
    (line,) = csv.DictReader(text.splitlines())
    records = [json.loads(record) for record in (tmp_path / "x" / "metrics.jsonl").read_text().splitlines()]
    preset = train.PRESETS["smoke"]
    expected = {
        "setting": "parity_mlp",
        "method": "train",
        "width": str(preset.width),
        "seed": "0",
        "lr": str(preset.lr),
        "steps": "3000",
        "final_accuracy": repr(records[-1]["accuracy"]),
        "final_loss": repr(records[-1]["loss"]),
        "state": "complete",
    }
    assert {name: line[name] for name in expected} == expected
    assert 0 < float(line["time"]) <= elapsed + 0.1  # the file system's clock may be a bit behind


def test_the_command_loads_nothing_heavy_and_survives_a_closed_pipe(root):
    heavy = "'torch', 'transformers', 'wandb', 'numba', 'matplotlib', 'scipy'"
    code = f"import sys; import common.runs.__main__; print({{{heavy}}} & set(sys.modules))"
    assert python("-c", code).stdout == "set()\n"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "common.runs", "table", str(root)]
        closed = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    assert (closed.returncode, closed.stderr) == (0, "")


def compared(capsys, *words):
    facts, curves = succeed(capsys, main, "compare", *words).split("\n\n", 1)
    return facts.splitlines(), curves.splitlines()


def test_a_comparison_shows_what_differs(tmp_path, capsys):
    one, other = tmp_path / "one", tmp_path / "other"
    versions = {"python": "3.11.7", "torch": "2.6"}
    records = [(0, 0.75, 0.5), (10, 0.5, 0.5), (20, 0.25, 1.0)]
    make_up_run(one, TEACHER, records, versions=versions, commit="abc")
    changed = {**{name: value for name, value in TEACHER.items() if name != "k"}, "lr": 0.02, "rules": ["a", "b"]}
    finer = [(0, 0.75, 0.5), (5, 9.0, 0.1), (10, 0.25, 0.5), (15, 9.0, 0.1), (20, 0.375, 0.75), (25, 9.0, 0.1)]
    make_up_run(other, changed, finer, complete=False, versions={**versions, "torch": "2.7"}, commit="abc")
    facts, curves = compared(capsys, one, other)
    assert [line.split() for line in facts] == [
        ["A", "B"],
        ["run", str(one), str(other)],
        ["state", "complete", "25", "of", "200"],
        ["passed_at", "20"],
        ["k", "6", "(absent)"],
        ["lr", "0.01", "0.02"],
        ["version", "of", "torch", "2.6", "2.7"],
        ["rules", "(absent)", "a", "b"],
    ]
    assert curves == [
        "3 evaluations at common steps; A has 3 from step 0 to 20, B has 6 from step 0 to 25",
        "loss: first differs at step 10, most at step 10: B - A = -0.25",
        "accuracy: first differs at step 20, most at step 20: B - A = -0.25",
        "",
        "step  loss A  loss B  loss B-A  accuracy A  accuracy B  accuracy B-A",
        "   0    0.75    0.75       0.0         0.5         0.5           0.0",
        "  10     0.5    0.25     -0.25         0.5         0.5           0.0",
        "  20    0.25   0.375     0.125         1.0        0.75         -0.25",
    ]


def test_a_comparison_of_a_run_with_itself_and_of_runs_without_common_steps(tmp_path, capsys):
    one, other, begun = tmp_path / "one", tmp_path / "other", tmp_path / "begun"
    make_up_run(one, TEACHER, [(10, 0.5, None), (20, None, 0.75)])
    make_up_run(other, TEACHER, [(15, 0.5, 0.5)])
    make_up_run(begun, TEACHER, [], complete=False)
    facts, curves = compared(capsys, one, one)
    assert len(facts) == 4
    assert curves[1:3] == ["loss: identical at all of them", "accuracy: identical at all of them"]
    assert curves[-1].split() == ["20", "0.75", "0.75", "0.0"]
    _, curves = compared(capsys, one, other)
    assert curves == ["no common step: A has 2 from step 10 to 20, B has 1 from step 15 to 15"]
    _, curves = compared(capsys, begun, one)
    assert curves == ["no common step: A has none, B has 2 from step 10 to 20"]


def test_a_long_comparison_shows_the_ends_and_where_the_runs_part(tmp_path, capsys):
    one, other, broken = tmp_path / "one", tmp_path / "other", tmp_path / "broken"
    same = [(step, 0.5, 0.5) for step in range(1000)]
    make_up_run(one, TEACHER, same)
    make_up_run(other, TEACHER, [(step, 0.5 if step < 333 else 1.5, 0.5) for step in range(1000)])
    make_up_run(broken, TEACHER, [(step, 0.5 if step < 500 else None, 0.5) for step in range(1000)])
    _, curves = compared(capsys, one, other, "--lines", "5")
    steps = [int(line.split()[0]) for line in curves[5:]]
    assert steps == [0, 250, 333, 500, 749, 999]
    assert curves[1] == "loss: first differs at step 333, most at step 333: B - A = +1"
    assert len(compared(capsys, one, other)[1]) == 5 + 20 + 1
    _, curves = compared(capsys, one, broken)
    assert curves[1] == "loss: first differs at step 500, most at step 0: B - A = +0"


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ("absent", "absent is not a run: it has no valid config.json"),
        ("model", "model is not a run: it has no valid config.json"),
        ("damaged", "metrics.jsonl is damaged in line 1: to start over, rerun its command with --force"),
    ],
)
def test_wrong_input_of_a_comparison_is_one_line(tmp_path, capsys, other, line):
    make_up_run(tmp_path / "run", TEACHER, [(0, 0.5, 0.5)])
    make_up_run(tmp_path / "damaged", TEACHER, [])
    (tmp_path / "damaged" / "metrics.jsonl").write_text("{\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    for pair in ((tmp_path / "run", tmp_path / other), (tmp_path / other, tmp_path / "run")):
        assert fail_in_one_line(capsys, main, "compare", *pair).endswith(line)
    line = fail_in_one_line(capsys, main, "compare", tmp_path / "run", tmp_path / "run", "--lines", "1")
    assert "--lines must be at least 2" in line


def test_a_file_in_the_place_of_a_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="there is no directory"):
        find_runs(tmp_path / "file")


def test_names_and_values_that_are_not_utf8_are_written_in_a_table(tmp_path, capsys):
    runs = tmp_path / "runs"
    make_up_run(runs / "\udcff", {**TEACHER, "lr": "\ud800"}, [(0, 0.7, 0.5)])
    succeed(capsys, main, "table", runs, "--csv", tmp_path / "a.csv", "--columns", "lr", "run")
    assert (tmp_path / "a.csv").read_text() == f"lr,run\n\\ud800,{runs}/\\udcff\n"


def test_a_run_with_a_file_that_is_too_large_is_damaged(root, capsys):
    for run, name in (("a", "config.json"), ("b/c", "metrics.jsonl"), ("b/d", "done.json")):
        os.truncate(root / run / name, 20 << 30)
    assert names_of(capsys, root, "--where", "state=damaged") == "acd"
    for run, name in (("a", "config.json"), ("b/c", "metrics.jsonl")):
        line = fail_in_one_line(capsys, main, "table", root / run)
        assert line.startswith(f"error: {root / run / name} has 21,474,836,480 bytes, and at most ")
