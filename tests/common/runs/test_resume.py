"""States that a killed run resumes from: complete, damaged, several at once, and saved to a full disk."""

import json

import numpy as np
import pytest

from common.errors import UserError
from common.runs.checkpoints import save_checkpoint
from common.runs.files import digest_of, to_safetensors
from common.runs.resume import add_resume, keep_resume, load_resume, resume_steps, save_resume
from tests.files import CONFIG, TENSORS, call_with_full_disk, content


@pytest.mark.parametrize("persistently", [False, True])
def test_a_resume_state_survives_a_full_disk_while_the_next_is_saved(tmp_path, persistently):
    calls = number = 0
    while number <= calls:
        number += 1
        run = tmp_path / str(number)
        save_resume(run, 1, TENSORS, {"seed": 1})

        def save_next(run=run):
            save_resume(run, 2, TENSORS, {"seed": 2})

        failed, calls = call_with_full_disk(save_next, number, persistently)
        resume = load_resume(run)
        assert (resume.step, resume.state) in [(1, {"seed": 1}), (2, {"seed": 2})][0 if failed else 1 :]
        save_next()
        assert [path.name for path in (run / "resume").iterdir()] == ["2"]
    assert number > 8


def test_resume_state_comes_back_exactly_and_only_the_newest_is_kept(tmp_path):
    assert load_resume(tmp_path) is None
    state = {"random": 2**127 + 1, "best": float("inf"), "mean": 0.1 + 0.2, "history": [1, 2], "none": None}
    for step in (9, 100):
        save_resume(tmp_path, step, TENSORS, state)
    resume = load_resume(tmp_path)
    assert (resume.step, resume.state) == (100, state)
    np.testing.assert_array_equal(resume.tensors["weight"], TENSORS["weight"])
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["100"]


def test_the_newer_of_two_resume_states_counts(tmp_path):
    """A process killed between saving one and removing the other leaves both."""
    save_resume(tmp_path, 9, TENSORS, {})
    (tmp_path / "resume" / "9").rename(tmp_path / "9")
    save_resume(tmp_path, 100, TENSORS, {})
    (tmp_path / "9").rename(tmp_path / "resume" / "9")
    assert load_resume(tmp_path).step == 100


def test_an_unfinished_or_incomplete_resume_state_is_passed_over(tmp_path):
    save_resume(tmp_path, 9, TENSORS, {})
    for name in ("100", ".200.77.unfinished"):
        (tmp_path / "resume" / name).mkdir()
        (tmp_path / "resume" / name / "state.json").write_text("{}")
    assert load_resume(tmp_path).step == 9


def test_a_state_that_is_added_leaves_those_before_it_until_it_alone_is_kept(tmp_path):
    assert resume_steps(tmp_path) == []
    for step in (100, 9, 0):
        add_resume(tmp_path, step, {"weight": np.full(2, step)}, {"number": step})
    assert resume_steps(tmp_path) == [0, 9, 100]
    for step in (0, 9, 100):
        resume = load_resume(tmp_path, step)
        assert (resume.step, resume.state) == (step, {"number": step})
        assert resume.tensors["weight"].tolist() == [step, step]
    assert load_resume(tmp_path).step == 100
    assert load_resume(tmp_path, 8) is None
    keep_resume(tmp_path, 9)
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["9"]
    assert load_resume(tmp_path, 100) is None
    keep_resume(tmp_path, 5)
    assert load_resume(tmp_path) is None


@pytest.mark.parametrize("missing", [None, "state.json", "tensors.safetensors"])
def test_a_state_that_exists_is_left_as_it_is_unless_it_is_not_whole(tmp_path, missing):
    for number in (1, 2):
        add_resume(tmp_path, 9, {"weight": np.full(2, number)}, {"number": number})
        if number == 1 and missing:
            (tmp_path / "resume" / "9" / missing).unlink()
    number = 2 if missing else 1
    resume = load_resume(tmp_path, 9)
    assert resume.state == {"number": number}
    assert resume.tensors["weight"].tolist() == [number, number]


@pytest.mark.parametrize("missing", ["state.json", "tensors.safetensors"])
def test_a_step_whose_state_is_not_whole_does_not_count(tmp_path, missing):
    for step in (9, 100):
        add_resume(tmp_path, step, TENSORS, {})
    (tmp_path / "resume" / "100" / missing).unlink()
    for name in ("07", "best", ".200.77.unfinished"):
        (tmp_path / "resume" / name).mkdir()
    (tmp_path / "resume" / "300").touch()
    assert resume_steps(tmp_path) == [9]
    assert load_resume(tmp_path, 100) is None
    assert load_resume(tmp_path).step == 9


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
def test_a_damaged_resume_state_names_its_file(tmp_path, name):
    save_resume(tmp_path, 9, TENSORS, {"seed": 1})
    path = tmp_path / "resume" / "9" / name
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=rf"{name} is (truncated or )?damaged: .*--force$"):
        load_resume(tmp_path)


