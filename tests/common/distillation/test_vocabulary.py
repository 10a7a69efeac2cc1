"""Classes that student and teacher share: of one tokenizer, of padded sizes, of other tokenizers, of none."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from common.distillation.schedules import Segment
from common.distillation.trainer import ProgressiveDistillationTrainer
from common.distillation.vocabulary import shared_classes
from common.errors import UserError
from tests.models import make, save_suite
from tests.trainers import CLASSES, Batches, arguments, logged, make_batch


def tokenizer(*words):
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, words[0])), unk_token=words[0]
    )


WORDS = [f"word{i}" for i in range(CLASSES)]


def trainer_of(directory, student, teacher, **options):
    schedule = [Segment(0, 10), Segment(1, 20)]
    args = arguments(directory, steps=3)
    return ProgressiveDistillationTrainer(
        student, args, teacher=teacher, schedule=schedule, train_dataset=Batches(), **options
    )


def first_divergence(student, teacher, classes):
    """The mean of the first step, of the first classes."""
    batch = make_batch(0)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    chosen = batch["labels"][:, 1:] != -100
    with torch.no_grad():
        z, x = (model.double().eval()(**inputs).logits[:, :-1, :classes][chosen] for model in (teacher, student))
    log_q, log_p = z.log_softmax(-1), x.log_softmax(-1)
    return (log_q.exp() * (log_q - log_p)).sum(-1).mean().item()


@pytest.mark.parametrize(("ours", "theirs"), [(16, 13), (13, 16), (CLASSES, 16), (16, 16)])
def test_vocabularies_padded_to_different_sizes_are_cut_to_the_common_part(tmp_path, ours, theirs):
    """As 50,304 and 50,257 classes of one tokenizer of 50,257 tokens."""
    suite = save_suite(tmp_path / "teacher", "gpt_neox", classes=theirs)
    for step in (10, 20):
        tokenizer(*WORDS).save_pretrained(suite / f"checkpoint-{step}")
    student = make("llama", 1, classes=ours)
    trainer = trainer_of(tmp_path, student, suite, processing_class=tokenizer(*WORDS))
    trainer.train()
    teacher = AutoModelForCausalLM.from_pretrained(suite / "checkpoint-10")
    expected = first_divergence(make("llama", 1, classes=ours), teacher, min(ours, theirs))
    np.testing.assert_allclose(logged(trainer, "kl")[0], expected, rtol=2e-4)


@pytest.mark.parametrize("sizes", [(16, 16), (16, 13)])
def test_another_tokenizer_is_refused_by_name(tmp_path, sizes):
    suite = save_suite(tmp_path / "teacher", "gpt_neox", classes=sizes[1])
    other = tokenizer(*WORDS[:3], "else", *WORDS[4:])
    for step in (10, 20):
        other.save_pretrained(suite / f"checkpoint-{step}")
    student = make("llama", 1, classes=sizes[0])
    with pytest.raises(UserError, match=r"the teacher's tokenizer \(\w+, 11 tokens\) is not the student's"):
        trainer_of(tmp_path, student, suite, processing_class=tokenizer(*WORDS))
    trainer_of(tmp_path, student, suite, processing_class=tokenizer(*WORDS), classes=CLASSES).train()


def test_without_a_tokenizer_sizes_count(tmp_path):
    suite = save_suite(tmp_path / "teacher", "gpt_neox", classes=13)
    with pytest.raises(UserError, match="predicts 16 classes and the teacher 13, and the tokenizer of the student and"):
        trainer_of(tmp_path, make("llama", 1, classes=16), suite)
    trainer_of(tmp_path, make("llama", 1, classes=13), suite).train()
    trainer = trainer_of(tmp_path, make("llama", 1, classes=16), suite, classes=12)
    trainer.train()
    teacher = AutoModelForCausalLM.from_pretrained(suite / "checkpoint-10")
    expected = first_divergence(make("llama", 1, classes=16), teacher, 12)
    np.testing.assert_allclose(logged(trainer, "kl")[0], expected, rtol=2e-4)


def test_sizes_of_published_models():
    words = [f"word{i}" for i in range(50_257)]
    ours = tokenizer(*words)
    assert shared_classes(50_304, 50_257, ours, ours) == 50_257
    assert shared_classes(50_257, 50_304, ours, tokenizer(*words)) == 50_257
    assert shared_classes(50_304, 50_257, ours, tokenizer(*words[:50_000])) == 50_000
    assert shared_classes(50_304, 50_304, ours, tokenizer(*words)) == 50_304
    with pytest.raises(UserError, match="'word0' has the id 0 for the student and 1 for the teacher"):
        shared_classes(50_257, 50_257, ours, tokenizer(words[1], words[0], *words[2:]))
    with pytest.raises(UserError, match="the tokenizer of the teacher is unknown"):
        shared_classes(50_304, 50_257, ours, None)
    assert shared_classes(7, 7, ours, None) == 7
