"""The two settings on grammars, for tests that both must pass."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import transformers

from common.language_models.setting import task_of
from common.pcfg.batches import evaluation_batches
from common.pcfg.grammar_files import load_grammar
from common.pcfg.setting import EVALUATION_BATCH_SIZE
from PCFG_autoregressive.batches import NextTokenTask
from PCFG_mlm.batches import MaskedTask
from tests.language_models import LONG, LONG_STUDENTS, LanguageModelSetting


@dataclass(frozen=True, kw_only=True)
class PCFGSetting(LanguageModelSetting):
    """A setting on grammars."""

    task: Callable[..., Any]
    """From a grammar."""
    other_model: Callable[[], transformers.PreTrainedModel]
    """A small model of another type."""
    sizes: str = "--batch-size 8 --eval-samples 32"

    def new_model(self, task, heads, seed):
        """A model with one layer and no dropout."""
        return self.setting.new_model(task, SimpleNamespace(layers=1, head_dim=8, dropout=0.0), heads, seed)

    @property
    def commands(self) -> dict[str, ModuleType]:
        return {name: self.module(name) for name in ("train", "distill", "probe", "data")}


def train_plainly(model, rows, collate, directory):
    """checkpoint-4 and checkpoint-8 of a transformers.Trainer that knows nothing of this project."""
    arguments = transformers.TrainingArguments(
        **{"output_dir": str(directory), "max_steps": 8, "save_steps": 4, "learning_rate": 0.01},
        **{"per_device_train_batch_size": 8, "report_to": "none", "disable_tqdm": True, "use_cpu": True},
    )
    transformers.Trainer(model, arguments, train_dataset=rows, data_collator=collate).train()
    return directory


def small_bert():
    config = transformers.BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    return transformers.BertForMaskedLM(config)


def small_gpt2():
    config = transformers.GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1, bos_token_id=3, eos_token_id=4)
    return transformers.GPT2LMHeadModel(config)


MLM = PCFGSetting(
    name="PCFG_mlm",
    other="parity_mlp",
    task=MaskedTask,
    other_model=small_gpt2,
    long=LONG,
    long_students=LONG_STUDENTS,
    width_of_student=lambda checkpoint: transformers.BertForMaskedLM.from_pretrained(checkpoint).config.hidden_size,
)
AUTOREGRESSIVE = PCFGSetting(
    name="PCFG_autoregressive",
    other="PCFG_mlm",
    task=NextTokenTask,
    other_model=small_bert,
    long=f"{LONG} --label-level 2",
    long_students=f"{LONG_STUDENTS} --label-level 2",
    width_of_student=lambda checkpoint: transformers.GPT2LMHeadModel.from_pretrained(checkpoint).config.n_embd,
)
SETTINGS = (MLM, AUTOREGRESSIVE)
TRAIN, DISTILL = MLM.train, MLM.distill
"""Words of the commands, the same in both settings."""
SMALL = load_grammar("small")

UNCERTAIN = """
S -> {}
A -> D D
B -> E E
D -> x [0.8] | y [0.1] | z [0.1]
E -> x [0.1] | y [0.1] | z [0.8]
"""
"""A grammar that leaves much to chance; A and B are short, and the root's right sides are to be filled in."""


def train_long(pcfg, directory, rights, **arguments):
    """Train a run on `UNCERTAIN` until it is near the best; its task and the evaluation batches."""
    (directory / "uncertain.cfg").write_text(UNCERTAIN.format(rights))
    train = pcfg.module("train")
    own = {"grammar": str(directory / "uncertain.cfg"), "out": directory / "run", "dropout": 0.0, "batch_size": 128}
    cadence = {"eval_every": arguments["steps"], "checkpoint_every": 0}
    made = replace(train.PRESETS["smoke"], **own, **cadence, lr=1e-2, **arguments)
    train.train(made)
    task = task_of(made, pcfg.setting)
    return task, evaluation_batches(task, made.eval_samples, EVALUATION_BATCH_SIZE)
