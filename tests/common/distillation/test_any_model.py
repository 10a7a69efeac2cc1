"""Students and teachers of many architectures, against a plain loop in float64."""

import gc
import sys
import weakref
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    DataCollatorWithFlattening,
    T5Config,
    T5ForConditionalGeneration,
    TrainingArguments,
)

from common.distillation.batches import ReadyBatches
from common.distillation.schedules import Segment
from common.distillation.trainer import ProgressiveDistillationTrainer
from common.errors import UserError
from tests.forked import two_forked
from tests.models import make, save_suite
from tests.trainers import (
    CLASSES,
    HELD_OUT,
    WARMUP,
    Batches,
    Plain,
    arguments,
    assert_same_model,
    collate,
    evaluate_by_hand,
    logged,
    make_batch,
    samples,
    train_by_hand,
)

STEPS = 4
SCHEDULE = [Segment(0, 10), Segment(2, 20)]
TABLE = [
    ("gpt2", "gpt_neox"),
    ("bert", "modernbert"),
    ("modernbert", "modernbert"),
    ("modernbert", "bert"),
    ("gpt_neox", "gpt_neox"),
    ("llama", "olmo2"),
    ("olmo2", "gpt2"),
    ("qwen3", "qwen3"),
    ("own llama", "llama"),
    ("llama with lora", "llama"),
]
"""Students and teachers; two of GPT-2 or two of BERT are in test_trainer.py."""


def trainer_of(directory, student, teacher=None, args=None, **options):
    options = {"train_dataset": Batches(), "schedule": SCHEDULE if teacher else (), **options}
    args = args or arguments(directory, steps=STEPS, warmup=WARMUP / STEPS)
    return ProgressiveDistillationTrainer(student, args, teacher=teacher, **options)


def loaded(directory, step, **options):
    """A teacher as transformers loads it."""
    config = (directory / f"checkpoint-{step}" / "config.json").read_text()
    auto = AutoModelForMaskedLM if "ForMaskedLM" in config else AutoModelForCausalLM
    return auto.from_pretrained(directory / f"checkpoint-{step}", **options)


def by_hand(student, teacher, batches=None, **options):
    batches = batches or [make_batch(i) for i in range(STEPS)]
    return train_by_hand(student, batches, lambda step: loaded(teacher, 10 if step < 2 else 20), **options)


def assert_means(trainer, sums, rtol=2e-4):
    np.testing.assert_allclose(logged(trainer, "loss"), sums[:, 0] / sums[:, 3], rtol=rtol)
    np.testing.assert_allclose(logged(trainer, "kl"), sums[:, 1] / sums[:, 3], rtol=rtol)


def student_of(kind):
    if kind == "llama with lora":
        pytest.importorskip("peft")
    return make(kind, 1)


@pytest.mark.parametrize(("student", "teacher"), TABLE)
def test_training_is_the_plain_loop(tmp_path, student, teacher):
    suite = save_suite(tmp_path / "teacher", teacher)
    trainer = trainer_of(tmp_path, student_of(student), suite, eval_dataset=ReadyBatches(HELD_OUT))
    found = trainer.evaluate()
    assert (found["eval_loss"], found["eval_accuracy"]) == pytest.approx(
        evaluate_by_hand(student_of(student), HELD_OUT), rel=1e-5
    )
    trainer.train()
    model = student_of(student)
    sums = by_hand(model, suite)
    assert (sums[:, 1] > 0.01 * sums[:, 3]).all()
    assert_means(trainer, sums)
    assert_same_model(trainer.model, model, atol=1e-3)


