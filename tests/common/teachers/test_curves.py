"""Curves from the three kinds of logs, and what damaged logs say."""

import json
import math
import os

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from transformers import Trainer, TrainingArguments

from common.distillation.phases import MIN_EVALUATIONS
from common.errors import UserError
from common.runs.run import open_run
from common.teachers import curves
from common.teachers.curves import ENOUGH, Curve, find_log, read_curve
from tests.trainers import bert, make_batch, samples

many_examples = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

POINTS = st.dictionaries(st.integers(0, 10**9), st.floats(-1e6, 1e6), min_size=1, max_size=30)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def trainer_state(*history):
    return json.dumps({"global_step": 9, "log_history": history})


def refused(path):
    """The message with which a log is refused, without the folder."""
    with pytest.raises(UserError) as caught:
        read_curve(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message.replace(f"{path.parent}/", "")


def test_enough_evaluations_are_as_many_as_phases_need():
    assert ENOUGH == MIN_EVALUATIONS


# A run of this project


def test_a_run_of_this_project(tmp_path):
    with open_run(tmp_path / "run", {}, setting="test") as run:
        for step, loss in ((0, 2.0), (10, 1.5), (20, 1.0)):
            run.log({"step": step, "loss": loss, "accuracy": 1 - loss / 4, "train_loss": math.nan})
    curve = read_curve(tmp_path / "run")
    source = f"loss in {tmp_path / 'run' / 'metrics.jsonl'}"
    assert curve == Curve((0, 10, 20), (2.0, 1.5, 1.0), source, (0.5, 0.625, 0.75))
    assert read_curve(str(tmp_path / "run" / "metrics.jsonl")) == curve


@many_examples
@given(POINTS, st.booleans())
def test_every_record_counts_but_one_that_a_killed_writer_cut_off(tmp_path, points, cut):
    lines = [json.dumps({"step": step, "loss": points[step]}) for step in sorted(points)]
    path = write(tmp_path / "metrics.jsonl", "\n".join(lines) + ('\n{"step": 17, "lo' if cut else "\n"))
    curve = read_curve(path)
    assert curve.steps == tuple(sorted(points))
    assert curve.losses == tuple(points[step] for step in curve.steps)
    assert curve.accuracies is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "metrics.jsonl has no row with a loss"),
        ("\n\n", "metrics.jsonl has no row with a loss"),
        ('{"step": 1, "reward": 2}\n', "metrics.jsonl has no row with a loss"),
        ('{"step": 1, "loss": 2}\n{"step": 2, "lo\n', "metrics.jsonl, line 2: not a JSON object"),
        ("[1, 2]\n", "metrics.jsonl, line 1: not a JSON object"),
        (100_000 * "[" + 100_000 * "]" + "\n", "metrics.jsonl, line 1: not a JSON object"),
        (100_000 * "[" + 100_000 * "]", "metrics.jsonl, line 1: not a JSON object"),
        ('{"loss": ' + 100_000 * "[" + 100_000 * "]" + "}\n", "metrics.jsonl, line 1: not a JSON object"),
        ('{"step": 1, "loss": null}\n', "metrics.jsonl, line 1: loss is None, not a finite number"),
        ('{"step": 1, "loss": NaN}\n', "metrics.jsonl, line 1: loss is nan, not a finite number"),
        ('{"step": 1, "loss": true}\n', "metrics.jsonl, line 1: loss is True, not a finite number"),
        ('{"step": 1, "loss": [1]}\n', "metrics.jsonl, line 1: loss is [1], not a finite number"),
        ('{"step": 1, "loss": 1' + 400 * "0" + "}\n", "metrics.jsonl, line 1: loss is 1000"),
        ('{"step": 1, "loss": 2, "accuracy": "high"}\n', "metrics.jsonl, line 1: accuracy is 'high', not a"),
        ('{"loss": 2}\n', "metrics.jsonl, line 1: step is None, not a finite number"),
        ('{"step": 1.5, "loss": 2}\n', "metrics.jsonl, line 1: step is 1.5, not a whole number of steps"),
        ('{"step": -1, "loss": 2}\n', "metrics.jsonl, line 1: step is -1, not a whole number of steps"),
        (
            '{"step": 5, "loss": 2}\n{"step": 4, "loss": 2}\n',
            "metrics.jsonl, line 2: step 4 comes after 5, so steps do not increase: correct it or give another log",
        ),
    ],
)
def test_damaged_records_are_refused_with_their_line(tmp_path, text, message):
    assert refused(write(tmp_path / "metrics.jsonl", text)).startswith(message)


def test_of_a_step_that_was_logged_again_after_a_resume_the_last_value_counts(tmp_path):
    logged = [(0, 9), (10, 8), (20, 7), (30, 6), (20, 5), (25, 4), (30, 3), (40, 2)]
    rows = "".join(f"{step},{loss}\n" for step, loss in logged)
    curve = read_curve(write(tmp_path / "log.csv", f"step,loss\n{rows}"))
    assert (curve.steps, curve.losses) == ((0, 10, 20, 25, 30, 40), (9, 8, 5, 4, 3, 2))


