"""distill.py --cache-teacher: students of cached targets, in the settings on grammars and on text."""

import errno
import os
import shutil
from dataclasses import replace

import pytest

from common import resources
from common.distillation import target_cache
from common.language_models import commands, students
from common.runs.names import default_name
from common.runs.processes import Processes
from common.runs.run import Run
from common.teachers.loading import Teachers
from tests.commands import and_signal, assert_named, exit_code, files, refusals, results, results_below, save_often
from tests.pcfg import MLM, SETTINGS
from tests.text import TEXT_SETTINGS

METHODS = ("--methods", "ce", "one-shot", "progressive", "--accumulate", "2")


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def written(tmp_path_factory, teacher_of):
    """The run of a student whose targets are cached beside it; its command."""
    place = tmp_path_factory.mktemp("written")
    words = [*MLM.distill, "--methods", "one-shot", "--teacher", teacher_of(MLM)]
    where = ["--out", place / "first", "--cache-teacher", place / "targets"]
    assert exit_code(MLM.main(words), *words[1:], *where) == 0
    return place, words


@pytest.fixture
def cached(written, tmp_path):
    """A command without --out, with targets that others may not change."""
    place, words = written
    return [*words, "--cache-teacher", shutil.copytree(place / "targets", tmp_path / "targets")]


@pytest.fixture
def no_teacher(monkeypatch):
    """From now on no teacher may be in memory, for training or for a report on it."""

    def forbid():
        monkeypatch.setattr(Teachers, "load", None)
        monkeypatch.setattr(commands, "report_of_teacher", None)

    return forbid


