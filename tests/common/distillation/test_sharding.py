"""Student and teacher in shards (FSDP): the numbers, checkpoints and resume states of one process that has them whole.

Run as a script, this file is one process of a training that the tests start and compare with their own.
"""

import json
import os
import shutil
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import BertForMaskedLM, GPT2LMHeadModel, TrainerCallback
from transformers.trainer_utils import SaveStrategy
from transformers.training_args import OptimizerNames

from common.distillation import labelled_head
from common.distillation.batches import ReadyBatches
from common.distillation.run_loop import train_run
from common.distillation.schedules import Segment
from common.distillation.sharding import OPTIMIZERS, blocks_of
from common.distillation.target_cache import TargetCache
from common.distillation.together import train_together
from common.distillation.trainer import ProgressiveDistillationTrainer
from common.errors import UserError
from common.runs.processes import Processes, join_processes, open_shared_run
from common.runs.run import Run
from tests.commands import ROOT, Killed, save_often
from tests.forked import two_forked
from tests.trainers import (
    HELD_OUT,
    STUDENTS,
    Batches,
    Draws,
    Plain,
    arguments,
    assert_same_model,
    bert,
    collate,
    distil,
    gpt2,
    kill_by_exception,
    make_batch,
    recorded_arguments,
    samples,
)

STEPS = 4
SCHEDULE = [Segment(0, 20), Segment(1, 10), Segment(3, 30)]
KINDS = {"bert": BertForMaskedLM, "gpt2": GPT2LMHeadModel}


def sharding(args, **config):
    """The arguments, with FSDP."""
    args.fsdp, args.fsdp_config = True, config
    args.fsdp_plugin_args = args._process_fsdp_args()
    return args


def in_chunks(patch):
    """Let logits be computed in chunks, outside the model."""
    for name in ("CHUNK", "CPU_CHUNK", "CPU_ROWS"):
        patch.setattr(labelled_head, name, 1)


class Sizes(TrainerCallback):
    """Numbers of elements that a process has of the student, the teacher and the optimiser's state, after a step."""

    def on_step_end(self, args, state, control, **kwargs):
        teacher = self.trainer._teacher._models._current[1]
        optimizer = self.trainer.optimizer.state_dict()["state"]
        parts = {
            "student": list(self.trainer.model.parameters()),
            "teacher": [parameter for block in blocks_of(teacher) for parameter in block.parameters()],
            "optimizer": [values["exp_avg"] for values in optimizer.values()],
        }
        self.sizes = {name: sum(local(tensor).numel() for tensor in tensors) for name, tensors in parts.items()}


class UsedTeachers(TrainerCallback):
    """The teacher's checkpoints that were in memory after a step."""

    def __init__(self):
        self.steps = set()

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.add(self.trainer._teacher._models.current_step)


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def distil_run(directory, teachers, kind, callback=None, optim="adamw_torch_fused", **options):
    """Train to the end of a run, from its last saved state, with clipped gradients; sharded if there are processes."""
    args = recorded_arguments(directory, steps=STEPS, accumulate=2, eval_every=2, checkpoint_every=2)
    args.max_grad_norm, args.optim = 0.5, OptimizerNames(optim)
    if args.world_size > 1:
        sharding(args)
    with open_shared_run(directory, {}, Processes(args.process_index, args.world_size), setting="test") as run:
        given = {"model": STUDENTS[kind](1, layers=2), "args": args, "run": run, "schedule": SCHEDULE, **options}
        trainer = distil(directory, teachers, kind, eval_dataset=ReadyBatches(HELD_OUT), check_teacher=True, **given)
        if callback is not None:
            callback.trainer = trainer
            trainer.add_callback(callback)
        train_run(trainer, "test")
    return trainer


