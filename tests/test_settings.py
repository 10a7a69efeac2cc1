"""What is each setting's own: its name in messages, its options, and its task, which students have from a teacher."""

import pytest

from common.arguments import option_of
from common.runs.names import ROOT
from common.runs.run import Run
from tests.commands import change_config, files


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("train smokey", "smokey"),
        ("train smoke --learning-rat 1", "--learning-rat"),
        ("train smoke --steps many", "--steps"),
        ("distill smoke --methods guess", "--methods"),
    ],
)
def test_usage_errors_name_the_argument_and_exit_with_two(setting, capsys, words, named):
    code, stderr = setting.start(capsys, *words.split())
    assert code == 2
    assert named in "\n".join(stderr)


def test_a_default_teacher_that_is_not_trained_yet_is_one_line(setting, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("common.distillation.given_teacher.RUNS", ROOT / "no-runs")
    line = setting.fail_in_one_line(capsys, *setting.distill, "--out", tmp_path / "students")
    advice = f"give --teacher, or train it with python -m {setting.name}.train smoke"
    assert line == f"error: there is no teacher no-runs/{setting.name}/smoke: {advice}"
    assert files(tmp_path) == {}


TASKS = {
    "parity_mlp": {"support": "4,7,1"},
    "parity_gpt2": {"support": "4,1", "support_seed": 3},
    "PCFG_mlm": {"start": "12", "mask_rate": 0.2, "hide_masked": False},
    "PCFG_autoregressive": {"start": "12", "label_level": 1},
    "text_mlm": {"length": 24, "held_out": 0.25, "mask_rate": 0.2},
    "text_autoregressive": {"length": 24, "held_out": 0.25},
}
"""Other tasks than those of the presets."""


def test_students_have_the_task_of_their_teacher_unless_it_is_given(setting, tmp_path, capsys):
    task = TASKS[setting.name]
    options = [
        word
        for name, value in task.items()
        for word in ([option_of(name), str(value)] if value is not False else [option_of(f"no_{name}")])
    ]
    teacher = setting.train_teacher(tmp_path / "teacher", *options)
    words = without(setting.distill, *TASK_OPTIONS)
    words = [*words, "--methods", "one-shot", "--teacher", teacher, "--out"]
    setting.succeed(capsys, *words, tmp_path / "student")
    arguments, theirs = (Run(run).config["arguments"] for run in (tmp_path / "student", teacher))
    assert {name: arguments[name] for name in task} == task
    names = [option.removeprefix("--").replace("-", "_") for option in TASK_OPTIONS]
    assert [arguments.get(name) for name in names] == [theirs.get(name) for name in names]
    change_config(teacher, arguments=theirs | {next(iter(task)): {"of": "no type"}})
    assert f"has {next(iter(task))} {{'of': 'no type'}}" in setting.fail_in_one_line(capsys, *words, tmp_path / "other")


TASK_OPTIONS = ("--d", "--k", "--grammar", "--corpus", "--tokenizer", "--vocabulary", "--length", "--held-out")


def without(words, *options):
    """The words of a command without these options and their values."""
    left_out = {place + i for place, word in enumerate(words) if word in options for i in (0, 1)}
    return [word for place, word in enumerate(words) if place not in left_out]
