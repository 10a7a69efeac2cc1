import importlib
import re
import shlex
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from common.distillation.arguments import student_arguments, with_designs
from common.pcfg.grammar_files import load_grammar
from common.runs.run import Run
from tests.commands import ROOT, exit_code, files
from tests.sweeps import assert_same_bits, assert_whole, copy_of_project, wait_until

SETTINGS = ("parity_mlp", "parity_gpt2", "PCFG_mlm", "PCFG_autoregressive", "text_mlm", "text_autoregressive")
PRESETS = ("smoke", "laptop", "paper")
SMOKE = ("sweep_seeds.sh", "parity_mlp", "smoke")
"""A sweep."""
PLATEAUS = "sweep_plateaus.sh"
"""The sweep over tasks, whose teachers are not the preset's."""
DESIGNED = "sweep_designed.sh"
"""The sweep over designed targets, which text does not have."""
METHODS = "sweep_methods.sh"
"""The sweep over methods, with teachers of its own seeds."""
SWEEPS = sorted({path.name for path in (ROOT / "scripts").glob("sweep_*.sh")} - {PLATEAUS, DESIGNED, METHODS})


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project in which nothing is trained."""
    return copy_of_project(tmp_path_factory.mktemp("scripts") / "project")


def listed(project, *words):
    """The commands that a sweep prints, as words, and how many runs it says each has."""
    done = project.call(f"scripts/{words[0]}", *words[1:3], "--dry-run", *words[3:])
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = [re.fullmatch("(.*)  # (1 run|[0-9]+ runs)", line) for line in done.stdout.splitlines()]
    return [(shlex.split(line[1]), int(line[2].split()[0])) for line in lines]


def commands(project, *words):
    """The commands that a sweep prints, as words."""
    return [command for command, _ in listed(project, *words)]


def value(command, flag):
    """The value of a flag that a command has once."""
    assert command.count(flag) == 1, (flag, command)
    return command[command.index(flag) + 1]


def parsed(words):
    """The arguments of a command, as train.py or distill.py parses them."""
    module = importlib.import_module(words[2])
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command.py", *words[3:]])
        patch.setattr(module, words[2].rpartition(".")[2], lambda arguments, argv: made.append(arguments))
        module.main()
    (arguments,) = made
    return arguments


SIZES = ("widths", "student_heads")
PLURAL = ("methods", *SIZES, "steps", "lr", "seeds", "checkpoint")
"""Arguments of which each student has one value."""


def students(command):
    """The students that a command trains: their method and first checkpoint, size, steps, learning rate and seed."""
    arguments = parsed(command)
    plural = [name for name in PLURAL if isinstance(getattr(arguments, name, None), tuple)]
    found = []
    for student in student_arguments(arguments, plural):
        (size,) = [getattr(student, name) for name in SIZES if hasattr(student, name)]
        found.append(
            (*student.methods, student.checkpoint, size, *map(str, (student.steps, student.lr)), student.seeds)
        )
    return found


def column(rows, number):
    return {row[number] for row in rows}


ALL, TAUGHT = {"ce", "one-shot", "progressive"}, {"one-shot", "progressive"}
VARIED = {"student_sizes": 2, "budgets": 3, "learning_rates": 4}
"""Index in `students` of what a sweep varies."""


@pytest.mark.parametrize(("setting", "preset"), [*product(SETTINGS, PRESETS)])
def test_every_command_of_every_sweep_is_parsed_and_they_make_each_run_once(project, setting, preset):
    assert len(SWEEPS) == 5
    for sweep in SWEEPS:
        name = sweep[6:-3]
        trained, made = [], {}
        for command, runs in listed(project, sweep, setting, preset):
            assert command[:2] == ["python", "-m"]
            assert command[3] == preset
            out = value(command, "--out")
            if command[2] == f"{setting}.train":
                assert runs == 1
                assert parsed(command).seed == len(trained)
                trained.append(out)
            else:
                assert command[2] == f"{setting}.distill"
                assert re.fullmatch(f"runs/{setting}/sweeps/{name}-{setting}-{preset}/[^/]+", out)
                found = students(command)
                assert runs == len(found)
                teacher = value(command, "--teacher")
                assert teacher in trained
                made.setdefault(teacher, []).extend(found)
        assert trained[0] == f"runs/{setting}/{preset}"
        assert list(made) == trained
        assert len(trained) == (3 if name == "seeds" else 1)
        for teacher, rows in made.items():
            assert len(set(rows)) == len(rows)
            seeds = column(rows, 5)
            assert seeds == {(seed,) for seed in range(5 if (name, preset) == ("seeds", "laptop") else 3)}
            values = [column(rows, number) for number in (2, 3, 4)]
            for number, among in zip((2, 3, 4), values, strict=True):
                assert len(among) > 1 if VARIED.get(name) == number else len(among) == 1
            if name == "checkpoints":
                first = column(rows, 1) - {()}
                assert len(first) >= 5
                taught = {("one-shot", ()), *(("two-shot", each) for each in first)}
            else:
                methods = ALL if teacher == trained[0] else TAUGHT
                taught = {(method, ()) for method in methods}
            assert set(rows) == {(*way, *rest) for way, *rest in product(taught, *values, seeds)}


@pytest.mark.parametrize(("setting", "preset"), [*product(SETTINGS[:4], PRESETS)])
def test_the_sweep_over_designed_targets_has_each_student_once_and_a_control_for_one_target_at_least(
    project, setting, preset
):
    (train, one), *groups = listed(project, DESIGNED, setting, preset)
    assert (train[2:], one) == ([f"{setting}.train", preset, "--out", f"runs/{setting}/{preset}"], 1)
    made = []
    for command, runs in groups:
        assert value(command, "--teacher") == f"runs/{setting}/{preset}"
        arguments = with_designs(parsed(command))
        plural = [*PLURAL, "monomials", "windows"]
        found = student_arguments(
            arguments, [name for name in plural if isinstance(getattr(arguments, name, None), tuple)]
        )
        assert runs == len(found)
        made += [replace(student, out=None) for student in found]
    assert len(set(made)) == len(made)
    assert {student.methods for student in made} == {(method,) for method in (*ALL, "designed")}
    assert len({student.seeds for student in made}) == (2 if preset == "smoke" else 6)
    designed = [student for student in made if student.methods == ("designed",)]
    for then in ("teacher", "labels"):
        some = [student for student in designed if student.then == then]
        if setting.startswith("parity"):
            targets = {(student.monomials, student.coordinates) for student in some if is_usual(student)}
            assert targets == {*product({target for target, _ in targets}, ("support", "others"))}
        else:
            sources = {student.windows_of for student in some}
            assert {"grammar", "permuted"} <= sources
            (control,) = {student.windows for student in some if student.windows_of == "permuted"}
            assert control in {student.windows for student in some if student.windows_of == "grammar"}


@pytest.mark.parametrize(("setting", "preset"), [*product(SETTINGS, PRESETS)])
def test_the_sweep_over_methods_has_each_student_once_and_all_methods_for_both_teachers(project, setting, preset):
    made = {}
    for command, runs in listed(project, METHODS, setting, preset):
        if command[2].endswith("train"):
            made[value(command, "--out")] = parsed(command).seed, []
            continue
        arguments = with_designs(parsed(command))
        plural = [*PLURAL, "monomials", "windows"]
        found = student_arguments(
            arguments, [name for name in plural if isinstance(getattr(arguments, name, None), tuple)]
        )
        assert runs == len(found)
        made[value(command, "--teacher")][1].extend(replace(student, out=None) for student in found)
    assert [seed for seed, _ in made.values()] == [5, 6]
    first, second = ([*students] for _, students in made.values())
    assert all(len(set(students)) == len(students) for students in (first, second))
    for students in (first, second):
        assert len({student.seeds for student in students}) == (2 if preset == "smoke" else 5)
    ways = [
        {(*student.methods, getattr(student, "then", None)) for student in students} for students in (first, second)
    ]
    taught = {(method, None) for method in ("one-shot", "progressive", "two-shot", "until-saturation", "auto")}
    designed = set() if setting.startswith("text") else {("designed", "teacher")}
    assert ways[1] == taught | designed
    assert ways[0] - ways[1] == {("ce", None), *(("designed", "labels") for _ in designed)}


def is_usual(student):
    """Whether all monomials have the usual weight."""
    return all(term.endswith(":0.16") for term in student.monomials[0].split("+"))


@pytest.mark.parametrize(("setting", "preset"), [*product(("PCFG_mlm", "PCFG_autoregressive"), PRESETS)])
def test_the_sweep_over_tasks_has_a_teacher_and_two_groups_of_students_for_each(project, setting, preset):
    listing = listed(project, PLATEAUS, setting, preset)
    folder = f"runs/{setting}/sweeps/plateaus-{setting}-{preset}"
    tasks = []
    for (train, one), (labels, many), (distilled, six) in zip(*[iter(listing)] * 3, strict=True):
        teacher = parsed(train)
        assert (train[2:4], one, teacher.seed) == ([f"{setting}.train", preset], 1, 3)
        tasks.append((teacher.grammar, teacher.start, getattr(teacher, "label_level", None)))
        name = "-".join(str(part) for part in tasks[-1] if part is not None)
        assert [value(command, "--out") for command in (train, labels, distilled)] == [
            f"{folder}/{name}-{end}" for end in ("teacher", "labels", "distilled")
        ]
        rows = {"labels": students(labels), "distilled": students(distilled)}
        assert {name: len(set(found)) for name, found in rows.items()} == {"labels": many, "distilled": six}
        steps = {name: column(found, 3) for name, found in rows.items()}
        assert len(steps["labels"]) >= 3
        assert len(steps["distilled"]) == 1
        assert steps["distilled"] < steps["labels"]
        sizes = {name: [column(found, number) for number in (2, 4)] for name, found in rows.items()}
        assert sizes["labels"] == sizes["distilled"]
        for found, methods in ((rows["labels"], {"ce"}), (rows["distilled"], TAUGHT)):
            others = [column(found, number) for number in (2, 3, 4)]
            ways = {(method, ()) for method in methods}
            assert set(found) == {(*way, *rest) for way, *rest in product(ways, *others, [(30,), (31,), (32,)])}
        arguments = parsed(distilled)
        first, third = arguments.teacher_range
        every, saved = arguments.teacher_every, teacher.checkpoint_every
        assert first == 1
        assert third <= teacher.steps / 3 < third + saved
        assert abs(every * (third // saved) - arguments.steps[0] / 2) <= third // saved  # half of the student's steps
        for command in (labels, distilled):
            assert value(command, "--teacher") == value(train, "--out")
            assert not {"--grammar", "--start", "--label-level"} & {*command}  # they are the teacher's
    assert len(set(tasks)) == len(tasks)
    if preset == "smoke":
        assert len(tasks) == 2
        return
    grammars, starts, levels = (column(tasks, number) for number in range(3))
    assert grammars == {"cfg3b", "cfg3f", "cfg3g", "cfg3h", "cfg3i"}
    assert levels == ({None} if setting == "PCFG_mlm" else {1, 2, "all"} if preset == "laptop" else {1, 2, 3, "all"})
    if preset == "paper":
        assert starts == {"22"}
    else:
        lengths = [load_grammar(grammar, start).expected_length for grammar, start, _ in tasks]
        assert 39 < min(lengths) < max(lengths) < 65


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("parity_mlp smoke", "parity_mlp is not on grammars: give PCFG_mlm or PCFG_autoregressive"),
        ("text_mlm laptop", "text_mlm is not on grammars: give PCFG_mlm or PCFG_autoregressive"),
        ("PCFG_mlm smoke --teacher mine", "--teacher cannot be given: this sweep trains a teacher for each task"),
        ("PCFG_mlm smoke -- --start 12", "--start cannot be added: the sweep gives it"),
        ("PCFG_mlm smoke -- --steps 12", "--steps cannot be added: the sweep gives it"),
    ],
)
def test_what_the_sweep_over_tasks_does_not_take_is_one_line(project, words, message):
    done = project.call(f"scripts/{PLATEAUS}", *words.split())
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")


def test_text_has_no_designed_targets(project):
    done = project.call(f"scripts/{DESIGNED}", "text_mlm", "laptop")
    line = "error: text_mlm has no designed targets: give a setting on parity or on grammars\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_what_a_sweep_varies_is_what_it_is_named_after(project):
    def varied(sweep, flag):
        of_students = [each for each in commands(project, sweep, "PCFG_mlm", "laptop") if each[2] == "PCFG_mlm.distill"]
        return {value(command, flag) for command in of_students}

    assert varied("sweep_student_sizes.sh", "--student-heads") == {"2", "3", "4"}
    assert varied("sweep_budgets.sh", "--steps") == {"400", "500", "700", "1000", "2000"}
    assert varied("sweep_learning_rates.sh", "--lr") == {"5e-3", "1e-2", "2e-2"}
    assert varied("sweep_student_sizes.sh", "--steps") == {"700"}
    assert varied("sweep_seeds.sh", "--teacher") == {f"runs/PCFG_mlm/laptop{end}" for end in ("", "-seed1", "-seed2")}
    for command in commands(project, "sweep_checkpoints.sh", "PCFG_mlm", "laptop")[1:]:
        assert {checkpoint for (_, (checkpoint, *_), *_) in students(command)[1:]} >= {"100", "400", "2000"}


def test_added_arguments_are_in_every_command_and_in_the_name_of_the_sweep_if_they_change_results(project):
    plain = commands(project, *SMOKE)
    added = ["--wandb", "offline", "--device", "cpu"]
    assert commands(project, *SMOKE, "--", *added) == [[*command, *added] for command in plain]
    for support, shown in (("1,2,3,5", ""), ("1,2,3, 5", "~[0-9]+")):
        added = ["--support", support, "--d", "30"]
        folder = f"runs/parity_mlp/sweeps/seeds-parity_mlp-smoke-support-1,2,3,5-d-30{shown}/"
        for command in commands(project, *SMOKE, "--", *added):
            assert command[-4:] == added
            assert re.match(folder, value(command, "--out"))


@pytest.mark.parametrize(
    ("sweep", "word"),
    [
        ("seeds", "--seeds"),
        ("seeds", "--methods=ce"),
        ("student_sizes", "--widths"),
        ("learning_rates", "--lr"),
        ("budgets", "--steps"),
        ("checkpoints", "--checkpoint"),
    ],
)
def test_what_a_sweep_chooses_cannot_be_added(project, sweep, word):
    done = project.call(f"scripts/sweep_{sweep}.sh", "parity_mlp", "smoke", "--", "--d", "30", word, "1")
    assert done.returncode == 2
    assert done.stderr == f"error: {word.split('=')[0]} cannot be added: the sweep gives it\n"


def test_what_a_sweep_does_not_choose_can_be_added(project):
    assert commands(project, *SMOKE, "--", "--lr", "0.1", "--steps", "4000", "--widths", "8")


def folder_of(project, *words):
    """The directory of a sweep."""
    (*_, command) = commands(project, *SMOKE, *words)
    return Path(value(command, "--out")).parent.name


def test_sweeps_of_other_arguments_or_of_another_teacher_have_another_directory(project):
    given = [
        *(["--lr", rate] for rate in ("1e-3", "1e3", "1e+3")),
        *(["--support", support] for support in ("1,2", "1, 2", "1 2", "1/2", "1,2-3")),
        *(["--support", *support] for support in (("1", "2"), ("1-2",))),
        *(["--a-b"], ["--ab"], ["--a", "b"], ["--a", "--b"], ["--a", "c", "b"], ["--a", "c", "--b"], ["--a-b", "x"]),
        *(["--corpus", "x" * 300], ["--corpus", "x" * 301], ["--corpus", "é"], ["--corpus", "è"], ["--corpus", ""]),
    ]
    folders = [folder_of(project, "--", *words) for words in given]
    for name in ("one/mine", "two/mine", "two/mi ne"):
        (project.root / name).mkdir(parents=True, exist_ok=True)
        folders += [folder_of(project, "--teacher", name, *more) for more in ((), ("--", "--lr", "0.1"))]
    folders += [folder_of(project, "--teacher", name) for name in ("org/name", "other/name", "name")]
    assert len(set(folders)) == len(folders)
    assert max(map(len, folders)) < 220
    assert folder_of(project, "--", "--lr", "0.1") == "seeds-parity_mlp-smoke-lr-0.1"
    assert "-teacher-mine-lr-0.1~" in folder_of(project, "--teacher", "one/mine", "--", "--lr", "0.1")
    more = ("--wandb", "offline")
    assert folder_of(project, "--", "--lr", "1e-3", *more) == folder_of(project, "--", "--lr", "1e-3")
    assert folder_of(project, "--teacher", "two/../one/mine/") == folder_of(project, "--teacher", "one/mine")


def test_a_teacher_of_ones_own_is_not_trained(project):
    teacher = project.root / "mine"
    teacher.mkdir(exist_ok=True)
    found = commands(project, *SMOKE, "--teacher", "mine/")
    assert {command[2] for command in found} == {"parity_mlp.distill"}
    assert {value(command, "--teacher") for command in found} == {str(teacher)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "no setting ''"),
        ("parity smoke", "no setting 'parity'; settings are parity_mlp"),
        ("parity_mlp", "no preset ''"),
        ("parity_mlp huge", "no preset 'huge'; presets are smoke"),
        ("parity_mlp smoke --jobs 2", "unknown argument '--jobs'"),
        ("parity_mlp smoke -j two", "-j takes a number of jobs, at least 1; got 'two'"),
        ("parity_mlp smoke -j", "-j takes a number"),
        ("parity_mlp smoke -j 0", "-j takes a number"),
        ("parity_mlp smoke -j 2 --slurm", "-j and --slurm exclude each other"),
        ("parity_mlp smoke --teacher", "--teacher takes a directory"),
        ("parity_mlp smoke --teacher missing", "there is no directory missing"),
        ("parity_mlp smoke -- --force", "--force cannot be added"),
        ("parity_mlp smoke -- --out=here", "--out=here cannot be added"),
        ("parity_mlp smoke -- --widths 8 16", "--widths takes one value here"),
        ("parity_gpt2 smoke --teacher mine -- --lr 0.1 --student_heads 1 2", "--student-heads takes one value here"),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_made(project, words, message):
    before = files(project.root)
    done = project.call("scripts/sweep_seeds.sh", *words.split())
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {message}")
    assert done.stdout == ""
    made = files(project.root).keys() - before.keys()
    assert not [name for name in made if "__pycache__" not in name]


def test_help_says_what_a_sweep_does_and_takes(project):
    done = project.call("scripts/sweep_budgets.sh", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("How long must a student train?")
    for word in ("--teacher RUN", "--dry-run", "-j N", "--slurm"):
        assert word in done.stdout


@pytest.mark.slow
def test_a_sweep_that_is_killed_twice_ends_with_the_runs_of_plain_commands(tmp_path, one_torch_thread):
    project = copy_of_project(tmp_path / "project")
    added = ("--", "--d", "10", "--k", "3", "--eval-samples", "512")
    sweep = ("sweep_student_sizes.sh", "parity_mlp", "smoke")
    teacher, *groups = commands(project, *sweep, *added)
    runs = [Path(value(teacher, "--out"))]
    for command in groups:
        names = [f"{method}-width{size}-seed{seed}" for method, _, (size,), *_, (seed,) in students(command)]
        runs += [Path(value(command, "--out")) / name for name in names]
    assert len(runs) == 28

    def complete():
        return sum(Run(project.root / run).complete for run in runs)

    def some_are_at_work():
        return any(
            (project.root / run / "metrics.jsonl").exists() for run in runs if not Run(project.root / run).complete
        )

    launcher = [f"scripts/{sweep[0]}", *sweep[1:], "-j", 2, *added]
    for number in (0, 10):  # the teacher is at work, or a group when another is complete
        process = project.start(*launcher)
        wait_until(lambda number=number: complete() >= number and some_are_at_work(), seconds=600)
        process.kill()
        process.communicate()
        assert complete() < len(runs)
    done = project.call(*launcher)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("28 of 28 runs are complete\n")
    for run in runs:
        assert_whole(project.root / run)
    for command in (teacher, groups[-1]):
        words = [str(tmp_path / word) if word.startswith("runs/") else word for word in command[3:]]
        assert exit_code(importlib.import_module(command[2]).main, *words) == 0
    for run in (runs[0], *runs[-9:]):
        assert_same_bits(project.root / run, tmp_path / run)
    before = files(project.root / "runs")
    assert project.call(*launcher).returncode == 0
    assert files(project.root / "runs") == before  # the logs are among them: no command was started