def distil_rows(directory, teachers, **options):
    """A plain trainer on ordinary datasets."""
    args = arguments(directory, steps=STEPS, logging_steps=4)
    args.train_sampling_strategy = "sequential"
    args.per_device_eval_batch_size = 3
    if args.world_size > 1:
        sharding(args)
    return distil(
        directory,
        teachers,
        "gpt2",
        model=STUDENTS["gpt2"](1 + args.process_index, layers=2),  # the weights of the first process count
        args=args,
        schedule=SCHEDULE,
        train_dataset=samples(make_batch(0, 2 * 8)),
        eval_dataset=samples(make_batch(90, 13)),
        data_collator=collate,
        **options,
    )


def train_in_turn(directory, teachers):
    """Two students of one teacher, whose outputs they share, a step of each in turn."""
    source, trainers = Batches(), []
    with ExitStack() as stack:
        for seed in (1, 2):
            args = recorded_arguments(directory / str(seed), steps=STEPS, eval_every=2, checkpoint_every=2)
            if args.world_size > 1:
                sharding(args)
            processes = Processes(args.process_index, args.world_size)
            run = stack.enter_context(open_shared_run(directory / str(seed), {}, processes, setting="test"))
            options = {"args": args, "run": run, "train_dataset": source, "eval_dataset": ReadyBatches(HELD_OUT)}
            trainers.append(distil(directory, teachers, model=bert(seed, layers=2), schedule=SCHEDULE, **options))
        train_together(trainers, "test")


def main(directory, teachers):
    rank = int(os.environ["RANK"])
    results = {}
    with pytest.MonkeyPatch.context() as patch:
        save_often(patch)
        for kind in KINDS:
            sizes = Sizes()
            trainer = distil_run(directory / kind, teachers, kind, sizes)
            results[kind] = sizes.sizes
            again = distil_run(directory / kind, teachers, kind)  # complete: it gets its final weights
            results[f"{kind} losses"] = [each.evaluate()["eval_loss"] for each in (trainer, again)]
        with suppress(Killed):
            distil_run(directory / "gpt2 killed", teachers, "gpt2", Draws(3, kill_by_exception))
        with pytest.MonkeyPatch.context() as chunked:
            in_chunks(chunked)
            distil_run(directory / "gpt2 chunked", teachers, "gpt2")
            distil_run(directory / "bert joined", teachers, "bert")
        for optim in OPTIMIZERS:
            with suppress(Killed):
                distil_run(directory / optim, teachers, "bert", Draws(3, kill_by_exception), optim)
            distil_run(directory / optim, teachers, "bert", optim=optim)
        for name in ("writing", "reading"):
            used = UsedTeachers()
            cache = TargetCache(directory / "targets")
            distil_run(directory / name, teachers, "bert", used, cache=cache)
            results[name] = sorted(used.steps)
    train_in_turn(directory / "in turn", teachers)
    trainer = distil_rows(directory / "rows", teachers)
    results["before"] = trainer.evaluate()["eval_loss"]
    trainer.train()
    results["after"] = trainer.evaluate()["eval_loss"]
    trainer.save_model(str(directory / "rows" / "saved"))
    with pytest.raises(UserError, match="the student is in shards, but FSDP is not asked for"):
        ProgressiveDistillationTrainer(trainer.model, arguments(directory))
    (directory / f"results-{rank}.json").write_text(json.dumps(results))


def environment():
    threads = str(torch.get_num_threads())
    return {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, teachers):
    directory = tmp_path_factory.mktemp("two_processes")
    with pytest.MonkeyPatch.context() as patch:
        save_often(patch)
        with pytest.raises(Killed):
            distil_run(directory / "bert joined", teachers, "bert", Draws(3, kill_by_exception))
    two_forked(__file__, directory, teachers)
    return directory


@pytest.fixture(scope="module")
def alone(tmp_path_factory, teachers):
    directory = tmp_path_factory.mktemp("alone")
    for kind in KINDS:
        distil_run(directory / kind, teachers, kind)
    return directory


