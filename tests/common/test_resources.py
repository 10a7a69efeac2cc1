"""Memory and disk: what there is, what a command needs, and that too much is refused before anything is made."""

import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given, strategies as st

from common import resources
from common.errors import UserError
from common.parity.training import least_checkpoints
from common.resources import (
    BATCH,
    EVALUATION_DATA,
    RESUME_STATE,
    Needs,
    fitting_groups,
    free_disk,
    free_memory,
    one_after_another,
    require_resources,
    size_text,
    together,
    transformer_needs,
)
from common.runs.checkpoints import number_of_checkpoints

GIGABYTE = 10**9

# What there is


def test_free_memory_is_at_most_that_of_the_machine():
    free, _ = free_memory()
    assert 0 < free <= psutil.virtual_memory().total


def test_a_limit_of_the_shell_counts():
    script = "from common.resources import free_memory; print(*free_memory())"
    command = f"ulimit -v 2000000; exec {sys.executable} -c '{script}'"
    shown = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout
    assert 10**8 < int(shown.split()[0]) < 2_000_000 * 1024
    assert shown.strip().endswith("within ulimit -v")


@pytest.mark.parametrize(
    ("line", "folder", "files"),
    [
        ("0::/user/job", "user", {"memory.max": "900\n", "memory.current": "700\n"}),
        ("4:memory:/user/job", "memory/user", {"memory.limit_in_bytes": "900\n", "memory.usage_in_bytes": "700\n"}),
    ],
)
def test_the_limit_of_a_control_group_above_counts_without_its_cached_files(tmp_path, line, folder, files):
    cache = "total_inactive_file" if "memory" in line else "inactive_file"
    group = tmp_path / "groups" / folder
    (group / "job").mkdir(parents=True)
    for name, content in {**files, "memory.stat": f"anon 600\n{cache} 50\n"}.items():
        (group / name).write_text(content)
    (group / "job" / "memory.max").write_text("max\n")
    (tmp_path / "own").write_text(f"3:cpu:/other\n{line}\n")
    assert resources._control_group_memory(tmp_path / "groups", tmp_path / "own") == [250]


def test_there_may_be_no_control_groups(tmp_path):
    assert resources._control_group_memory(tmp_path, tmp_path / "none") == []


def test_free_disk_is_that_of_the_nearest_directory(tmp_path):
    assert free_disk(tmp_path / "not" / "there") == pytest.approx(free_disk(tmp_path), rel=0.1)


# What is needed


@given(st.integers(1, 60), st.integers(0, 20), st.integers(0, 70))
def test_number_of_checkpoints(steps, every, first):
    saved = {steps} | {step for step in range(1, steps + 1) if every and step % every == 0 and step >= first}
    assert number_of_checkpoints(steps, every, first) == len(saved)


def test_needs_of_several_networks():
    one = Needs({"weights": 4}, {RESUME_STATE: 3}, {"checkpoints": 2, RESUME_STATE: 3})
    other = Needs({"weights": 3, "data": 5}, {RESUME_STATE: 2}, {"checkpoints": 7, RESUME_STATE: 2})
    assert together([one, other]) == Needs(
        {"weights": 7, "data": 5}, {RESUME_STATE: 3}, {"checkpoints": 9, RESUME_STATE: 5}, files=2
    )
    assert one_after_another([one, other]) == Needs(other.memory, other.host, {"checkpoints": 9, RESUME_STATE: 3})


def test_more_runs_at_a_time_than_files_can_be_open_are_refused(tmp_path, monkeypatch):
    limit = psutil.Process().num_fds() + resources.OTHER_FILES + 20
    monkeypatch.setattr(resources.resource, "getrlimit", lambda kind: (limit, limit))
    needs = [Needs({}, {}, {})] * 21
    assert require_resources(together(needs[:-1]), [tmp_path], "cpu") == []
    assert require_resources(one_after_another(needs), [tmp_path], "cpu") == []
    message = f"this needs 21 open files at a time, .* only [0-9]+ more can be open: raise the limit of {limit} with"
    with pytest.raises(UserError, match=message):
        require_resources(together(needs), [tmp_path], "cpu")


def test_a_process_on_a_cpu_needs_its_own_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "free_memory", lambda: (7, "on this machine"))
    needs = Needs({"weights": 2}, {"samples": 1}, {})
    for processes in (1, 2):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert require_resources(needs, [tmp_path], "cpu") == []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="at least 9 bytes of memory"):
        require_resources(needs, [tmp_path], "cpu")


