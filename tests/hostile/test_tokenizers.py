"""Tokenizers that bring code of their own: it is not run, and nobody is asked whether it may be."""

import builtins
import json

import pytest

from common.distillation.vocabulary import tokenizer_of
from common.text.tokenization import load_tokenizer, train_tokenizer
from tests.documents import documents
from tests.hostile.contract import attempt


@pytest.fixture
def with_code(tmp_path, monkeypatch):
    """A tokenizer whose class is in a file beside it, which leaves a trace if it is run."""
    folder = tmp_path / "mine"
    train_tokenizer(lambda: documents(20), "bpe", 300).save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    code = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | code))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\nclass Evil: pass\n")

    monkeypatch.setattr(builtins, "input", lambda *arguments: "y")
    return folder


@pytest.mark.parametrize("load", [load_tokenizer, tokenizer_of])
def test_no_code_is_run(with_code, load):
    tokenizer = attempt(load, str(with_code), names=str(with_code))
    assert tokenizer is None or type(tokenizer).__module__.startswith("transformers.")
    assert not (with_code.parent / "trace").exists()
