"""What a run refuses among a Trainer's arguments, and that it takes the ordinary ones."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoTokenizer, TrainingArguments

from common.distillation.batches import ReadyBatches
from common.distillation.run_loop import RunTrainer, train_run
from common.distillation.schedules import Segment
from common.distillation.trainer import ProgressiveDistillationTrainer
from common.errors import UserError
from common.runs.processes import Processes, open_shared_run
from common.runs.run import Run, open_run
from tests.commands import Killed, exit_code, files, stopped
from tests.models import byte_pairs, make, save_suite
from tests.trainers import (
    CLASSES,
    HELD_OUT,
    Draws,
    arguments,
    assert_same_model,
    bert,
    content,
    kill_by_exception,
    make_batch,
    samples,
    send_stop_signal,
)

ROWS = samples(make_batch(0, 20))


def ordinary(directory, **changes):
    given = {"max_steps": 5, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "report_to": "none"}
    return TrainingArguments(str(directory), use_cpu=True, **{**given, **changes})


def trainer(directory, run, changes=None, **options):
    given = {"train_dataset": ROWS, "eval_dataset": ROWS[:5], **options}
    return RunTrainer(bert(1), ordinary(directory, **(changes or {})), run=run, **given)


def test_a_run_takes_ordinary_arguments_and_datasets(tmp_path, capsys):
    with open_run(tmp_path / "run", {}, setting="test") as run:
        train_run(trainer(tmp_path / "run", run), "test")
    assert [record["step"] for record in run.records()] == [0, 2, 4, 5]
    assert {path.name for path in run.directory.glob("checkpoint-*")} == {
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-5",
    }
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": -1}, "needs max_steps"),
        ({"eval_strategy": "no"}, 'needs eval_strategy "steps", not "no"'),
        ({"eval_strategy": "epoch"}, 'needs eval_strategy "steps", not "epoch"'),
        ({"save_strategy": "epoch"}, 'needs save_strategy "steps" or "no", not "epoch"'),
        ({"auto_find_batch_size": True}, "cannot have auto_find_batch_size"),
        ({"load_best_model_at_end": True}, "cannot have load_best_model_at_end"),
        ({"save_total_limit": 2}, "cannot have save_total_limit 2"),
        ({"push_to_hub": True}, "cannot have push_to_hub"),
        ({"eval_on_start": True}, "cannot have eval_on_start"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "cannot have lr_scheduler_type reduce_lr_on_plateau"),
    ],
    ids=str,
)
def test_arguments_with_which_a_run_would_not_resume_are_refused(tmp_path, changes, message):
    with open_run(tmp_path / "run", {}, setting="test") as run, pytest.raises(UserError, match=message):
        trainer(tmp_path, run, changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_dataset": None}, "needs an eval_dataset"),
        ({"eval_dataset": iter(ROWS)}, "eval_dataset of a run cannot be a stream"),
        ({"eval_dataset": {"a": ROWS}}, "dict of a: give one of them"),
        ({"compute_metrics": len}, "cannot have compute_metrics"),
        ({"train_dataset": None}, "NoneType is neither a dataset nor a Source"),
        ({"train_dataset": ROWS[:3]}, "has 3 samples, fewer than a batch of 8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "options",
)
def test_options_that_a_run_cannot_have_are_refused(tmp_path, options, message):
    with open_run(tmp_path / "run", {}, setting="test") as run, pytest.raises(UserError, match=message):
        trainer(tmp_path, run, **options)


@pytest.mark.parametrize("optimiser", ["sgd", "adafactor", "adamw_torch"])
def test_a_stopped_run_resumes_with_any_optimiser_of_torch(tmp_path, capsys, optimiser):
    """Some keep numbers that are not tensors."""
    changes = {"optim": optimiser, "learning_rate": 0.01}
    for name, stops in (("whole", ()), ("run", (3,))):
        for stop in (*stops, None):
            directory = tmp_path / name
            with open_run(directory, {}, setting="test") as run:
                made = trainer(
                    directory,
                    run,
                    changes,
                    eval_dataset=ReadyBatches(HELD_OUT),
                    callbacks=[Draws(stop, send_stop_signal)],
                )
                if stop:
                    assert stopped(capsys, lambda made=made: train_run(made, "test")) == stop
                else:
                    train_run(made, "test")
    assert content(tmp_path / "run") == content(tmp_path / "whole")


@pytest.mark.parametrize("name", ["label_smoothing_factor", "bf16_full_eval", "compute_loss_func"])
def test_what_distillation_would_ignore_is_refused(tmp_path, name):
    args, options = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"), {}
    if name == "compute_loss_func":
        options[name] = lambda *arguments, **more: 0
    else:
        setattr(args, name, 0.5)
    with pytest.raises(UserError, match=name):
        ProgressiveDistillationTrainer(bert(0), args, **options)


@pytest.mark.parametrize("more", [{"eval_dataset": {"one": [], "two": []}}, {"compute_metrics": lambda outputs: {}}])
def test_a_schedule_by_evaluations_needs_records(tmp_path, more):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(UserError, match="one eval_dataset"):
        ProgressiveDistillationTrainer(bert(0), args, schedule=lambda evaluations: [], **more)


# A run resumes as it began


def run_as(directory, stop=None, changes=None, **options):
    """Train to the end of a run, or to a stop signal at a step; a run needs no arguments of its own."""
    with open_shared_run(directory, {}, Processes(), setting="test") as run:
        made = trainer(directory, run, changes, callbacks=[Draws(stop, send_stop_signal)], **options)
        train_run(made, "test")
    return made


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return save_suite(tmp_path_factory.mktemp("suite") / "teacher", "bert")


@pytest.fixture(scope="module")
def begun(suite, tmp_path_factory):
    """A run that was stopped at step 3, and what it learns from."""
    supervision = {"teacher": suite, "schedule": [Segment(0, 10)], "classes": CLASSES, "check_teacher": False}
    directory = tmp_path_factory.mktemp("begun") / "run"
    assert exit_code(lambda: run_as(directory, 3, **supervision)) == 75
    return directory, supervision


@pytest.mark.parametrize(
    ("name", "changes", "options"),
    [
        ("learning_rate", {"learning_rate": 0.01}, {}),
        ("lr_scheduler_type", {"lr_scheduler_type": "cosine"}, {}),
        ("max_steps", {"max_steps": 6}, {}),
        ("seed", {"seed": 1}, {}),
        ("batch_size", {"per_device_train_batch_size": 4}, {}),
        ("schedule", {}, {"schedule": [Segment(0, 20)]}),
        ("temperature", {}, {"temperature": 0}),
        ("alpha", {}, {"alpha": 0.5}),
        ("classes", {}, {"classes": CLASSES - 1}),
    ],
)
def test_a_run_does_not_resume_with_other_arguments(tmp_path, begun, name, changes, options):
    directory, supervision = shutil.copytree(begun[0], tmp_path / "run"), begun[1]
    before = files(directory / "resume")
    with pytest.raises(UserError, match=f"began with other arguments: {name} was .* and is .*; give the same"):
        run_as(directory, None, changes, **{**supervision, **options})
    assert files(directory / "resume") == before
    if name == "learning_rate":
        run_as(directory, **supervision)
        assert Run(directory).complete


def test_a_complete_run_gives_its_final_weights(tmp_path, capsys):
    trained = run_as(tmp_path / "run")
    before = content(tmp_path / "run")
    again = run_as(str(tmp_path / "run"))
    assert "is complete: the student has its final weights" in capsys.readouterr().out
    assert_same_model(again.model, trained.model, atol=0)
    assert again.records == trained.records
    assert again.evaluate()["eval_loss"] == pytest.approx(trained.records[-1]["loss"], rel=1e-6)
    with pytest.raises(UserError, match=r"other arguments: learning_rate was 5e-05 and is 0\.01"):
        run_as(tmp_path / "run", changes={"learning_rate": 0.01})
    assert content(tmp_path / "run") == before
    shutil.rmtree(tmp_path / "run" / "checkpoint-5")
    with pytest.raises(UserError, match="is complete without checkpoint-5"):
        run_as(tmp_path / "run")


def test_a_run_of_an_adapter_resumes_with_the_same_base(tmp_path, capsys):
    pytest.importorskip("peft")

    def run_on(seed, stop=None):
        with open_shared_run(tmp_path / "run", {}, Processes(), setting="test") as run:
            options = {"train_dataset": ROWS, "eval_dataset": ROWS[:5], "callbacks": [Draws(stop, send_stop_signal)]}
            student = make("llama with lora", seed)
            train_run(RunTrainer(student, ordinary(tmp_path / "run"), run=run, **options), "test")

    assert stopped(capsys, lambda: run_on(1, 3)) == 3
    with pytest.raises(UserError, match="began with other arguments: frozen was"):
        run_on(2)
    run_on(1)
    with pytest.raises(UserError, match="began with other arguments: frozen was"):
        run_on(2)


@pytest.mark.filterwarnings("error:the schedule is longer")
def test_a_schedule_that_is_longer_than_the_training_is_noted(tmp_path, suite):
    for start, warns in ((4, False), (5, True)):
        options = {"teacher": suite, "schedule": [Segment(0, 10), Segment(start, 20)], "check_teacher": False}
        args = ordinary(tmp_path, eval_strategy="no", save_strategy="no")
        trainer = ProgressiveDistillationTrainer(bert(0), args, train_dataset=ROWS, **options)
        if warns:
            line = "training of 5 steps: the student does not learn from teacher step 20, due at step 5"
            with pytest.raises(UserWarning, match=line):
                trainer.train()
        else:
            trainer.train()


def test_a_run_in_another_thread_goes_without_signal_handlers(tmp_path):
    with ThreadPoolExecutor(1) as thread:
        thread.submit(run_as, tmp_path / "run").result()
    assert Run(tmp_path / "run").complete


def test_a_tokenizer_is_part_of_every_checkpoint(tmp_path):
    tokenizer = byte_pairs()
    tokenizer.pad_token = tokenizer.eos_token
    run_as(tmp_path / "run", processing_class=tokenizer)
    for step in (2, 4, 5):
        saved = AutoTokenizer.from_pretrained(tmp_path / "run" / f"checkpoint-{step}")
        assert saved.get_vocab() == tokenizer.get_vocab()
        assert saved("a word").input_ids == tokenizer("a word").input_ids


@pytest.mark.parametrize(("name", "value"), [("top_k", 0), ("divergence", "total-variation"), ("temperature", -1)])
def test_arguments_of_the_loss_are_checked_before_training(tmp_path, suite, name, value):
    options = {"teacher": suite, "schedule": [Segment(0, 10)], name: value}
    with pytest.raises(UserError, match=name):
        ProgressiveDistillationTrainer(bert(0), arguments(tmp_path), **options)


def test_checkpoints_of_a_training_that_saved_no_state_do_not_stay(tmp_path, monkeypatch):
    """As with another step between checkpoints, when the run is started again."""
    monkeypatch.setattr("common.runs.resume.SECONDS", 1e9, raising=False)
    with pytest.raises(Killed), open_shared_run(tmp_path / "run", {}, Processes(), setting="test") as run:
        train_run(trainer(tmp_path / "run", run, callbacks=[Draws(3, kill_by_exception)]), "test")
    shutil.rmtree(tmp_path / "run" / "resume", ignore_errors=True)
    assert (tmp_path / "run" / "checkpoint-2").exists()
    run_as(tmp_path / "run", changes={"save_steps": 5})
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-5"]


def test_an_adapter_that_adds_tokens_and_the_loss_of_routers_are_refused(tmp_path):
    peft = pytest.importorskip("peft")
    prompt = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    with pytest.raises(UserError, match="adds tokens"):
        ProgressiveDistillationTrainer(peft.get_peft_model(make("llama", 0), prompt), arguments(tmp_path))
    model = make("llama", 0)
    model.config.output_router_logits = True
    with pytest.raises(UserError, match="auxiliary loss"):
        ProgressiveDistillationTrainer(model, arguments(tmp_path))


def test_the_active_one_of_two_adapters_is_saved(tmp_path):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    student = peft.get_peft_model(make("llama", 0), lora)
    student.add_adapter("second", lora)
    student.set_adapter("second")
    with open_shared_run(tmp_path / "run", {}, Processes(), setting="test") as run:
        options = {"train_dataset": ROWS, "eval_dataset": ROWS[:5]}
        train_run(RunTrainer(student, ordinary(tmp_path / "run"), run=run, **options), "test")
    loaded = peft.PeftModel.from_pretrained(make("llama", 0), tmp_path / "run" / "checkpoint-5")
    tokens = make_batch(0)["input_ids"]
    torch.testing.assert_close(loaded.eval()(tokens).logits, student.eval()(tokens).logits)
    student.set_adapter("default")
    assert (student(tokens).logits - loaded(tokens).logits).abs().max() > 0


def test_a_precision_that_only_the_launch_asks_for_is_refused(tmp_path, monkeypatch):
    for precision in ("bf16", "fp16"):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
        message = f"accelerate is launched with mixed_precision {precision}, but the arguments say no: set "
        with pytest.raises(UserError, match=message):
            ProgressiveDistillationTrainer(bert(1), arguments(tmp_path))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    ProgressiveDistillationTrainer(bert(1), arguments(tmp_path, precision="bf16"))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    ProgressiveDistillationTrainer(bert(1), arguments(tmp_path, precision="bf16"))
