"""Targets on the disk: students learn from them without a teacher, and nothing but what belongs to them is read."""

import errno
import fcntl
import itertools
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import mean

import numpy as np
import pytest
import safetensors.numpy
import torch

from common.distillation import labelled_head, target_cache
from common.distillation.batches import ReadyBatches
from common.distillation.labelled_head import LabelledOutput
from common.distillation.losses import IGNORED_LABEL, LossArguments
from common.distillation.run_loop import train_run
from common.distillation.schedules import Segment, spans
from common.distillation.target_cache import Place, TargetCache
from common.distillation.target_shards import ENTRY, _checksum, batch_hash, read_metadata
from common.distillation.together import train_together
from common.errors import UserError
from common.runs.run import Run, open_run
from common.teachers.discovery import find_checkpoints
from common.teachers.loading import Teachers
from common.teachers.trajectory import checkpoint_digests
from tests.commands import Killed, files, save_often
from tests.trainers import (
    HELD_OUT,
    SCHEDULE,
    STEPS,
    Batches,
    Draws,
    arguments,
    assert_same_model,
    bert,
    content,
    distil,
    kill_by_exception,
    logged,
    make_batch,
    recorded_arguments,
    send_stop_signal,
)

LOSSES = {
    "arg-max": {"temperature": 0.0, "alpha": 0.3},
    "logits": {"temperature": (2.0, 0.5), "divergence": "jensen-shannon"},
    "top-k": {"top_k": 4},
    "sampled": {"temperature": 1.5},
}


def cache_in(directory, kind="sampled", **options):
    return TargetCache(directory, kind if kind in ("sampled", "top-k") else "exact", **options)


