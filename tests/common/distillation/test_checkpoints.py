"""Checkpoints of a run and of a Trainer hold all of a student, whatever its head, its dtype or its adapter."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    GPT2Model,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
)
from transformers.models.gpt2.modeling_gpt2 import GPT2PreTrainedModel

from common.distillation.batches import ReadyBatches
from common.distillation.run_loop import RunTrainer, train_run
from common.distillation.trainer import ProgressiveDistillationTrainer
from common.errors import UserError
from common.runs.resume import load_resume
from common.runs.run import open_run
from tests.commands import save_often
from tests.trainers import (
    CLASSES,
    HELD_OUT,
    LENGTH,
    Batches,
    Draws,
    Killed,
    Plain,
    arguments,
    bert,
    content,
    evaluate_by_hand,
    gpt2,
    kill_by_exception,
    recorded_arguments,
)


class Readout(GPT2PreTrainedModel):
    """GPT-2 whose head has another name."""

    _tied_weights_keys = {}  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.transformer = GPT2Model(config)
        self.readout = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.readout

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        return {"logits": self.readout(self.transformer(input_ids, attention_mask=attention_mask)[0])}


class Declared(Readout):
    _tied_weights_keys = {"readout.weight": "transformer.wte.weight"}  # noqa: RUF012


class Ignored(Readout):
    _keys_to_ignore_on_save = ["readout.weight"]  # noqa: RUF012


class ByHand(Readout):
    """Tied without a word to transformers."""

    def __init__(self, config):
        super().__init__(config)
        self.readout.weight = self.transformer.wte.weight


class PlainByHand(Plain):
    def __init__(self, seed):
        super().__init__(seed)
        self.read.weight = self.embed.weight


def small(model, config, **more):
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}

    def make(seed):
        torch.manual_seed(seed)
        return model(config(vocab_size=CLASSES, max_position_embeddings=LENGTH, **shape, **more))

    return make


def like_gpt2(model):
    def make(seed):
        config = gpt2(0).config
        torch.manual_seed(seed)
        return model(config)

    return make


def with_lora(make, how="get_peft_model", **options):
    def adapted(seed):
        peft = pytest.importorskip("peft")
        options.setdefault("target_modules", ["query", "value"])
        config = peft.LoraConfig(r=2, lora_dropout=0.1, init_lora_weights=False, **options)
        base = make(1)
        torch.manual_seed(seed)
        if how == "add_adapter":
            base.add_adapter(config)
            return base
        return peft.get_peft_model(base, config)

    return adapted


STUDENTS = {
    "llama": small(LlamaForCausalLM, LlamaConfig),
    "another name in files": small(GPTNeoXForCausalLM, GPTNeoXConfig),
    "experts": small(MixtralForCausalLM, MixtralConfig, num_key_value_heads=2, num_local_experts=2),
    "readout": like_gpt2(Readout),
    "declared": like_gpt2(Declared),
    "ignored": like_gpt2(Ignored),
    "by hand": like_gpt2(ByHand),
    "plain": Plain,
    "plain by hand": PlainByHand,
    "bfloat16": lambda seed: bert(seed, dropout=0.1).to(torch.bfloat16),
    "LoRA": with_lora(lambda seed: bert(seed, dropout=0.1)),
    "LoRA in bfloat16": with_lora(lambda seed: bert(seed).to(torch.bfloat16)),
    "LoRA and a head": with_lora(bert, modules_to_save=["cls"]),
    "LoRA by add_adapter": with_lora(bert, how="add_adapter"),
}
"""Students by seed; those with an adapter have the same base model for each."""
ADAPTED = [name for name in STUDENTS if name.startswith("LoRA")]
IN_RUNS = [name for name in STUDENTS if not name.startswith("plain")]


def objective(model):
    """None where it is found in the student's classes."""
    return "masked" if isinstance(model, Readout | Plain) else None


def train(directory, model, callback=None, resume=None):
    """With a Trainer's own checkpoint of step 4."""
    args = arguments(directory, checkpoint_every=4)
    args.save_strategy = "steps"
    options = {"train_dataset": Batches(), "callbacks": [callback or Draws()], "objective": objective(model)}
    trainer = ProgressiveDistillationTrainer(model, args, **options)
    trainer.train(resume_from_checkpoint=resume)
    return model


def run(directory, model, callback=None):
    args = recorded_arguments(directory, eval_every=2)
    options = {"train_dataset": Batches(), "eval_dataset": ReadyBatches(HELD_OUT), "callbacks": [callback or Draws()]}
    options["objective"] = objective(model)
    with open_run(directory, {}, setting="test") as opened:
        train_run(RunTrainer(model, args, run=opened, **options), "test")
    return model


def assert_identical(model, other):
    here, there = model.state_dict(), other.state_dict()
    assert here.keys() == there.keys()
    for name, tensor in here.items():
        assert tensor.dtype == there[name].dtype
        assert torch.equal(tensor, there[name]), name


def load(name, model, checkpoint):
    """As a user loads a checkpoint."""
    if name == "LoRA by add_adapter":
        base = bert(1)
        base.load_adapter(str(checkpoint))
        return base
    if name in ADAPTED:
        base = bert(1).to(next(model.parameters()).dtype)
        return pytest.importorskip("peft").PeftModel.from_pretrained(base, checkpoint)
    return type(model).from_pretrained(checkpoint)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_trainer_s_checkpoint_restores_every_tensor_of_a_student(tmp_path, name):
    whole = train(tmp_path / "whole", STUDENTS[name](1))
    with pytest.raises(Killed):
        train(tmp_path / "run", STUDENTS[name](1), Draws(6, kill_by_exception))
    assert_identical(train(tmp_path / "run", STUDENTS[name](2), resume=True), whole)
    if name in IN_RUNS:
        assert_identical(load(name, whole, tmp_path / "whole" / "checkpoint-8"), whole)


