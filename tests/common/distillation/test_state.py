"""Killed and stopped runs resume with the same weights and random numbers, also in several processes.

Run as a script, this file is one process of a training that the tests start and compare with their own.
"""

import json
import os
import random
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM

from common.distillation.batches import ReadyBatches
from common.distillation.run_loop import train_run
from common.distillation.state import weights
from common.runs.checkpoints import read_checkpoint, save_checkpoint
from common.runs.files import write_file
from common.runs.processes import Processes, open_shared_run
from common.runs.run import Run
from common.teachers.discovery import find_checkpoints
from tests.commands import exit_code, save_often, stopped
from tests.forked import forked, two_forked
from tests.trainers import (
    BATCH,
    HELD_OUT,
    STEPS,
    Draws,
    Killed,
    arguments,
    assert_same_model,
    bert,
    collate,
    content,
    distil,
    evaluate_by_hand,
    kill_by_exception,
    make_batch,
    recorded_arguments,
    run_with_dropout,
    samples,
    schedule_by_hand,
    send_stop_signal,
    train_by_hand,
)


@pytest.mark.parametrize("step", [1, 4, 5, 8])
def test_a_run_killed_at_a_step_resumes_bit_identical_with_the_same_random_numbers(
    tmp_path, teachers, uninterrupted, monkeypatch, step
):
    save_often(monkeypatch)
    with pytest.raises(Killed):
        run_with_dropout(tmp_path / "run", teachers, Draws(step, kill_by_exception))
    draws = Draws()
    random.seed(99)
    run_with_dropout(tmp_path / "run", teachers, draws)
    expected, drawn = uninterrupted
    assert content(tmp_path / "run") == expected
    first = (step - 1) // 2 * 2 + 1
    assert draws.drawn == {step: drawn[step] for step in range(first, STEPS + 1)}


def test_a_run_stopped_at_every_step_is_bit_identical_with_the_same_random_numbers(
    tmp_path, teachers, uninterrupted, capsys
):
    """Most steps have no record; after the last one the run is complete."""
    expected, drawn = uninterrupted
    for step in range(1, STEPS + 1):
        draws = Draws(step, send_stop_signal)
        random.seed(99)
        name = stopped(capsys, lambda draws=draws: run_with_dropout(tmp_path / "run", teachers, draws))
        assert draws.drawn == {step: drawn[step]}
        if step < STEPS:
            assert name == step
            assert [path.name for path in (tmp_path / "run" / "resume").iterdir()] == [str(step)]
    assert name is None
    assert content(tmp_path / "run") == expected


def test_a_run_whose_process_is_killed_resumes_bit_identical(tmp_path, teachers, uninterrupted, monkeypatch):
    done = forked(__file__, "killed", tmp_path / "run", teachers)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in (tmp_path / "run" / "resume").iterdir()] == ["4"]
    draws = Draws()
    run_with_dropout(tmp_path / "run", teachers, draws)
    assert content(tmp_path / "run") == uninterrupted[0]
    assert min(draws.drawn) == 5


# Several processes


def distil_rows(directory, teachers):
    """Train and evaluate on ordinary datasets, in order, and write the log and the weights."""
    args = arguments(directory / "rows", logging_steps=4)
    args.train_sampling_strategy = "sequential"
    args.per_device_eval_batch_size = 3
    trainer = distil(
        directory,
        teachers,
        args=args,
        train_dataset=samples(make_batch(0, 2 * BATCH)),
        eval_dataset=samples(make_batch(90, 13)),
        data_collator=collate,
    )
    trainer.train()
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        write_file(directory / "logs.json", json.dumps([trainer.state.log_history, metrics]).encode())
        save_checkpoint(directory, STEPS, weights(trainer.model), {})


def run_without_dropout(directory, teachers, accumulate, callback=None):
    args = recorded_arguments(directory, accumulate=accumulate)
    with open_shared_run(directory, {}, Processes(args.process_index, args.world_size), setting="test") as run:
        callbacks = [callback] if callback else []
        options = {"run": run, "eval_dataset": ReadyBatches(HELD_OUT), "callbacks": callbacks}
        train_run(distil(directory, teachers, args=args, **options), "test")


def main(mode, directory, teachers):
    with pytest.MonkeyPatch.context() as patch:
        save_often(patch)
        if mode == "killed":
            run_with_dropout(directory, teachers, Draws(5, lambda: os.kill(os.getpid(), signal.SIGKILL)))
            return
        run_without_dropout(directory / "run", teachers, accumulate=2)
        distil_rows(directory, teachers)
        draws = {name: Draws() for name in ("whole", "joined", "joined again")}
        for name, callback in draws.items():
            run_with_dropout(directory / name, teachers, callback, accumulate=1)
        with suppress(Killed):
            run_with_dropout(directory / "resumed", teachers, Draws(5, kill_by_exception), accumulate=1)
        run_with_dropout(directory / "resumed", teachers, accumulate=1)
    tell_one = send_stop_signal if os.environ["RANK"] == "1" else lambda: None
    codes = [
        exit_code(lambda: run_with_dropout(directory / "stopped", teachers, Draws(5, tell_one), accumulate=1)),
        exit_code(lambda: run_with_dropout(directory / "left", teachers, Draws(5, tell_one), accumulate=1)),
        exit_code(lambda: run_with_dropout(directory / "stopped", teachers, accumulate=1)),
        exit_code(lambda: run_without_dropout(directory / "changing", teachers, 1, Draws(6, tell_one))),
    ]
    drawn = {name: callback.drawn for name, callback in draws.items()}
    (directory / f"process-{os.environ['RANK']}.json").write_text(json.dumps({"codes": codes, "drawn": drawn}))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, teachers):
    directory = tmp_path_factory.mktemp("two_processes")
    for name in ("joined", "joined again"):
        draws = Draws(3, send_stop_signal)
        assert exit_code(lambda name=name, draws=draws: run_with_dropout(directory / name, teachers, draws)) == 75
    assert exit_code(lambda: run_without_dropout(directory / "changing", teachers, 2, Draws(3, send_stop_signal))) == 75
    two_forked(__file__, "shared", directory, teachers)
    return directory