def weights_of(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def trained(directory, teachers, name, cache=None, kind="bert", **options):
    """Weights and logged losses of a student."""
    args = arguments(directory, accumulate=2)
    trainer = distil(directory, teachers, kind, args=args, cache=cache, **{**LOSSES[name], **options})
    trainer.train()
    return weights_of(trainer), logged(trainer, "loss"), logged(trainer, "kl"), logged(trainer, "teacher")


def assert_same(results, others):
    assert results[1:] == others[1:]
    assert all(torch.equal(tensor, others[0][name]) for name, tensor in results[0].items())


@pytest.fixture
def no_teacher(monkeypatch):
    """From now on, no teacher may be loaded."""

    def forbid():
        monkeypatch.setattr(Teachers, "load", None)

    return forbid


# Students


@pytest.mark.parametrize(
    ("name", "kind", "chunk"),
    [
        *(("arg-max", kind, 2**20) for kind in ("bert", "gpt2", "plain")),
        *(("logits", kind, 30) for kind in ("bert", "gpt2", "plain")),
        *(("arg-max", "gpt2", 30), ("logits", "bert", 2**20)),
    ],
)
def test_students_of_exact_targets_are_those_of_the_teacher(
    tmp_path, teachers, monkeypatch, no_teacher, name, kind, chunk
):
    """To the last bit, for the one that writes and for the one that reads."""
    monkeypatch.setattr(labelled_head, "CPU_CHUNK", chunk)
    monkeypatch.setattr(labelled_head, "CPU_ROWS", 1)
    live = trained(tmp_path, teachers, name, kind=kind)
    assert_same(trained(tmp_path, teachers, name, cache_in(tmp_path / "targets", name), kind), live)
    no_teacher()
    assert_same(trained(tmp_path, teachers, name, cache_in(tmp_path / "targets", name), kind), live)


@pytest.mark.parametrize("name", ["top-k", "sampled"])
def test_the_student_that_writes_is_the_one_that_reads(tmp_path, teachers, no_teacher, name):
    wrote = trained(tmp_path, teachers, name, cache_in(tmp_path / "targets", name))
    no_teacher()
    assert_same(trained(tmp_path, teachers, name, cache_in(tmp_path / "targets", name)), wrote)


def test_students_of_top_k_targets_are_those_of_the_teacher_up_to_rounding(tmp_path, teachers):
    live = distil(tmp_path, teachers, **LOSSES["top-k"])
    live.train()
    cached = distil(tmp_path, teachers, cache=cache_in(tmp_path / "targets", "top-k"), **LOSSES["top-k"])
    cached.train()
    assert_same_model(cached.model, live.model)
    assert logged(cached, "kl") == pytest.approx(logged(live, "kl"), rel=1e-3)


def test_students_end_within_the_seed_spread_of_those_of_the_teacher(tmp_path, teachers):
    """Three seeds each: the mean losses differ by less than those of the seeds."""

    def final_loss(seed, cache):
        args = arguments(tmp_path, steps=24, lr=0.01)
        model, options = bert(seed), {"temperature": 1.0, "schedule": [Segment(0, 30)]}
        trainer = distil(tmp_path, teachers, model=model, args=args, cache=cache, **options)
        trainer.train()
        return mean(logged(trainer, "kl")[-10:])

    live = [final_loss(seed, None) for seed in range(3)]
    for name in ("sampled", "logits"):
        cached = [final_loss(seed, cache_in(tmp_path / name, name)) for seed in range(3)]
        assert abs(mean(live) - mean(cached)) < max(live) - min(live)


def test_other_students_read_what_the_first_one_wrote(tmp_path, teachers, no_teacher):
    """Of another size and seed; a longer student of another schedule has the teacher compute what is missing."""
    cache = cache_in(tmp_path / "targets")
    trained(tmp_path, teachers, "sampled", cache)
    before = files(tmp_path / "targets")
    used = spans(SCHEDULE, 0, STEPS)
    assert cache.missing(used) == 0
    assert cache.missing([*used, (STEPS, STEPS + 3, 30), (0, 2, 30), (0, 2, None)]) == 5
    one_shot = [Segment(0, 30)]
    wrote = trained(tmp_path, teachers, "sampled", cache_in(tmp_path / "targets"), schedule=one_shot)
    after = files(tmp_path / "targets")
    assert before.items() < after.items()
    no_teacher()
    trained(tmp_path, teachers, "sampled", cache_in(tmp_path / "targets"), model=bert(8, width=16))
    assert_same(trained(tmp_path, teachers, "sampled", cache_in(tmp_path / "targets"), schedule=one_shot), wrote)
    assert files(tmp_path / "targets") == after


def test_the_divergence_of_samples_is_an_estimate_of_the_teachers(tmp_path, teachers):
    many = {"cache": cache_in(tmp_path / "targets", samples=255), "temperature": 1.0}
    live, sampled = (distil(tmp_path, teachers, **options) for options in ({"temperature": 1.0}, many))
    live.train()
    sampled.train()
    assert logged(sampled, "kl") == pytest.approx(logged(live, "kl"), rel=0.03)


@pytest.mark.parametrize("is_cached", [False, True])
def test_batches_have_a_hash_if_there_is_a_cache(tmp_path, teachers, is_cached):
    """A dataset's own column of any other name stays as it is."""
    trainer = distil(tmp_path, teachers, cache=cache_in(tmp_path / "targets") if is_cached else None)
    trainer.state.max_steps = STEPS
    batch = {**make_batch(0), "content": torch.ones(8)}
    ((found,), _) = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    more = {"positions", "batch_hash"} if is_cached else {"positions"}
    assert found.keys() == batch.keys() | more
    assert found["content"] is batch["content"]


# Writers


def run_student(place, teachers, directory, callback=None, schedule=SCHEDULE):
    args = recorded_arguments(place, accumulate=2, eval_every=2)
    with open_run(place, {}, setting="test") as run:
        options = {"model": bert(1, dropout=0.2), "args": args, "run": run, "schedule": schedule, "temperature": 1.0}
        cache = None if directory is None else cache_in(directory)
        options |= {"eval_dataset": ReadyBatches(HELD_OUT), "callbacks": [callback or Draws()], "cache": cache}
        train_run(distil(place, teachers, **options), "test")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, teachers):
    """What a run writes, and its targets."""
    place = tmp_path_factory.mktemp("undisturbed")
    run_student(place / "run", teachers, place / "targets")
    return content(place / "run"), files(place / "targets")


@pytest.mark.parametrize(
    ("kill", "step"), [(kill_by_exception, 1), (kill_by_exception, 4), (kill_by_exception, 7), (send_stop_signal, 5)]
)
def test_a_killed_writer_resumes(tmp_path, teachers, monkeypatch, no_teacher, undisturbed, kill, step):
    """The results and the targets are those of an uninterrupted run; then no teacher is needed."""
    save_often(monkeypatch)
    with pytest.raises((Killed, BaseException)):
        run_student(tmp_path / "killed", teachers, tmp_path / "targets", Draws(step, kill))
    run_student(tmp_path / "killed", teachers, tmp_path / "targets")
    assert content(tmp_path / "killed") == undisturbed[0]
    no_teacher()
    run_student(tmp_path / "reader", teachers, tmp_path / "targets")
    assert content(tmp_path / "reader") == undisturbed[0]


def test_a_shard_that_is_written_again_has_the_same_bits(tmp_path, teachers):
    trained(tmp_path, teachers, "sampled", cache_in(tmp_path / "targets"))
    before = files(tmp_path / "targets")
    (tmp_path / "targets" / "checkpoint-10-3-6.safetensors").unlink()
    trained(tmp_path, teachers, "sampled", cache_in(tmp_path / "targets"))
    assert files(tmp_path / "targets") == before