@pytest.mark.parametrize("name", IN_RUNS)
def test_a_killed_run_of_a_student_resumes_bit_identical_and_its_checkpoints_load(tmp_path, monkeypatch, name):
    whole = run(tmp_path / "whole", STUDENTS[name](1))
    save_often(monkeypatch)
    with pytest.raises(Killed):
        run(tmp_path / "run", STUDENTS[name](1), Draws(5, kill_by_exception))
    assert_identical(run(tmp_path / "run", STUDENTS[name](2)), whole)
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    loaded = load(name, whole, tmp_path / "whole" / "checkpoint-8")
    assert_identical(loaded, whole)
    options = {"eval_dataset": ReadyBatches(HELD_OUT), "objective": objective(loaded)}
    record = ProgressiveDistillationTrainer(loaded, arguments(tmp_path), **options).evaluate()
    recorded = open_records(tmp_path / "whole")[-1]
    assert (record["eval_loss"], record["eval_accuracy"]) == (recorded["loss"], recorded["accuracy"])


def open_records(directory):
    with open_run(directory, {}, setting="test") as opened:
        return opened.records()


@pytest.mark.parametrize("name", ADAPTED)
def test_only_what_is_trained_is_saved_of_a_student_with_an_adapter(tmp_path, monkeypatch, name):
    save_often(monkeypatch)
    with pytest.raises(Killed):
        run(tmp_path / "run", STUDENTS[name](1), Draws(5, kill_by_exception))
    checkpoint = tmp_path / "run" / "checkpoint-4"
    assert {path.name for path in checkpoint.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    model = STUDENTS[name](1)
    trained = {n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    tensors = load_resume(tmp_path / "run").tensors
    assert {n for n in tensors if not n.startswith("optimizer.")} == {f"model.{n}" for n in trained}
    assert len(tensors) == len(trained) + 3 * sum(p.requires_grad for p in model.parameters())
    assert len(load_file(checkpoint / "adapter_model.safetensors")) == len(trained)


def test_a_student_with_an_adapter_is_evaluated_with_it(tmp_path):
    model = STUDENTS["LoRA"](1)
    for name, parameter in model.named_parameters():
        parameter.data *= 20 if "lora" in name else 1
    trainer = ProgressiveDistillationTrainer(model, arguments(tmp_path), eval_dataset=ReadyBatches(HELD_OUT))
    metrics = trainer.evaluate()
    merged = copy.deepcopy(model).merge_and_unload()
    expected = evaluate_by_hand(merged, HELD_OUT)
    assert (metrics["eval_loss"], metrics["eval_accuracy"]) == pytest.approx(expected, rel=1e-5)
    assert expected[0] != pytest.approx(evaluate_by_hand(bert(1), HELD_OUT)[0], rel=1e-3)


# What is refused


def test_a_checkpoint_of_a_stock_trainer_under_other_names_is_refused(tmp_path):
    args = arguments(tmp_path, checkpoint_every=4)
    args.save_strategy, args.max_steps = "steps", 4
    rows = [{name: tensor[0] for name, tensor in batch.items()} for batch in HELD_OUT]
    make = STUDENTS["another name in files"]
    Trainer(make(1), args, train_dataset=rows).train()
    with pytest.raises(UserError, match=r"lacks lm_head.weight of the model \(it has embed_out.weight\)"):
        train(tmp_path, make(2), resume=True)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("plain", lambda t: t.pop("read.bias"), "lacks read.bias of the model"),
        ("plain", lambda t: t.update(more=torch.zeros(1)), "has more, which the model lacks"),
        ("plain", lambda t: t.update({"read.bias": torch.zeros(3)}), r"read.bias has shape \(3,\) in .*but \(11,\) in"),
        ("LoRA", lambda t: t.pop(min(t)), "lacks the student's .*lora_A.weight"),
    ],
)
def test_a_checkpoint_without_a_tensor_of_the_student_is_refused(tmp_path, name, change, message):
    train(tmp_path, STUDENTS[name](1))
    (file,) = (tmp_path / "checkpoint-8").glob("*model.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(UserError, match=message):
        train(tmp_path, STUDENTS[name](2), resume=True)


def test_a_run_does_not_resume_with_another_student(tmp_path, monkeypatch):
    save_often(monkeypatch)
    with pytest.raises(Killed):
        run(tmp_path, bert(1), Draws(5, kill_by_exception))
    with pytest.raises(UserError, match=r"step 4 lacks bert.encoder.layer.1.*: it was saved from another model"):
        run(tmp_path, bert(1, layers=2))


def test_what_is_trained_beside_an_adapter_is_refused(tmp_path):
    model = STUDENTS["LoRA"](1)
    model.base_model.model.cls.predictions.bias.requires_grad = True
    for start in (train, run):
        with pytest.raises(UserError, match=r"predictions\.bias is trained, but .*: list it in modules_to_save"):
            start(tmp_path / start.__name__, model)


def test_an_adapter_that_adds_tokens_is_refused(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(gpt2(1), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(UserError, match="adds tokens, which have no labels"):
        run(tmp_path, model)