def assert_same_run(run, expected, kind):
    """Records and checkpoints, as `from_pretrained` reads them, are the same up to rounding."""
    records = Run(run).records(), Run(expected).records()
    assert len(records[0]) == len(records[1]) == 1 + STEPS // 2
    for here, there in zip(*records, strict=True):
        assert here == {name: value and pytest.approx(value, rel=1e-4) for name, value in there.items()}
    for step in (2, STEPS):
        models = [KINDS[kind].from_pretrained(each / f"checkpoint-{step}") for each in (run, expected)]
        assert_same_model(*models, atol=1e-5)
        files = [sorted(path.name for path in (each / f"checkpoint-{step}").iterdir()) for each in (run, expected)]
        assert files[0] == files[1]
        assert (run / f"checkpoint-{step}/config.json").read_bytes() == (
            expected / f"checkpoint-{step}/config.json"
        ).read_bytes()


@pytest.mark.parametrize("name", ["bert", "gpt2", "gpt2 chunked", "bert joined"])
def test_two_processes_with_shards_make_the_run_of_one(alone, two_processes, name):
    """`joined` was begun by one process and killed, and resumed by two, in chunks."""
    kind = name.split()[0]
    assert_same_run(two_processes / name, alone / kind, kind)


def test_a_run_that_two_processes_began_with_shards_is_resumed_by_one(tmp_path, teachers, alone, two_processes):
    shutil.copytree(two_processes / "gpt2 killed", tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "resume").iterdir()] == ["2"]
    distil_run(tmp_path / "run", teachers, "gpt2")
    assert_same_run(tmp_path / "run", alone / "gpt2", "gpt2")


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_each_optimiser_updates_shards_as_whole_tensors_and_resumes(tmp_path, teachers, two_processes, optim):
    distil_run(tmp_path, teachers, "bert", optim=optim)
    assert_same_run(two_processes / optim, tmp_path, "bert")