@pytest.mark.parametrize("limit", [{"SHARD_BYTES": 0}, {"MOST_BATCHES": 1}])
def test_shards_of_any_size_are_read(tmp_path, teachers, monkeypatch, no_teacher, limit):
    whole = trained(tmp_path, teachers, "sampled", cache_in(tmp_path / "whole"))
    for name, value in limit.items():
        monkeypatch.setattr(target_cache, name, value)
    assert_same(trained(tmp_path, teachers, "sampled", cache_in(tmp_path / "targets")), whole)
    shards = [name for name in files(tmp_path / "targets") if name.endswith(".safetensors")]
    assert len(shards) == STEPS  # all micro-batches of a step are in one
    no_teacher()
    assert_same(trained(tmp_path, teachers, "sampled", cache_in(tmp_path / "targets")), whole)


def test_writers_and_readers_at_once(tmp_path, teachers, no_teacher):
    """Caches of other processes, which see each other's files only, with overlapping shards."""
    first, second = (tmp_path / name for name in ("first", "second"))
    alone = trained(tmp_path, teachers, "sampled", cache_in(first))
    late = cache_in(second)
    args = arguments(tmp_path, accumulate=2)
    trainer = distil(tmp_path, teachers, args=args, cache=late, **LOSSES["sampled"])  # has seen an empty directory
    second.mkdir()
    for name in ("targets.json", "checkpoint-20-0-3.safetensors"):
        shutil.copy(first / name, second)
    trainer.train()
    assert files(second) == files(first)
    no_teacher()
    assert_same(trained(tmp_path, teachers, "sampled", cache_in(second)), alone)


def test_runs_that_are_trained_together_share_a_cache(tmp_path, teachers, no_teacher):
    def train_all(place, cache):
        runs = {"one": [Segment(0, 30)], "all": SCHEDULE, "ce": []}
        shared = {"train_dataset": Batches(), "eval_dataset": ReadyBatches(HELD_OUT), "temperature": 1.0}
        trainers = []
        for name, schedule in runs.items():
            args = recorded_arguments(place / name)
            run = open_run(place / name, {}, setting="test")
            teacher = {} if schedule else {"teacher": None}
            options = {"args": args, "run": run.__enter__(), "schedule": schedule, "cache": cache, **teacher}
            trainers.append((run, distil(place / name, teachers, **shared, **options)))
        train_together([trainer for _, trainer in trainers], "test")
        for run, _ in trainers:
            run.__exit__(None, None, None)
        return {name: content(place / name) for name in runs}

    wrote = train_all(tmp_path / "wrote", cache_in(tmp_path / "targets"))
    no_teacher()
    assert train_all(tmp_path / "read", cache_in(tmp_path / "targets")) == wrote


def test_a_full_disk_at_any_write_ends_the_writer_and_changes_no_bit(tmp_path, teachers, monkeypatch, undisturbed):
    write = target_cache.write_file
    for number in itertools.count(1):
        calls, place = [], tmp_path / str(number)

        def full(path, data, number=number, calls=calls):
            calls.append(path)
            if len(calls) == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            write(path, data)

        with monkeypatch.context() as patch:
            patch.setattr(target_cache, "write_file", full)
            try:
                run_student(place / "run", teachers, place / "targets")
            except OSError:
                assert len(calls) == number
            else:
                break
        run_student(place / "run", teachers, place / "targets")
        assert content(place / "run") == undisturbed[0]
        for name, data in files(place / "targets").items():
            assert undisturbed[1][name] == data
    assert number > len(calls) >= 4  # the description and a shard of each checkpoint


def test_a_run_resumes_only_with_the_same_kind_of_targets(tmp_path, teachers, monkeypatch):
    save_often(monkeypatch)
    with pytest.raises(Killed):
        run_student(tmp_path / "run", teachers, None, Draws(5, kill_by_exception))
    with pytest.raises(UserError, match="began with other arguments: targets was None and is \\['sampled', 50\\]"):
        run_student(tmp_path / "run", teachers, tmp_path / "targets")
    assert Run(tmp_path / "run").complete is False


# What is refused


@pytest.fixture(scope="module")
def written(tmp_path_factory, teachers):
    place = tmp_path_factory.mktemp("written")
    trained(place, teachers, "sampled", cache_in(place / "targets", data={"seed": 3, "words": ["a"]}))
    return place / "targets"


@pytest.fixture
def copied(tmp_path, written):
    return shutil.copytree(written, tmp_path / "targets")


class Reversed(Batches):
    def batch(self, step):
        return make_batch(STEPS - 1 - step)