@pytest.mark.parametrize(
    ("setting", "loss"),
    [
        (SETTINGS[0], "--temperature 0"),
        (SETTINGS[1], "--divergence reverse-kl"),
        (TEXT_SETTINGS[0], "--temperature 1.5 --alpha 0.3"),
        (TEXT_SETTINGS[1], "--temperature 0"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_exact_targets_give_the_results_of_the_teacher(tmp_path, capsys, teacher_of, no_teacher, setting, loss):
    """Bit for bit, to the student that writes them and, without a teacher, to those that read them."""
    words = [*setting.distill, *METHODS, *loss.split(), "--teacher", teacher_of(setting)]
    cache = ["--cache-teacher", tmp_path / "targets"]
    setting.succeed(capsys, *words, "--out", tmp_path / "live")
    setting.succeed(capsys, *words, "--out", tmp_path / "writer", *cache)
    no_teacher()
    setting.succeed(capsys, *words, "--out", tmp_path / "reader", *cache)
    live = results_below(tmp_path / "live")
    assert len(live) == 3
    assert results_below(tmp_path / "writer") == live
    assert results_below(tmp_path / "reader") == live


def test_students_of_any_size_need_no_teacher(tmp_path, capsys, teacher_of, no_teacher):
    words = [*MLM.distill, "--teacher", teacher_of(MLM), "--temperature", "1", "--cache-teacher", tmp_path / "targets"]
    sampled = [*words, "--targets", "sampled", "--samples", "9", "--methods", "one-shot"]
    MLM.succeed(capsys, *sampled, "--out", tmp_path / "first")
    before = files(tmp_path / "targets")
    no_teacher()
    MLM.succeed(capsys, *sampled, "--out", tmp_path / "many", "--student-heads", "1", "2", "--seeds", "0", "1")
    assert files(tmp_path / "targets") == before
    one = tmp_path / "many" / MLM.student_run("one-shot")
    assert (one / "metrics.jsonl").read_bytes() == (tmp_path / "first" / "metrics.jsonl").read_bytes()
    arguments = Run(one).config["arguments"]
    assert (arguments["targets"], arguments["samples"]) == ("sampled", 9)


def test_what_is_said_of_the_default_targets_is_not_in_a_runs_name():
    presets = MLM.commands["distill"].PRESETS
    said = replace(presets["smoke"], targets="exact", samples=50)
    assert default_name(said, presets["smoke"], "smoke") == "smoke"


def test_top_k_targets_are_the_loss_with_top_k(tmp_path, capsys, teacher_of):
    words = [*MLM.distill, "--methods", "one-shot", "--teacher", teacher_of(MLM), "--temperature", "1", "--top-k", "3"]
    MLM.succeed(capsys, *words, "--out", tmp_path / "live")
    MLM.succeed(capsys, *words, "--out", tmp_path / "a", "--cache-teacher", tmp_path / "targets", "--targets", "top-k")
    losses = [[record["loss"] for record in Run(tmp_path / name).records()] for name in ("live", "a")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_until_saturation_computes_what_is_missing(tmp_path, capsys, teacher_of):
    words = [*MLM.distill, "--methods", "until-saturation", "--teacher", teacher_of(MLM), "--saturation-steps", "5"]
    MLM.succeed(capsys, *words, "--out", tmp_path / "live")
    for name in ("writer", "reader"):
        MLM.succeed(capsys, *words, "--out", tmp_path / name, "--cache-teacher", tmp_path / "targets")
        assert results(tmp_path / name) == results(tmp_path / "live")


def test_warnings_are_printed_without_a_teacher(tmp_path, capsys, teacher_of, no_teacher):
    words = [*MLM.distill, "--methods", "progressive", "--teacher", teacher_of(MLM), "--teacher-every", "11"]
    words += ["--cache-teacher", tmp_path / "targets"]
    MLM.succeed(capsys, *words, "--out", tmp_path / "writer")
    no_teacher()
    code, lines = MLM.start(capsys, *words, "--out", tmp_path / "reader")
    assert code == 0
    assert [line for line in lines if line.startswith("warning: the schedule is longer than the training of 12 steps")]


def test_a_stopped_writer_resumes(tmp_path, capsys, monkeypatch, teacher_of, no_teacher):
    """With and without the cache, as its targets are exact."""
    save_often(monkeypatch)
    words = [*MLM.distill, "--methods", "progressive", "--teacher", teacher_of(MLM)]
    MLM.succeed(capsys, *words, "--out", tmp_path / "live")
    for call, resumes_with_cache in ((5, False), (3, True)):
        cache = ["--cache-teacher", tmp_path / f"targets {call}"]
        resumed = cache if resumes_with_cache else []
        with monkeypatch.context() as patch:
            patch.setattr(target_cache, "encode", and_signal(target_cache.encode, call))
            step = MLM.stopped(capsys, *words, "--out", tmp_path / f"stopped {call}", *cache)
        assert step
        MLM.succeed(capsys, *words, "--out", tmp_path / f"stopped {call}", *resumed)
        assert results(tmp_path / f"stopped {call}") == results(tmp_path / "live")
    no_teacher()
    MLM.succeed(capsys, *words, "--out", tmp_path / "reader", *cache)
    assert results(tmp_path / "reader") == results(tmp_path / "live")


def test_a_full_disk_is_one_line(tmp_path, capsys, monkeypatch, teacher_of):
    words = [*MLM.distill, "--methods", "progressive", "--teacher", teacher_of(MLM)]
    cache = ["--cache-teacher", tmp_path / "targets"]
    MLM.succeed(capsys, *words, "--out", tmp_path / "live")

    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(target_cache, "write_file", full)
        code, lines = MLM.start(capsys, *words, "--out", tmp_path / "run", *cache)
    assert code == 2
    assert lines[-1].startswith(f"error: {tmp_path / 'targets' / 'targets.json'}: No space left on device")
    MLM.succeed(capsys, *words, "--out", tmp_path / "run", *cache)
    assert results(tmp_path / "run") == results(tmp_path / "live")


def test_a_disk_that_is_too_small_is_refused_before(tmp_path, capsys, monkeypatch, teacher_of):
    free = resources.free_disk
    monkeypatch.setattr(
        resources, "free_disk", lambda directory: 2_000 if directory.name == "targets" else free(directory)
    )
    words = [*MLM.distill, "--methods", "one-shot", "--teacher", teacher_of(MLM), "--out", tmp_path / "run"]
    line = MLM.fail_in_one_line(capsys, *words, "--temperature", "1", "--cache-teacher", tmp_path / "targets")
    assert_named(line, "'2.0 kB are free' --targets --cache-teacher")
    assert not (tmp_path / "run").exists()
    MLM.succeed(capsys, *words, "--temperature", "0", "--cache-teacher", tmp_path / "targets")


def test_memory_that_is_too_small_is_refused_before(tmp_path, capsys, monkeypatch, teacher_of):
    """With a model that needs less than the targets that a cache has in memory."""
    words = [*MLM.distill, "--methods", "one-shot", "--teacher", teacher_of(MLM), "--out", tmp_path / "run"]
    words += ["--temperature", "1", "--batch-size", "256"]
    code, _ = MLM.start(capsys, *words, "--out", tmp_path / "live", "--steps", "2")
    assert code == 0
    monkeypatch.setattr(students, "least_memory", lambda step, steps: 10**18 if step else 0)
    line = MLM.fail_in_one_line(capsys, *words, "--cache-teacher", tmp_path / "targets")
    assert_named(line, "'1,000.0 PB of memory' \"the teacher's targets\" --targets --batch-size")
    assert not (tmp_path / "run").exists()


def test_targets_that_another_process_lacks_are_missing_in_all(tmp_path, capsys, monkeypatch, cached):
    reports, report = [], commands.report_of_teacher
    monkeypatch.setattr(commands, "report_of_teacher", lambda *given: reports.append(given) or report(*given))
    MLM.succeed(capsys, *cached, "--out", tmp_path / "second")
    assert not reports

    class BesideAnother(Processes):
        def largest(self, number):
            return max(number, 1)

    missing = commands.missing_targets
    monkeypatch.setattr(commands, "missing_targets", lambda *given: missing(*given[:-1], BesideAnother()))
    MLM.succeed(capsys, *cached, "--out", tmp_path / "third")
    assert len(reports) == 1


@refusals(
    ("--stream-seed 7", "'stream_seed is 1000 there and 7 here'"),
    ("--batch-size 4", "'batch_size is 8 there and 4 here'"),
    ("--mask-rate 0.5", "mask_rate"),
    ("--temperature 1", "'targets is arg-max there and logits here'"),
    ("--accumulate 2", "'micro_batches is 1 there and 2 here'"),
)
def test_targets_of_something_else_are_refused_before(tmp_path, capsys, cached, words, named):
    line = MLM.fail_in_one_line(capsys, *cached, *words.split(), "--out", tmp_path / "second")
    assert_named(line, f"'{tmp_path / 'targets'}' {named}")
    assert not (tmp_path / "second").exists()


def test_targets_of_another_teacher_are_refused_before(tmp_path, capsys, cached):
    other = MLM.train_teacher(tmp_path / "other", "--seed", "5")
    capsys.readouterr()
    line = MLM.fail_in_one_line(capsys, *cached, "--teacher", other, "--out", tmp_path / "second")
    assert_named(line, "'another teacher' 'step 30'")
    assert not (tmp_path / "second").exists()


def test_damaged_targets_are_named(tmp_path, capsys, written, cached):
    (shard,) = (tmp_path / "targets").glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    code, lines = MLM.start(capsys, *cached, "--out", tmp_path / "second")
    assert code == 2
    assert lines[-1] == f"error: {shard} is truncated or damaged: remove it, and its targets are computed again"
    shard.unlink()
    MLM.succeed(capsys, *cached, "--out", tmp_path / "second")
    assert results(tmp_path / "second") == results(written[0] / "first")


@refusals(
    ("--targets sampled", "--targets --cache-teacher"),
    ("--samples 5", "--samples --cache-teacher"),
    ("--cache-teacher /dev/null/targets", "/dev/null/targets"),
    ("--cache-teacher RUN", "--cache-teacher 'is the directory of a run'"),
    ("--cache-teacher DIR --samples 5", "--samples '--targets sampled'"),
    ("--cache-teacher DIR --targets sampled", "'--temperature 0.0' '--targets exact'"),
    ("--cache-teacher DIR --targets sampled --temperature 1 --samples 256", "--samples 255 256"),
    ("--cache-teacher DIR --targets sampled --temperature 1 --divergence reverse-kl", "'--divergence reverse-kl'"),
    ("--cache-teacher DIR --targets top-k --temperature 1", "'--targets top-k' --top-k"),
)
def test_impossible_targets_are_refused(tmp_path, capsys, teacher_of, words, named):
    words = words.replace("DIR", str(tmp_path / "targets")).replace("RUN", str(tmp_path / "run")).split()
    command = [*MLM.distill, "--methods", "one-shot", "--teacher", teacher_of(MLM), "--out", tmp_path / "run"]
    assert_named(MLM.fail_in_one_line(capsys, *command, *words), named)
    assert list(tmp_path.iterdir()) == []