@pytest.mark.parametrize(
    ("student", "teacher", "form"),
    [("gpt_neox", "llama", "list"), ("modernbert", "bert", "dataset"), ("gpt_neox", "llama", "stream")],
)
def test_training_on_any_data_is_the_plain_loop(tmp_path, student, teacher, form):
    suite = save_suite(tmp_path / "teacher", teacher)
    rows, seen = samples(make_batch(0, 40)), []
    if form != "list":
        rows = datasets.Dataset.from_list([{name: value.tolist() for name, value in row.items()} for row in rows])
    if form == "stream":
        rows = rows.to_iterable_dataset()

    def record(rows):
        seen.append(collate(rows))
        return dict(seen[-1])

    trainer = trainer_of(tmp_path, make(student, 1), suite, train_dataset=rows, data_collator=record)
    trainer.train()
    assert_means(trainer, by_hand(make(student, 1), suite, seen[:STEPS]))


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_temperature_and_alpha(tmp_path, alpha):
    suite = save_suite(tmp_path / "teacher", "olmo2")
    trainer = trainer_of(tmp_path, make("llama", 1), suite, temperature=1.7, alpha=alpha)
    trainer.train()
    assert_means(trainer, by_hand(make("llama", 1), suite, temperature=1.7, alpha=alpha))


@pytest.mark.slow
def test_a_compiled_student_is_trained_and_evaluated_on_shifted_labels(tmp_path):
    suite = save_suite(tmp_path / "teacher", "gpt2")
    torch._dynamo.reset()
    student = torch.compile(make("gpt2", 1), backend="eager")
    trainer = trainer_of(tmp_path, student, suite, eval_dataset=ReadyBatches(HELD_OUT))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(evaluate_by_hand(make("gpt2", 1), HELD_OUT)[0], rel=1e-5)
    trainer.train()
    assert_means(trainer, by_hand(make("gpt2", 1), suite))


# Dtypes and memory


@pytest.mark.parametrize(
    ("student", "teacher", "dtype"),
    [("llama", "gpt_neox", None), ("llama", "gpt_neox", torch.float32), ("bert", "modernbert", None)],
)
def test_a_bfloat16_teacher_stays_so_unless_another_dtype_is_asked_for(tmp_path, monkeypatch, student, teacher, dtype):
    suite, dtypes = save_suite(tmp_path / "teacher", teacher, dtype=torch.bfloat16), set()
    trainer = trainer_of(tmp_path, make(student, 1), suite, teacher_dtype=dtype)
    build = trainer._teacher._models._build

    def look(stored):
        dtypes.update(("read", tensor.dtype) for tensor in stored.tensors.values())
        model = build(stored)
        dtypes.update(("built", parameter.dtype) for parameter in model.parameters())
        return model

    monkeypatch.setattr(trainer._teacher._models, "_build", look)
    trainer.train()
    assert dtypes == {("read", torch.bfloat16), ("built", dtype or torch.bfloat16)}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert_means(trainer, by_hand(make(student, 1), suite), rtol=2e-4 if dtype else 0.05)


@pytest.mark.parametrize("prefetch", [True, False])
def test_the_number_of_teachers_in_memory(tmp_path, monkeypatch, prefetch):
    """Read or built; those being built share the tensors that were read."""
    steps = (10, 20, 30, 40)
    suite = save_suite(tmp_path / "teacher", "gpt_neox", steps)
    schedule = [Segment(i, step) for i, step in enumerate(steps)]
    trainer = trainer_of(tmp_path, make("llama", 1), suite, schedule=schedule, prefetch=prefetch)
    teachers, alive, most, reads = trainer._teacher._models, weakref.WeakValueDictionary(), [], []
    read, build = teachers._read, teachers._build

    def counted_read(path):
        gc.collect()
        reads.append(path.name)
        most.append(len({path.name, *(model.place for model in alive.values())}))
        return read(path)

    def counted_build(stored):
        model = build(stored)
        model.place = stored.path.name
        alive[model.place] = model
        return model

    monkeypatch.setattr(teachers, "_read", counted_read)
    monkeypatch.setattr(teachers, "_build", counted_build)
    trainer.train()
    gc.collect()
    assert reads == [f"checkpoint-{step}" for step in steps]
    assert max(most) == (2 if prefetch else 1)
    assert not alive


# Objectives


