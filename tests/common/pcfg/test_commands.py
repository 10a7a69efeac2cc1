"""Commands of both settings on grammars: killed and stopped students, grammars and datasets, names, as printed."""

import json
import re
import shlex
import shutil
from dataclasses import asdict, fields, replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from common.distillation import given_teacher, run_loop, supervision, together
from common.distillation.supervision import FROM_LABELS
from common.distillation.trainer import ProgressiveDistillationTrainer
from common.language_models import commands as shared_commands, students
from common.pcfg.grammar_files import GRAMMARS, parse_grammar
from common.runs.names import EXECUTION_ARGUMENTS
from common.runs.processes import Processes
from common.runs.run import Run
from tests.commands import (
    ROOT,
    Killed,
    and_signal,
    assert_helpful_from_both_folders,
    assert_named,
    change_config,
    exit_code,
    files,
    python,
    refusals,
    results,
    results_below,
    save_often,
    start,
)
from tests.forked import forked
from tests.pcfg import AUTOREGRESSIVE, DISTILL, MLM, SETTINGS, SMALL, TRAIN

OTHER_TASK_WORDS = {"PCFG_mlm": ["--mask-rate", 0.2, "--no-hide-masked"], "PCFG_autoregressive": ["--label-level", 1]}
HARDEST = {"PCFG_mlm": "--dropout 0.2", "PCFG_autoregressive": "--dropout 0.2 --label-level 2"}
"""Arguments with which a resumed run is hardest to get right."""


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda setting: setting.name)
def pcfg(request, one_torch_thread):
    """A setting on grammars."""
    return request.param


@pytest.fixture(scope="module")
def teacher(pcfg, teacher_of):
    """A run on the smallest grammar of the package, with checkpoints at steps 10, 20 and 30."""
    return teacher_of(pcfg)


# What a run is


def test_probes_of_a_student(pcfg, tmp_path, capsys, teacher):
    run = tmp_path / "student"
    pcfg.succeed(
        capsys, *DISTILL, "--methods", "progressive", "--checkpoint-every", 6, "--teacher", teacher, "--out", run
    )
    for words, keys in (
        ("ngrams --sentences 8", {"robust", "close"}),
        ("nonterminals --training 16 --heldout 8 --epochs 1 --heads 2 --dimension 8", {"levels"}),
    ):
        (name,) = pcfg.succeed(capsys, "probe", *words.split(), "--run", run).splitlines()
        content = json.loads(Path(name).read_text())
        assert Path(name).parent == run / "probes"
        assert [entry["step"] for entry in content["checkpoints"]] == [6, 12]
        assert all(keys <= set(entry) for entry in content["checkpoints"])
    assert Run(run).complete


# Killed


def test_runs_killed_before_a_record_end_with_the_same_bits(pcfg, tmp_path, capsys, monkeypatch, teacher):
    more = ["--accumulate", 2, "--eval-every", 3, *HARDEST[pcfg.name].split()]
    for words in ([*TRAIN, *more], [*DISTILL, "--methods", "progressive", "--teacher", teacher, *more]):
        pcfg.succeed(capsys, *words, "--out", tmp_path / f"{words[0]} whole")
        words += ["--out", tmp_path / words[0]]
        with monkeypatch.context() as patch:
            save_often(patch)
            log = Run.log

            def log_until_killed(run, record, log=log):
                if record["step"] == 9:
                    raise Killed
                log(run, record)

            patch.setattr(Run, "log", log_until_killed)
            with pytest.raises(Killed):
                pcfg.start(capsys, *words)
        assert (tmp_path / words[0] / "resume" / "6").is_dir()
        pcfg.succeed(capsys, *words)
        assert results(tmp_path / words[0]) == results(tmp_path / f"{words[0]} whole")


# Told to stop


THREE = [*DISTILL, *shlex.split("--dropout 0.2 --methods progressive until-saturation ce --saturation-steps 5")]


@pytest.fixture(scope="module")
def undisturbed(pcfg, teacher, tmp_path_factory):
    """What three students compute."""
    place = tmp_path_factory.mktemp("undisturbed")
    assert exit_code(pcfg.main(THREE), *THREE[1:], "--teacher", teacher, "--out", place) == 0
    return results_below(place)


