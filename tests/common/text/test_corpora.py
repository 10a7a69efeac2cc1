"""Corpora of all kinds, and one line for each that cannot be read."""

import hashlib
import json
import os
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from common.text import corpora as module
from common.text.corpora import Corpus

DOCUMENTS = ["One.\nStill one.", "Two é", "  three"]


def read(name, column="text"):
    return list(Corpus(str(name), column).documents())


def refuse(message, name, column="text"):
    with pytest.raises(UserError, match=message) as caught:
        read(name, column)
    assert "\n" not in str(caught.value)


def write_rows(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def write_table(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def test_text_is_separated_by_blank_lines(tmp_path):
    path = tmp_path / "a.txt"
    for separator in ("\n\n", "\n \t\n\n\n", "\r\n\r\n"):
        path.write_bytes(f"\n\n{separator.join(DOCUMENTS)}\n".encode())
        assert read(path) == DOCUMENTS
    path.write_bytes(b"\xef\xbb\xbfWith a mark")
    assert read(path) == ["With a mark"]


def test_json_lines(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"n": i, "body": text} for i, text in enumerate([*DOCUMENTS, None, " "])])
    assert read(path, "body") == DOCUMENTS
    path.write_text('{"text": "half \\ud800 pair"}\n\n')
    assert read(path) == ["half ? pair"]


def test_parquet(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 2)
    path = write_table(tmp_path / "a.parquet", text=[*DOCUMENTS, None, ""], n=range(5))
    assert read(path) == DOCUMENTS


def test_rows_that_cannot_be_decoded(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "other": ' + "[" * 100_000 + "]" * 100_000 + "}")
    refuse("line 1 of .*a.jsonl is not a JSON object", path)
    pq.write_table(pa.table({"text": pa.array([b"a \xff"], pa.binary()).view(pa.string())}), tmp_path / "a.parquet")
    refuse("a.parquet is not UTF-8 text", tmp_path / "a.parquet")


def test_a_corpus_can_be_read_again(tmp_path):
    corpus = Corpus(str(write_rows(tmp_path / "a.jsonl", [{"text": "a"}])))
    assert list(corpus.documents()) == list(corpus.documents())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, r"a\.txt is missing: give an existing file"),
        ("a.txt", b"", r"a\.txt is empty"),
        ("a.txt", b" \n\n \n", r"a\.txt has no documents"),
        ("a.txt", b"fine\n\xff\xfe\x00", r"a\.txt is not UTF-8 text"),
        ("a.txt", b"fine\n\0binary", r"a\.txt is not UTF-8 text"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', r"line 2 of .*a\.jsonl is not a JSON object"),
        ("a.jsonl", b'["a"]', "line 1 of .* is not a JSON object"),
        ("a.jsonl", b'{"body": "a", "id": 1}', "has no column text, only body and id: give one of these as --text-col"),
        ("a.jsonl", b'{"text": 7}', r"column text in line 1 of .*a\.jsonl is int, not text"),
        ("a.jsonl", b"\x80", "is not UTF-8 text"),
        ("a.jsonl", b'{"text": ""}', "has no documents"),
        ("a.jsonl", b'{"text": {"a": 1}}', r"column text in line 1 of .*a\.jsonl is dict, not text"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "a", "text": "b"}',
            r"line 2 of .*a\.jsonl has the column text more than on",
        ),
        ("a.parquet", b"PAR1 not really", "is not a parquet file, or is damaged"),
        ("a.csv", b"text\na", r"a\.csv is no corpus: give docs, wikipedia-books"),
        ("no corpus", None, "no corpus is no corpus"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    refuse(message, tmp_path / name if "." in name else name)


def test_parquet_without_the_column_or_damaged(tmp_path):
    path = write_table(tmp_path / "a.parquet", body=["a"] * 5000, n=range(5000))
    refuse("has no column text, only body and n", path)
    refuse("column n in .* is int, not text", path, "n")
    path.write_bytes(path.read_bytes()[:8] + bytes(60) + path.read_bytes()[68:])
    refuse("is not a parquet file, or is damaged", path, "body")


def test_parquet_with_two_columns_of_the_name(tmp_path):
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "a.parquet")
    refuse(r"a\.parquet has the column text more than once: rename", tmp_path / "a.parquet")


def test_other_columns_may_occur_twice(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "text": "a", "id": 2, "meta": {"text": 1, "text": 2}}')
    assert read(path) == ["a"]


