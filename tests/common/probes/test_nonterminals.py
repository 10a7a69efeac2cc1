"""The probe against its formula, on hidden states that tell the symbols, tell them elsewhere, or tell nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import BertConfig, BertForMaskedLM

from common.errors import UserError
from common.pcfg.grammar_files import load_grammar
from common.pcfg.sampler import sample
from common.probes.nonterminals import NO_SYMBOL, LabelledSentences, PositionProbe, bert_encoder, probe_nonterminals

SMALL = load_grammar("small")
SIZES = {"heads": 4, "dimension": 32, "epochs": 6, "batch_size": 16}


def parsed(first, count):
    """Sentences with BOS, and the place of their tokens' ancestors among the symbols of levels 1 to 3."""
    drawn = sample(SMALL, 0, "probe", first, count, trees=True)
    ancestors = np.stack([drawn.ancestors[:, level] - min(SMALL.levels[level]) for level in (1, 2, 3)], axis=1)
    assert set(np.unique(ancestors)) == {0, 1, 2}
    bos = np.full((1, 3), NO_SYMBOL)
    parts = np.split(ancestors, drawn.offsets[1:-1])
    return LabelledSentences(
        [np.concatenate([[len(SMALL.terminals)], drawn.sentence(i)]) for i in range(count)],
        [np.concatenate([bos, part]) for part in parts],
    )


@pytest.fixture(scope="module")
def sentences():
    return parsed(0, 600), parsed(600, 200)


def encoder_of(function, *data):
    """Hidden states by a function of a sentence's labels (length, levels); the last feature is 1."""
    table = {
        sequence.tobytes(): function(labels)
        for part in data
        for sequence, labels in zip(part.sequences, part.labels, strict=True)
    }

    def encode(input_ids):
        states = np.stack([table[row.tobytes()] for row in input_ids.numpy()])
        return torch.from_numpy(np.concatenate([states, np.ones((*states.shape[:2], 1))], axis=2)).float()

    return encode


def one_hot(labels):
    return 4.0 * (labels[..., None] == np.arange(3)).reshape(len(labels), -1)


