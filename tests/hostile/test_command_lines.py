"""Command lines with odd values: a command works, or refuses in one line and leaves nothing behind."""

import dataclasses
import types
import typing
from pathlib import Path

import pytest
from huggingface_hub import constants
from hypothesis import given, strategies as st

from common.arguments import option_of
from tests import commands
from tests.commands import files
from tests.every_setting import EVERY_SETTING, ONE_OF_EACH_PATH
from tests.hostile.contract import cases, within_limits
from tests.parity import CASES
from tests.pcfg import SETTINGS

STUBBED, DONE = 30, 10
"""Cases of each command: of each setting without its work, and with it of one of those that share their code."""

NUMBERS = ("-1", "0", "1", "2", "3", "0.5", "-0.0", "nan", "inf", "-inf", "1e-320", "1e30", "", "x", "٣", "0x10", "1_0")
HUGE = (str(10**18), str(-(10**18)), str(2**63), "9" * 5000, "1e308")
PATHS = ("/dev/null", "/proc/x", "/proc/1/mem", "", ".", "..", "/", "missing", "folder", "folder/file", "x" * 5000)
PATHS += ("é 🙂", "file/below", "\u202e", "-", "--", "~", "*", "a\nb", "\udcff")
TEXTS = (
    *PATHS,
    "-1",
    "None",
    "first",
    "1,2",
    "1,1",
    "1,x",
    "1,,2",
    "[",
    "(?P<step>",
    "small",
    "cfg3b",
    "S",
    "5",
    "last",
)

LEFT_OUT = {"wandb", "compile", "preset"}
"""Arguments that need a network or minutes."""

SHORT = {"steps": "2", "eval_every": "1", "first_steps": "1", "teacher_every": "1", "checkpoint_every": "1"}


class Reached(BaseException):
    """Everything was accepted, and the work would begin."""


@pytest.fixture
def offline(monkeypatch):
    """Names that are no directories are not looked up on the hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


def values_of(hint, numbers):
    """Words for an argument of this type: right ones, and others."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return values_of(parts[0], numbers)
    if origin is tuple:
        return st.lists(values_of(parts[0], numbers), max_size=3).map(
            lambda found: [w for words in found for w in words]
        )
    if origin in (typing.Union, types.UnionType):
        return st.one_of([values_of(part, numbers) for part in parts if part is not type(None)])
    if origin is typing.Literal:
        return st.sampled_from([*map(str, parts), "x", ""]).map(lambda word: [word])
    words = numbers if hint in (int, float) else TEXTS if hint is str else PATHS
    return st.sampled_from(words).map(lambda word: [word])


def options_of(arguments, numbers):
    """Up to three options of a command, some of them twice, with odd values."""
    hints = typing.get_type_hints(arguments, include_extras=True)
    names = [field.name for field in dataclasses.fields(arguments) if field.name not in LEFT_OUT]

    def option(name):
        if hints[name] is bool:
            return st.sampled_from([[option_of(name)], [option_of(f"no_{name}")]])
        return values_of(hints[name], numbers).map(lambda words: [option_of(name), *words])

    return st.lists(st.sampled_from(names).flatmap(option), min_size=1, max_size=3)


def furnish(folder):
    """A folder with something in it, to be the current one."""
    (folder / "folder").mkdir(parents=True)
    (folder / "folder" / "file").write_text("text\n")
    (folder / "file").write_text("S -> a b\n")
    return folder


