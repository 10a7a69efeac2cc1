"""The settings on text: what teaches, what is refused, and the probes against plain computations."""

import json
import logging
import re
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from transformers.trainer_utils import align_special_tokens

from common.language_models.setting import task_of, task_of_run
from common.probes.kneser_ney import KneserNey
from common.probes.ngrams import CausalNgramVariants
from common.runs.run import Run
from common.teachers.discovery import find_checkpoints
from common.text.probing import fitted, hides_masked, probed_samples
from common.text.words import begins_word, begins_word_in
from tests.commands import change_config
from tests.damage import change_weights, enlarge, fill
from tests.models import save_suite
from tests.text import CAUSAL, CORPUS, MASKED, TEXT_SETTINGS


@pytest.fixture(scope="module", params=TEXT_SETTINGS, ids=lambda setting: setting.name)
def setting(request, one_torch_thread):
    return request.param


@pytest.fixture(scope="module")
def teacher(setting, teacher_of):
    return teacher_of(setting)


def refusal(setting, capsys, *words):
    """The line of an error; another one may say that text is prepared."""
    code, (*notes, line) = setting.start(capsys, *words)
    assert code == 2
    assert all(note.startswith("preparing ") for note in notes)
    return line


def loaded(setting, path):
    auto = AutoModelForMaskedLM if setting is MASKED else AutoModelForCausalLM
    return auto.from_pretrained(path).eval()


def test_every_command_of_the_readme_parses(setting, capsys, monkeypatch):
    parsed = []
    modules = {name: setting.module(name) for name in ("train", "distill", "probe", "data")}
    for name, module in modules.items():
        work = "prepare" if name == "data" else name
        monkeypatch.setattr(module, work, lambda *arguments: parsed.append(arguments[0]))
    texts = [(CORPUS.parents[1] / setting.name / "README.md").read_text(), *(m.__doc__ for m in modules.values())]
    found = {match for text in texts for match in re.findall(r"python (\w+)\.py ([^`\n]*[^`\n ])", text)}
    assert {name for name, _ in found} == modules.keys()
    for name, line in sorted(found):
        setting.succeed(capsys, name, *shlex.split(line))
        assert len(parsed) == 1
        parsed.clear()


def test_a_checkpoint_has_its_tokenizer(setting, teacher):
    task = task_of_run(teacher, setting.setting)
    for step in (10, 30):
        tokenizer = AutoTokenizer.from_pretrained(teacher / f"checkpoint-{step}")
        assert tokenizer.get_vocab() == task.tokenizer.get_vocab()
        assert loaded(setting, teacher / f"checkpoint-{step}").config.vocab_size == task.vocabulary


def test_held_out_documents_are_not_trained_on(setting, teacher):
    """By their content: no document of the held-out blocks is in a training block."""
    task = task_of_run(teacher, setting.setting)
    separator = task.blocks.separator

    def documents(blocks):
        tokens = blocks.reshape(-1)
        return {
            tuple(part[part != separator].tolist()) for part in np.split(tokens, np.flatnonzero(tokens == separator))
        }

    train, held_out = documents(np.asarray(task.blocks.train)), documents(np.asarray(task.blocks.held_out))
    long = {document for document in held_out if len(document) > 20}
    assert len(long) > 10
    assert not long & train


