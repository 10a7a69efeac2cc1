"""Any dataset by the step: its order, its random numbers, and the batches after a restored position."""

import json
import random
from itertools import pairwise

import datasets
import numpy as np
import pytest
import torch

from common.distillation.batches import Share, source_of
from common.distillation.dataset_source import DatasetSource, EvaluationBatches
from common.distillation.trainer import ProgressiveDistillationTrainer
from common.errors import UserError
from tests.sample_data import SAMPLES, Stateful, Stream, masking, token_rows
from tests.trainers import arguments, bert, collate, make_batch, samples

SIZE, SEED = 8, 3
STEPS = range(8)
"""Three epochs and more."""


def rows_of(count=SAMPLES):
    return [{"text": f"sample {i}", "labels": i} for i in range(count)]


def number_collate(rows):
    return {"labels": torch.tensor([row["labels"] for row in rows])}


class Map(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


class NoJson(Stateful):
    """Its state does not survive JSON."""

    def state_dict(self):
        return {0: (self.position["at"],)}

    def load_state_dict(self, state):
        self.position = {"at": state[0][0]}


def stream_of(rows, shards=4):
    return datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=shards)


MAPS = {"list": list, "torch": Map, "datasets": datasets.Dataset.from_list}
STREAMS = {
    "torch": Stream,
    "torch with a state": Stateful,
    "torch with a state that is not JSON": NoJson,
    "datasets": stream_of,
    "shuffled": lambda rows: stream_of(rows).shuffle(seed=1, buffer_size=5),
    "mapped": lambda rows: stream_of(rows).map(lambda row: {**row, "labels": row["labels"] + 1}),
    "mapped in batches": lambda rows: stream_of(rows).map(lambda batch: batch, batched=True, batch_size=3),
    "mapped in batches of arrays": lambda rows: stream_of(rows).with_format("numpy").map(dict, batched=True),
    "filtered": lambda rows: stream_of([*rows, *rows]).filter(lambda row, i: i < SAMPLES, with_indices=True),
    "interleaved": lambda rows: datasets.interleave_datasets([stream_of(rows[:9], 1), stream_of(rows[9:], 1)], seed=5),
    "generated": lambda rows: datasets.IterableDataset.from_generator(lambda: iter(rows)),
}


def source(dataset, collate=number_collate, **options):
    return DatasetSource(dataset, collate, options.pop("size", SIZE), options.pop("seed", SEED), **options)


def batches_of(source, steps=STEPS):
    return [source.batch(step)["labels"].tolist() for step in steps]


def numbers(source):
    return [number for batch in batches_of(source) for number in batch]


# Order


@pytest.mark.parametrize("kind", MAPS)
def test_a_map_style_dataset_is_shuffled_by_seed_and_epoch_across_the_ends_of_epochs(kind):
    seen = numbers(source(MAPS[kind](rows_of())))
    expected = []
    for epoch in range(4):
        philox = np.random.Philox(key=np.array([SEED, epoch], np.uint64))
        expected += np.random.Generator(philox).permutation(SAMPLES).tolist()
    assert seen == expected[: len(seen)]
    epochs = [seen[i : i + SAMPLES] for i in (0, SAMPLES, 2 * SAMPLES)]
    assert [sorted(epoch) for epoch in epochs] == 3 * [list(range(SAMPLES))]
    assert epochs[0] != epochs[1] != epochs[2]
    assert numbers(source(MAPS[kind](rows_of()), seed=4)) != numbers(source(MAPS[kind](rows_of())))


def test_a_map_style_dataset_can_be_in_order():
    assert numbers(source(rows_of(), shuffle=False))[: 2 * SAMPLES] == 2 * list(range(SAMPLES))


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_is_in_its_order_and_starts_again_with_the_next_epoch(kind):
    expected, dataset = [], STREAMS[kind](rows_of())
    for epoch in range(len(STEPS)):
        dataset = STREAMS[kind](rows_of())
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(epoch)
        expected += [int(row["labels"]) for row in dataset]
    seen = numbers(source(STREAMS[kind](rows_of())))
    assert seen == expected[: len(seen)]


