"""Small models of many architectures, made on the fly."""

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tests.hub import cache_by_hand
from tests.trainers import CLASSES, LENGTH, bert, gpt2

SHAPE = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
MORE = {
    "gpt_neox": {},
    "llama": {},
    "olmo2": {},
    "qwen3": {"head_dim": 4},
    "modernbert": {"global_attn_every_n_layers": 1, "reference_compile": False},
}
TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "cls_token_id": 0, "sep_token_id": 0}


class OwnLlama(LlamaForCausalLM):
    """A class that transformers does not have."""


def config(kind, width=8, classes=CLASSES, length=LENGTH):
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "vocab_size": classes}
    return AutoConfig.for_model(kind, **SHAPE, **sizes, **TOKENS, **MORE[kind], max_position_embeddings=length)


def make(kind, seed, width=8, **sizes):
    """A model of a kind: gpt2, bert, own llama, llama with lora or one of `MORE`."""
    if kind in ("gpt2", "bert"):
        return {"gpt2": gpt2, "bert": bert}[kind](seed, width)
    torch.manual_seed(seed)
    if kind == "own llama":
        return OwnLlama(config("llama", width, **sizes))
    if kind == "llama with lora":
        from peft import LoraConfig, get_peft_model

        adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        return get_peft_model(make("llama", seed, width, **sizes), adapter)
    auto = AutoModelForMaskedLM if kind == "modernbert" else AutoModelForCausalLM
    return auto.from_config(config(kind, width, **sizes))


@torch.no_grad()
def sharpened(model, factor=15):
    """The same model, farther from uniform predictions than freshly drawn weights."""
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter *= factor
    return model


def save_suite(directory, kind, steps=(10, 20), dtype=torch.float32, **sizes):
    """A teacher's checkpoints."""
    for step in steps:
        model = sharpened(make(kind, 40 + step, **{"width": 12, **sizes})).to(dtype)
        model.save_pretrained(directory / f"checkpoint-{step}")
    return directory


# A suite such as Pythia

PYTHIA = "org/tiny-pythia"
PYTHIA_STEPS = (0, 1, 2, 4, 8, 16, 32, 64)
TEXT = [f"the {a} {b} sees a {c}" for a in ("old", "big", "red") for b in ("cat", "dog", "fox") for c in ("hat", "bug")]


def byte_pairs():
    """A tokenizer of 70 tokens, trained on `TEXT`."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(TEXT, BpeTrainer(vocab_size=70, special_tokens=["<|endoftext|>"]))
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end)


def save_pythia(directory, classes=128):
    """Checkpoints in bfloat16, with their tokenizer; the embedding has more rows than there are tokens."""
    save_suite(directory, "gpt_neox", PYTHIA_STEPS, torch.bfloat16, classes=classes, length=32)
    for step in PYTHIA_STEPS:
        byte_pairs().save_pretrained(directory / f"checkpoint-{step}")
    return directory


def cache_pythia(cache, directory, suffix=""):
    """The same checkpoints in a cache of the hub, as branches."""
    for step in PYTHIA_STEPS:
        files = {path.name: path.read_bytes() for path in (directory / f"checkpoint-{step}").iterdir()}
        cache_by_hand(cache, f"step{step}{suffix}", files, PYTHIA)