def test_the_evaluation_is_the_mean_over_held_out_labels(setting, teacher):
    task = task_of_run(teacher, setting.setting)
    batches = setting.setting.evaluation_batches(task, 24)
    model = loaded(setting, teacher / "checkpoint-30")
    losses, right = [], []
    with torch.no_grad():
        for batch in batches:
            inputs = {name: value for name, value in vars(batch).items() if name != "labels"}
            logits, labels = model(**inputs).logits, batch.labels
            if setting is CAUSAL:
                logits, labels = logits[:, :-1], labels[:, 1:]
            chosen = labels != -100
            losses.append(torch.nn.functional.cross_entropy(logits[chosen], labels[chosen], reduction="none"))
            right.append(logits[chosen].argmax(-1) == labels[chosen])
    record = Run(teacher).records()[-1]
    assert record["loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)
    assert record["accuracy"] == pytest.approx(torch.cat(right).float().mean().item(), abs=1e-6)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt-neox"])
def test_a_trainer_has_no_special_tokens_to_align(tmp_path, teacher_of, caplog, architecture):
    """With a tokenizer that pads, of which transformers.Trainer would warn."""
    words = {"tokenizer": str(teacher_of(MASKED) / "checkpoint-30"), "corpus": (str(CORPUS),), "length": 12}
    preset = CAUSAL.module("train").PRESETS["smoke"]
    arguments = replace(preset, held_out=0.2, architecture=architecture, **words)
    task = task_of(arguments, CAUSAL.setting)
    model = CAUSAL.setting.new_model(task, arguments, 2, 0)
    assert model.config.pad_token_id == task.tokenizer.pad_token_id is not None
    with caplog.at_level(logging.WARNING, "transformers"):
        logging.getLogger("transformers").addHandler(caplog.handler)
        align_special_tokens(model, task.tokenizer)
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not caplog.records


# What does not fit


def test_other_text_is_refused(setting, tmp_path, capsys, teacher):
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(CORPUS.read_text().split("\n\n")[:200]))
    words = [*setting.distill, "--corpus", other, "--teacher", teacher, "--out", tmp_path / "students"]
    line = refusal(setting, capsys, *words)
    assert "was trained on the text" in line
    assert "other.txt" in line


def test_a_teacher_with_a_different_tokenizer_is_refused(setting, tmp_path, capsys, teacher_of):
    other = teacher_of(CAUSAL if setting is MASKED else MASKED) / "checkpoint-30"
    suite = save_suite(tmp_path / "teacher", "bert" if setting is MASKED else "gpt_neox")
    line = refusal(setting, capsys, *setting.distill, "--teacher", suite, "--out", tmp_path / "run")
    assert "has no tokenizer: save the teacher's there" in line
    for step in (10, 20):
        AutoTokenizer.from_pretrained(other).save_pretrained(suite / f"checkpoint-{step}")
    line = refusal(setting, capsys, *setting.distill, "--teacher", suite, "--out", tmp_path / "run")
    assert "the teacher's tokenizer" in line
    words = f"probe ngrams --run {suite} --corpus {CORPUS} --vocabulary 300 --length 12 --samples 8".split()
    line = refusal(setting, capsys, *words, "--tokenizer", "wordpiece" if setting is MASKED else "bpe")
    assert "the teacher's tokenizer" in line


def test_a_checkpoint_with_a_tokenizer_of_its_own_is_refused(setting, tmp_path, capsys, teacher):
    """Although the last one is that of the text; where it is not used, or holds the same tokens, it does not matter."""
    for checkpoint in find_checkpoints(teacher):  # without what makes the teacher a run
        shutil.copytree(checkpoint.location, tmp_path / "teacher" / checkpoint.location.name)
    path = tmp_path / "teacher" / "checkpoint-20" / "tokenizer.json"
    content = json.loads(path.read_text())
    words = [*setting.distill, "--teacher", tmp_path / "teacher", "--out", tmp_path / "run", "--methods"]
    path.write_text(json.dumps(content, indent=1))
    setting.succeed(capsys, *words, "progressive")
    vocabulary = content["model"]["vocab"]
    one, other = [token for token in vocabulary if vocabulary[token] > 280][:2]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(content))
    shutil.rmtree(tmp_path / "run")
    for methods in (["progressive"], ["one-shot", "custom", "--segments", "20"]):
        code, lines = setting.start(capsys, *words, *methods)
        assert code == 2
        assert f"{path.parent} cannot be used: the teacher's tokenizer" in lines[-1]
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    setting.succeed(capsys, *words, "one-shot")


def test_too_few_held_out_samples_are_refused(setting, tmp_path, capsys):
    line = refusal(setting, capsys, *setting.train, "--eval-samples", 10**6, "--out", tmp_path / "run")
    assert "held-out blocks" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", ["--held-out 0.3", "--no-hide-masked"])
def test_a_teacher_of_another_split_or_mask_is_refused(tmp_path, capsys, teacher_of, words):
    """Such a teacher may have been trained on what its students are evaluated on, or has seen other inputs."""
    out = ("--teacher", teacher_of(MASKED), "--out", tmp_path / "run")
    line = refusal(MASKED, capsys, *MASKED.distill, *words.split(), *out)
    assert "give another --teacher, or the teacher's arguments" in line


