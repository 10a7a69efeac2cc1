"""Corpora as they must not be: documents of text, or a refusal that names the file."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from common.text.corpora import Corpus
from tests.hostile.contract import attempt, cases
from tests.hostile.damage import damaged, json_files

DOCUMENTS = ["A first document.\nIt has two lines.", "Überall \u2028 text", "a" * 3000]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("corpora")


def use(path, content):
    path.write_bytes(content)
    if found := attempt(lambda: (Corpus(str(path)).identity(), list(Corpus(str(path)).documents())), names=str(path)):
        _, documents = found
        assert documents
        for document in documents:
            assert document.strip()
            document.encode()  # has no half of a surrogate pair


TEXT = "\n\n".join(DOCUMENTS).encode()


@given(damaged(TEXT) | st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-16")))
@cases(200)
def test_text(folder, content):
    use(folder / "a.txt", content)


LINE = {"text": "A document.", "id": 7, "meta": {"text": None}}


@given(
    json_files(LINE).map(lambda line: json.dumps(LINE).encode() + b"\n" + line)
    | damaged(b"\n".join(json.dumps({"text": text}).encode() for text in DOCUMENTS))
)
@cases(200)
def test_lines_of_json(folder, content):
    use(folder / "a.jsonl", content)


def parquet(columns):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


COLUMNS = st.one_of(
    st.lists(st.none() | st.text(max_size=5), min_size=2, max_size=2),
    st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2),
    st.lists(st.binary(max_size=5), min_size=2, max_size=2),
    st.lists(st.lists(st.text(max_size=3), max_size=2), min_size=2, max_size=2),
    st.just([{"text": "a"}, None]),
)


@given(st.dictionaries(st.sampled_from(["text", "other"]), COLUMNS, min_size=1).map(parquet))
@cases(200)
def test_tables(folder, content):
    use(folder / "a.parquet", content)


@given(damaged(parquet({"text": DOCUMENTS, "id": [1, 2, 3]})))
@cases(200)
def test_damaged_tables(folder, content):
    use(folder / "b.parquet", content)