def check(capsys, monkeypatch, folder, main, words, options):
    """Run a command in a folder of its own."""
    furnish(folder)
    before = files(folder)
    drawn = [word for option in options for word in option]
    with monkeypatch.context() as patch, within_limits():
        patch.chdir(folder)
        try:
            code, _, stderr = commands.start(capsys, main, *words, *drawn)
        except Reached:
            capsys.readouterr()
            return
    assert code in (0, 2, 3), stderr
    assert "Traceback" not in stderr
    if code == 2:
        assert files(folder) == before
    if code == 0 or "For full helptext" in stderr:  # a usage error, in several lines
        return
    *notes, line = [line for line in stderr.splitlines() if ": step " not in line]
    assert line.startswith("error: "), stderr
    assert not [note for note in notes if note.startswith("error")]
    assert line.isprintable()
    named = {name for option in options for word in option for name in ([word] if word else [".", "''"])}
    named |= {name.replace("--no-", "--") for name in named} | {visible(word) for word in named}
    named |= {f".{Path(word).name}." for word in named}
    named |= {name.removeprefix("--no-").removeprefix("--").replace("-", "_") for name, *_ in options}
    assert any(word in line for word in (*named, *EXPLAINED)), line


EXPLAINED = ("of memory", "of disk", "no directory", "schedule", "teacher step", " --")
"""Messages that name what is too large, or not there, or another option."""


def visible(word):
    return " ".join(word.splitlines()).encode("unicode_escape").decode()


with_and_without_work = pytest.mark.parametrize(
    ("setting", "work"),
    [*((each, "stubbed") for each in EVERY_SETTING), *((each, "run") for each in ONE_OF_EACH_PATH)],
    indirect=True,
    ids=lambda value: getattr(value, "name", value),
)


@pytest.fixture
def work(request, setting, monkeypatch):
    """How many cases, and which numbers: any, if the work is left out, or small ones, with which it is done."""
    if request.param == "run":
        return DONE, NUMBERS

    def reached(*arguments, **options):
        raise Reached

    for name in (
        "common.language_models.commands.train_to_end",
        "common.parity.commands.train_together",
        "common.language_models.probing.probe_checkpoints",
        "common.parity.probing.probe_checkpoints",
        "common.pcfg.dataset._write_shard",
        "common.text.preparation._prepare",
    ):
        monkeypatch.setattr(name, reached)
    return STUBBED, NUMBERS + HUGE


@with_and_without_work
@pytest.mark.parametrize("command", ["train", "distill"])
def test_training(setting, teacher, tmp_path_factory, capsys, monkeypatch, offline, work, command):
    module = setting.module(command)
    arguments = type(module.PRESETS["smoke"])
    words = [*(setting.train if command == "train" else [*setting.distill, "--teacher", teacher]), "--out", "out"]
    short = {name: value for name, value in SHORT.items() if name in arguments.__dataclass_fields__}
    words += [word for name, value in short.items() for word in (option_of(name), value)]

    @given(options_of(arguments, work[1]))
    @cases(work[0])
    def test(options):
        check(capsys, monkeypatch, tmp_path_factory.mktemp("case"), module.main, words[1:], options)

    test()


SMALL_PROBES = {
    "ngrams": "--sizes 2",
    "nonterminals": "--training 8 --heldout 4 --exact 2 --heads 2 --dimension 4",
    "generation": "",
    "kneser-ney": "--order 2 --tokens 100",
    "windows": "--positions 4",
    "bayes-optimal": "",
    "monomials": "--degrees 1 --outside 2",
}


def probes_of(setting):
    """Each probe's first words and its arguments."""
    module = setting.module("probe")
    if hasattr(module, "PROBES"):
        return {name: ([name, *SMALL_PROBES[name].split()], of) for name, of in module.PROBES.items()}
    return {"monomials": (SMALL_PROBES["monomials"].split(), module.ProbeArguments)}


@with_and_without_work
def test_probes(setting, teacher, tmp_path_factory, capsys, monkeypatch, offline, work):
    probes = probes_of(setting)
    size = {"sentences": "4", "samples": "4"}

    @given(
        st.sampled_from(list(probes)).flatmap(
            lambda name: st.tuples(st.just(name), options_of(probes[name][1], work[1]))
        )
    )
    @cases(work[0])
    def test(drawn):
        name, options = drawn
        words, arguments = probes[name]
        few = [
            w
            for field, count in size.items()
            if field in arguments.__dataclass_fields__
            for w in (option_of(field), count)
        ]
        words = [*words, *few, "--run", teacher, "--out", "out.json"]
        check(capsys, monkeypatch, tmp_path_factory.mktemp("case"), setting.module("probe").main, words, options)

    test()