class OtherMask(Batches):
    """Labels elsewhere in the last batch."""

    def batch(self, step):
        batch = make_batch(step)
        return batch if step < STEPS - 1 else {**batch, "labels": batch["labels"].roll(1, 0)}


@pytest.mark.parametrize(("data", "step"), [(Reversed(), 0), (OtherMask(), 7)])
def test_other_data_is_refused(tmp_path, teachers, copied, data, step):
    before = files(copied)
    with pytest.raises(UserError, match=f"{copied} are of other data: the batch of step {step} differs"):
        trained(tmp_path, teachers, "sampled", described(copied), train_dataset=data)
    assert files(copied) == before


def test_labels_with_other_values_make_no_difference():
    batch = make_batch(0)
    other = {**batch, "labels": batch["labels"] + 1}
    positions = torch.arange(3)
    assert batch_hash(batch, positions) == batch_hash(other, positions)
    for name in ("input_ids", "attention_mask"):
        assert batch_hash(batch, positions) != batch_hash({**batch, name: batch[name] + 1}, positions)
    assert batch_hash(batch, positions) != batch_hash(batch, positions + 1)


def described(directory, kind="sampled", **options):
    return cache_in(directory, kind, **{"data": {"seed": 3, "words": ["a"]}, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 7}, "number is 50 there and 7 here"),
        ({"seed": 9}, "seed is 0 there and 9 here"),
        ({"data": {"seed": 4, "words": ["a"]}}, "seed is 3 there and 4 here"),
        ({"data": {"seed": 3}}, "words is ['a'] there and None here"),
        ({"kind": "exact"}, "targets is sampled there and logits here, temperature is 1.5 there and None here"),
    ],
)
def test_other_targets_are_refused(tmp_path, teachers, copied, options, message):
    with pytest.raises(UserError, match=re.escape(f"{copied} holds other targets: {message}")):
        trained(tmp_path, teachers, "sampled", described(copied, **options))


@pytest.mark.parametrize(
    ("changes", "loss", "message"),
    [
        ({"accumulate": 4}, {}, "micro_batches is 2 there and 4 here"),
        ({"precision": "bf16"}, {}, "precision is float32 there and bf16 here"),
        ({}, {"temperature": 1.0}, "temperature is 1.5 there and 1.0 here"),
        ({}, {"teacher_dtype": torch.float16}, "teacher_dtype is None there and torch.float16 here"),
    ],
)
def test_targets_of_other_arguments_are_refused(tmp_path, teachers, copied, changes, loss, message):
    args = arguments(tmp_path, **{"accumulate": 2, **changes})
    with pytest.raises(UserError, match=re.escape(message)):
        distil(tmp_path, teachers, args=args, cache=described(copied), **{**LOSSES["sampled"], **loss})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "topk"}, "targets must be one of exact, sampled, top-k; got 'topk'"),
        ({"seed": -1}, "the seed of the targets must be from 0 to below 2^64, got -1"),
        ({"seed": 2**64}, "the seed of the targets must be from 0"),
    ],
)
def test_impossible_caches_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        TargetCache(tmp_path / "targets", **options)


def test_a_cache_knows_nothing_before_it_is_prepared(tmp_path, copied):
    cache = described(copied)
    place = place_of(copied / SHARD)
    for question in (
        lambda: cache.kind,
        lambda: cache.missing([(0, 3, 10)]),
        lambda: cache.require_teacher({}),
        lambda: cache.find(place),
    ):
        with pytest.raises(UserError, match="call prepare first"):
            question()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"device": torch.device("cuda")}, "device is cpu there and cuda here; give another directory"),
        ({"attention": "eager"}, "attention is sdpa there and eager here; give another directory"),
    ],
)
def test_exact_targets_depend_on_how_the_teacher_computes(tmp_path, changes, named):
    """Samples do not, beyond rounding."""

    def prepare(directory, attention="sdpa", device=None, write=False):
        with pytest.MonkeyPatch.context() as patch:
            args = arguments(tmp_path)
            if device is not None:
                patch.setattr(type(args), "device", device)
            cache = cache_in(directory, "logits" if "exact" in directory.name else "sampled")
            cache.prepare(args, LossArguments(), attention=attention)
            if write:
                cache.add(Place(10, "", 0, 0, bytes(16), 4), LabelledOutput(torch.zeros(4, 10)), "weights")
                cache.flush()

    for name in ("exact", "sampled"):
        prepare(tmp_path / name, write=True)
    prepare(tmp_path / "sampled", **changes)
    with pytest.raises(UserError, match=named):
        prepare(tmp_path / "exact", **changes)


