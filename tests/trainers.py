"""Small models and data, a plain training loop as an oracle, and a run that can be killed, for tests of trainers."""

import math
import os
import random
import signal
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    ModernBertForMaskedLM,
    TrainerCallback,
)

from common.distillation.batches import ReadyBatches
from common.distillation.run_loop import RunTrainer, train_run, training_arguments
from common.distillation.schedules import Segment
from common.distillation.trainer import ProgressiveDistillationTrainer
from common.runs.checkpoints import read_checkpoint
from common.runs.processes import Processes, open_shared_run
from tests.commands import Killed

CLASSES, LENGTH, BATCH, STEPS = 11, 6, 8, 8
LR, WARMUP = 0.01, 2
SCHEDULE = [Segment(0, 20), Segment(3, 10), Segment(6, 30)]
WITHOUT_GRADIENT = ("key.bias", "c_attn.bias")
"""Biases of keys do not change the attention: their gradients are rounding errors, which Adam scales up."""


class Plain(nn.Module):
    """A model that is unknown to the trainer."""

    def __init__(self, seed: int, width: int = 5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(CLASSES, width)
        self.mix = nn.Linear(LENGTH * width, LENGTH * width)
        self.read = nn.Linear(width, CLASSES)

    def forward(self, input_ids, attention_mask):
        states = self.embed(input_ids) * attention_mask[..., None]
        mixed = self.mix(states.flatten(1)).view(states.shape)
        return {"logits": self.read(mixed.tanh())}


def bert(seed, width=8, layers=1, dropout=0.0):
    torch.manual_seed(seed)
    return BertForMaskedLM(
        BertConfig(
            vocab_size=CLASSES,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=2 * width,
            max_position_embeddings=LENGTH,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )


def gpt2(seed, width=8, layers=1):
    torch.manual_seed(seed)
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    shape = {"n_positions": LENGTH, "n_embd": width, "n_layer": layers, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=CLASSES, bos_token_id=0, eos_token_id=0, **shape, **dropout))


STUDENTS = {"bert": bert, "gpt2": gpt2, "plain": Plain}
UNSHIFTED = BertForMaskedLM, ModernBertForMaskedLM, Plain
"""Models whose logits predict the label of their own position; those of all others predict the next one's."""


def load_plain(path):
    model = Plain(0, width=7)
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in read_checkpoint(path)[1].items()})
    return model


def make_batch(step, size=BATCH):
    """Samples of several lengths; the second quarter has no label, the others increasingly many, up to all tokens."""
    numbers = torch.Generator().manual_seed(1000 + step)
    tokens = torch.randint(CLASSES, (size, LENGTH), generator=numbers)
    lengths = torch.randint(2, LENGTH + 1, (size, 1), generator=numbers)
    visible = torch.arange(LENGTH) < lengths
    rate = torch.linspace(-0.3, 1, size).roll(size // 4)[:, None]
    labelled = visible & (torch.rand(size, LENGTH, generator=numbers) < rate)
    answers = (3 * tokens + 1) % CLASSES
    return {"input_ids": tokens, "attention_mask": visible.long(), "labels": torch.where(labelled, answers, -100)}


@dataclass(frozen=True)
class Batches:
    size: int = BATCH

    def batch(self, step):
        return make_batch(step, self.size)


HELD_OUT = [make_batch(step, size) for step, size in ((90, 5), (91, 12), (92, 3))]


def samples(batch):
    return [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]


def collate(rows):
    return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}


def arguments(directory, **changes):
    given = {"steps": STEPS, "batch_size": BATCH, "accumulate": 1, "lr": LR, "warmup": WARMUP / STEPS}
    given |= {"eval_every": 4, "checkpoint_every": 4, "seed": 3, "precision": "float32", "compiled": False}
    logging = changes.pop("logging_steps", 1)
    args = training_arguments(directory, **{**given, "device": "cpu", **changes})
    args.logging_strategy, args.logging_steps = "steps", logging
    args.eval_strategy = args.save_strategy = "no"
    return args


def recorded_arguments(directory, **changes):
    """The arguments of a run, as the commands of this project have them."""
    args = arguments(directory, **changes)
    args.logging_strategy, args.eval_strategy, args.save_strategy = "no", "steps", "steps"
    return args


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if "learning_rate" in entry]


