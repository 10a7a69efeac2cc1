"""Runs and probes' files as they must not be, as figures read them: found, or refused by name."""

import json
import shutil

import pytest
from finding_runs import find_runs, probe_result, students_of
from hypothesis import given, strategies as st
from report import read_times

from common.errors import UserError
from tests.commands import exit_code
from tests.hostile.contract import attempt, cases
from tests.hostile.damage import damaged, json_files, restored
from tests.parity import MLP


@pytest.fixture(scope="module")
def runs(teacher_of, tmp_path_factory):
    """A teacher that was probed, its student, and a copy of both."""
    teacher, folder = teacher_of(MLP), tmp_path_factory.mktemp("figures") / "runs"
    words = [*MLP.distill[1:], "--methods", "progressive", "--teacher", teacher, "--out", folder / "student"]
    assert exit_code(MLP.main(MLP.distill), *words) == 0
    shutil.copytree(teacher, folder / "teacher")
    probe = ["--run", folder / "teacher", "--samples", 64, "--degrees", 1]
    assert exit_code(MLP.module("probe").main, *probe) == 0
    shutil.copytree(folder, folder.with_name("whole"))
    return folder


def read(runs):
    found = find_runs(runs)
    teachers = [run for run in found if not run.is_student]
    probed = [probe_result(run, "monomials", "the command", outside=100) for run in teachers if run.setting]
    return [run.records() for run in found], probed, [students_of(teacher, found) for teacher in teachers]


FILES = (
    "student/config.json",
    "teacher/config.json",
    "student/done.json",
    "teacher/probes/monomials-degrees=1,-samples64.json",
)


@given(st.sampled_from(FILES), st.data())
@cases(200)
def test_files(runs, name, data):
    (path,) = restored(runs).glob(name.replace("monomials-degrees=1,-samples64", "monomials*"))
    path.write_bytes(data.draw(json_files(json.loads(path.read_bytes()))))
    attempt(read, runs, names=str(runs))


@given(st.data())
@cases(200)
def test_records(runs, data):
    path = restored(runs) / "student" / "metrics.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    line = data.draw(st.integers(0, len(lines) - 1))
    changed = json_files(json.loads(lines[line])).map(
        lambda new: b"".join([*lines[:line], new, b"\n", *lines[line + 1 :]])
    )
    path.write_bytes(data.draw(changed | damaged(whole)))
    if (found := attempt(read, runs, names=str(path.parent))) is not None:
        for records in found[0]:
            assert [record["step"] for record in records] == sorted({record["step"] for record in records})


TIME = {"setting": "parity_mlp", "preset": "smoke", "command": "train it's", "seconds": 3, "processor": "2 x"}


@given(st.binary() | json_files(TIME))
@cases(200)
def test_times(tmp_path, line):
    path = tmp_path / "times.jsonl"
    path.write_bytes(json.dumps(TIME).encode() + b"\n" + line + b"\n")
    if (found := attempt(read_times, path, names=f"{path}, line ")) is not None:
        for entry in found:
            assert [type(entry[name]) for name in TIME] == [type(value) for value in TIME.values()]


# What was found


@pytest.mark.parametrize(
    "changes", [{"argv": "python"}, {"versions": None}, {"commit": 1}, {"arguments": []}, {"setting": None}]
)
def test_what_a_config_must_be(runs, changes):
    path = restored(runs) / "student" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))
    with pytest.raises(UserError, match=rf"^{path} is (truncated or )?damaged"):
        find_runs(runs)


@pytest.mark.parametrize("changes", [{"seeds": []}, {"seeds": ["0"]}, {"methods": None}, {"teacher": 1}])
def test_what_the_arguments_of_a_student_must_be(runs, changes):
    path = restored(runs) / "student" / "config.json"
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps(content | {"arguments": content["arguments"] | changes}))
    with pytest.raises(UserError, match=rf"^{path} is (truncated or )?damaged"):
        find_runs(runs)


@pytest.mark.parametrize("record", ["[]", "{}", '{"step": "900"}', '{"step": 900, "accuracy": "high"}', '{"step": 0}'])
def test_what_a_record_must_be(runs, record):
    path = restored(runs) / "student" / "metrics.jsonl"
    with path.open("a") as file:
        file.write(f"{record}\n")
    with pytest.raises(UserError, match=rf"^{path} is (truncated or )?damaged"):
        read(runs)