def test_targets_of_other_classes_are_refused(tmp_path, teachers, copied):
    cache = described(copied)
    cache.prepare(arguments(tmp_path, accumulate=2), LossArguments(temperature=(1.5, 1.5)))
    digests = checkpoint_digests(find_checkpoints(teachers / "bert"))
    cache.require_teacher(digests, 11)
    with pytest.raises(UserError, match=r"safetensors has targets of \d+ classes, but student and teacher share 9"):
        cache.require_teacher(digests, 9)
    place = place_of(copied / SHARD)
    assert cache.find(replace(place, classes=11)) is not None
    with pytest.raises(UserError, match="but student and teacher share 9: give another directory"):
        prepared(copied, tmp_path).find(replace(place, classes=9))


def test_no_teacher_is_loaded_for_a_report_if_there_are_all_targets(tmp_path, teachers, no_teacher, capsys):
    options = {"check_teacher": True, "eval_dataset": ReadyBatches(HELD_OUT)}
    wrote = trained(tmp_path, teachers, "sampled", cache_in(tmp_path / "targets"), **options)
    assert "teacher step 30: accuracy" in capsys.readouterr().out
    no_teacher()
    assert_same(trained(tmp_path, teachers, "sampled", cache_in(tmp_path / "targets"), **options), wrote)
    assert "teacher step 30: accuracy" not in capsys.readouterr().out


def test_a_cache_is_checked_before_training(tmp_path, teachers, copied, monkeypatch, no_teacher):
    """As the teacher is."""
    no_teacher()
    other = shutil.copytree(teachers, tmp_path / "teachers")
    bert(99, 12, 2).save_pretrained(other / "bert" / "checkpoint-10")
    with pytest.raises(UserError, match="has targets of another teacher"):
        trained(tmp_path, other, "sampled", described(copied), check_teacher=True, trust_trajectory=True)
    with pytest.raises(UserError, match="no targets can be written to /proc/targets"):
        trained(tmp_path, teachers, "sampled", cache_in("/proc/targets"), check_teacher=True, trust_trajectory=True)


def test_students_of_different_losses_do_not_share_a_cache(tmp_path, teachers):
    cache = cache_in(tmp_path / "targets")
    distil(tmp_path, teachers, cache=cache, temperature=1.0)
    with pytest.raises(UserError, match=r"need temperature is 1.0 there and 2.0 here"):
        distil(tmp_path, teachers, cache=cache, temperature=2.0)


def test_targets_of_another_teacher_are_refused(tmp_path, teachers, copied):
    other = shutil.copytree(teachers, tmp_path / "teachers")
    bert(99, 12, 2).save_pretrained(other / "bert" / "checkpoint-10")
    message = "checkpoint-10-3-6.safetensors has targets of another teacher: its checkpoint of step 10 has changed"
    with pytest.raises(UserError, match=message):
        trained(tmp_path, other, "sampled", described(copied))
    cache = described(copied)
    cache.prepare(arguments(tmp_path, accumulate=2), LossArguments(temperature=(1.5, 1.5)))
    cache.require_teacher(checkpoint_digests(find_checkpoints(teachers / "bert")))
    with pytest.raises(UserError, match=message):
        cache.require_teacher(checkpoint_digests(find_checkpoints(other / "bert")))


def test_a_shard_of_another_cache_is_refused(tmp_path, teachers, copied):
    trained(tmp_path, teachers, "sampled", cache_in(tmp_path / "other"))
    shutil.copy(tmp_path / "other" / "checkpoint-10-3-6.safetensors", copied)
    with pytest.raises(UserError, match=r"checkpoint-10-3-6.safetensors does not belong to .*targets.json: remove it"):
        trained(tmp_path, teachers, "sampled", described(copied))


def test_another_directory_is_refused(tmp_path, teachers):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("")
    for name, message in (
        ("folder/file", "file is not a directory"),
        ("folder", "folder has other files, such as file"),
    ):
        with pytest.raises(UserError, match=message):
            trained(tmp_path, teachers, "sampled", cache_in(tmp_path / name))


def test_where_nothing_can_be_written_is_known_before(tmp_path):
    for place in ("/proc/targets", "/dev/null/targets"):
        with pytest.raises(UserError, match=f"no targets can be written to {place} "):
            TargetCache(place).require_writable()
    TargetCache(tmp_path / "a" / "b").require_writable()
    assert list(tmp_path.iterdir()) == []


def test_commands_that_begin_at_once_may_all_write(tmp_path):
    """Each looks while others do, and nobody creates or removes anything."""
    with ThreadPoolExecutor(8) as threads:
        checks = [threads.submit(TargetCache(tmp_path / "targets").require_writable) for _ in range(200)]
    assert [check.result() for check in checks] == [None] * 200
    assert list(tmp_path.iterdir()) == []