# A Trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A Trainer that evaluates ten times, its directory, and its log."""
    directory = tmp_path_factory.mktemp("trainer")
    args = TrainingArguments(
        directory,
        max_steps=20,
        per_device_train_batch_size=2,
        eval_strategy="steps",
        eval_steps=2,
        logging_steps=1,
        save_steps=9,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    data = samples(make_batch(0, 16))[8:]  # the first ones have no label
    trainer = Trainer(bert(0), args, train_dataset=data, eval_dataset=data)
    trainer.train()
    return directory, trainer.state.log_history


def test_a_trainer_with_its_held_out_loss(trained):
    directory, history = trained
    evaluations = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    assert [step for step, _ in evaluations] == list(range(2, 21, 2))
    curve = read_curve(directory)
    assert list(zip(curve.steps, curve.losses, strict=True)) == evaluations
    assert curve.source == f"eval_loss in {directory / 'checkpoint-20' / 'trainer_state.json'}"
    assert read_curve(directory / "checkpoint-20") == curve


def test_a_trainer_with_fewer_than_8_evaluations_gives_its_training_loss(trained):
    directory, history = trained
    curve = read_curve(directory / "checkpoint-9" / "trainer_state.json")
    expected = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry and entry["step"] <= 9]
    assert list(zip(curve.steps, curve.losses, strict=True)) == expected
    assert curve.source.startswith("loss in ")


def test_the_longer_of_a_trainers_states_counts(tmp_path):
    entries = [{"step": step, "loss": 1.0} for step in range(6)]
    write(tmp_path / "checkpoint-9" / "trainer_state.json", trainer_state())
    last = write(tmp_path / "checkpoint-10" / "trainer_state.json", trainer_state(*entries[:4]))
    assert find_log(tmp_path) == last
    root = write(tmp_path / "trainer_state.json", trainer_state(*entries[:3]))
    assert find_log(tmp_path) == last
    root.write_text(trainer_state(*entries))
    assert find_log(tmp_path) == root


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "trainer_state.json is truncated or damaged"),
        ('{"log_history": [{"st', "trainer_state.json is truncated or damaged"),
        ("[]", "trainer_state.json is truncated or damaged"),
        ("{}", "trainer_state.json has no log_history"),
        ('{"log_history": {"step": 1}}', "trainer_state.json has no log_history"),
        ('{"log_history": [1]}', "trainer_state.json has no log_history"),
        (trainer_state(), "trainer_state.json has no row with a loss"),
        (
            trainer_state({"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}),
            "trainer_state.json, entry 1 of log_history: loss is nan",
        ),
        (
            trainer_state({"step": 3, "loss": 2.0}, {"step": 2, "loss": 2.0}),
            "trainer_state.json, entry 1 of log_history: step 2 comes after 3",
        ),
    ],
)
def test_a_damaged_trainer_state_is_refused(tmp_path, text, message):
    assert refused(write(tmp_path / "trainer_state.json", text)).startswith(message)


# CSV


@pytest.mark.parametrize(
    ("header", "loss"),
    [
        ("step,loss", "loss"),
        ("global_step,eval_loss", "eval_loss"),
        ("iteration,val_loss", "val_loss"),
        ("_step,train_loss", "train_loss"),
        ('\ufeff"Step", Loss', "loss"),
        ("train/global_step,eval/loss", "eval_loss"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_names_of_columns(tmp_path, header, loss, end):
    path = write(tmp_path / "log.csv", end.join([header, "10,2.5", "", "20.0,1e-1"]))
    assert read_curve(path) == Curve((10, 20), (2.5, 0.1), f"{loss} in {path}")


def test_an_export_with_empty_cells_and_several_losses(tmp_path):
    """As Weights & Biases exports a Trainer: a row for each log, held-out loss and accuracy in some."""
    rows = ["_runtime,_step,train/global_step,train/loss,eval/loss,eval/accuracy"]
    for i in range(20):
        held_out = f"{3 - i / 10},{i / 20}" if i % 2 else ","
        rows.append(f"{i * 1.5},{i},{50 * i},{2 - i / 10},{held_out}")
    path = write(tmp_path / "export.csv", "\n".join(rows))
    curve = read_curve(tmp_path)
    assert curve.source == f"eval_loss in {path}"
    assert curve.steps == tuple(range(50, 1000, 100))
    assert curve.losses == pytest.approx([3 - i / 10 for i in range(1, 20, 2)])
    assert curve.accuracies == pytest.approx([i / 20 for i in range(1, 20, 2)])
    few = write(tmp_path / "few.csv", "\n".join(rows[:12]))
    assert (read_curve(few).source, len(read_curve(few).steps)) == (f"train_loss in {few}", 11)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "log.csv, line 1: the header has nothing, but needs a step (step,"),
        ("epoch,loss\n1,2\n", "log.csv, line 1: the header has epoch, loss, but needs a step"),
        ("step,reward\n1,2\n", "log.csv, line 1: the header has step, reward, but needs a step"),
        ("step,loss\n", "log.csv has no row with a loss"),
        ("step,loss\n1,\n", "log.csv has no row with a loss"),
        ("step,loss\n1,2\n2\n", "log.csv, line 3: 1 cells under a header of 2"),
        ("step,loss\n1,2,3\n", "log.csv, line 2: 3 cells under a header of 2"),
        ("step,loss\n1,2\n,3\n", "log.csv, line 3: step is None, not a finite number"),
        ("step,loss\n1,2\nsecond,3\n", "log.csv, line 3: step is 'second', not a finite number"),
        ("step,loss\n1,inf\n", "log.csv, line 2: loss is 'inf', not a finite number"),
        ("step,loss\n1,NaN\n", "log.csv, line 2: loss is 'NaN', not a finite number"),
        ('step,loss\n1,"2\n', "log.csv, line 2: unexpected end of data"),
        ("step,loss\n30,2\n20,1\n", "log.csv, line 3: step 20 comes after 30"),
    ],
)
def test_a_damaged_table_is_refused_with_its_line(tmp_path, text, message):
    assert refused(write(tmp_path / "log.csv", text)).startswith(message)


