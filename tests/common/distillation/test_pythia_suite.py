"""A suite of revisions in the hub's cache, offline, from its discovery to a trained student."""

import gc
import weakref

import pytest
from huggingface_hub import constants
from transformers import DataCollatorForLanguageModeling

from common.distillation.choosing import choose_schedule
from common.distillation.schedules import progressive
from common.distillation.trainer import ProgressiveDistillationTrainer
from common.errors import UserError
from common.teachers.discovery import find_checkpoints
from tests.hub import use
from tests.models import PYTHIA, PYTHIA_STEPS, TEXT, byte_pairs, cache_pythia, make, save_pythia
from tests.trainers import arguments, assert_same_model, logged


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return save_pythia(tmp_path_factory.mktemp("pythia"))


@pytest.fixture(params=["", "-tokens2B"])
def offline(request, tmp_path, monkeypatch, suite):
    use(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cache_pythia(tmp_path / "cache", suite, request.param)


def train(directory, teacher):
    """Losses of the training, the student, the checkpoints that were read, and the most in memory at a read."""
    tokenizer = byte_pairs()
    collator = DataCollatorForLanguageModeling(byte_pairs(), mlm=False)
    collator.tokenizer.pad_token = tokenizer.eos_token
    rows = [tokenizer(text) for text in TEXT]
    trainer = ProgressiveDistillationTrainer(
        make("gpt_neox", 1, classes=100, length=32),
        arguments(directory, steps=2 * len(PYTHIA_STEPS)),
        teacher=teacher,
        schedule=progressive(PYTHIA_STEPS, every=2),
        train_dataset=rows,
        data_collator=collator,
        processing_class=tokenizer,
    )
    models, alive, read, most = trainer._teacher._models, weakref.WeakSet(), [], []
    reads, builds = models._read, models._build

    def counted_read(path):
        gc.collect()
        read.append(path)
        most.append(1 + len(alive))
        return reads(path)

    def counted_build(stored):
        model = builds(stored)
        alive.add(model)
        return model

    models._read, models._build = counted_read, counted_build
    trainer.train()
    return trainer, read, max(most)


@pytest.mark.parametrize("offline", ["-tokens2B"], indirect=True)
def test_a_suite_on_the_hub_trains_as_its_local_copy(tmp_path, suite, offline):
    assert [checkpoint.step for checkpoint in find_checkpoints(PYTHIA)] == list(PYTHIA_STEPS)
    trainer, read, most = train(tmp_path / "hub", PYTHIA)
    assert len(read) == len(set(read)) == len(PYTHIA_STEPS)
    assert most == 2
    assert logged(trainer, "teacher") == [step for step in PYTHIA_STEPS for _ in range(2)]
    assert trainer._teacher.classes == 100  # of 128
    local, _, _ = train(tmp_path / "local", suite)
    assert logged(trainer, "loss") == logged(local, "loss")
    assert_same_model(trainer.model, local.model, atol=0)


def test_checkpoints_of_a_suite_without_a_log_are_chosen_by_the_logarithm(offline):
    schedule, choice = choose_schedule(PYTHIA, every=3, number=3)
    assert choice.checkpoints == (4, 16, 64)
    assert schedule == progressive(choice.checkpoints, 3)
    assert "there is no training curve" in choice.reason


def test_a_revision_that_is_not_cached_is_named(tmp_path, suite, offline):
    with pytest.raises(UserError, match="teacher step 128, which has no checkpoint"):
        ProgressiveDistillationTrainer(
            make("gpt_neox", 1), arguments(tmp_path), teacher=PYTHIA, schedule=progressive([64, 128], 2)
        )