@pytest.mark.parametrize("taken", [False, True], ids=["before the batch", "after the batch"])
@pytest.mark.parametrize("kind", [*(f"map {kind}" for kind in MAPS), *STREAMS])
def test_a_restored_position_continues_with_the_same_batches(kind, taken):
    make = STREAMS.get(kind) or MAPS[kind.removeprefix("map ")]
    whole = source(make(rows_of()))
    expected, positions = [], []
    for step in STEPS:
        positions += [] if taken else [whole.position(step)]
        expected.append(whole.batch(step)["labels"].tolist())
        positions += [whole.position(step)] if taken else []
    for step in STEPS:
        rest = source(make(rows_of()))
        rest.restore(step, json.loads(json.dumps(positions[step])))
        assert batches_of(rest, STEPS[step:]) == expected[step:]


def test_a_stream_that_saves_its_position_is_not_read_again():
    whole, dataset = source(Stateful(rows_of())), Stateful(rows_of())
    batches_of(whole, range(2))
    rest = source(dataset)
    rest.restore(2, whole.position(2))
    assert dataset.read == SAMPLES - 2 * SIZE + (3 * SIZE - SAMPLES)


# Random numbers


class Jittered(Map):
    """Draws random numbers of every generator when a sample is read."""

    def __getitem__(self, i):
        drawn = [random.random(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002
        return {"input_ids": [*self.rows[i]["input_ids"], *(3 + int(5 * number) for number in drawn)]}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dataset", [list, Jittered], ids=["list", "jittered"])
def test_random_numbers_follow_from_seed_and_step_and_training_s_own_are_untouched(tmp_path, dataset, workers):
    made = source(dataset(token_rows()), masking())
    args = arguments(tmp_path)
    args.dataloader_num_workers = workers
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    batches = list(made.batches(STEPS, args))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]  # noqa: NPY002
    torch.manual_seed(0)
    for step in reversed(STEPS):
        again = source(dataset(token_rows()), masking()).batch(step)
        assert all(torch.equal(again[name], batches[step][name]) for name in ("input_ids", "labels"))
    other = source(dataset(token_rows()), masking(), seed=4, shuffle=True).batch(0)
    assert other["labels"].tolist() != batches[0]["labels"].tolist()
    masks = [[row[:2].tolist() for row in batch["labels"] == -100] for batch in batches]
    assert all(mask != other for mask, other in pairwise(masks))


def test_a_collator_with_a_generator_of_its_own_is_refused():
    with pytest.raises(UserError, match="must not have its own generator or seed"):
        source(token_rows(), masking(seed=1)).batch(0)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_batches_are_the_same_at_each_pass_and_for_any_number_of_processes(tmp_path, processes):
    args = arguments(tmp_path)
    args.per_device_eval_batch_size = 6
    trainer = ProgressiveDistillationTrainer(bert(1), args, data_collator=masking())
    alone = list(EvaluationBatches(token_rows(), trainer))
    assert [len(batch["labels"]) for batch in alone] == [6, 6, 6, 2]
    for index in range(processes):
        share = list(Share(EvaluationBatches(token_rows(), trainer), index, processes, even=False))
        for batch, expected in zip(share, alone[index::processes], strict=True):
            assert all(torch.equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_even_shares_have_equally_many_batches_and_labels_only_once(processes):
    batches = [{"labels": torch.tensor([[i, -100]]), "input_ids": torch.tensor([[7, 8]])} for i in range(4)]
    shares = [list(Share(batches, index, processes, even=True)) for index in range(processes)]
    assert {len(share) for share in shares} == {-(-4 // processes)}
    labels = torch.cat([batch["labels"] for share in shares for batch in share]).flatten()
    assert sorted(labels[labels != -100].tolist()) == [0, 1, 2, 3]
    assert all(batch["input_ids"].tolist() == [[7, 8]] for share in shares for batch in share)


# What a trainer gives


def trainer_of(directory, dataset, **options):
    args = arguments(directory)
    args.remove_unused_columns = options.pop("remove", True)
    args.train_sampling_strategy = options.pop("strategy", "random")
    return ProgressiveDistillationTrainer(bert(1), args, train_dataset=dataset, **options)


def test_columns_that_the_model_does_not_take_are_removed_as_by_a_trainer(tmp_path):
    rows = [{**row, "text": "many words"} for row in samples(make_batch(0, SAMPLES))]
    assert set(source_of(trainer_of(tmp_path, rows)).batch(0)) == {"input_ids", "attention_mask", "labels"}
    with pytest.raises(UserError, match=r"cannot be collated .*str"):
        source_of(trainer_of(tmp_path, rows, remove=False, data_collator=collate)).batch(0)


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ([{"input_ids": [3, 4]}] * 8, {}, "has no labels, only input_ids after collation: .*ForLanguageModeling"),
        (token_rows(), {}, "training data cannot be collated .*: give a data_collator that pads"),
        ([{"text": "a b", "id": 1}] * 20, {}, "columns text, id, none of which BertForMaskedLM takes: tokenize"),
        (token_rows(7), {"data_collator": masking()}, "has 7 samples, fewer than a batch of 8"),
        ([], {}, "has 0 samples, fewer than a batch of 8"),
        (Stream([]), {}, "stream has 0 samples in epoch 0, fewer than a batch of 8"),
        (Stream(token_rows(5)), {}, "stream has 5 samples in epoch 0, fewer than a batch of 8"),
        (iter(samples(make_batch(0, 12))), {}, "stream has 0 samples in epoch 1, .* can be iterated over repeatedly"),
        (datasets.DatasetDict(train=datasets.Dataset.from_list(rows_of())), {}, "DatasetDict of train: give one"),
        (5, {}, "int is neither a dataset nor a Source"),
        (token_rows(), {"strategy": "group_by_length"}, 'group_by_length: give "random" or "sequential"'),
        (
            [{"input_ids": [3], "labels": [3]}] * 8,
            {"data_collator": lambda rows: {"labels": torch.zeros(1, 8)}},
            "labels of the training data is not a tensor with a row for each of 8 samples",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict | list) else type(value).__name__,
)
def test_data_that_cannot_be_trained_on_is_refused(tmp_path, dataset, options, message):
    def read():
        made = source_of(trainer)
        return [made.batch(step) for step in range(3)]

    trainer = trainer_of(tmp_path, [], **options)
    trainer.train_dataset = dataset
    with pytest.raises(UserError, match=message):
        read()


@pytest.mark.parametrize(
    "changed", [{"dataset": rows_of(SAMPLES + 1)}, {"seed": SEED + 1}, {"size": SIZE - 1}], ids=str
)
def test_other_data_is_refused(changed):
    position = source(rows_of()).position(0)
    with pytest.raises(UserError, match="training data at step 0 differs from before"):
        source(**{"dataset": rows_of(), **changed}).restore(0, position)


@pytest.mark.parametrize(("before", "after"), [(None, Stream), (None, list), (list, Stream), (Stream, list)])
def test_data_of_another_kind_is_refused(before, after):
    """None stands for a `Source`."""
    position = source(before(rows_of())).position(1) if before else {}
    with pytest.raises(UserError, match="training data at step 1 differs from before"):
        source(after(rows_of())).restore(1, position)


def test_a_stream_that_is_shuffled_without_a_seed_is_refused():
    position = source(stream_of(rows_of()).shuffle(buffer_size=SAMPLES)).position(0)
    with pytest.raises(UserError, match="training data at step 0 differs from before"):
        source(stream_of(rows_of()).shuffle(buffer_size=SAMPLES)).restore(0, position)