def test_what_killed_writers_left_behind_is_removed(tmp_path, teachers):
    leftover = tmp_path / "targets" / f".{SHARD}.123.unfinished"
    leftover.parent.mkdir()
    leftover.write_text("half of it")
    trained(tmp_path, teachers, "sampled", cache_in(tmp_path / "targets"))
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "truncated or damaged"), ('{"format": 2}', "is of another version"), ("{}", "is of another version")],
)
def test_a_damaged_description_is_refused(tmp_path, teachers, copied, text, message):
    (copied / "targets.json").write_text(text)
    with pytest.raises(UserError, match=f"targets.json.*{message}"):
        trained(tmp_path, teachers, "sampled", described(copied))


def test_targets_that_change_meanwhile_are_not_mixed(tmp_path, teachers, copied):
    """Another command has written its own description since this one looked."""
    cache = cache_in(tmp_path / "new")
    trainer = distil(tmp_path, teachers, cache=cache, **LOSSES["sampled"])
    shutil.copytree(copied, tmp_path / "new")
    with pytest.raises(UserError, match="new holds other targets"):
        trainer.train()
    assert files(tmp_path / "new") == files(copied)


def test_the_first_of_two_writers_describes_the_targets(tmp_path, teachers, monkeypatch, copied):
    """The second one begins while the first one holds the lock, and has found no description."""
    trainer = distil(tmp_path, teachers, cache=cache_in(tmp_path / "new"), **LOSSES["sampled"])
    lock = fcntl.flock

    def lock_after_another(file, operation):
        if operation == fcntl.LOCK_EX:
            shutil.copytree(copied, tmp_path / "new", dirs_exist_ok=True)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock_after_another)
    with pytest.raises(UserError, match="new holds other targets"):
        trainer.train()
    monkeypatch.undo()
    assert files(tmp_path / "new") == files(copied)


def test_one_writer_writes_at_a_time(tmp_path, teachers, monkeypatch):
    write, written = target_cache.write_file, []

    def write_locked(path, content):
        with (path.parent / target_cache.LOCK).open("ab") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        written.append(path.name)
        write(path, content)

    monkeypatch.setattr(target_cache, "write_file", write_locked)
    trained(tmp_path, teachers, "sampled", cache_in(tmp_path / "targets"))
    assert written[0] == "targets.json"
    assert len(written) == len(set(written)) > 1


SHARD = "checkpoint-10-3-6.safetensors"


def place_of(path, step=4):
    tensors = safetensors.numpy.load_file(path)
    row = tensors["places"].tolist().index([step, 0])
    digest, batch = read_metadata(path)["teacher"], tensors["batches"][row].tobytes()
    return Place(10, digest, step, 0, batch, int(tensors["positions"][row]))


def prepared(directory, tmp_path):
    cache = described(directory)
    cache.prepare(arguments(tmp_path, accumulate=2), LossArguments(temperature=(1.5, 1.5)))
    return cache


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("places"),
        lambda tensors: tensors.update(more=np.zeros(3)),
        lambda tensors: tensors.update(places=tensors["places"] + 10),
        lambda tensors: tensors.update(places=tensors["places"].astype(np.int32)),
        lambda tensors: tensors.update(batches=tensors["batches"][:, :8]),
        lambda tensors: tensors.update(lengths=tensors["lengths"][::-1].copy()),
        lambda tensors: tensors.update(lengths=tensors["lengths"] * np.int64(2**62)),
        lambda tensors: tensors.update(positions=tensors["positions"] + 1),
        lambda tensors: tensors.update({"field.classes": np.float64(3)}),
        lambda tensors: tensors.update({"field.classes": tensors["field.classes"] + np.uint16(60000)}),
    ],
)
def test_shards_with_a_right_checksum_and_wrong_content_are_refused(tmp_path, copied, change):
    place = place_of(copied / SHARD)
    tensors = safetensors.numpy.load_file(copied / SHARD)
    change(tensors)
    tensors = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    metadata = {**read_metadata(copied / SHARD), "checksum": _checksum(tensors)}
    (copied / SHARD).write_bytes(safetensors.numpy.save(tensors, {ENTRY: json.dumps(metadata)}))
    with pytest.raises(UserError, match=f"{SHARD} is truncated or damaged: remove it"):
        prepared(copied, tmp_path).find(place)


def test_targets_for_fewer_positions_than_a_batch_has_are_refused(tmp_path, copied):
    place = place_of(copied / SHARD)
    with pytest.raises(UserError, match=f"the batch of step 4 has {place.positions + 1} positions, but targets for"):
        prepared(copied, tmp_path).find(replace(place, positions=place.positions + 1))