@given(
    sentences=st.integers(1, 3),
    length=st.integers(1, 6),
    longer=st.integers(0, 3),
    heads=st.integers(1, 3),
    classes=st.integers(1, 4),
)
@settings(deadline=None, max_examples=30)
def test_logits_are_the_formula(sentences, length, longer, heads, classes):
    hidden, dimension = 5, 7
    probe = PositionProbe(hidden, classes, length + longer, heads, dimension).double()
    with torch.no_grad():
        probe.positions.copy_(torch.randn(heads, length + longer, dimension))
    z = torch.randn(sentences, length, hidden, dtype=torch.float64)
    e, w = probe.positions.detach().numpy(), probe.maps.weight.detach().numpy().reshape(heads, classes, hidden)
    expected = np.zeros((sentences, length, classes))
    for s in range(sentences):
        for i in range(length):
            for h in range(heads):
                scores = np.exp([e[h, i] @ e[h, j] for j in range(length)])
                for j in range(length):
                    expected[s, i] += scores[j] / scores.sum() * w[h] @ z[s, j].numpy()
    np.testing.assert_allclose(probe(z).detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_ancestors_are_recovered_where_hidden_states_tell_them(sentences):
    results = probe_nonterminals(encoder_of(one_hot, *sentences), *sentences, **SIZES)
    tokens = sum(len(sequence) - 1 for sequence in sentences[1].sequences)
    assert [result.tokens for result in results] == [tokens] * 3
    assert all(result.accuracy > 0.99 for result in results)


def test_ancestors_are_recovered_from_the_next_position(sentences):
    """z_j tells the ancestors of token j - 1, so that positions have to be attended to; the last token's are lost."""

    def next_position(labels):
        return one_hot(np.concatenate([np.full((1, 3), NO_SYMBOL), labels[:-1]]))

    sizes = {**SIZES, "epochs": 12}
    for result in probe_nonterminals(encoder_of(next_position, *sentences), *sentences, **sizes):
        assert result.accuracy > 0.9
        assert result.majority < 0.5


def test_hidden_states_that_tell_nothing_give_the_majority(sentences):
    training, heldout = sentences
    results = probe_nonterminals(encoder_of(lambda labels: np.zeros((len(labels), 2)), *sentences), *sentences, **SIZES)
    for level, result in enumerate(results):
        seen, given_ = (np.concatenate([labels[1:, level] for labels in data.labels]) for data in (training, heldout))
        most_frequent = max(range(3), key=lambda symbol, seen=seen: np.sum(seen == symbol))
        assert result.majority == pytest.approx(np.mean(given_ == most_frequent))
        assert result.accuracy == pytest.approx(result.majority, abs=0.05)


def test_a_level_is_judged_by_its_own_symbols(sentences):
    """Labels are independent of each other, and only those of the middle level are told."""
    generator = np.random.default_rng(0)
    drawn = tuple(
        LabelledSentences(data.sequences, [generator.integers(0, 3, labels.shape) for labels in data.labels])
        for data in sentences
    )

    def middle(labels):
        states = one_hot(labels).reshape(len(labels), 3, 3)
        states[:, [0, 2]] = 0
        return states.reshape(len(labels), -1)

    top, told, bottom = probe_nonterminals(encoder_of(middle, *drawn), *drawn, **SIZES)
    assert told.accuracy > 0.99
    assert max(top.accuracy, bottom.accuracy) < 0.4


def test_tokens_without_a_symbol_are_left_out(sentences):
    """Labels at the first half of each sentence are taken away, and wrong answers there cost nothing."""

    def without(data):
        labels = [part.copy() for part in data.labels]
        for part in labels:
            part[: len(part) // 2, 1] = NO_SYMBOL
        return LabelledSentences(data.sequences, labels)

    some = tuple(without(data) for data in sentences)
    _, result, _ = probe_nonterminals(encoder_of(one_hot, *some), *some, **SIZES)
    assert result.tokens == sum(len(part) - len(part) // 2 for part in some[1].labels)
    assert result.accuracy > 0.99


def test_hidden_states_are_computed_once_if_they_fit_and_else_in_each_epoch(sentences):
    training, heldout = sentences
    encode = encoder_of(one_hot, *sentences)
    results = []
    for cache_bytes, epochs in ((2**30, 1), (0, SIZES["epochs"])):
        calls = []

        def counted(input_ids, calls=calls):
            calls.append(input_ids)
            return encode(input_ids)

        results.append(probe_nonterminals(counted, training, heldout, cache_bytes=cache_bytes, **SIZES))
        rows = [row.numpy().tobytes() for input_ids in calls[1:] for row in input_ids]  # the first call asks the size
        expected = [sequence.astype(np.int64).tobytes() for sequence in training.sequences] * epochs
        expected += [sequence.astype(np.int64).tobytes() for sequence in heldout.sequences]
        assert sorted(rows) == sorted(expected)
    assert results[0] == results[1]


def test_the_seed_decides_and_nothing_else(sentences):
    encode = encoder_of(lambda labels: one_hot(labels)[:, :4], *sentences)
    runs = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(global_seed)
        runs.append(probe_nonterminals(encode, *sentences, **{**SIZES, "epochs": 1}, seed=seed))
        after = torch.rand(1)
        torch.manual_seed(global_seed)
        assert torch.equal(torch.rand(1), after)
    assert runs[0] == runs[1] != runs[2]


def test_a_bert_is_read_without_dropout():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    model = BertForMaskedLM(config).train()
    encode = bert_encoder(model)
    input_ids = torch.randint(0, 4, (3, 20))
    expected = model(input_ids=input_ids, output_hidden_states=True).hidden_states[-1]
    assert expected.shape == (3, 20, 16)
    assert torch.allclose(encode(input_ids), expected, atol=1e-5)
    assert not encode(input_ids).requires_grad


def test_what_cannot_be_probed_is_refused(sentences):
    training, heldout = sentences
    encode = encoder_of(one_hot, *sentences)
    nothing = LabelledSentences([], [])
    for data in ((nothing, heldout), (training, nothing)):
        with pytest.raises(UserError, match="needs sentences to learn from and sentences to be tested on"):
            probe_nonterminals(encode, *data)
    fewer = LabelledSentences(heldout.sequences, [labels[:, :2] for labels in heldout.labels])
    with pytest.raises(UserError, match="training labels have 3 levels, held-out labels 2"):
        probe_nonterminals(encode, training, fewer)