@pytest.mark.parametrize(
    ("owner", "name", "call", "step"),
    [
        (ProgressiveDistillationTrainer, "compute_loss", 3 * 3 + 1, 3),
        (shared_commands, "open_shared_run", 2, None),
        (together, "progress", 1, 0),
        (ProgressiveDistillationTrainer, "compute_loss", 3 * 7 + 3, 8),
    ],
    ids=["first", "between", "before the first step", "last"],
)
def test_students_told_to_stop_leave_together_and_resume_bit_identically(
    pcfg, tmp_path, capsys, monkeypatch, teacher, undisturbed, owner, name, call, step
):
    words = [*THREE, "--teacher", teacher, "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, and_signal(getattr(owner, name), call))
        code, _, stderr = start(capsys, pcfg.main(words), *words[1:], tmp_path / "stopped")
    place = "" if step is None else f" at step {step}"
    assert code == 75
    assert stderr.splitlines()[-1].startswith(f"stopped by SIGTERM{place}: ")
    begun = {run.name.rpartition("-heads")[0] for run in (tmp_path / "stopped").iterdir()}
    opened = {"progressive"} if step is None else {"progressive", "until-saturation", "ce"}
    assert begun == opened
    pcfg.succeed(capsys, *words, tmp_path / "stopped")
    assert results_below(tmp_path / "stopped") == undisturbed


# Wrongly called

WRONG = (
    "--head-dim 0",
    "--accumulate 0",
    "--dropout 1",
    "--dropout -0.1",
    ("--batch-size 6 --accumulate 4", "--batch-size 6 4"),
    ("--grammar cfg4", "cfg4"),
    ("--start 99", "99"),
    ("--dataset missing", "missing data.py"),
)
WRONG_DISTILL = (
    "--student-heads 0",
    ("--student-heads 2 4 2", "--student-heads 2 4"),
    ("--steps 5 5", "--steps 5"),
    ("--steps 5 0", "--steps 0"),
    ("--checkpoint 10 10", "--checkpoint 10"),
    ("--methods one-shot --annealing logarithmic", "--temperature 0"),
    ("--methods one-shot --top-k 9", "--top-k 8 9"),
    ("--methods two-shot --checkpoint 10 --first-steps 0", "positive 0"),
    ("--methods refreshed", "'first is 10'"),
    ("--grammar cfg3b --start 13", "small 13 cfg3b"),
    ("--start 12", "small 13 12"),
)


@refusals(*WRONG, "--heads 0")
def test_a_run_that_cannot_be_is_refused_before_anything_is_made(pcfg, tmp_path, capsys, words, named):
    assert_named(pcfg.fail_in_one_line(capsys, *TRAIN, "--out", tmp_path / "run", *words.split()), named)
    assert files(tmp_path) == {}


@refusals(*WRONG, *WRONG_DISTILL)
def test_students_that_cannot_be_are_refused_before_anything_is_made(pcfg, tmp_path, capsys, teacher, words, named):
    before = files(teacher)
    line = pcfg.fail_in_one_line(capsys, *DISTILL, "--teacher", teacher, "--out", tmp_path / "students", *words.split())
    assert_named(line, named)
    assert files(tmp_path) == {}
    assert files(teacher) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S -> A b\nA -> c\nB -> d\n", "line 3: B cannot be reached"),
        ("S -> A b\nA -> S | c\nS -> A\n", "lead back to"),
        ("S -> S S [0.6] | a [0.4]\n", "may never end"),
        ("S -> a [0]\n", "line 1: the weight [0] is not a positive finite number"),
        ("nonsense\n", "line 1: 'nonsense' is not a rule"),
        ("", "has no rules"),
    ],
)
def test_a_bad_grammar_file_is_one_line(pcfg, tmp_path, capsys, teacher, text, message):
    (tmp_path / "bad.cfg").write_text(text)
    before = files(tmp_path)
    for words in (TRAIN, [*DISTILL, "--teacher", teacher], shlex.split("data export --sentences 5")):
        line = pcfg.fail_in_one_line(capsys, *words, "--grammar", tmp_path / "bad.cfg", "--out", tmp_path / "run")
        assert message in line
        assert str(tmp_path / "bad.cfg") in line
    assert files(tmp_path) == before


