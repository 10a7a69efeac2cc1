"""What is said of a batch that a model could not be trained on as meant."""

import pytest
import torch
from transformers import DataCollatorForLanguageModeling

from common.distillation.batch_checks import FEWEST, STEPS_WITHOUT_LABELS, require_unshifted_labels
from common.distillation.batches import ReadyBatches
from common.distillation.schedules import Segment
from common.distillation.trainer import ProgressiveDistillationTrainer
from common.errors import UserError
from tests.models import make, save_suite
from tests.sample_data import masking
from tests.trainers import CLASSES, LENGTH, arguments, bert, gpt2, make_batch


class Same:
    """The same batch at every step."""

    def __init__(self, batch):
        self._batch = batch

    def batch(self, step):
        return self._batch


def train_on(directory, model, batch, steps=STEPS_WITHOUT_LABELS + 1, **options):
    ProgressiveDistillationTrainer(
        model, arguments(directory, steps=steps), train_dataset=Same(batch), **options
    ).train()


def evaluate_on(directory, model, batch):
    ProgressiveDistillationTrainer(model, arguments(directory), eval_dataset=ReadyBatches([batch])).evaluate()


def tokens_of(batch, shift):
    """The batch's tokens as labels; shifted already, if `shift`."""
    tokens = batch["input_ids"]
    last = torch.full_like(tokens[:, :1], -100)
    return {**batch, "labels": torch.cat([tokens[:, 1:], last], 1) if shift else tokens}


@pytest.mark.parametrize("use", [train_on, evaluate_on])
@pytest.mark.parametrize("label", [CLASSES, -1])
def test_a_label_that_is_no_class(tmp_path, use, label):
    batch = make_batch(0)
    batch["labels"][0, 0] = label
    with pytest.raises(UserError, match=f"label {label}, but the classes are 0 to {CLASSES - 1}"):
        use(tmp_path, bert(0), batch)


@pytest.mark.parametrize("use", [train_on, evaluate_on])
@pytest.mark.parametrize("token", [CLASSES, -1])
def test_a_token_that_the_student_does_not_know(tmp_path, use, token):
    batch = make_batch(0)
    batch["input_ids"][0, 0] = token
    with pytest.raises(UserError, match=f"token id {token}, but those of the student are 0 to {CLASSES - 1}"):
        use(tmp_path, gpt2(0), batch)


@pytest.mark.parametrize("use", [train_on, evaluate_on])
def test_samples_longer_than_the_student_has_positions(tmp_path, use):
    batch = {name: torch.cat([tensor, tensor], 1) for name, tensor in make_batch(0).items()}
    with pytest.raises(UserError, match=f"samples of {2 * LENGTH} tokens do not fit the student, which has {LENGTH}"):
        use(tmp_path, bert(0), batch)


def test_a_token_that_the_teacher_does_not_know(tmp_path):
    suite = save_suite(tmp_path / "teacher", "gpt2")
    student = make("gpt2", 1)
    student.resize_token_embeddings(CLASSES + 1)
    batch = make_batch(0)
    batch["input_ids"][0, 0] = CLASSES
    options = {"teacher": suite, "schedule": [Segment(0, 20)], "classes": CLASSES}
    with pytest.raises(UserError, match=f"token id {CLASSES}, but those of the teacher in .*checkpoint-20"):
        train_on(tmp_path, student, batch, **options)


@pytest.mark.parametrize("use", [train_on, evaluate_on])
def test_labels_that_are_shifted_already(tmp_path, use):
    batch = make_batch(0)
    use(tmp_path, gpt2(0), tokens_of(batch, shift=False))
    use(tmp_path, bert(0), tokens_of(batch, shift=True))
    with pytest.raises(UserError, match="the labels are already shifted"):
        use(tmp_path, gpt2(0), tokens_of(batch, shift=True))