class Forgetful(nn.Module):
    """Of an unknown kind."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(CLASSES, CLASSES)

    def forward(self, input_ids, attention_mask=None):
        return {"logits": self.embed(input_ids)}


def encoder_decoders():
    small = {"d_model": 8, "vocab_size": CLASSES, "pad_token_id": 0}
    t5 = T5Config(d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0, **small)
    layers = {f"{part}_{name}": 1 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    bart = BartConfig(**layers, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=8, **small)
    return {
        "T5ForConditionalGeneration": T5ForConditionalGeneration(t5),
        "BartForConditionalGeneration": (BartForConditionalGeneration(bart)),
    }


def test_a_model_with_an_encoder_and_a_decoder_is_refused(tmp_path):
    for name, model in encoder_decoders().items():
        with pytest.raises(UserError, match=f"{name} is an encoder-decoder model: give a causal or a masked"):
            trainer_of(tmp_path, model)
        for step in (10, 20):
            model.save_pretrained(tmp_path / name / f"checkpoint-{step}")
        with pytest.raises(UserError, match=f"is a {model.config.model_type} model, an encoder-decoder"):
            trainer_of(tmp_path, make("llama", 1), tmp_path / name, check_teacher=False)


def test_a_model_of_an_unknown_kind_needs_an_objective(tmp_path):
    for model in (Forgetful(), Plain(1)):
        name = type(model).__name__
        with pytest.raises(UserError, match=f'cannot tell what {name} predicts: give objective="causal" or'):
            trainer_of(tmp_path, model)
    for objective, shift in (("causal", 1), ("masked", 0)):
        trainer = trainer_of(tmp_path, Forgetful(), objective=objective, eval_dataset=ReadyBatches(HELD_OUT))
        torch.manual_seed(0)
        model = trainer.model
        logits = [model(batch["input_ids"])["logits"] for batch in HELD_OUT]
        losses = [
            nn.functional.cross_entropy(
                z[:, : z.shape[1] - shift].transpose(1, 2), b["labels"][:, shift:], reduction="sum"
            )
            for z, b in zip(logits, HELD_OUT, strict=True)
        ]
        count = sum(int((batch["labels"][:, shift:] != -100).sum()) for batch in HELD_OUT)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(sum(losses).item() / count, rel=1e-5)


def test_a_causal_head_on_an_encoder_is_refused_unless_it_is_a_decoder(tmp_path):
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=CLASSES, **shape)
    with pytest.raises(UserError, match="BertLMHeadModel with is_decoder=False sees the tokens that it predicts"):
        trainer_of(tmp_path, BertLMHeadModel(config))
    config.is_decoder = True
    assert trainer_of(tmp_path, BertLMHeadModel(config))._shift


@pytest.mark.parametrize("kind", ["own llama", "llama with lora"])
def test_a_student_does_not_learn_to_copy_its_input(tmp_path, kind):
    """The labels are the tokens; without the shift, copying them would make all predictions correct."""

    class Tokens:
        def batch(self, step):
            tokens = torch.randint(CLASSES, (32, 6), generator=torch.Generator().manual_seed(step))
            return {"input_ids": tokens, "labels": tokens}

    student = student_of(kind)
    args = arguments(tmp_path, steps=40, lr=0.05, batch_size=32)
    held_out = ReadyBatches([Tokens().batch(1000)])
    suite = save_suite(tmp_path / "teacher", "llama")
    options = {"train_dataset": Tokens(), "eval_dataset": held_out, "alpha": 1.0}
    trainer = trainer_of(tmp_path, student, suite, args, **options)
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] < 0.25


def test_packed_samples_are_kept_apart(tmp_path):
    """In the teacher, too, whose cache would join them."""
    suite = save_suite(tmp_path / "teacher", "llama", length=32)
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(CLASSES, (4, 5)).tolist()]
    args = arguments(tmp_path, steps=1, batch_size=4, lr=1e-9)
    options = {"train_dataset": rows, "data_collator": DataCollatorWithFlattening(), "schedule": [Segment(0, 20)]}
    trainer = trainer_of(tmp_path, make("llama", 1, length=32), suite, args, **options)
    trainer.train()
    batch = torch.tensor([row["input_ids"] for row in rows])
    with torch.no_grad():
        logits = [model(batch).logits[:, :-1].double() for model in (make("llama", 1, length=32), loaded(suite, 20))]
    log_p, log_q = (z.log_softmax(-1) for z in logits)
    expected = (log_q.exp() * (log_q - log_p)).sum(-1).mean().item()
    assert logged(trainer, "kl") == [pytest.approx(expected, rel=1e-5)]


def test_several_processes_take_no_chunked_head_for_unused(tmp_path):
    args = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, report_to="none")
    trainer_of(tmp_path, make("llama", 1), args=args)
    assert args.ddp_find_unused_parameters is False


# What is said of a teacher before training


@pytest.mark.parametrize(("teacher", "student"), [("bert", "llama"), ("llama", "modernbert")])
def test_a_teacher_of_another_objective_is_refused(tmp_path, student, teacher):
    suite = save_suite(tmp_path / "teacher", teacher)
    with pytest.raises(UserError, match="give a teacher of the student's kind"):
        trainer_of(tmp_path, make(student, 1), suite).train()


def test_a_teacher_is_tried_on_the_evaluation_data_before_training(tmp_path, capsys):
    """One is at chance; the other one is trained on the task."""
    suite, options = tmp_path / "teacher", {"eval_dataset": ReadyBatches(HELD_OUT)}
    save_suite(suite, "bert")
    trainer = trainer_of(tmp_path, make("bert", 1), suite, **options)
    trainer.train()
    _, accuracy = evaluate_by_hand(loaded(suite, 20), HELD_OUT)
    assert capsys.readouterr().out.startswith(f"warning: teacher step 20: accuracy {accuracy:.3f} on the student's")

    trained = trainer_of(tmp_path, make("bert", 3, 24), args=arguments(tmp_path, steps=200))
    trained.train()
    trained.model.save_pretrained(suite / "checkpoint-20")
    capsys.readouterr()
    trainer = trainer_of(tmp_path, make("bert", 1), suite, trust_trajectory=True, **options)
    trainer.train()
    _, accuracy = evaluate_by_hand(loaded(suite, 20), HELD_OUT)
    line = capsys.readouterr().out
    assert line.startswith(f"teacher step 20: accuracy {accuracy:.3f} on the student's evaluation data (chance 0.")
    trainer_of(tmp_path, make("bert", 1), suite, check_teacher=False, **options).train()
    assert "teacher step" not in capsys.readouterr().out


def test_a_trajectory_with_two_architectures_is_trusted_only_on_request(tmp_path):
    suite = save_suite(tmp_path / "teacher", "llama", (10,))
    save_suite(suite, "gpt_neox", (20,))
    with pytest.raises(UserError, match="20"):
        trainer_of(tmp_path, make("llama", 1), suite)
    with pytest.warns(UserWarning, match="20"):
        trainer = trainer_of(tmp_path, make("llama", 1), suite, trust_trajectory=True)
    trainer.train()
    assert_means(trainer, by_hand(make("llama", 1), suite))


# Several processes


def train_in_processes(directory):
    args = arguments(directory, steps=STEPS, warmup=WARMUP / STEPS)
    for student, teacher in (("llama", "gpt_neox"), ("bert", "modernbert"), ("llama with lora", "llama")):
        trainer = trainer_of(directory, student_of(student), directory / teacher, args=args)
        trainer.train()
        if trainer.is_world_process_zero():
            np.save(directory / f"{student}.npy", [logged(trainer, "loss"), logged(trainer, "kl")])


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    pytest.importorskip("peft")
    for teacher in ("gpt_neox", "modernbert", "llama"):
        save_suite(tmp_path / teacher, teacher)
    two_forked(__file__, tmp_path)
    for student, teacher in (("llama", "gpt_neox"), ("bert", "modernbert"), ("llama with lora", "llama")):
        sums = by_hand(student_of(student), tmp_path / teacher)
        loss, kl = np.load(tmp_path / f"{student}.npy")
        np.testing.assert_allclose(loss, sums[:, 0] / sums[:, 3], rtol=2e-4)
        np.testing.assert_allclose(kl, sums[:, 1] / sums[:, 3], rtol=2e-4)


if __name__ == "__main__":
    train_in_processes(Path(sys.argv[1]))
