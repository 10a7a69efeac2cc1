"""The two settings on grammars, for tests that both must pass."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import transformers

import PCFG_autoregressive.data
import PCFG_autoregressive.distill
import PCFG_autoregressive.probe
import PCFG_autoregressive.train
import PCFG_autoregressive.training
import PCFG_mlm.data
import PCFG_mlm.distill
import PCFG_mlm.probe
import PCFG_mlm.train
import PCFG_mlm.training
from common.pcfg.grammar_files import load_grammar
from PCFG_autoregressive.batches import NextTokenTask
from PCFG_mlm.batches import MaskedTask
from tests import commands

SIZES = "--batch-size 8 --eval-every 5 --eval-samples 32"
TRAIN = shlex.split(f"train smoke {SIZES} --heads 2 --steps 30")
DISTILL = shlex.split(f"distill smoke {SIZES} --steps 12 --student-heads 1 --seeds 0 --first-steps 5")


@dataclass(frozen=True)
class PCFGSetting:
    """A setting and what tests need to know of it."""

    package: ModuleType
    task: Callable[..., Any]
    """From a grammar."""
    model_class: type[transformers.PreTrainedModel]
    other_model: Callable[[], transformers.PreTrainedModel]
    """A small model of another type."""

    @property
    def name(self) -> str:
        return self.package.__name__

    @property
    def setting(self):
        return self.package.training.SETTING

    @property
    def commands(self) -> dict[str, ModuleType]:
        return {name: getattr(self.package, name) for name in ("train", "distill", "probe", "data")}

    def main(self, name):
        return self.commands[name].main

    def succeed(self, capsys, name, *words):
        """Run a command; what it wrote on stdout."""
        return commands.succeed(capsys, self.main(name), *words)

    def fail_in_one_line(self, capsys, name, *words):
        """Run a command that must fail; the line that it writes."""
        return commands.fail_in_one_line(capsys, self.main(name), *words)

    def train_teacher(self, directory: Path) -> Path:
        """A run of `TRAIN` on the smallest grammar of the package, with checkpoints at steps 10, 20 and 30."""
        sizes = {"heads": 2, "batch_size": 8, "eval_every": 5, "eval_samples": 32, "steps": 30}
        train = self.package.train
        train.train(replace(train.PRESETS["smoke"], **sizes, out=directory))
        return directory


def small_bert():
    config = transformers.BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    return transformers.BertForMaskedLM(config)


def small_gpt2():
    config = transformers.GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1, bos_token_id=3, eos_token_id=4)
    return transformers.GPT2LMHeadModel(config)


MLM = PCFGSetting(PCFG_mlm, MaskedTask, transformers.BertForMaskedLM, small_gpt2)
AUTOREGRESSIVE = PCFGSetting(PCFG_autoregressive, NextTokenTask, transformers.GPT2LMHeadModel, small_bert)
SETTINGS = (MLM, AUTOREGRESSIVE)
SMALL = load_grammar("small")
