"""Docstrings of a small standard library and small packages."""

import pytest

from common.errors import UserError
from common.text.docstrings import collect, docstrings, pinned, sources

MARK = "IMPORTED"


def prose(topic, words=60):
    return " ".join(f"{topic}{i}" for i in range(words))


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def install(site, name, version, files):
    for path, content in files.items():
        write(site / path, content)
    metadata = site / f"{name}-{version}.dist-info"
    write(metadata / "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    write(metadata / "RECORD", "".join(f"{path},,\n" for path in [*files, "../../bin/tool.py"]))


LINES = """-e .
beta==2.0
# a comment==1
alpha == 1.0
late==1.0  # not in the corpus docs
gamma==3
loose>=4
"""


@pytest.fixture
def installed(tmp_path):
    """Requirements, a standard library, and where the packages are."""
    library, site = tmp_path / "lib", tmp_path / "lib" / "site-packages"
    write(tmp_path / "requirements.txt", LINES)
    function = f'def f():\n    """{prose("function")}\n\n        indented\n    """\n'
    write(library / "one.py", f'"""{prose("module")}"""\n\n\nclass C:\n    """{prose("class")}"""\n\n    {MARK}\n')
    write(library / "two.py", f"open({str(tmp_path / MARK)!r}, 'w')\n{function}\n\ndef g():\n    '''Short.'''\n")
    write(library / "test" / "three.py", f'"""{prose("test")}"""')
    write(library / "test_four.py", f'"""{prose("test")}"""')
    alpha = {
        "alpha/__init__.py": f'"""{prose("alpha")}"""\n',
        "alpha/latin.py": f'# -*- coding: latin-1 -*-\n"""{prose("latin")}é"""'.encode("latin-1"),
        "alpha/broken.py": "def (:\n",
        "alpha/null.py": b"\0",
        "alpha/surrogate.py": '"""\\ud800 ' + prose("surrogate") + '"""',
        "alpha/_vendor/beta.py": f'"""{prose("vendor")}"""',
        "alpha/notes.txt": prose("notes"),
    }
    install(site, "alpha", "1.0", alpha)
    copy = f'"""{prose("alpha").upper()}"""\nasync def h():\n    """{prose("async")}"""\n'
    install(site, "beta", "2.0", {"beta/__init__.py": copy, "beta/b.py": f"# {prose('comment')}\n{function}"})
    install(site, "loose", "4", {"loose.py": f'"""{prose("loose")}"""'})
    install(site, "late", "1.0", {"late.py": f'"""{prose("late")}"""'})
    return tmp_path / "requirements.txt", library, (str(site),)


def test_documents_in_order_without_repetition(installed, tmp_path):
    found = collect(*installed)
    assert found.documents == (
        prose("module"),
        prose("class"),
        prose("function") + "\n\nindented",
        prose("alpha").upper(),
        prose("async"),
        "? " + prose("surrogate"),
    )
    assert (found.duplicates, found.unreadable) == (2, 3)
    assert not (tmp_path / MARK).exists()


def test_versions_and_what_is_missing(installed):
    found = sources(installed[0], installed[2])
    assert found.packages == {"beta": "2.0", "alpha": "1.0"}
    assert found.missing == ("gamma",)


def test_short_docstrings_are_left_out(tmp_path):
    for characters, count in ((200, 0), (201, 1)):
        write(tmp_path / "a.py", f'"""{"x" * characters}"""')
        assert len(docstrings(tmp_path / "a.py")) == count


def test_requirements_must_pin(tmp_path):
    with pytest.raises(UserError, match="is missing, which says what the corpus docs is made of"):
        pinned(tmp_path / "requirements.txt")
    write(tmp_path / "requirements.txt", "numpy>=2\n")
    with pytest.raises(UserError, match="pins no package"):
        pinned(tmp_path / "requirements.txt")


PUBLISHED = """
accelerate datasets huggingface_hub llvmlite matplotlib numba numpy pyarrow safetensors torch tqdm transformers tyro
wandb hypothesis ipykernel mypy nbclient nbformat nltk peft pytest ruff types-tqdm
"""


def test_a_new_requirement_does_not_change_the_published_corpus():
    assert pinned() == tuple(PUBLISHED.split())
    assert "numpy" in sources().packages