def labelled(model, batch):
    """Logits at the labels' positions, and the labels, selected from the whole output."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])["logits"]
    labels = batch["labels"]
    if not isinstance(model, UNSHIFTED):
        logits, labels = logits[:, :-1], labels[:, 1:]
    chosen = labels != -100
    return logits[chosen], labels[chosen]


def evaluate_by_hand(model, batches):
    model.eval()
    with torch.no_grad():
        logits, labels = map(torch.cat, zip(*[labelled(model, batch) for batch in batches], strict=True))
    loss = F.cross_entropy(logits, labels).item()
    return loss, (logits.argmax(-1) == labels).double().mean().item()


def train_by_hand(model, batches, teacher_at=lambda step: None, temperature=1.0, alpha=0.0):
    """Train on every batch, in float64; sums over the labels of loss, divergence, correct predictions and 1, per step.

    The temperature and alpha are numbers, or one for each step.
    """
    temperatures, alphas = np.broadcast_to(temperature, len(batches)), np.broadcast_to(alpha, len(batches))
    model.double().train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), eps=1e-8, weight_decay=0)
    sums = []
    for step, batch in enumerate(batches):
        cosine = (1 + math.cos(math.pi * (step - WARMUP) / (len(batches) - WARMUP))) / 2
        optimizer.param_groups[0]["lr"] = LR * (step / WARMUP if step < WARMUP else cosine)
        logits, labels = labelled(model, batch)
        log_p = logits.log_softmax(-1)
        loss = -log_p[range(len(labels)), labels]
        kl = torch.zeros_like(loss)
        teacher = teacher_at(step)
        if teacher is not None:
            with torch.no_grad():
                z, _ = labelled(teacher.double().eval(), batch)
            arg_max = F.one_hot(z.argmax(-1), CLASSES).double()
            q = (z / temperatures[step]).softmax(-1) if temperatures[step] else arg_max
            kl = (torch.xlogy(q, q) - q * log_p).sum(-1)
            loss = alphas[step] * loss + (1 - alphas[step]) * kl
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        right = logits.argmax(-1) == labels
        sums.append([loss.sum().item(), kl.sum().item(), right.sum().item(), len(labels)])
    return np.array(sums)


def assert_same_model(model, other, atol=2e-4):
    here, there = dict(model.named_parameters()), dict(other.named_parameters())
    assert here.keys() == there.keys()
    for name, parameter in here.items():
        if not name.endswith(WITHOUT_GRADIENT):
            expected = there[name].to(parameter.dtype)
            torch.testing.assert_close(parameter, expected, rtol=0, atol=atol, msg=lambda text, n=name: n + text)


def load_teacher(teachers, kind, step):
    path = teachers / kind / f"checkpoint-{step}"
    return load_plain(path) if kind == "plain" else type(STUDENTS[kind](0)).from_pretrained(path)


def schedule_by_hand(teachers, kind):
    return lambda step: load_teacher(teachers, kind, 20 if step < 3 else 10 if step < 6 else 30)


def distil(directory, teachers, kind="bert", **options):
    """A trainer with `SCHEDULE`, and defaults for everything that is not given."""
    given = {"model": STUDENTS[kind](1), "args": None, "train_dataset": Batches(), "schedule": SCHEDULE}
    given |= {"teacher": teachers / kind, "check_teacher": False, **options}
    if kind == "plain":
        given = {"load_teacher": load_plain, "objective": "masked", **given}
    given["args"] = given["args"] or arguments(directory)
    return (RunTrainer if "run" in options else ProgressiveDistillationTrainer)(**given)


class Draws(TrainerCallback):
    """Draws from every generator after each step, or is killed instead."""

    def __init__(self, kill_at=None, kill=None):
        self.kill_at, self.kill, self.drawn = kill_at, kill, {}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.kill_at:
            self.kill()
        self.drawn[state.global_step] = [random.random(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002


def kill_by_exception():
    raise Killed


def send_stop_signal():
    os.kill(os.getpid(), signal.SIGTERM)


def run_with_dropout(directory, teachers, callback=None, accumulate=2, schedule=SCHEDULE):
    """Train to the end of a run, from its last saved state."""
    args = recorded_arguments(directory, accumulate=accumulate, eval_every=2)
    with open_shared_run(directory, {}, Processes(args.process_index, args.world_size), setting="test") as run:
        trainer = distil(
            directory,
            teachers,
            model=bert(1, dropout=0.2),
            args=args,
            run=run,
            schedule=schedule,
            eval_dataset=ReadyBatches(HELD_OUT),
            callbacks=[callback or Draws()],
        )
        train_run(trainer, "test")


def content(run):
    files = [*run.glob("checkpoint-*/*"), run / "metrics.jsonl", run / "done.json"]
    assert not (run / "resume").exists()
    return {str(path.relative_to(run)): path.read_bytes() for path in files}