def test_probes_look_at_the_text_that_was_trained_on(setting, tmp_path, capsys):
    """Of two corpora, one of which has no weight."""
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(document[::-1] for document in CORPUS.read_text().split("\n\n")))
    words = [*setting.train, "--corpus", CORPUS, other, "--weights", 1, 0, "--out", tmp_path / "run"]
    setting.succeed(capsys, *words)
    task = task_of_run(tmp_path / "run", setting.setting)
    (first, second) = task.blocks.ranges("held_out")
    assert len(second) > 50
    assert {tuple(row) for row in probed_samples(task, 20)} <= {
        tuple(row) for row in task.blocks.held_out[: len(first)]
    }
    own = fitted(task, 2, 10**6)
    alone = KneserNey.fit(np.asarray(task.blocks.train[: len(task.blocks.ranges("train")[0])]), 2, task.vocabulary)
    contexts = np.arange(task.vocabulary)[:, None]
    np.testing.assert_allclose(own.distributions(contexts, 2), alone.distributions(contexts, 2))


def test_a_run_is_probed_and_distilled_from_any_folder(setting, tmp_path, capsys, monkeypatch, teacher):
    """The text and the tokenizer are given by names that depend on the folder."""
    shutil.copy(CORPUS, tmp_path / "mine.txt")
    AutoTokenizer.from_pretrained(teacher / "checkpoint-30").save_pretrained(tmp_path / "tokenizer")
    monkeypatch.chdir(tmp_path)
    words = ["--corpus", "mine.txt", "--tokenizer", "tokenizer"]
    setting.succeed(capsys, *setting.train, *words, "--out", "run")
    arguments = Run(tmp_path / "run").config["arguments"]
    assert arguments["corpus"] == [str(tmp_path / "mine.txt")]
    assert arguments["tokenizer"] == str(tmp_path / "tokenizer")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    probe(setting, capsys, tmp_path / "run", "ngrams", "--samples", 4)
    words = ["--corpus", "../mine.txt", "--tokenizer", "../tokenizer", "--teacher", "../run", "--out", "student"]
    for _ in range(2):
        setting.succeed(capsys, *setting.distill, "--methods", "progressive", *words)
    assert Run(tmp_path / "elsewhere" / "student").complete


@pytest.mark.parametrize("has_one", ["teacher", "checkpoints"])
def test_a_teacher_as_a_trainer_saves_it_names_its_tokenizer(setting, tmp_path, capsys, teacher, has_one):
    """A plain Trainer saves it in each checkpoint; others save it once, beside them."""
    foreign, more = tmp_path / "theirs", "--length 12 --held-out 0.2 --samples 4 --out".split()
    for step in (20, 30):
        shutil.copytree(teacher / f"checkpoint-{step}", foreign / f"checkpoint-{step}")
        if has_one == "teacher":
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.move(foreign / f"checkpoint-{step}" / name, foreign / name)
    given = ["--corpus", CORPUS, "--tokenizer", foreign]
    words = [*setting.distill, *given, "--teacher", foreign, "--methods", "progressive", "--out", tmp_path / "run"]
    for _ in range(2):
        setting.succeed(capsys, *words)
    assert Run(tmp_path / "run").config["arguments"]["tokenizer"] == str(foreign)
    task = task_of_run(tmp_path / "run", setting.setting)
    assert task.blocks.tokenizer_sha256 == task_of_run(teacher, setting.setting).blocks.tokenizer_sha256
    probe(setting, capsys, tmp_path / "run", "ngrams", "--samples", 4)
    found = probe(setting, capsys, foreign, "ngrams", *given, *more, tmp_path / "ngrams.json")
    assert [entry["step"] for entry in found["checkpoints"]] == [20, 30]