def test_a_line_or_a_document_is_never_longer_than_memory_is_large(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_CHARACTERS", 16)
    text, rows = tmp_path / "a.txt", tmp_path / "a.jsonl"
    text.write_text("0123456789\n\n01234\n\n0123456789abcdef")
    assert read(text) == ["0123456789", "01234", "0123456789abcdef"]
    for content, line in (("0123456789\n\n0123456789abcdefg", 3), ("0123456\n89\nabcdefgh\n", 3), ("0" * 100, 1)):
        text.write_text(content)
        refuse(rf"the document at line {line} of .*a\.txt has more than 16 characters: separate its documents", text)
    rows.write_text('{"text": "012"}\n{"text": "01234"}\n')
    refuse(r"line 2 of .*a\.jsonl has more than 16 characters: give one object per line", rows)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_that_is_larger_than_memory_is_refused_after_a_part_of_it(tmp_path, name, monkeypatch):
    monkeypatch.setattr(module, "MOST_CHARACTERS", 1 << 20)
    (tmp_path / name).touch()
    (tmp_path / name).write_bytes(b"a" * (1 << 21))
    os.truncate(tmp_path / name, 20 << 30)
    refuse("has more than 1,048,576 characters", tmp_path / name)


def test_a_directory_is_not_a_file(tmp_path):
    (tmp_path / "a.txt").mkdir()
    refuse("is a directory: give an existing file", tmp_path / "a.txt")


# The hub


@pytest.fixture
def hub(monkeypatch):
    """Datasets by (name, config, revision) in place of the hub's."""
    content = {}

    def load(name, config, *, revision):
        if (name, config, revision) not in content:
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist\nmore")
        rows = datasets.Dataset.from_dict(content[name, config, revision])
        streams = {"train": rows.to_iterable_dataset()}
        return SimpleNamespace(
            hash=commit_of(name), repo_id=name, info=rows.info, as_streaming_dataset=lambda split: streams[split]
        )

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    return content


def commit_of(name):
    return hashlib.sha1(name.encode()).hexdigest()


def test_the_commits_are_recorded(hub):
    hub["wikimedia/wikipedia", "20231101.en", None] = hub["org/name", "20.en", "v1/a"] = {"text": ["a"]}
    hub["bookcorpus/bookcorpus", None, "refs/convert/parquet"] = {"text": ["b"]}
    books = "bookcorpus/bookcorpus"
    expected = {"wikimedia/wikipedia:20231101.en": commit_of("wikimedia/wikipedia")}
    expected[f"{books}@refs/convert/parquet"] = commit_of(books)
    assert Corpus("wikipedia-books").notes() == {"commits": expected}
    assert Corpus("org/name:20.en@v1/a").notes() == {"commits": {"org/name:20.en@v1/a": commit_of("org/name")}}


def test_a_dataset_on_the_hub(hub):
    hub["org/name", None, None] = {"text": DOCUMENTS, "n": [1, 2, 3]}
    hub["org/name", "20.en", "v1/a"] = {"body": ["b"]}
    assert read("org/name") == DOCUMENTS
    assert read("org/name:20.en@v1/a", "body") == ["b"]
    refuse("^org/name has no column body, only text and n: give one of these", "org/name", "body")
    refuse("column n in org/name is int, not text", "org/name", "n")
    refuse(r"org/other cannot be read from the hub \(Dataset 'org/other' doesn't exist\): check its name", "org/other")


def test_wikipedia_and_books_with_sentences_joined(hub):
    hub["wikimedia/wikipedia", "20231101.en", None] = {"id": ["1"], "text": ["Article"], "title": ["A"]}
    sentences = [f"sentence {i} ." for i in range(1000)]
    hub["bookcorpus/bookcorpus", None, "refs/convert/parquet"] = {"text": sentences}
    article, *books = read("wikipedia-books")
    assert article == "Article"
    assert " ".join(books) == " ".join(sentences)
    assert all(4096 <= len(book) < 4120 for book in books[:-1])


def test_the_hub_offline(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refuse(
        r"org/absent cannot be read from the hub, with HF_HUB_OFFLINE set \(.*or give docs or a local file",
        "org/absent",
    )


# What identifies a corpus


def test_the_identity_changes_with_the_content_and_the_column(tmp_path):
    path = tmp_path / "a.jsonl"
    found = []
    for content in ("a", "bc"):
        write_rows(path, [{"text": content}])
        found += [Corpus(str(path), column).identity() for column in ("text", "body")]
    found += [Corpus(name).identity() for name in ("docs", "wikipedia-books", "org/name", "org/name:config")]
    assert len({json.dumps(identity) for identity in found}) == len(found)