def test_on_a_gpu_the_model_and_the_data_need_memory_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "free_memory", lambda: (5, "on this machine"))
    monkeypatch.setattr(resources, "free_gpu_memory", lambda device: (6, f"on {device}"))
    assert require_resources(Needs({"weights": 6}, {"samples": 5}, {}), [tmp_path], "cuda:1") == []
    with pytest.raises(UserError, match=r"7 bytes of GPU memory .* free on cuda:1: give a smaller model$"):
        require_resources(Needs({"weights": 7}, {"samples": 5}, {}), [tmp_path], "cuda:1")
    with pytest.raises(UserError, match=r"6 bytes of memory .* free on this machine"):
        require_resources(Needs({"weights": 6}, {"samples": 6}, {}), [tmp_path], "cuda:1")


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 9), st.integers(0, 45))
def test_adaptive_checkpoints_are_saved_at_evaluations(steps, every, evaluated, first):
    """At least the longest time between two of them has one."""
    arguments = SimpleNamespace(
        steps=steps, checkpoint_every=every, eval_every=evaluated, checkpoint_from=first, adaptive_checkpoints=True
    )
    evaluations = [step for step in range(evaluated, steps, evaluated) if step >= max(first, 1)]
    assert 1 <= least_checkpoints(arguments) <= len(evaluations) + 1


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1_000, "1.0 kB"), (2_340_000, "2.3 MB"), (5e18, "5,000.0 PB")],
)
def test_sizes_as_text(size, text):
    assert size_text(size) == text


def test_what_is_needed_is_said_if_it_is_much(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "free_memory", lambda: (8 * GIGABYTE, "on this machine"))
    assert require_resources(Needs({"weights": 10**8 - 1}, {}, {"checkpoints": 10**8 - 1}), [tmp_path], "cpu") == []
    [line] = require_resources(Needs({"weights": 2 * GIGABYTE}, {}, {}), [tmp_path], "cpu")
    assert line.startswith("needs at least 2.0 GB of memory and 0 bytes of disk; 8.0 GB and ")


def test_too_much_is_refused_with_its_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "free_memory", lambda: (GIGABYTE, "within ulimit -v"))
    monkeypatch.setattr(resources, "free_disk", lambda directory: GIGABYTE)
    needs = Needs({"labels": 1, "a batch": GIGABYTE, "weights": 2 * GIGABYTE}, {}, {})
    memory = r"^this needs at least 3.0 GB of memory \(weights 2.0 GB and a batch 1.0 GB\), but 1.0 GB are free within"
    with pytest.raises(UserError, match=memory):
        require_resources(needs, [tmp_path], "cpu")
    with pytest.raises(UserError, match=rf"2.0 GB of disk .* 1.0 GB are free on the disk of {tmp_path}"):
        require_resources(Needs({}, {}, {"checkpoints": 2 * GIGABYTE}), [tmp_path], "cpu")


@pytest.mark.parametrize(
    ("part", "advice"),
    [
        ("weights and their optimiser", "a smaller model"),
        ("evaluation data", "a smaller --eval-samples"),
        ("a batch", "a smaller --batch-size or a larger --accumulate"),
    ],
)
def test_the_advice_is_about_the_largest_part(tmp_path, monkeypatch, part, advice):
    monkeypatch.setattr(resources, "free_memory", lambda: (GIGABYTE, "on this machine"))
    sizes = {"weights and their optimiser": (10**5, 1, 1), "a batch": (1, 10**9, 1), "evaluation data": (1, 1, 10**9)}
    hidden, batch_tokens, evaluation_tokens = sizes[part]
    needs = transformer_needs(
        **{"layers": 1, "hidden": hidden, "feed_forward": 0, "vocabulary": 9, "positions": 9, "checkpoints": 1},
        **{"batch_tokens": batch_tokens, "evaluation_tokens": evaluation_tokens},
    )
    with pytest.raises(UserError, match=rf"\({part} .* on this machine: give {advice}$"):
        require_resources(needs, [tmp_path], "cpu")


def test_what_a_run_has_saved_is_not_needed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "free_disk", lambda directory: 100)
    needs = Needs({}, {}, {"checkpoints": 1_000})
    with pytest.raises(UserError, match="of disk"):
        require_resources(needs, [tmp_path], "cpu")
    (tmp_path / "config.json").touch()
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "model.safetensors").write_bytes(bytes(900))
    assert require_resources(needs, [tmp_path], "cpu") == []


def test_what_is_in_a_directory_that_is_no_run_is_not_counted(tmp_path):
    (tmp_path / "large").write_bytes(bytes(1000))
    assert resources._size(tmp_path) == 0
    (tmp_path / "config.json").write_text("{}")
    assert resources._size(tmp_path) == 1002


needs_of_a_run = st.builds(
    lambda weights, batch, state, data: Needs(
        {"weights": weights, BATCH: batch}, {RESUME_STATE: state, EVALUATION_DATA: data}, {}
    ),
    *[st.integers(0, 100)] * 4,
)


@given(st.lists(needs_of_a_run, min_size=1), st.integers(0, 1000), st.sampled_from(["cpu", "cuda"]))
def test_groups_are_consecutive_and_as_large_as_fits(needs, most, device):
    def size(group):
        """Weights of all, and the largest of what one run has at a time, or all of them share."""
        memory, host = ([getattr(needs[i], where) for i in group] for where in ("memory", "host"))
        on_device = sum(each["weights"] for each in memory) + max(each[BATCH] for each in memory)
        shared = sum(max(each[part] for each in host) for part in (RESUME_STATE, EVALUATION_DATA))
        return on_device + (shared if device == "cpu" else 0)

    groups = fitting_groups(needs, most, device)
    assert [i for group in groups for i in group] == list(range(len(needs)))
    assert all(len(group) == 1 or size(group) <= most for group in groups)
    assert all(size([*group, after[0]]) > most for group, after in pairwise(groups))