@pytest.mark.parametrize("name", ["checkpoint-10-3-5.safetensors", "checkpoint-10-0-100000000000000.safetensors"])
def test_a_shard_whose_name_says_other_steps_is_refused_before_training(tmp_path, copied, name):
    place = place_of(copied / SHARD)
    (copied / SHARD).rename(copied / name)
    cache = prepared(copied, tmp_path)
    assert cache.missing([(3, 6, 10)]) in (0, 1)
    with pytest.raises(UserError, match=f"{name} is truncated or damaged: remove it"):
        cache.require_teacher({"10": place.digest})


def test_a_truncated_shard_is_refused_before_training(tmp_path, copied):
    place = place_of(copied / SHARD)
    os.truncate(copied / SHARD, (copied / SHARD).stat().st_size - 1)
    with pytest.raises(UserError, match=f"{SHARD} is truncated or damaged: remove it"):
        prepared(copied, tmp_path).require_teacher({"10": place.digest})


def test_targets_of_one_checkpoint_are_of_the_same_weights(tmp_path):
    """The digest of a large checkpoint is of samples of its weights."""
    for step, weights in enumerate(("one", "one", "other")):
        cache = cache_in(tmp_path / "targets", "logits")
        cache.prepare(arguments(tmp_path), LossArguments())
        cache.add(Place(10, "", step, 0, bytes(16), 4), LabelledOutput(torch.zeros(4, 10)), weights)
        if weights == "one":
            cache.flush()
            continue
        with pytest.raises(UserError, match="the weights of the checkpoint of step 10 have changed between "):
            cache.flush()
    assert len(list((tmp_path / "targets").glob("*.safetensors"))) == 2


def test_writers_of_two_teachers_do_not_share_a_directory(tmp_path):
    caches = [cache_in(tmp_path / "targets", "logits") for _ in range(2)]
    for cache, digest in zip(caches, ("one", "other"), strict=True):
        cache.prepare(arguments(tmp_path), LossArguments())
        cache.add(Place(10, digest, 0, 0, bytes(16), 4), LabelledOutput(torch.zeros(4, 10)), digest)
    caches[0].flush()
    with pytest.raises(UserError, match="has targets of another teacher"):
        caches[1].flush()


def test_a_lock_that_is_no_file_is_refused_before_training(tmp_path):
    (tmp_path / "targets").mkdir()
    os.mkfifo(tmp_path / "targets" / ".targets.lock")
    with pytest.raises(UserError, match="is no regular file"):
        cache_in(tmp_path / "targets", "logits").prepare(arguments(tmp_path), LossArguments())


def test_other_files_are_ignored_and_removed_shards_named(tmp_path, copied):
    (copied / "checkpoint-10-3-6.safetensors.bak").write_text("x")
    (copied / ".checkpoint-10-3-6.safetensors.123.unfinished").write_text("x")
    (copied / "checkpoint-10-3-6-1.safetensors").write_text("of another process")
    place, cache = place_of(copied / SHARD), prepared(copied, tmp_path)
    assert cache.find(place) is not None
    assert cache.find(Place(10, place.digest, 5000, 0, b"", 4)) is None
    cache = prepared(copied, tmp_path)
    (copied / SHARD).unlink()
    with pytest.raises(UserError, match=f"{SHARD} has been removed: start again"):
        cache.find(place)


def test_a_step_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(target_cache, "MOST_SHARD", 400)
    cache = cache_in(tmp_path / "targets", "logits")
    cache.prepare(arguments(tmp_path), LossArguments())
    cache.add(Place(10, "", 0, 0, bytes(16), 4), LabelledOutput(torch.zeros(4, 10)), "weights")
    with pytest.raises(UserError, match="logits targets of 10 classes need more than 200 bytes for a step"):
        cache.add(Place(10, "", 0, 1, bytes(16), 4), LabelledOutput(torch.zeros(4, 10)), "weights")


def test_processes_have_shards_and_samples_of_their_own(tmp_path):
    drawn = []
    for index in range(2):
        args = arguments(tmp_path)
        type(args).world_size, old = property(lambda self: 2), type(args).world_size
        type(args).process_index, old_index = property(lambda self, index=index: index), type(args).process_index
        try:
            cache = cache_in(tmp_path / "targets")
            cache.prepare(args, LossArguments())
        finally:
            type(args).world_size, type(args).process_index = old, old_index
        cache.add(Place(10, "", 0, 0, bytes(16), 4), LabelledOutput(torch.zeros(4, 1000)), "weights")
        cache.flush()
        drawn.append(cache.find(Place(10, "", 0, 0, bytes(16), 4)).fields["classes"])
    names = sorted(path.name for path in (tmp_path / "targets").iterdir())
    assert names == [
        ".targets.lock",
        "checkpoint-10-0-1-0.safetensors",
        "checkpoint-10-0-1-1.safetensors",
        "targets.json",
    ]
    assert json.loads((tmp_path / "targets" / "targets.json").read_text())["processes"] == 2
    assert not np.array_equal(*drawn)