STATE = {"seed": 1, "mean": float("nan"), "history": [0.1, None]}


@pytest.fixture
def run(tmp_path):
    """A run with records, two checkpoints, and a state at step 9."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 0.7}\n{"step": 9, "loss": 0.5}\n')
    save_checkpoint(tmp_path, 4, TENSORS, CONFIG)
    save_checkpoint(tmp_path, 8, {"weight": np.zeros(100_000)}, CONFIG)
    save_resume(tmp_path, 9, TENSORS, STATE)
    return tmp_path


def refusal(run):
    """The line with which a state is refused; nothing is changed."""
    before = content(run)
    with pytest.raises(UserError) as caught:
        load_resume(run)
    assert content(run) == before
    line = str(caught.value)
    assert line.endswith("start over with --force")
    assert "\n" not in line
    return line


def test_what_a_run_writes_after_a_state_does_not_matter(run):
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 9}\n{"st')
    save_checkpoint(run, 10, TENSORS, CONFIG)
    (run / "checkpoint-4" / ".config.json.77.unfinished").write_text("{")
    resume = load_resume(run)
    assert (resume.step, digest_of(resume.state)) == (9, digest_of(STATE))


def test_a_state_of_another_step_or_of_an_earlier_version_is_refused(run):
    state = run / "resume" / "9"
    for step in (7, 99999999):
        state = state.rename(run / "resume" / str(step))
        assert refusal(run).startswith(f"{state / 'state.json'} is damaged: ")
    (state / "state.json").write_text(json.dumps(STATE))
    assert refusal(run).startswith(f"{state / 'state.json'} is damaged, or an earlier version wrote it: ")


@pytest.mark.parametrize(
    "tensors",
    [
        {name: tensor for name, tensor in TENSORS.items() if name != "scale"},
        {**TENSORS, "weight": TENSORS["weight"].T},
        {**TENSORS, "weight": TENSORS["weight"].astype(np.float64)},
        {**TENSORS, "weight": TENSORS["weight"] + 1},
        {**TENSORS, "more": TENSORS["weight"]},
    ],
)
def test_tensors_that_are_not_those_of_the_state_are_refused(run, tensors):
    path = run / "resume" / "9" / "tensors.safetensors"
    path.write_bytes(to_safetensors(tensors))
    assert refusal(run).startswith(f"{path} is damaged: ")


def test_records_up_to_the_state_that_are_lost_or_edited_are_refused(run):
    metrics = run / "metrics.jsonl"
    first, second = metrics.read_text().splitlines(keepends=True)
    for text in (
        "",
        first,
        first + second[:-3],
        second + first,
        first + first + second,
        first + second.replace("5", "6"),
    ):
        metrics.write_text(text)
        assert refusal(run).startswith(f"{metrics} has lost records or was edited: ")
    metrics.unlink()
    assert refusal(run).startswith(f"{metrics} has lost records or was edited: ")


def test_a_checkpoint_up_to_the_state_that_is_lost_changed_or_foreign_is_refused(run):
    four, eight = run / "checkpoint-4", run / "checkpoint-8"
    elsewhere = eight.rename(run / "elsewhere")
    assert refusal(run).startswith(f"{eight} is missing: ")
    four.rename(eight)
    elsewhere.rename(four)
    assert refusal(run).startswith(f"{four} is not the checkpoint that this run saved: ")
    four.rename(elsewhere)
    eight.rename(four)
    elsewhere.rename(eight)
    assert load_resume(run) is not None
    weights, config = (eight / name for name in ("model.safetensors", "config.json"))
    whole = weights.read_bytes()
    for place in (len(whole) - 1, len(whole) // 2, 9):
        weights.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert refusal(run).startswith(f"{eight} is not the checkpoint that this run saved: ")
    weights.write_bytes(whole)
    config.write_text(config.read_text().replace("0.1", "0.2"))
    assert refusal(run).startswith(f"{eight} is not the checkpoint that this run saved: ")
    save_checkpoint(run, 8, {"weight": np.zeros(100_000)}, CONFIG)
    save_checkpoint(run, 5, TENSORS, CONFIG)
    assert refusal(run).startswith(f"{run / 'checkpoint-5'} is not the checkpoint that this run saved: ")


def test_a_run_whose_only_state_lost_a_file_is_refused(run):
    (run / "resume" / "9" / "tensors.safetensors").unlink()
    assert refusal(run).startswith(f"{run / 'resume' / '9'} lacks state.json or tensors.safetensors: restore it, or ")
