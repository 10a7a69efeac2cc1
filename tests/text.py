"""The two settings on text, for tests that both must pass."""

from dataclasses import dataclass
from types import ModuleType

import transformers

from common.distillation import run_loop
from common.runs.names import ROOT
from tests.settings import Setting

CORPUS = ROOT / "tests" / "corpus.txt"
"""300 documents of words, each of which depends on the one before it."""


@dataclass(frozen=True, kw_only=True)
class TextSetting(Setting):
    """A setting on text."""

    unit: int = 1
    sizes: str = f"--corpus '{CORPUS}' --vocabulary 300 --length 12 --batch-size 8 --eval-samples 24 --held-out 0.2"
    teacher: str = "--heads 2"
    student: str = "--student-heads 1"
    student_name: str = "heads1-steps{steps}-seed{seed}"
    kills: tuple[int, int] = (4, 2)
    wide: str = "--heads 8"
    saver: ModuleType = run_loop
    trainer: str = "common.language_models.training.RunTrainer"
    width: int = 8
    rounding: float = 0

    @property
    def setting(self):
        return self.module("training").SETTING


LONG = "--steps 100 --eval-every 3 --checkpoint-every 15 --accumulate 2 --dropout 0.2"
LONG_STUDENTS = (
    "--steps 60 --eval-every 2 --saturation-steps 26 --alpha 0.3 0 --alpha-steps 30 --dropout 0.2 "
    "--methods progressive until-saturation"
)
MASKED = TextSetting(
    name="text_mlm",
    other="PCFG_mlm",
    long=LONG,
    long_students=LONG_STUDENTS,
    width_of_student=lambda checkpoint: transformers.BertForMaskedLM.from_pretrained(checkpoint).config.hidden_size,
)
CAUSAL = TextSetting(
    name="text_autoregressive",
    other="text_mlm",
    long=LONG,
    long_students=LONG_STUDENTS,
    width_of_student=lambda checkpoint: transformers.GPTNeoXForCausalLM.from_pretrained(checkpoint).config.hidden_size,
)
TEXT_SETTINGS = (MASKED, CAUSAL)