def test_few_labels_may_be_the_next_tokens_by_chance():
    for labels in (FEWEST - 1, FEWEST):
        tokens = torch.arange(labels + 1)[None]
        batch = tokens_of({"input_ids": tokens}, shift=True)
        if labels < FEWEST:
            require_unshifted_labels(batch)
        else:
            with pytest.raises(UserError, match="already shifted"):
                require_unshifted_labels(batch)


@pytest.mark.parametrize("steps", [3, STEPS_WITHOUT_LABELS + 1])
def test_training_data_without_labels(tmp_path, steps):
    batch = make_batch(0)
    batch["labels"][:] = -100
    with pytest.raises(
        UserError, match=f"{min(steps, STEPS_WITHOUT_LABELS)} steps in a row had no labels: all were -100"
    ):
        train_on(tmp_path, bert(0), batch, steps)


def test_data_without_labels(tmp_path):
    batch = {name: tensor for name, tensor in make_batch(0).items() if name != "labels"}
    with pytest.raises(UserError, match="no labels, only input_ids and attention_mask"):
        train_on(tmp_path, bert(0), batch)


@pytest.mark.parametrize(("kind", "masks"), [("gpt2", True), ("bert", False)])
def test_a_collator_of_the_other_kind_of_language_model(tmp_path, kind, masks):
    collator = masking() if masks else DataCollatorForLanguageModeling(masking().tokenizer, mlm=False)
    with pytest.raises(UserError, match=f"language model: give DataCollatorForLanguageModeling.*, mlm={not masks}"):
        ProgressiveDistillationTrainer(make(kind, 0), arguments(tmp_path), data_collator=collator)


@pytest.mark.parametrize("use", [train_on, evaluate_on])
def test_labels_of_another_shape_than_the_tokens(tmp_path, use):
    batch = make_batch(0)
    for labels in (batch["labels"][:, 1:], batch["labels"][:, 0].clamp(0)):
        with pytest.raises(UserError, match=r"the labels have shape .*, the tokens \(8, 6\): give a label"):
            use(tmp_path, gpt2(0), {**batch, "labels": labels})


@pytest.mark.parametrize("use", [train_on, evaluate_on])
def test_nothing_is_masked(tmp_path, use):
    with pytest.raises(UserError, match="every label is visible in the input"):
        use(tmp_path, bert(0), tokens_of(make_batch(0), shift=False))


def seeing(kind):
    """A model for next-token prediction that sees later tokens, although its class does not show it."""
    model = make(kind, 0)
    model.config.is_causal = False
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    return model


def test_a_causal_model_that_sees_the_tokens_that_it_predicts(tmp_path):
    with pytest.raises(UserError, match="the student, a LlamaForCausalLM, sees the tokens that it predicts"):
        train_on(tmp_path, seeing("llama"), make_batch(0))
    suite = save_suite(tmp_path / "teacher", "llama")
    seeing("llama").save_pretrained(suite / "checkpoint-20")
    options = {"teacher": suite, "schedule": [Segment(0, 20)], "trust_trajectory": True}
    with pytest.raises(UserError, match=r"the teacher in .*checkpoint-20, a LlamaForCausalLM, sees the tokens"):
        train_on(tmp_path, make("llama", 0), make_batch(0), **options)


@pytest.mark.parametrize(
    ("value", "message"), [(torch.nan, "has weights that are NaN or infinite, such as bert"), (3e38, "predicts NaN")]
)
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_teacher_that_predicts_nan(tmp_path, temperature, value, message):
    suite = save_suite(tmp_path / "teacher", "bert")
    broken = make("bert", 0)
    with torch.no_grad():
        broken.bert.embeddings.word_embeddings.weight[:] = value
    broken.save_pretrained(suite / "checkpoint-20")
    options = {"teacher": suite, "schedule": [Segment(0, 20)], "temperature": temperature}
    with pytest.raises(UserError, match=f"checkpoint-20 {message}"):
        train_on(tmp_path, make("bert", 1), make_batch(0), **options)