@many_examples
@given(POINTS, st.data())
def test_one_bad_cell_is_refused_with_its_line_and_column(tmp_path, points, data):
    steps = sorted(points)
    cells = [[str(step), repr(points[step])] for step in steps]
    row, column = data.draw(st.integers(0, len(steps) - 1)), data.draw(st.integers(0, 1))
    cells[row][column] = data.draw(st.sampled_from(["nan", "-inf", "1e999", "x", "1.2.3", "²", "0x1"]))
    text = "\n".join(["step,loss", *map(",".join, cells)])
    name = ("step", "loss")[column]
    assert refused(write(tmp_path / "log.csv", text)).startswith(f"log.csv, line {row + 2}: {name} is ")


def test_a_directorys_log_is_searched_in_order(tmp_path):
    with pytest.raises(UserError, match=r"has no metrics\.jsonl, trainer_state\.json or CSV file"):
        read_curve(tmp_path)
    for i, (name, text) in enumerate(
        [
            ("log.csv", "step,loss\n1,3\n"),
            ("checkpoint-7/trainer_state.json", trainer_state({"step": 1, "loss": 4})),
            ("metrics.jsonl", '{"step": 1, "loss": 5}\n'),
        ]
    ):
        write(tmp_path / name, text)
        assert read_curve(tmp_path).losses == (3 + i,)


def test_one_of_several_tables_must_be_given(tmp_path):
    for name in ("b.csv", "a.csv"):
        write(tmp_path / name, "step,loss\n1,3\n")
    with pytest.raises(UserError, match=r"has 2 CSV files, such as a\.csv: give one of them"):
        read_curve(tmp_path)


def test_no_log(tmp_path):
    assert refused(tmp_path / "log.csv") == "log.csv does not exist: give another log"
    kinds = "give a metrics.jsonl, trainer_state.json or CSV file"
    assert refused(write(tmp_path / "log.txt", "1 2")) == f"log.txt is not a supported kind of log: {kinds}"


@pytest.mark.parametrize("name", ["metrics.jsonl", "trainer_state.json", "log.csv"])
def test_what_is_too_large_is_refused_before_it_is_read(tmp_path, name):
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 20 * 10**9)
    message = f"{name} has 20.0 GB, and a log at most 1.0 GB: keep only its steps and losses"
    assert refused(tmp_path / name) == message
    with pytest.raises(UserError, match=message):
        read_curve(tmp_path)


def test_a_trainer_state_that_does_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "trainer_state.json", trainer_state({"step": 1, "loss": 1.0}))
    monkeypatch.setattr(curves, "free_memory", lambda: (2 * path.stat().st_size, "on this machine"))
    assert "needs at least 183 bytes of memory, but 122 bytes are free on this machine" in refused(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.jsonl", "".join(json.dumps({"step": step, "loss": 1}) + "\n\n{}\n" for step in range(9))),
        ("trainer_state.json", trainer_state(*({"step": step, "loss": 1} for step in range(9)))),
        ("log.csv", "step,loss\n" + "".join(f"{step},1\n\n{step},\n" for step in range(9))),
    ],
)
def test_what_has_too_many_rows_is_refused(tmp_path, monkeypatch, name, text):
    path = write(tmp_path / name, text)
    monkeypatch.setattr(curves, "MOST_ROWS", 9)
    assert read_curve(path).steps == tuple(range(9))
    monkeypatch.setattr(curves, "MOST_ROWS", 8)
    assert refused(path) == f"{name} has more than 8 rows: keep only some of them"


@pytest.mark.parametrize("name", ["metrics.jsonl", "trainer_state.json", "log.csv"])
def test_what_is_not_a_regular_file_is_no_log(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert refused(tmp_path / name) == f"{name} is not a regular file: give another log"
    with pytest.raises(UserError, match=r"has no metrics\.jsonl, trainer_state\.json or CSV file"):
        read_curve(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert refused(tmp_path / name).startswith(f"{name} has no metrics.jsonl, trainer_state.json or CSV file")
    with pytest.raises(UserError, match=r"has no metrics\.jsonl, trainer_state\.json or CSV file"):
        read_curve(tmp_path)