def test_sentences_that_are_too_long_for_a_model_are_one_line(pcfg, tmp_path, capsys):
    (tmp_path / "long.cfg").write_text("S -> S S [0.4999] | a [0.5001]\n")
    words = ["--grammar", tmp_path / "long.cfg", "--eval-samples", 100, "--out", tmp_path / "run"]
    assert "tokens, and a model has 1,024 positions" in pcfg.fail_in_one_line(capsys, *TRAIN, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("train smoke --precision bf8", "--precision"),
        ("probe ngrams", "--run"),
        ("probe monomials", "monomials"),
        ("data export", "--sentences"),
    ],
)
def test_usage_errors_name_the_word_and_exit_with_two(pcfg, capsys, words, named):
    code, stderr = pcfg.start(capsys, *words.split())
    assert code == 2
    assert named in "\n".join(stderr)


def save_model_of(pcfg, text, directory):
    task = pcfg.task(parse_grammar(text, "another"))
    pcfg.new_model(task, 1, 0).save_pretrained(directory / "checkpoint-10")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda pcfg, teacher: save_model_of(pcfg, "S -> a b", teacher),
            "has a vocabulary of 7, but small with its 3 terminals needs one of 8",
        ),
        (lambda pcfg, teacher: save_model_of(pcfg, "S -> 1 2 3", teacher), "positions, but sentences of small from 13"),
        (lambda pcfg, teacher: pcfg.other_model().save_pretrained(teacher / "checkpoint-10"), "is a model of type"),
    ],
)
def test_what_cannot_teach_this_grammar_is_one_line(pcfg, tmp_path, capsys, make, message):
    make(pcfg, tmp_path / "teacher")
    before = files(tmp_path)
    line = pcfg.fail_in_one_line(capsys, *DISTILL, "--teacher", tmp_path / "teacher", "--out", tmp_path / "students")
    assert message in line
    assert str(tmp_path / "teacher") in line
    assert files(tmp_path) == before


def test_a_teacher_of_the_same_rules_in_another_file_is_accepted(pcfg, tmp_path, capsys, teacher):
    shutil.copy(GRAMMARS / "small.cfg", tmp_path / "mine.cfg")
    words = ["--grammar", tmp_path / "mine.cfg", *OTHER_TASK_WORDS[pcfg.name], "--methods", "one-shot"]
    pcfg.succeed(capsys, *DISTILL, "--teacher", teacher, *words, "--out", tmp_path / "run")


# Datasets


def export(pcfg, capsys, directory, sentences, *words):
    words = ["--sentences", sentences, "--validation", 0, *words, "--out", directory]
    pcfg.succeed(capsys, "data", "export", "--grammar", "small", *words)


def test_a_teacher_whose_grammar_file_has_changed_is_told(pcfg, tmp_path, capsys, teacher):
    grammar = shutil.copy(GRAMMARS / "small.cfg", tmp_path / "mine.cfg")
    mine = shutil.copytree(teacher, tmp_path / "teacher")
    arguments = Run(mine).config["arguments"]
    change_config(mine, arguments={**arguments, "grammar": str(grammar)})
    grammar.write_text(grammar.read_text().replace("11 10", "11 10 | 12 12"))
    line = pcfg.fail_in_one_line(capsys, *DISTILL, "--teacher", mine, "--out", tmp_path / "run")
    assert f"the file of the grammar {grammar} from 13 has changed since {mine} was trained on it: restore it" in line
    line = pcfg.fail_in_one_line(
        capsys, *DISTILL, "--teacher", mine, "--grammar", "small", "--start", 12, "--out", tmp_path / "run"
    )
    assert f"was trained on the grammar {grammar} from 13, but here the data is the grammar small from 12" in line


def test_training_on_a_dataset_of_its_seed_is_training_from_the_sampler(pcfg, tmp_path, capsys, teacher):
    # Two groups of 16 batches of 4 sentences.
    export(pcfg, capsys, tmp_path / "dataset", 128, "--seed", 7)
    commands = {
        "train": [*TRAIN, "--seed", 7, "--steps", 32],
        "distill": [*DISTILL, "--methods", "progressive", "--stream-seed", 7, "--steps", 32, "--teacher", teacher],
    }
    for name, words in commands.items():
        words += ["--batch-size", 4]
        pcfg.succeed(capsys, *words, "--out", tmp_path / name)
        pcfg.succeed(capsys, *words, "--out", tmp_path / f"{name} on it", "--dataset", tmp_path / "dataset")
        assert results(tmp_path / f"{name} on it") == results(tmp_path / name)
        dataset = Run(tmp_path / f"{name} on it").config["arguments"]["dataset"]
        assert dataset == str(tmp_path / "dataset")


