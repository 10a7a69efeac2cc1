"""The two settings on text, for tests that both must pass."""

import json
from dataclasses import dataclass

import transformers

from common.runs.names import ROOT
from tests.language_models import LONG, LONG_STUDENTS, LanguageModelSetting

CORPUS = ROOT / "tests" / "corpus.txt"
"""300 documents of words, each of which depends on the one before it."""


@dataclass(frozen=True, kw_only=True)
class TextSetting(LanguageModelSetting):
    """A setting on text."""

    sizes: str = f"--corpus '{CORPUS}' --vocabulary 300 --length 12 --batch-size 8 --eval-samples 24 --held-out 0.2"


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


def forget_digests(directory):
    """Leave of prepared blocks what an earlier version wrote."""
    path = directory / "blocks.json"
    content = json.loads(path.read_bytes())
    del content["digests"]
    path.write_text(json.dumps(content))