@with_and_without_work
def test_data(setting, tmp_path_factory, capsys, monkeypatch, offline, work):
    module = setting.module("data")
    if setting in CASES.values():
        pytest.skip("it has no data to prepare")
    if setting in SETTINGS:
        words, arguments = (
            "export --sentences 4 --validation 2 --grammar small --out out".split(),
            module.ExportArguments,
        )
    else:
        words, arguments = ["prepare", *setting.train[2:10]], module.PrepareArguments
        monkeypatch.setenv("TEXT_BLOCKS", str(tmp_path_factory.mktemp("blocks")))

    @given(options_of(arguments, work[1]))
    @cases(2 * work[0])
    def test(options):
        check(capsys, monkeypatch, tmp_path_factory.mktemp("case"), module.main, words, options)

    test()


# What was found


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("PCFG_mlm", "ngrams --sentences"),
        ("PCFG_mlm", "nonterminals --training"),
        ("PCFG_mlm", "nonterminals --heldout"),
        ("PCFG_autoregressive", "generation --continuations"),
    ],
)
def test_a_probe_that_does_not_fit_into_memory_is_refused_at_once(teacher_of, capsys, name, option):
    (setting,) = (each for each in SETTINGS if each.name == name)
    words = ["probe", *option.split(), 10**15, "--run", teacher_of(setting)]
    assert f"{option.split()[1]} {10**15}" in setting.fail_in_one_line(capsys, *words)


def test_a_file_below_proc_is_one_line(teacher_of, capsys):
    words = ["probe", "--run", teacher_of(CASES["parity_mlp"]), "--samples", 8, "--degrees", 1]
    _, (*_, line) = CASES["parity_mlp"].start(capsys, *words, "--out", "/proc/x/y.json")
    assert line.startswith("error: /proc/x: no directory can be created there")


@pytest.mark.parametrize("command", ["train", "distill"])
@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (1e-320, "no position of the first 2 batches is predicted: give a larger --mask-rate, "),
        (1e-4, "no position of the evaluation data is predicted: give more --eval-samples, or a larger --mask-rate, "),
    ],
)
def test_a_mask_rate_that_chooses_nothing_is_refused_before_the_run_begins(
    teacher_of, tmp_path, capsys, command, rate, message
):
    mlm = SETTINGS[0]
    words = {"train": mlm.train, "distill": [*mlm.distill, "--teacher", teacher_of(mlm), "--methods", "ce"]}[command]
    options = ["--out", tmp_path / "out", "--mask-rate", rate, "--eval-samples", 1, "--batch-size", 4096, "--steps", 2]
    code, (*_, line) = mlm.start(capsys, *words, *options)
    assert code == 2
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_grammar_of_single_tokens_leaves_a_causal_model_its_end_to_predict(tmp_path, capsys):
    (tmp_path / "a.cfg").write_text("S -> a | b")
    SETTINGS[1].succeed(capsys, *SETTINGS[1].train, "--grammar", tmp_path / "a.cfg", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (CASES["parity_mlp"], ["train", "smoke", "--seed"]),
        (CASES["parity_mlp"], ["probe", "--run", "a", "--samples"]),
        (SETTINGS[0], ["distill", "smoke", "--eval-samples"]),
        (SETTINGS[0], ["probe", "ngrams", "--run", "a", "--spacing"]),
    ],
)
def test_numbers_of_more_than_64_bits_are_refused_by_name(setting, capsys, words):
    for number, bound in ((2**63, "below 2^63"), (-(2**63) - 1, "at least -2^63"), (10**4000, "below 2^63")):
        line = setting.fail_in_one_line(capsys, *words, number)
        assert line == f"error: {words[-1]} must be {bound}, got {str(number)[:30]}"