def test_documents_with_the_same_beginning_are_noted(tmp_path, capsys):
    header = 8 * "The same words begin them. "
    documents = CORPUS.read_text().split("\n\n")
    (tmp_path / "mine.txt").write_text("\n\n".join([*documents[:100], *(header + text for text in documents[100:])]))
    code, lines = MASKED.start(capsys, *MASKED.train, "--corpus", tmp_path / "mine.txt", "--out", tmp_path / "run")
    assert code == 0
    assert any("warning: 199 of 300 documents of" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--corpus {}/missing.txt", "missing.txt is missing"),
        ("--corpus {}/empty.txt", "empty.txt is empty"),
        ("--corpus {}/binary.txt", "binary.txt"),
        ("--corpus {}/binary.jsonl", "binary.jsonl is not UTF-8 text"),
        ("--corpus {}/binary.parquet", "binary.parquet is not a parquet file"),
        ("--corpus {}/rows.jsonl", "has no column text, only other: give one of these as --text-column"),
        ("--corpus {}/rows.parquet", "has no column text, only other: give one of these as --text-column"),
        ("--corpus {}/short.txt", "short.txt has no train block of 12 tokens"),
        ("--corpus {}", "is no corpus: give docs"),
        ("--corpus org/absent", "org/absent cannot be read from the hub, with HF_HUB_OFFLINE set"),
        ("--tokenizer {}/nothing", "cannot load the tokenizer"),
        ("--tokenizer org/absent", "cannot load the tokenizer org/absent"),
        ("--vocabulary 299", "--vocabulary must be from 300 to"),
        ("--tokenizer wordpiece --corpus {}/han.txt", "han.txt are [UNK]: give a tokenizer for its language"),
        ("--tokenizer=", "--tokenizer is empty: give wordpiece or bpe"),
        ("--length 1", "--length must be at least 2"),
        ("--length 100000", "has no train block of 100000 tokens"),
        ("--held-out 1", "--held-out must be between 0 and 1"),
    ],
)
def test_data_that_cannot_be_used_is_one_line(setting, tmp_path, capsys, monkeypatch, words, named):
    for place in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{place}.HF_HUB_OFFLINE", True)
    (tmp_path / "empty.txt").write_bytes(b"")
    for name in ("binary.txt", "binary.jsonl", "binary.parquet"):
        (tmp_path / name).write_bytes(bytes(range(256)) * 8)
    (tmp_path / "rows.jsonl").write_text('{"other": "words"}\n')
    (tmp_path / "short.txt").write_text("a few words")
    han = np.random.default_rng(0).integers(0x4E00, 0x4E00 + 3000, (400, 80))
    (tmp_path / "han.txt").write_text("\n\n".join("".join(map(chr, document)) for document in han))
    pq.write_table(pa.table({"other": ["words"]}), tmp_path / "rows.parquet")
    given = words.format(tmp_path).split()
    data = {"--corpus": CORPUS, "--vocabulary": 300, "--length": 12, "--held-out": 0.2}
    prepare = ["data", "prepare", *(word for pair in data.items() for word in pair)]
    for command in ([*setting.train, "--out", tmp_path / "run"], prepare):
        assert named in refusal(setting, capsys, *command, *given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--weights 1 2", "--weights has 2 numbers for 1 corpora: give one for each"),
        ("--weights 0", "--weights must be at least 0 and not all 0, got 0.0"),
        ("--weights nan", "--weights must be at least 0 and not all 0, got nan"),
        ("--batch-size 100000", "training blocks, fewer than --batch-size 100000: give a larger corpus"),
    ],
)
def test_a_mixture_or_batch_that_cannot_be_is_one_line(setting, tmp_path, capsys, teacher, words, named):
    for command in (setting.train, [*setting.distill, "--teacher", teacher]):
        assert named in refusal(setting, capsys, *command, *words.split(), "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_heads_in_which_gpt_neox_would_not_see_positions_are_refused(tmp_path, capsys):
    words = (*CAUSAL.train, "--head-dim", 4, "--out", tmp_path / "run")
    assert "--head-dim must be at least 8 for GPT-NeoX" in refusal(CAUSAL, capsys, *words)
    assert not (tmp_path / "run").exists()


def test_a_run_whose_text_has_changed_is_not_probed(setting, tmp_path, capsys, teacher):
    shutil.copytree(teacher, tmp_path / "run")
    arguments = Run(tmp_path / "run").config["arguments"]
    change_config(tmp_path / "run", arguments={**arguments, "documents": ["0" * 64]})
    assert "has changed since" in refusal(setting, capsys, "probe", "ngrams", "--run", tmp_path / "run")


WITHOUT_DATA = (
    ("train", "--steps 0"),
    ("train", "--weights 1 2"),
    ("train", "--batch-size 9 --accumulate 2"),
    ("distill", "--teacher-every 0 --methods progressive"),
    ("distill", "--temperature -1 --methods progressive"),
    ("distill", "--teacher {}/missing"),
    ("distill", "--teacher {}"),
    ("probe", "ngrams --samples 0 --run {teacher}"),
    ("probe", "kneser-ney --rows 0 --run {teacher}"),
    ("probe", "kneser-ney --order 6 --run {teacher}"),
    ("probe", "ngrams --run {}/missing --tokenizer wordpiece"),
)
if not torch.cuda.is_available():
    WITHOUT_DATA += (
        ("train", "--device cuda"),
        ("distill", "--device cuda"),
        ("probe", "ngrams --device cuda --run {teacher}"),
    )


@pytest.mark.parametrize(("command", "words"), WITHOUT_DATA)
def test_what_needs_no_data_is_refused_before_any_is_prepared(setting, tmp_path, capsys, teacher, command, words):
    """Preparation may take minutes, and says so in a line."""
    shutil.copy(CORPUS, tmp_path / "new.txt")
    given = {"train": setting.train, "distill": [*setting.distill, "--teacher", teacher], "probe": ["probe"]}[command]
    given = [*given, *words.format(tmp_path, teacher=teacher).split()]
    if command != "probe" or "missing" in words:
        given += ["--corpus", tmp_path / "new.txt"]
    setting.fail_in_one_line(capsys, *given)


def test_a_teacher_with_fewer_embeddings_than_tokens_is_refused(setting, tmp_path, capsys, teacher):
    path = tmp_path / "theirs" / "checkpoint-30"
    shutil.copytree(teacher / "checkpoint-30", path)
    model = loaded(setting, path)
    model.resize_token_embeddings(290)
    model.save_pretrained(path)
    line = refusal(setting, capsys, *setting.distill, "--teacher", path.parent, "--out", tmp_path / "out")
    assert "has embeddings for 290 tokens, but its tokenizer has 300" in line


# Probes


def test_a_probe_elsewhere_is_not_resumed_for_a_run_that_was_trained_again(setting, tmp_path, capsys, teacher):
    run, out = tmp_path / "run", tmp_path / "ngrams.json"
    shutil.copytree(teacher, run)
    words = ("probe", "ngrams", "--samples", 4, "--run", run, "--out", out)
    setting.succeed(capsys, *words)
    change_config(run, id="another")
    assert "ngrams.json holds a probe of this run before it was trained again (" in refusal(setting, capsys, *words)


def test_a_probe_of_a_foreign_teacher_knows_its_data(setting, tmp_path, capsys, monkeypatch, teacher):
    """From any folder; if the text or the tokenizer has changed, it is not resumed."""
    foreign, elsewhere = tmp_path / "theirs", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(teacher / "checkpoint-30", foreign / "checkpoint-30")
    shutil.copy(CORPUS, tmp_path / "mine.txt")
    AutoTokenizer.from_pretrained(foreign / "checkpoint-30").save_pretrained(tmp_path / "tokenizer")
    monkeypatch.chdir(tmp_path)
    more = "--length 12 --held-out 0.2 --samples 4 --out"
    words = ["probe", "ngrams", "--run", foreign, *more.split(), tmp_path / "ngrams.json"]
    setting.succeed(capsys, *words, "--corpus", "mine.txt", "--tokenizer", "tokenizer")
    content = json.loads((tmp_path / "ngrams.json").read_text())
    assert content["settings"]["corpus"] == [str(tmp_path / "mine.txt")]
    task = setting.setting.task(content["settings"])
    assert content["data"] == json.loads(json.dumps(setting.setting.identity(task)))
    monkeypatch.chdir(elsewhere)
    shutil.copytree(foreign / "checkpoint-30", foreign / "checkpoint-31")
    setting.succeed(capsys, *words, "--corpus", "../mine.txt", "--tokenizer", "../tokenizer")
    resumed = json.loads((tmp_path / "ngrams.json").read_text())
    assert [entry["step"] for entry in resumed["checkpoints"]] == [30, 31]
    (tmp_path / "mine.txt").write_text("\n\n".join(CORPUS.read_text().split("\n\n")[:250]))
    line = refusal(setting, capsys, *words, "--corpus", "../mine.txt", "--tokenizer", "../tokenizer")
    assert "ngrams.json holds a probe of other data than here: give another --out" in line


def probe(setting, capsys, teacher, *words):
    path = setting.succeed(capsys, "probe", *words, "--run", teacher).strip().splitlines()[-1]
    return json.loads(open(path).read())


def plain_prediction(setting, model, task, sample, position, masked):
    """Probabilities at a position, with some positions masked, or for a causal model replaced."""
    tokens = torch.tensor(sample)[None]
    with torch.no_grad():
        if setting is CAUSAL:
            return model(tokens[:, :position]).logits[0, -1].softmax(-1)
        tokens[0, list(masked)] = task.blocks.mask
        attention = torch.ones_like(tokens)
        if hides_masked(task):
            attention[0, list(masked)] = 0
        return model(tokens, attention_mask=attention).logits[0, position].softmax(-1)


def test_ngrams_of_tokens_are_masked_as_defined(capsys, teacher_of, one_torch_thread):
    setting, teacher = MASKED, teacher_of(MASKED)
    found = probe(setting, capsys, teacher, "ngrams", "--samples", 12, "--values", "--sizes", 2, 3)
    task = task_of_run(teacher, setting.setting)
    samples = probed_samples(task, 12)
    for entry in found["checkpoints"]:
        model = loaded(setting, teacher / f"checkpoint-{entry['step']}")
        for statistics in (*entry["robust"], *entry["close"]):
            n, is_close = statistics["n"], statistics in entry["close"]
            for (row, p), value in zip(found["positions"], statistics["values"], strict=True):
                ngram = set(range(p - n // 2, p + (n - 1) // 2 + 1))
                hidden = (set(range(len(samples[row]))) - ngram) | {p} if is_close else ngram
                predictions = [
                    plain_prediction(setting, model, task, samples[row], p, chosen) for chosen in ({p}, hidden)
                ]
                assert value == pytest.approx((predictions[0] - predictions[1]).abs().sum().item(), abs=1e-5)


def test_words_are_masked_whole(capsys, teacher_of, one_torch_thread):
    teacher = teacher_of(MASKED)
    found = probe(MASKED, capsys, teacher, "ngrams", "--samples", 20, "--values", "--sizes", 2, 3, "--unit", "word")
    task = task_of_run(teacher, MASKED.setting)
    samples = probed_samples(task, 20)
    texts = task.tokenizer.convert_ids_to_tokens(list(range(task.vocabulary)))
    entry = found["checkpoints"][-1]
    model = loaded(MASKED, teacher / f"checkpoint-{entry['step']}")
    for statistics in entry["robust"]:
        for (row, p), value in zip(found["positions"], statistics["values"], strict=True):
            words, n = [], statistics["n"]
            for i, token in enumerate(samples[row]):
                if texts[token].startswith("##") and words:
                    words[-1].append(i)
                else:
                    words.append([i])
            (place,) = (i for i, word in enumerate(words) if word == [p])
            ngram = {i for word in words[place - n // 2 : place + (n - 1) // 2 + 1] for i in word}
            predictions = [plain_prediction(MASKED, model, task, samples[row], p, chosen) for chosen in ({p}, ngram)]
            assert value == pytest.approx((predictions[0] - predictions[1]).abs().sum().item(), abs=1e-5)


@pytest.mark.parametrize("unit", ["token", "word"])
def test_a_causal_models_ngrams_end_at_the_predicted_token(capsys, teacher_of, one_torch_thread, unit):
    """What is replaced is found by comparing the queries; the probabilities are those of whole samples."""
    teacher = teacher_of(CAUSAL)
    words = ("ngrams", "--samples", 12, "--values", "--sizes", 2, 3, "--unit", unit)
    found = probe(CAUSAL, capsys, teacher, *words)
    task = task_of_run(teacher, CAUSAL.setting)
    samples = list(probed_samples(task, 12))
    begins = begins_word_in(np.array(samples), begins_word(task.tokenizer, task.vocabulary), task.blocks.is_special)
    ordinary = np.setdiff1d(np.arange(task.vocabulary), task.blocks.special)
    options = {"begins_word": list(begins)} if unit == "word" else {}
    variants = CausalNgramVariants(
        samples, ordinary, spacing=1, limit=12, positions=1, sizes=(2, 3), keeps_first=False, **options
    )
    model = loaded(CAUSAL, teacher / "checkpoint-30")
    values = {n: {} for n in range(4)}
    for indices, queries in variants.batches(10**6):
        for index, tokens, column in zip(indices, queries.input_ids.numpy(), queries.columns.tolist(), strict=True):
            (row, p), variant = variants.pairs[index // 5], index % 5
            assert column == p - 1
            same = tokens[:p] == samples[row][:p]
            starts = np.flatnonzero(begins[row][:p]) if unit == "word" else np.arange(p)
            if unit == "word":
                assert begins[row][p]
            if variant == 0:
                assert same.all()
                original = plain_prediction(CAUSAL, model, task, samples[row], p, ())
                continue
            start = starts[1 - (2, 3)[(variant - 1) % 2]]
            inside = np.arange(p) >= start
            assert same[~inside if variant <= 2 else inside].all()
            assert not same[inside if variant <= 2 else ~inside].all() or same.all() or inside.all()
            changed = plain_prediction(CAUSAL, model, task, tokens, p, ())
            values[variant - 1][index // 5] = (original - changed).abs().sum().item()
    entry = found["checkpoints"][-1]
    for statistics, of_pairs in zip((*entry["robust"], *entry["close"]), values.values(), strict=True):
        expected = [of_pairs[i] for i in range(len(variants.pairs))]
        np.testing.assert_allclose(statistics["values"], expected, atol=1e-5)


@pytest.mark.parametrize("order", [1, 3])
def test_the_divergence_from_ngram_models(setting, capsys, teacher, order):
    found = probe(setting, capsys, teacher, "kneser-ney", "--samples", 10, "--order", order, "--rows", 4)
    task = task_of_run(teacher, setting.setting)
    samples = probed_samples(task, 10)
    assert (teacher / "probes" / f"kneser_ney-samples10-order{order}.json").exists()
    special = list(task.blocks.special) if setting is MASKED else []
    generator = np.random.Generator(np.random.Philox(key=[0, 0]))
    beside = order - 1
    first = beside or int(setting is CAUSAL)  # a causal model predicts no first token
    inside = slice(first, samples.shape[1] - beside)
    places = np.array(
        [first + generator.choice(np.flatnonzero(~np.isin(sample[inside], special))) for sample in samples]
    )
    ngrams = KneserNey.fit(np.asarray(task.blocks.train), order, task.vocabulary)
    for entry in found["checkpoints"]:
        model = loaded(setting, teacher / f"checkpoint-{entry['step']}")
        rows = [
            plain_prediction(setting, model, task, sample, p, {p}).double().numpy()
            for sample, p in zip(samples, places, strict=True)
        ]
        ordinary = np.setdiff1d(np.arange(task.vocabulary), special)
        predicted = np.zeros((10, task.vocabulary))
        predicted[:, ordinary] = np.stack(rows)[:, ordinary]
        predicted /= predicted.sum(1, keepdims=True)
        for n, statistics in enumerate(entry["ngrams"], 1):
            left = np.stack([sample[p - beside : p] for sample, p in zip(samples, places, strict=True)])
            right = np.stack([sample[p + 1 : p + order] for sample, p in zip(samples, places, strict=True)])
            q = ngrams.distributions(left, n) if setting is CAUSAL else ngrams.window_distributions(left, right, n)
            q = q[:, ordinary] / q[:, ordinary].sum(1, keepdims=True)
            p = predicted[:, ordinary]
            expected = (p * (np.log(p) - np.log(q))).sum(1).mean()
            assert statistics["model_to_ngram"]["mean"] == pytest.approx(expected, rel=1e-4)
        own = predicted[np.arange(10), samples[np.arange(10), places]]
        assert entry["loss"] == pytest.approx(-np.log(own).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fill(float("nan")), "has weights that are NaN or infinite, such as"),
        (enlarge, "predicts NaN or infinity"),
    ],
)
def test_a_teacher_that_is_not_finite_is_refused_and_not_probed(setting, tmp_path, capsys, teacher, change, message):
    for checkpoint in teacher.glob("checkpoint-*"):
        shutil.copytree(checkpoint, tmp_path / "theirs" / checkpoint.name)
    last = max((tmp_path / "theirs").iterdir())
    change_weights(last, change)
    words = ["--teacher", tmp_path / "theirs", "--methods", "one-shot", "--temperature", 0, "--trust-trajectory"]
    line = refusal(setting, capsys, *setting.distill, *words, "--out", tmp_path / "student")
    assert f"{last} {message}" in line
    run = shutil.copytree(teacher, tmp_path / "run")
    change_weights(run / last.name, change)
    for probe in ("ngrams --samples 10 --sizes 2", "kneser-ney --samples 10"):
        code, lines = setting.start(capsys, "probe", *shlex.split(probe), "--run", run)
        assert code == 2
        assert f"{run / last.name} {message}" in lines[-1]
