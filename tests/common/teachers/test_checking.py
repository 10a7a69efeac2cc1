"""`python -m common.teachers check`, on directories and on a hub on this machine."""

import pytest

from common.errors import UserError
from common.runs.files import write_directory
from common.teachers.__main__ import main
from common.teachers.configs import read_config
from tests.commands import change_config, fail_in_one_line, start, succeed
from tests.hub import NAME, checkpoint

SUMMARY = """\
checkpoints   2
steps         5 to 1000
architecture  GPT2LMHeadModel
dtype         {}
parameters    {}
vocabulary    7
"""


def test_a_sound_teacher_is_described(tmp_path, capsys):
    for step in (5, 1000):
        write_directory(tmp_path / f"checkpoint-{step}", checkpoint(step))
    for words in ((), ("--full",), ("--teacher-pattern", "checkpoint-(?P<step>[0-9]+)")):
        assert succeed(capsys, main, "check", tmp_path, *words) == SUMMARY.format("F32", "20,605")


def test_one_checkpoint_is_described_with_its_step(tmp_path, capsys):
    write_directory(tmp_path / "checkpoint-5", checkpoint(1))
    assert "steps         5\n" in succeed(capsys, main, "check", tmp_path / "checkpoint-5")


def test_a_model_on_the_hub_is_described(hub, capsys):
    hub.models[NAME] = {f"step{step}": checkpoint(step) for step in (5, 1000)}
    assert succeed(capsys, main, "check", NAME) == SUMMARY.format("unknown", "unknown")
    hub.parameters = {"F16": 20605}
    assert succeed(capsys, main, "check", NAME) == SUMMARY.format("F16", "20,605")


def test_findings_follow_the_summary_and_are_an_error(tmp_path, capsys):
    for step, seed in ((5, 1), (6, 1), (1000, 2)):
        write_directory(tmp_path / f"checkpoint-{step}", checkpoint(seed))
    write_directory(tmp_path / "checkpoint-7", {"config.json": b"{}"})
    code, stdout, stderr = start(capsys, main, "check", tmp_path)
    assert code == 2
    assert stdout.splitlines()[0] == "checkpoints   4"
    assert stdout.splitlines()[-2].startswith("step 7: ")
    assert stdout.splitlines()[-1] == "steps 5 and 6 hold the same weights"
    assert stderr == f"error: {tmp_path}: 2 findings in its checkpoints\n"


def test_a_config_of_which_distill_makes_no_model_is_a_finding(tmp_path, capsys):
    """That of a model type which transformers does not know is not judged."""
    for step in (5, 70, 1000):
        write_directory(tmp_path / f"checkpoint-{step}", checkpoint(step))
    for step in (5, 1000):
        change_config(tmp_path / f"checkpoint-{step}", activation_function="mine")
    code, stdout, stderr = start(capsys, main, "check", tmp_path)
    assert code == 2
    assert stdout.splitlines()[2] == "architecture  GPT2LMHeadModel"
    with pytest.raises(UserError, match="activation_function is 'mine', which is no activation") as refused:
        read_config(tmp_path / "checkpoint-5")
    assert stdout.splitlines()[6:] == [f"steps 5 and 1000: config.json: {str(refused.value).split('config.json: ')[1]}"]
    assert stderr == f"error: {tmp_path}: 1 finding in its checkpoints\n"
    for step in (5, 70, 1000):
        change_config(tmp_path / f"checkpoint-{step}", activation_function="mine", model_type="mine")
    succeed(capsys, main, "check", tmp_path)


def test_a_teacher_of_which_nothing_can_be_read(tmp_path, capsys):
    write_directory(tmp_path / "checkpoint-7", {"config.json": b"{}"})
    code, stdout, _ = start(capsys, main, "check", tmp_path)
    assert code == 2
    assert "architecture  unknown" in stdout


def test_no_teacher_is_one_line(tmp_path, capsys):
    assert "there is no directory absent" in fail_in_one_line(capsys, main, "check", "absent")
    assert "has no checkpoint-<step> directory" in fail_in_one_line(capsys, main, "check", tmp_path)
