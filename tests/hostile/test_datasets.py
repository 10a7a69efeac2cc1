"""Datasets of sentences as they must not be: what is read of them is sentences, or a refusal that names the dataset."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from common.errors import UserError
from common.pcfg.arguments import ExportArguments
from common.pcfg.dataset import export, open_dataset
from common.pcfg.grammar_files import load_grammar
from tests.hostile.contract import attempt, cases
from tests.hostile.damage import damaged, json_files

SMALL = load_grammar("small")
FILE = "data/train-00000-of-00002.parquet"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A dataset of 12 sentences with trees."""
    path = tmp_path_factory.mktemp("whole") / "mine"
    export(ExportArguments(sentences=12, out=path, grammar="small", validation=2, trees=True, shard=8))
    return path


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A place for copies of it."""
    return tmp_path_factory.mktemp("copies") / "mine"


def fresh(whole, copy):
    shutil.rmtree(copy, ignore_errors=True)
    return shutil.copytree(whole, copy)


def read(directory):
    dataset = open_dataset(directory, SMALL, 12, trees=True)
    return [dataset.sentences(first, 4) for first in (0, 4, 8)]


def use(directory):
    """Read all sentences, if the dataset is not refused."""
    sentences = attempt(read, directory, names=str(directory))
    for some in sentences or ():
        assert some.tokens.dtype == np.uint8
        assert len(some.tokens) == len(some.span_ends) == some.offsets[-1]
        assert len(some) == 4
        assert np.all(some.lengths > 0)
        assert np.all(some.tokens < len(SMALL.terminals))
    return sentences


@given(st.data())
@cases(200)
def test_descriptions(whole, copy, data):
    description = json.loads((whole / "description.json").read_bytes())
    content = data.draw(json_files(description))
    (fresh(whole, copy) / "description.json").write_bytes(content)
    use(copy)
    attempt(export, ExportArguments(sentences=12, out=copy, grammar="small", validation=2, trees=True), names=str(copy))
    assert (copy / "description.json").read_bytes() == content


@given(st.data())
@cases(200)
def test_files(whole, copy, data):
    content = data.draw(damaged((whole / FILE).read_bytes()))
    (fresh(whole, copy) / FILE).write_bytes(content)
    use(copy)


COLUMNS = st.one_of(
    st.lists(st.lists(st.integers(0, 255)), min_size=8, max_size=8).map(
        lambda rows: pa.array(rows, pa.list_(pa.uint8()))
    ),
    st.lists(st.lists(st.integers(0, 2), min_size=1), min_size=6, max_size=9).map(
        lambda rows: pa.array(rows, pa.list_(pa.uint8()))
    ),
    st.lists(st.none() | st.lists(st.none() | st.integers(0, 2)), min_size=8, max_size=8).map(
        lambda rows: pa.array(rows, pa.list_(pa.uint8()))
    ),
    st.sampled_from((pa.int64(), pa.string(), pa.list_(pa.int64()), pa.list_(pa.list_(pa.uint8())))).map(
        lambda kind: pa.nulls(8, kind)
    ),
)


@given(st.dictionaries(st.sampled_from(["tokens", "span_ends", "other"]), COLUMNS))
@cases(200)
def test_other_tables(whole, copy, columns):
    shortest = min(map(len, columns.values()), default=0)
    table = pa.table({name: column.slice(0, shortest) for name, column in columns.items()})
    pq.write_table(table, fresh(whole, copy) / FILE)
    use(copy)


# What was found


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"tokens": [[0]] * 8}, "it has no column span_ends with lists of bytes"),
        ({"tokens": [[0]] * 8, "span_ends": [[0]] * 7 + [[0, 0]]}, "its columns have different lengths"),
        ({"tokens": [[0]] * 7 + [[3]], "span_ends": [[0]] * 8}, "it has the token 3, and the grammar 3 terminals"),
        ({"tokens": [[0]] * 7 + [None], "span_ends": [[0]] * 8}, "a sentence is missing or empty"),
        ({"tokens": [[0]] * 7 + [[]], "span_ends": [[0]] * 7 + [[]]}, "a sentence is missing or empty"),
    ],
)
def test_what_sentences_must_be(whole, tmp_path, columns, message):
    table = pa.table({name: pa.array(rows, pa.list_(pa.uint8())) for name, rows in columns.items()})
    pq.write_table(table, fresh(whole, tmp_path / "mine") / FILE)
    with pytest.raises(UserError, match=rf"{FILE} is damaged \({message}\)"):
        read(tmp_path / "mine")


@pytest.mark.parametrize(
    "changes",
    [
        {"grammar": None},
        {"grammar": {}},
        {"sentences": "12"},
        {"sentences": True},
        {"name": 1},
        {"name": "a\nb"},
        {"trees": "yes"},
    ],
)
def test_what_a_description_must_be(whole, tmp_path, changes):
    place = fresh(whole, tmp_path / "mine") / "description.json"
    place.write_text(json.dumps(json.loads(place.read_bytes()) | changes))
    with pytest.raises(UserError, match=r"mine is not a dataset that data.py export wrote"):
        read(tmp_path / "mine")


@pytest.mark.parametrize("options", [{"sentences": 10**18}, {"validation": 10**18}, {"sentences": 10**15, "shard": 1}])
def test_an_export_that_cannot_fit_is_refused(tmp_path, options):
    arguments = ExportArguments(
        **{"sentences": 10, "validation": 2, "grammar": "small", "out": tmp_path / "mine"} | options
    )
    with pytest.raises(UserError, match=r"of disk .*sentences"):
        export(arguments)
    assert not list(tmp_path.iterdir())
