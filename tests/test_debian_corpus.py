"""A corpus from packages as small as they can be, with stand-ins for apt-get and dpkg."""

import gzip
import json
import shutil
import tarfile

import pytest

from tests.sweeps import copy_of_project

WEBSTER = [
    "00-database-info\nabout",
    "Cascaron \\Cas`ca*ron\"\\, n. [Sp. cascar['o]n.]\n   Lit., an eggshell; see\n   {Egg}. [W. U. S.]\n"
    "   [1913 Webster]\n\n   2. A [ae]on. fa\x92ade\n      [WordNet 1.5]\n",
    "Egg, n.\n   [1913 Webster +PJC]\n",
]
WORDNET = [
    "00-database-short\n",
    "build\n    v 1: make [syn: {build},\n         {make}]\n    2: improve;\n       it builds\n"
    "    n 1: shape [ant:\n  {a}]\n",
    "make\n    v 1: make [syn: {build}, {make}]\n    2: create\n",
    "synonym\n    n 1: shape\n",
]
PAGE = """<!DOCTYPE html><html><head><title>no</title></head><body><p>Before &amp; <b>bold</b>
words.</p><h2>A.1 First?</h2><p>Yes.<br />No.</p><script></script><h2>A.2 Second</h2><h2></h2></body></html>"""
BIBLE = "#!/bin/sh\nprintf 'Ge1:1 In the beginning.\\nGe1:2 And.\\nGe2:1 Thus.\\n1Sm1:1 Now.\\n'\n"
TEXTS = {
    "dict-gcide": [
        "Cascaron, n. [Sp. cascarón.] Lit., an eggshell; see Egg. [W. U. S.]\n\n2. A æon. fa’ade",
        "Egg, n.",
    ],
    "dict-wn": [
        "build (v): make\nbuild (v): improve; it builds\nbuild (n): shape",
        "make (v): create",
    ],
    "anarchism": ["Before & bold words.", "A.1 First?\n\nYes.\n\nNo.", "A.2 Second"],
    "bible-kjv-text": ["In the beginning. And.", "Thus.", "Now."],
}
PROGRAMS = {
    "apt-get": '#!/bin/sh\n[ "$1 $2" = "download -qq" ] || exit 9\n'
    'cp "$PACKAGES/$3.deb" "$3_1_all.deb" || { echo "E: no $3" >&2; exit 100; }\n',
    "dpkg": '#!/bin/sh\n[ "$1" = -x ] && tar xf "$2" -C "$3"\n',
}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(0o755)


def base64(value):
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return (base64(value // 64) if value >= 64 else "") + digits[value % 64]


def write_dictionary(folder, name, entries):
    """As dictd reads it; the index is in another order than the text, and has a second headword for each entry."""
    encoded = [entry.encode("cp1252") if "\x92" not in entry else entry.encode("latin-1") for entry in entries]
    rows, start = [], 0
    for entry, content in zip(entries, encoded, strict=True):
        place = f"{base64(start)}\t{base64(len(content))}"
        rows += [f"{entry.split()[0]}\t{place}\n", f"{'00-' * entry.startswith('00')}other\t{place}\n"]
        start += len(content)
    write(folder / f"usr/share/dictd/{name}.dict.dz", gzip.compress(b"".join(encoded)))
    write(folder / f"usr/share/dictd/{name}.index", "".join(reversed(rows)))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project, with stand-ins for the programs and packages for them."""
    root = tmp_path_factory.mktemp("debian")
    unpacked = {name: root / "unpacked" / name for name in (*TEXTS, "bible-kjv")}
    write_dictionary(unpacked["dict-gcide"], "gcide", WEBSTER)
    write_dictionary(unpacked["dict-wn"], "wn", WORDNET)
    write(unpacked["anarchism"] / "usr/share/doc/anarchism/html/secA1.html", PAGE)
    write(unpacked["anarchism"] / "usr/share/doc/anarchism/html/links.html", PAGE)
    write(unpacked["bible-kjv"] / "usr/bin/bible", BIBLE)
    write(unpacked["bible-kjv-text"] / "usr/lib/bible.data", b"packed")
    for name, folder in unpacked.items():
        with tarfile.open(root / f"{name}.deb", "w") as archive:
            archive.add(folder, ".")
    for name, program in PROGRAMS.items():
        write(root / "bin" / name, program)
    project = copy_of_project(root / "project")
    project.environment.update(PATH=f"{root / 'bin'}:{project.environment['PATH']}", PACKAGES=str(root))
    return project


def corpus(project, out):
    return project.call("scripts/debian_corpus.sh", out)


def test_the_documents_of_all_packages(project, tmp_path):
    out = tmp_path / "new" / "out.jsonl"
    done = corpus(project, out)
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {"text": text} for texts in TEXTS.values() for text in texts
    ]
    *packages, total = done.stdout.splitlines()
    assert packages == [
        f"{name}: {len(texts)} documents, {sum(map(len, texts))} characters" for name, texts in TEXTS.items()
    ]
    assert total == f"{out}: {out.stat().st_size} bytes"
    assert list(out.parent.iterdir()) == [out]


def test_packages_that_cannot_be_downloaded_are_left_out(project, tmp_path, monkeypatch):
    shutil.copy(f"{project.environment['PACKAGES']}/dict-wn.deb", tmp_path)
    monkeypatch.setitem(project.environment, "PACKAGES", str(tmp_path))
    out = tmp_path / "out.jsonl"
    done = corpus(project, out)
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == 4
    assert all(" is left out: cp: cannot stat" in line for line in done.stderr.splitlines())
    assert len(out.read_text().splitlines()) == len(TEXTS["dict-wn"])
    (tmp_path / "dict-wn.deb").unlink()
    out.unlink()
    done = corpus(project, out)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: none of the packages dict-gcide, dict-wn, ")
    assert not out.exists()


def test_without_apt_it_is_one_line(project, tmp_path, monkeypatch):
    for program in ("bash", "env", "realpath"):
        (tmp_path / program).symlink_to(shutil.which(program))
    monkeypatch.setitem(project.environment, "PATH", str(tmp_path))
    done = corpus(project, tmp_path / "out.jsonl")
    assert done.returncode == 2
    assert done.stderr == "error: apt-get is missing: make the corpus on Debian or Ubuntu, and copy it\n"


def test_the_corpus_needs_a_name(project):
    done = corpus(project, "out.txt")
    assert (done.returncode, done.stderr) == (2, "usage: scripts/debian_corpus.sh OUT.jsonl\n")