def test_a_dataset_that_is_of_another_grammar_or_too_small_is_one_line(pcfg, tmp_path, capsys, teacher):
    export(pcfg, capsys, tmp_path / "other", 300, "--start", "12")
    export(pcfg, capsys, tmp_path / "few", 239)
    before = files(tmp_path)
    students = [*DISTILL, "--methods", "ce", "--steps", 2, 30, "--teacher", teacher]
    for words in (TRAIN, students):
        for name, message in (
            ("other", "holds sentences of small from 12, which is not this run's grammar, small from 13"),
            ("few", "has 239 sentences and the run needs 240"),
        ):
            line = pcfg.fail_in_one_line(capsys, *words, "--dataset", tmp_path / name, "--out", tmp_path / "run")
            assert message in line
    assert files(tmp_path) == before


def test_a_dataset_that_was_replaced_is_refused_and_a_student_may_have_another(pcfg, tmp_path, capsys, monkeypatch):
    """Another export, or other sentences below the same description."""
    for name, seed in (("first", 1), ("second", 2)):
        export(pcfg, capsys, tmp_path / name, 240, "--seed", seed)
    mixed = shutil.copytree(tmp_path / "first", tmp_path / "mixed")
    shutil.copytree(tmp_path / "second" / "data", mixed / "data", dirs_exist_ok=True)
    used = shutil.copytree(tmp_path / "first", tmp_path / "dataset")
    save_often(monkeypatch)
    words = [*TRAIN, "--dataset", used, "--out", tmp_path / "run"]
    with monkeypatch.context() as patch:
        patch.setattr(run_loop, "save_checkpoint", and_signal(run_loop.save_checkpoint, 1))
        assert pcfg.stopped(capsys, *words)
    stopped = files(tmp_path / "run")
    for other in ("second", "mixed"):
        shutil.rmtree(used)
        shutil.copytree(tmp_path / other, used)
        line = pcfg.fail_in_one_line(capsys, *words)
        assert "holds a run with other arguments (the dataset has changed)" in line
        assert files(tmp_path / "run") == stopped
    shutil.rmtree(used)
    shutil.copytree(tmp_path / "first", used)
    pcfg.succeed(capsys, *words)
    students = [*DISTILL, "--teacher", tmp_path / "run", "--dataset", tmp_path / "second", "--methods", "one-shot"]
    pcfg.succeed(capsys, *students, "--out", tmp_path / "student")
    digests = [Run(tmp_path / name).config["arguments"]["dataset_digest"] for name in ("run", "student")]
    assert len({*digests, None}) == 3


def test_a_run_without_a_dataset_that_an_earlier_version_made_is_complete(pcfg, tmp_path, capsys, teacher):
    run = shutil.copytree(teacher, tmp_path / "run")
    arguments = dict(Run(run).config["arguments"])
    assert arguments.pop("dataset_digest") is None
    change_config(run, arguments=arguments)
    assert pcfg.succeed(capsys, *TRAIN, "--out", run) == f"{run} is complete\n"


# Diverged


