"""Runs on ordinary and streaming datasets resume bit-identical, also in several processes.

Run as a script, this file is one process of a training that the tests start.
"""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import datasets
import pytest
import torch

from common.distillation.run_loop import RunTrainer, train_run
from common.errors import UserError
from common.runs.processes import Processes, open_shared_run
from common.runs.run import Run
from tests.commands import save_often, stopped
from tests.forked import Pair, two_forked
from tests.sample_data import SAMPLES, Stateful, Stream, masking, token_rows
from tests.trainers import (
    BATCH,
    STEPS,
    Draws,
    Killed,
    bert,
    collate,
    content,
    kill_by_exception,
    make_batch,
    recorded_arguments,
    samples,
    send_stop_signal,
)


def labelled_rows():
    return [{**row, "text": "words"} for row in samples(make_batch(0, SAMPLES))]


def streamed(rows):
    return datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=2)


def as_lists(rows):
    return [{name: value.tolist() if torch.is_tensor(value) else value for name, value in row.items()} for row in rows]


DATA = {
    "list": lambda: (labelled_rows(), collate),
    "masked": lambda: (datasets.Dataset.from_list(token_rows()), masking()),
    "stream": lambda: (Stream(labelled_rows()), collate),
    "stream with a state": lambda: (Stateful(labelled_rows()), collate),
    "masked stream": lambda: (streamed(token_rows()), masking()),
    "shuffled stream": lambda: (streamed(as_lists(labelled_rows())).shuffle(seed=2, buffer_size=7), None),
}


def run_on(directory, kind, callback=None, accumulate=2, dropout=0.2, seen=None, workers=0):
    """Train to the end of a run, from its last saved state; `seen` gets the inputs of training."""
    dataset, collator = DATA[kind]()
    model = bert(1, dropout=dropout)
    if seen is not None:

        def keep(model, args, inputs):
            if model.training:
                seen.append(inputs["input_ids"].tolist())

        model.register_forward_pre_hook(keep, with_kwargs=True)
    args = recorded_arguments(directory, accumulate=accumulate, eval_every=2)
    args.dataloader_num_workers = workers
    held_out = token_rows(11, seed=1) if "masked" in kind else labelled_rows()[:11]
    options = {"train_dataset": dataset, "eval_dataset": held_out, "data_collator": collator}
    with open_shared_run(directory, {}, Processes(args.process_index, args.world_size), setting="test") as run:
        train_run(RunTrainer(model, args, run=run, callbacks=[callback or Draws()], **options), "test")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs, made when they are first compared with."""
    made = {}

    def get(kind):
        if kind not in made:
            directory, draws = tmp_path_factory.mktemp("whole") / "run", Draws()
            run_on(directory, kind, draws)
            made[kind] = content(directory), draws.drawn
        return made[kind]

    return get


@pytest.mark.parametrize("kind", DATA)
def test_a_run_killed_at_some_steps_resumes_bit_identical(tmp_path, monkeypatch, whole, kind):
    save_often(monkeypatch)
    for step in (1, 4, 7):
        with pytest.raises(Killed):
            run_on(tmp_path / "run", kind, Draws(step, kill_by_exception))
    draws = Draws()
    run_on(tmp_path / "run", kind, draws)
    expected, drawn = whole(kind)
    assert content(tmp_path / "run") == expected
    assert draws.drawn == {step: drawn[step] for step in draws.drawn}


@pytest.mark.parametrize("kind", ["masked", "masked stream"])
def test_a_run_stopped_at_every_step_is_bit_identical(tmp_path, capsys, whole, kind):
    for step in range(1, STEPS):
        assert stopped(capsys, lambda s=step: run_on(tmp_path / "run", kind, Draws(s, send_stop_signal))) == step
    run_on(tmp_path / "run", kind)
    assert content(tmp_path / "run") == whole(kind)[0]


@pytest.mark.slow
def test_batches_made_by_other_processes_are_the_same(tmp_path, whole):
    run_on(tmp_path / "run", "masked", workers=2)
    assert content(tmp_path / "run") == whole("masked")[0]


def test_evaluations_of_the_same_weights_have_the_same_masks(tmp_path):
    args = recorded_arguments(tmp_path, lr=0.0, eval_every=1)
    dataset, collator = DATA["masked"]()
    options = {"train_dataset": dataset, "eval_dataset": token_rows(11, seed=1), "data_collator": collator}
    with open_shared_run(tmp_path, {}, Processes(), setting="test") as run:
        train_run(RunTrainer(bert(1), args, run=run, **options), "test")
    assert len({(record["loss"], record["accuracy"]) for record in run.records()}) == 1


# Several processes


KINDS = ["list", "masked", "shuffled stream"]


def main(mode, directory):
    rank = os.environ["RANK"]
    with pytest.MonkeyPatch.context() as patch:
        save_often(patch)
        if mode == "killed":
            kill = (lambda: os.kill(os.getpid(), signal.SIGKILL)) if rank == "1" else lambda: None
            run_on(directory / "killed", "masked", Draws(5, kill))
            return
        run_on(directory / "killed", "masked")
        for kind in KINDS:
            seen = []
            run_on(directory / f"whole {kind}", kind, seen=seen)
            (directory / f"seen {kind} {rank}.json").write_text(json.dumps(seen))
            with suppress(Killed):
                run_on(directory / f"resumed {kind}", kind, Draws(5, kill_by_exception))
            run_on(directory / f"resumed {kind}", kind)
            run_on(directory / f"even {kind}", kind, accumulate=1, dropout=0.0)
    DATA["unlike"] = lambda: (labelled_rows()[int(rank) :], collate)
    with pytest.raises(UserError, match="the processes read different training data"):
        run_on(directory / "unlike", "unlike")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two_processes")
    assert -signal.SIGKILL in [done.returncode for done in Pair(__file__, "killed", directory).wait()]
    assert [path.name for path in (directory / "killed" / "resume").iterdir()] == ["4"]
    two_forked(__file__, "rest", directory)
    return directory


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_killed_and_resumed_are_bit_identical(two_processes, kind):
    expected = content(two_processes / f"whole {kind}")
    assert content(two_processes / f"resumed {kind}") == expected
    if kind == "masked":
        assert content(two_processes / "killed") == expected


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_make_the_run_of_one(tmp_path, two_processes, kind):
    run_on(tmp_path, kind, dropout=0.0)
    shared, alone = Run(two_processes / f"even {kind}").records(), Run(tmp_path).records()
    assert len(shared) == len(alone)
    for here, there in zip(shared, alone, strict=True):
        assert here == {name: value and pytest.approx(value, rel=1e-4) for name, value in there.items()}


@pytest.mark.parametrize("kind", ["list", "shuffled stream"])
def test_two_processes_see_each_sample_once_an_epoch(two_processes, kind):
    parts = [json.loads((two_processes / f"seen {kind} {rank}.json").read_text()) for rank in range(2)]
    micro = [[rows for part in pair for rows in part] for pair in zip(*parts, strict=True)]
    seen = [tuple(row) for rows in micro for row in rows]
    assert len(micro) == 2 * STEPS
    assert len(seen) == STEPS * BATCH
    rows = sorted(tuple(row["input_ids"].tolist()) for row in labelled_rows())
    assert len(set(rows)) == SAMPLES
    assert [sorted(seen[start : start + SAMPLES]) for start in (0, SAMPLES, 2 * SAMPLES)] == 3 * [rows]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
