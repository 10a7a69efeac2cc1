"""What the settings with language models have in common, for tests that all must pass."""

from dataclasses import dataclass
from types import ModuleType

from common.distillation import run_loop
from tests.settings import Setting

LONG = "--steps 100 --eval-every 3 --checkpoint-every 15 --accumulate 2 --dropout 0.2"
LONG_STUDENTS = (
    "--steps 60 --eval-every 2 --saturation-steps 26 --alpha 0.3 0 --alpha-steps 30 --dropout 0.2 "
    "--methods progressive until-saturation"
)


@dataclass(frozen=True, kw_only=True)
class LanguageModelSetting(Setting):
    """A setting with a Transformer on grammars or on text."""

    unit: int = 1
    teacher: str = "--heads 2"
    student: str = "--student-heads 1"
    student_name: str = "heads1-steps{steps}-seed{seed}"
    wide: str = "--heads 8"
    saver: ModuleType = run_loop
    trainer: str = "common.language_models.training.RunTrainer"
    width: int = 8
    rounding: float = 0

    @property
    def setting(self):
        return self.module("training").SETTING