def test_a_student_that_diverges_does_not_stop_the_others(pcfg, tmp_path, capsys, monkeypatch, teacher):
    trainer_arguments = students.trainer_arguments

    def diverging_trainer_arguments(arguments, directory, steps, seed):
        return trainer_arguments(replace(arguments, lr=1e30) if seed == 1 else arguments, directory, steps, seed)

    words = [*DISTILL, "--methods", "one-shot", "--teacher", teacher, "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(students, "trainer_arguments", diverging_trainer_arguments)
        code, _, stderr = start(capsys, pcfg.main(words), *words[1:], tmp_path / "runs", "--seeds", 1, 0)
    assert code == 3
    assert "one-shot-heads1-steps12-seed1: the loss is not finite at step 5" in stderr.splitlines()[-1]
    assert not Run(tmp_path / "runs" / "one-shot-heads1-steps12-seed1").complete
    pcfg.succeed(capsys, *words, tmp_path / "alone")
    assert results(tmp_path / "runs" / "one-shot-heads1-steps12-seed0") == results(tmp_path / "alone")


# Called twice


# Names

OTHERS = {
    **{"grammar": "cfg3b", "start": "12", "layers": 2, "head_dim": 4, "batch_size": 32, "lr": 1e-3, "dropout": 0.0},
    **{"eval_every": 7, "checkpoint_every": 5, "warmup": 0.0},
    **{"eval_samples": 64, "dataset": Path("dataset"), "accumulate": 2, "precision": "bf16", "compile": True},
}
OTHER_TRAIN = {"heads": 2, "steps": 61, "seed": 1}
OTHER_DISTILL = {
    **{
        "teacher": "elsewhere",
        "teacher_pattern": "(?P<step>[0-9]+)",
        "methods": ("ce",),
        "seeds": (1,),
        "stream_seed": 1,
        "teacher_every": 3,
        "steps": (61,),
    },
    **{"teacher_checkpoints": 2, "teacher_range": (10, 20), "checkpoint": ("20",), "first_steps": 21, "speed": 2.0},
    **{"segments": ("10:5", "20"), "saturation_window": 4, "saturation_threshold": 0.02, "saturation_steps": 21},
    **{"temperature": 1.0, "end_temperature": 1.0, "annealing": "logarithmic", "top_k": 2, "alpha": (0.5,)},
    **{"alpha_steps": (3,), "divergence": "reverse-kl", "beta": 0.4, "student_heads": (4,)},
    **{"targets": "sampled", "samples": 5},
}
DESIGNED = {"windows": ("5",), "windows_of": "grammar", "windows_with": ("position",), "then": "teacher"}
OTHER_DESIGN = {"windows": ("3",), "windows_of": "permuted", "windows_with": (), "then": "labels"}
OTHER_TASK = {"PCFG_mlm": {"mask_rate": 0.2, "hide_masked": False}, "PCFG_autoregressive": {"label_level": 1}}


class Named(Exception):
    """The run's directory has been chosen."""


def directory_of(pcfg, monkeypatch, name, arguments):
    """Where a command would make the run of these arguments."""

    def stop(directory, *arguments, **options):
        raise Named(directory)

    stand_in = {
        "task_of": lambda *arguments: pcfg.task(SMALL),
        **{
            "find_checkpoints": lambda *arguments: [SimpleNamespace(step=1)],
            "local_path": str,
            "open_shared_run": stop,
            "require_first_labels": lambda *arguments: None,
            "trainer_options": lambda *arguments: {},
        },
        **{"own_teacher": lambda *arguments: None, "supervision": lambda *arguments: FROM_LABELS},
        "trainer_arguments": lambda *arguments: SimpleNamespace(device=torch.device("cpu")),
        "processes_of": lambda trainer_args: Processes(),
    }
    without_work = ("training_batches", "load_model", "notes")
    with monkeypatch.context() as patch:
        patch.setattr(
            pcfg.module("training"),
            "SETTING",
            replace(
                pcfg.setting,
                own_data=lambda arguments: {},
                **dict.fromkeys(without_work, lambda *arguments: []),
            ),
        )
        for module, function in product((shared_commands, students, supervision, given_teacher), stand_in):
            if hasattr(module, function):
                patch.setattr(module, function, stand_in[function])
        with pytest.raises(Named) as named:
            getattr(pcfg.commands[name], name)(arguments)
    return named.value.args[0]


@pytest.mark.parametrize(
    ("name", "changes", "others"),
    [
        ("train", {}, OTHERS | OTHER_TRAIN),
        (
            "distill",
            {
                **{"teacher": "somewhere", "methods": ("two-shot",), "seeds": (0,), "checkpoint": ("10",)},
                "cache_teacher": Path("targets"),
            },
            OTHERS | OTHER_DISTILL,
        ),
        (
            "distill",
            {"teacher": "somewhere", "methods": ("designed",), "seeds": (0,), **DESIGNED},
            {**OTHER_DESIGN, "first_steps": 21, "seeds": (1,), "teacher": "elsewhere"},
        ),
    ],
)
def test_runs_that_differ_in_one_argument_have_names_of_their_own(pcfg, monkeypatch, name, changes, others):
    base = replace(pcfg.commands[name].PRESETS["smoke"], **changes)
    if "windows" not in changes:
        others = others | OTHER_TASK[pcfg.name]
        assert {field.name for field in fields(base)} - {*EXECUTION_ARGUMENTS, "preset", *DESIGNED} == set(others)
    changed = {
        "nothing": base,
        "preset": replace(base, preset="laptop"),
        **{other: replace(base, **{other: value}) for other, value in others.items()},
    }
    assert all(asdict(changed[other])[other] != asdict(base)[other] for other in others)
    directories = {key: directory_of(pcfg, monkeypatch, name, arguments) for key, arguments in changed.items()}
    assert all(directory.parent == ROOT / "runs" / pcfg.name for directory in directories.values())
    assert len({directory.name.lower() for directory in directories.values()}) == len(changed)
    execution = {"out": None, "force": True, "device": "cpu", "wandb": "offline", "trust_trajectory": True}
    execution["cache_teacher"] = Path("elsewhere")
    for other in asdict(base).keys() & execution.keys():
        value = execution[other]
        changed_directory = directory_of(pcfg, monkeypatch, name, replace(base, **{other: value}))
        assert changed_directory == directories["nothing"]


@pytest.mark.parametrize("start", ["13", "12"])
def test_a_start_symbol_of_its_own_is_not_in_the_name_of_a_student(pcfg, start):
    """A run's config.json has the start symbol in any case."""
    arguments = {"grammar": "small", "start": start, "heads": 2}
    assert pcfg.setting.as_given(arguments) == {**arguments, "start": None if start == "13" else start}
    assert pcfg.setting.as_given({**arguments, "grammar": "missing"}) == {**arguments, "grammar": "missing"}


# As printed


def printed(pcfg):
    """Name and arguments of every command in the README and the docstrings."""
    pattern = rf"python (?:-m |{pcfg.name}[/.])*(train|distill|probe|data)(?:\.py)?( [^`\n]*[^`\n ])"
    texts = [(ROOT / pcfg.name / "README.md").read_text(), *(module.__doc__ for module in pcfg.commands.values())]
    return sorted({match for text in texts for match in re.findall(pattern, text)})


def test_every_command_is_printed_and_parses(pcfg, capsys, monkeypatch):
    parsed = []
    for name, work in (("train", "train"), ("distill", "distill"), ("probe", "probe"), ("data", "export")):
        monkeypatch.setattr(pcfg.commands[name], work, lambda *arguments: parsed.append(arguments[0]))
    probes = pcfg.commands["probe"].PROBES
    printed_probes = set()
    for name, line in printed(pcfg):
        first, *others = shlex.split(line)
        pcfg.succeed(capsys, name, first, *others)
        arguments = parsed.pop()
        assert not parsed
        if name in ("train", "distill"):
            assert arguments.preset == first
        if name == "probe":
            assert type(arguments) is probes[first]
            printed_probes.add(first)
    assert {name for name, _ in printed(pcfg)} == set(pcfg.commands)
    assert printed_probes == set(probes)


# In processes of their own


@pytest.mark.slow
def test_train_starts_from_the_folder_of_its_setting(tmp_path, teacher_of, one_torch_thread):
    done = python("train.py", *TRAIN[1:], "--out", tmp_path / "run", cwd=ROOT / MLM.name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'run'}: accuracy ")
    assert "step 30 of 30, loss" in done.stderr
    assert results(tmp_path / "run") == results(teacher_of(MLM))


@pytest.mark.slow
def test_distill_starts_from_the_folder_of_its_setting(tmp_path, teacher_of, one_torch_thread):
    words = [*DISTILL[1:], "--methods", "progressive", "--teacher", teacher_of(AUTOREGRESSIVE), "--out"]
    done = python("distill.py", *words, tmp_path / "student", cwd=ROOT / AUTOREGRESSIVE.name)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "student").complete
    assert Run(tmp_path / "student").summary["step"] == 12


def test_commands_start_from_the_root_and_from_the_folder(pcfg):
    assert_helpful_from_both_folders(pcfg.name)


def test_an_error_in_a_process_of_its_own_is_one_line(tmp_path):
    failed = forked("-m", "PCFG_mlm.train", *TRAIN[1:], "--layers", 0, "--out", tmp_path / "run")
    assert failed.returncode == 2
    assert failed.stderr == "error: --layers must be at least 1, got 0\n"
    assert failed.stdout == ""
    assert files(tmp_path) == {}


@pytest.mark.parametrize("name", ["data"])
def test_a_command_starts_before_slow_modules_are_imported(pcfg, name):
    code = f"import sys, {pcfg.name}.{name}; assert not {{'torch', 'numba', 'transformers'}} & sys.modules.keys()"
    assert python("-c", code).returncode == 0