def results_of(directory, rank):
    return json.loads((directory / f"results-{rank}.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_each_process_has_its_part(teachers, two_processes, kind):
    model = STUDENTS[kind](1, layers=2)
    teacher = KINDS[kind].from_pretrained(teachers / kind / "checkpoint-10")
    whole = {"student": sum(parameter.numel() for parameter in model.parameters())}
    whole["optimizer"] = whole["student"]
    whole["teacher"] = sum(parameter.numel() for block in blocks_of(teacher) for parameter in block.parameters())
    parts = [results_of(two_processes, rank)[kind] for rank in (0, 1)]
    for name, size in whole.items():
        assert parts[0][name] + parts[1][name] == size
        assert parts[1][name] >= 0.4 * size


@pytest.mark.parametrize("kind", KINDS)
def test_a_complete_run_gives_a_sharded_student_its_final_weights(alone, two_processes, kind):
    for rank in (0, 1):
        losses = results_of(two_processes, rank)[f"{kind} losses"]
        assert losses == pytest.approx(2 * [Run(alone / kind).records()[-1]["loss"]], rel=1e-4)


def test_sharded_students_write_a_cache_of_targets_and_need_no_teacher_then(alone, two_processes):
    for name in ("writing", "reading"):
        assert_same_run(two_processes / name, alone / "bert", "bert")
    for rank in range(2):
        results = results_of(two_processes, rank)
        assert results["writing"] == [10, 20, 30]
        assert results["reading"] == [None]  # no teacher, not even for the report


def test_a_trainer_without_a_run_shards_too(tmp_path, teachers, two_processes):
    trainer = distil_rows(tmp_path, teachers)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    for rank in (0, 1):
        found = results_of(two_processes, rank)
        assert (found["before"], found["after"]) == pytest.approx((before, after), rel=1e-4)
    saved = GPT2LMHeadModel.from_pretrained(two_processes / "rows" / "saved")
    assert_same_model(saved, trainer.model, atol=1e-5)


def test_students_that_are_trained_in_turn_share_a_sharded_teacher(tmp_path, teachers, two_processes):
    train_in_turn(tmp_path, teachers)
    for seed in ("1", "2"):
        assert_same_run(two_processes / "in turn" / seed, tmp_path / seed, "bert")


# What is refused


def asking(directory, monkeypatch, variables=None, fsdp=True, **config):
    """Arguments in one of two processes, with FSDP as they or `accelerate launch` ask for it."""
    args = arguments(directory)
    monkeypatch.setattr(type(args), "world_size", 2)
    for name, value in (variables or {}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # which the arguments set
    return sharding(args, **config) if fsdp else args


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"version": 1}, "version 1: set fsdp_version to 2"),
        ({"xla": True}, "xla: leave it out"),
        ({"cpu_offload": True}, "parameters on the CPU: set cpu_offload to false"),
        ({"reshard_after_forward": False}, "reshard_after_forward false: set it to true"),
        ({"cpu_ram_efficient_loading": True}, "cpu_ram_efficient_loading: set it to false"),
        ({"activation_checkpointing": True}, "activation_checkpointing: "),
        ({"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 10}, "SIZE_BASED_WRAP: set TRANSFORMER_BASED_WRAP"),
        ({"transformer_layer_cls_to_wrap": ["GPT2Block"]}, "GPT2Block to wrap: the student's blocks are BertLayer"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_fsdp_would_ignore_is_refused(tmp_path, monkeypatch, config, message):
    args = asking(tmp_path, monkeypatch, **config)
    with pytest.raises(UserError, match=f"^FSDP is not supported with {message}"):
        ProgressiveDistillationTrainer(bert(1), args)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "version 1: set fsdp_version to 2"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "parameters on the CPU: "),
        ({"FSDP_VERSION": "2", "FSDP_IGNORED_MODULES": "cls"}, "ignored_modules: leave it out"),
        ({"FSDP_VERSION": "2", "ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "parallelism_config: leave it out"),
    ],
)
def test_what_accelerate_launch_asks_for_and_would_not_get_is_refused(tmp_path, monkeypatch, variables, message):
    args = asking(tmp_path, monkeypatch, {"ACCELERATE_USE_FSDP": "true", **variables}, fsdp=False)
    with pytest.raises(UserError, match=f"^FSDP is not supported with {message}"):
        ProgressiveDistillationTrainer(bert(1), args)


@pytest.mark.parametrize(
    ("change", "value", "message"),
    [
        ("optim", OptimizerNames.ADAFACTOR, "optim adafactor: use adamw_torch"),
        ("torch_compile", True, "torch_compile: leave one of them out"),
        ("fp16", True, "fp16: use bf16"),
        ("save_strategy", SaveStrategy.STEPS, "a Trainer's checkpoints of the optimiser: give save_only_model=True"),
    ],
)
def test_what_cannot_be_sharded_is_refused(tmp_path, monkeypatch, change, value, message):
    args = asking(tmp_path, monkeypatch)
    setattr(args, change, value)
    with pytest.raises(UserError, match=f"^FSDP is not supported with {message}"):
        ProgressiveDistillationTrainer(bert(1), args)


def test_students_that_cannot_be_sharded_are_refused(tmp_path, monkeypatch):
    args = asking(tmp_path, monkeypatch)
    with pytest.raises(UserError, match="a Plain, which has no list of blocks: use DDP"):
        ProgressiveDistillationTrainer(Plain(1), args, objective="masked")
    adapted = peft.get_peft_model(gpt2(1), peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    with pytest.raises(UserError, match="a student with an adapter: use DDP"):
        ProgressiveDistillationTrainer(adapted, args)


def test_one_process_with_fsdp_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="with a single process: start several, or leave FSDP out"):
        ProgressiveDistillationTrainer(bert(1), sharding(arguments(tmp_path)))
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="FSDP is not supported with a single process"):
        ProgressiveDistillationTrainer(bert(1), arguments(tmp_path))
    with pytest.raises(UserError, match="launch it without FSDP"):
        join_processes("cpu")


def test_blocks_are_the_elements_of_the_outermost_lists():
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Module(), nn.Module()])
    model.layers[1].experts = nn.ModuleList([nn.Linear(1, 1)])
    model.head = nn.Linear(1, 1)
    assert blocks_of(model) == [*model.layers]
    student = bert(1, layers=3)
    assert blocks_of(student) == [*student.bert.encoder.layer]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