def test_two_processes_make_the_run_of_one(tmp_path, teachers, two_processes):
    run_without_dropout(tmp_path, teachers, accumulate=1)
    shared, alone = Run(two_processes / "run").records(), Run(tmp_path).records()
    assert len(shared) == len(alone) == 3
    for here, there in zip(shared, alone, strict=True):
        assert here == {name: value and pytest.approx(value, rel=1e-5) for name, value in there.items()}
    for checkpoint in find_checkpoints(tmp_path):
        name = f"checkpoint-{checkpoint.step}"
        models = [BertForMaskedLM.from_pretrained(directory / name) for directory in (tmp_path, two_processes / "run")]
        assert_same_model(*models, atol=1e-5)


def test_two_processes_share_ordinary_data(teachers, two_processes):
    history, metrics = json.loads((two_processes / "logs.json").read_text())
    model, rows = bert(1), make_batch(0, 2 * BATCH)
    halves = [{name: value[start : start + BATCH] for name, value in rows.items()} for start in (0, BATCH)]
    sums = train_by_hand(model, STEPS // 2 * halves, schedule_by_hand(teachers, "bert")).reshape(2, 4, 4).sum(1)
    logs = [entry for entry in history if "learning_rate" in entry]
    for i, name in enumerate(("loss", "kl", "accuracy")):
        np.testing.assert_allclose([entry[name] for entry in logs], sums[:, i] / sums[:, 3], rtol=1e-4)
    trained = bert(0)
    trained.load_state_dict(
        {
            name: torch.from_numpy(tensor)
            for name, tensor in read_checkpoint(two_processes / f"checkpoint-{STEPS}")[1].items()
        },
        strict=False,
    )
    assert_same_model(trained, model)
    expected = evaluate_by_hand(model, [make_batch(90, 13)])
    assert (metrics["eval_loss"], metrics["eval_accuracy"]) == pytest.approx(expected, rel=1e-4)


def test_two_processes_killed_and_resumed_are_bit_identical(two_processes):
    assert content(two_processes / "resumed") == content(two_processes / "whole")


def test_a_signal_to_one_of_two_processes_stops_both_and_they_resume_bit_identical(two_processes):
    assert content(two_processes / "stopped") == content(two_processes / "whole")
    for index in range(2):
        assert in_process(two_processes, index)["codes"] == [75, 75, 0, 75]
    assert [path.name for path in (two_processes / "left" / "resume").iterdir()] == ["5"]


def in_process(directory, index):
    return json.loads((directory / f"process-{index}.json").read_text())


def test_one_process_then_two_then_one_make_the_run_of_one(tmp_path, teachers, two_processes):
    """Stopped after step 3 and after step 6, each time between two records."""
    shutil.copytree(two_processes / "changing", tmp_path / "changing")
    assert [path.name for path in (tmp_path / "changing" / "resume").iterdir()] == ["6"]
    for name in ("changing", "alone"):
        run_without_dropout(tmp_path / name, teachers, accumulate=1)
    for here, there in zip(Run(tmp_path / "changing").records(), Run(tmp_path / "alone").records(), strict=True):
        assert here == {name: value and pytest.approx(value, rel=1e-5) for name, value in there.items()}
    models = [
        BertForMaskedLM.from_pretrained(tmp_path / name / f"checkpoint-{STEPS}") for name in ("changing", "alone")
    ]
    assert_same_model(*models, atol=1e-5)


def test_random_numbers_of_a_process_that_joins_follow_from_seed_step_and_index(tmp_path, two_processes, uninterrupted):
    """Those of the first process continue. The model draws none of Python's random numbers."""
    assert content(two_processes / "joined") == content(two_processes / "joined again")
    first, second = (in_process(two_processes, index)["drawn"]["joined"] for index in range(2))
    for step in range(4, STEPS + 1):
        assert first[str(step)][0] == uninterrupted[1][step][0]
    seeds = np.random.SeedSequence([arguments(tmp_path).seed, 3, 1])
    numbers = random.Random(int(seeds.generate_state(1)[0]))
    assert [second[str(step)][0] for step in range(4, STEPS + 1)] == [numbers.random() for _ in range(4, STEPS + 1)]


def test_random_numbers_of_a_process_that_stays_continue_when_another_leaves(tmp_path, teachers, two_processes):
    draws = []
    for name in ("one", "other"):
        shutil.copytree(two_processes / "left", tmp_path / name)
        draws.append(Draws())
        run_with_dropout(tmp_path / name, teachers, draws[-1], accumulate=1)
    assert content(tmp_path / "one") == content(tmp_path / "other")
    whole = in_process(two_processes, 0)["drawn"]["whole"]
    assert {str(step): drawn[0] for step, drawn in draws[0].drawn.items()} == {s: whole[s][0] for s in ("6", "7", "8")}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