def test_a_shard_has_no_gaps(tmp_path):
    """A student that resumed may find some targets and not others."""
    cache = cache_in(tmp_path / "targets")
    cache.prepare(arguments(tmp_path), LossArguments())
    for step in (0, 1, 5, 6, 2):
        cache.add(Place(10, "", step, 0, bytes(16), 4), LabelledOutput(torch.zeros(4, 10)), "weights")
    cache.flush()
    assert cache.missing([(0, 8, 10)]) == 3
    assert cache.find(Place(10, "", 6, 0, bytes(16), 4)) is not None
    assert cache.find(Place(10, "", 4, 0, bytes(16), 4)) is None


@pytest.mark.parametrize("empty", [{0}, {1, 3}, {0, 1, 2, 3}])
def test_steps_without_positions_are_not_missing(tmp_path, empty):
    """Of one shard, which may have no targets at all; nothing is added where there is a shard."""
    cache = cache_in(tmp_path / "targets")
    cache.prepare(arguments(tmp_path), LossArguments())
    places = [Place(10, "", step, 0, bytes(16), 4) for step in range(4)]
    for place in places:
        if place.step in empty:
            cache.add_nothing(place)
        else:
            cache.add(place, LabelledOutput(torch.zeros(4, 10)), "weights")
    cache.flush()
    assert [path.name for path in (tmp_path / "targets").glob("*.safetensors")] == ["checkpoint-10-0-4.safetensors"]
    before = files(tmp_path / "targets")
    for reader in (cache, cache_in(tmp_path / "targets")):
        reader.prepare(arguments(tmp_path), LossArguments())
        assert reader.missing([(0, 4, 10)]) == 0
        assert {place.step for place in places if reader.find(place) is None} == empty
        reader.add_nothing(places[min(empty)])
        reader.flush()
        assert files(tmp_path / "targets") == before


class SomeUnlabelled(Batches):
    """The first batch and the fifth have no labels."""

    def batch(self, step):
        batch = make_batch(step)
        return batch if step not in (0, 4) else {**batch, "labels": torch.full_like(batch["labels"], IGNORED_LABEL)}


def test_a_student_with_steps_without_labels_leaves_none_missing(tmp_path, teachers, no_teacher):
    cache, data = cache_in(tmp_path / "targets"), {"train_dataset": SomeUnlabelled()}
    wrote = trained(tmp_path, teachers, "sampled", cache, **data)
    assert cache.missing(spans(SCHEDULE, 0, STEPS)) == 0
    no_teacher()
    assert_same(trained(tmp_path, teachers, "sampled", cache_in(tmp_path / "targets"), **data), wrote)


def test_what_is_in_memory_is_bounded(tmp_path, monkeypatch):
    """Of many checkpoints: targets that are not written yet, and shards that were read."""
    monkeypatch.setattr(target_cache, "SHARD_BYTES", 1000)
    monkeypatch.setattr(target_cache, "KEPT_BYTES", 2000)
    cache = cache_in(tmp_path / "targets", "logits")
    cache.prepare(arguments(tmp_path), LossArguments())
    places = [Place(10 * (step % 6), "", step, part, bytes(16), 1) for step in range(24) for part in range(2)]
    for place in places:
        cache.add(place, LabelledOutput(torch.zeros(1, 25)), "weights")
        assert sum(shard.nbytes for shard in cache._new.values()) <= 1000 + 2 * 100
    cache.flush()
    assert cache.missing([(step, step + 1, 10 * (step % 6)) for step in range(24)]) == 0
    kept = []
    for place in places:
        assert cache.find(place) is not None
        kept.append(sum(map(target_cache._nbytes, cache._read.values())))
    assert 1000 < max(kept) <= 2000
    monkeypatch.setattr(target_cache, "KEPT_BYTES", 10)
    assert all(cache.find(place) is not None and len(cache._read) == 1 for place in places)


def test_another_valid_class_is_damage(tmp_path, copied):
    place, tensors = place_of(copied / SHARD), safetensors.numpy.load_file(copied / SHARD)
    tensors["field.classes"][0] ^= 1
    metadata = {ENTRY: json.dumps(read_metadata(copied / SHARD))}
    (copied / SHARD).write_bytes(safetensors.numpy.save(tensors, metadata))
    with pytest.raises(UserError, match=f"{SHARD} is truncated or damaged"):
        prepared(copied, tmp_path).find(place)
