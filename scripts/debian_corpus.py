"""Make a corpus from unpacked packages of Debian; `scripts/debian_corpus.sh` downloads and unpacks them.

    python scripts/debian_corpus.py FOLDER OUT.jsonl

Documents, in this order: the entries of GCIDE (an edition of Webster's dictionary of 1913, dict-gcide) and of WordNet
(dict-wn), the sections of "An Anarchist FAQ" (anarchism) and the chapters of the King James Bible (bible-kjv and
bible-kjv-text). Packages that are missing are left out. The entries of WordNet's synonyms repeat a definition; each
definition is kept in the first entry that has it.
"""

import gzip
import json
import re
import subprocess
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path
from typing import Annotated

import tyro

from common.cli import command
from common.errors import UserError
from common.runs.files import write_file

DIGITS = {
    digit: value for value, digit in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
}
"""Of the numbers in the index of a dictionary, most significant first."""

ACCENTS = {"'": "\u0301", "`": "\u0300", "^": "\u0302", '"': "\u0308", "~": "\u0303", ",": "\u0327", "=": "\u0304"}
"""Combining characters for the marks of GCIDE, as in ['e]."""

LIGATURES = {"[ae]": "æ", "[AE]": "Æ", "[oe]": "œ", "[OE]": "Œ"}

SOURCE = re.compile(r"\[[^\]]*(?:1913|WordNet|PJC)[^\]]*\]")
"""At the end of a paragraph of GCIDE."""

PRONUNCIATION = re.compile(r" *\\[^\\\n]+\\")

SENSE = re.compile(r"^    (?:(n|v|adj|adv) )?\d+: ", re.MULTILINE)
"""The beginning of a definition of WordNet, with the part of speech if it differs from that of the one before."""

RELATED = re.compile(r"\s*\[(?:syn|ant|also):\s[^\]]*\]")

CHAPTER = re.compile(r"(?P<chapter>\w+\d+):\d+ (?P<verse>.*)")
"""A line of `bible -f`."""

BLOCKS = {"p", "h1", "h2", "h3", "li", "blockquote", "br", "div", "tr", "td", "hr"}
"""Elements of HTML that begin and end a paragraph."""


@dataclass(frozen=True, kw_only=True)
class DebianArguments:
    """Make a corpus from unpacked packages of Debian."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Into which the packages were unpacked."""
    out: Annotated[Path, tyro.conf.Positional]
    """The corpus, a .jsonl file."""


def main() -> None:
    """Parse the command line."""
    arguments = tyro.cli(DebianArguments, description=__doc__)
    write_file(arguments.out, b"".join(lines(arguments.folder)))
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")


def lines(folder: Path) -> Iterator[bytes]:
    """An object per document, of all packages; the size of each package is printed.

    Raises:
        UserError: there is no package.
    """
    found = False
    for package, (place, read) in PACKAGES.items():
        if not (folder / place).exists():
            print(f"{package}: not there, left out")
            continue
        documents, characters = 0, 0
        for document in read(folder / place):
            yield json.dumps({"text": document}, ensure_ascii=False).encode() + b"\n"
            documents, characters, found = documents + 1, characters + len(document), True
        print(f"{package}: {documents:,} documents, {characters:,} characters")
    if not found:
        raise UserError(
            f"none of the packages {', '.join(PACKAGES)} has been unpacked: apt-get needs package lists and a mirror"
        )


def entries(index: Path) -> Iterator[str]:
    """The entries of a dictionary in the format of dictd, in the order of its text; each has several headwords."""
    text = gzip.decompress(index.with_suffix(".dict.dz").read_bytes())
    rows = [line.split("\t") for line in index.read_text(encoding="utf-8", errors="replace").splitlines()]
    for start, length in sorted({(number(row[1]), number(row[2])) for row in rows if not row[0].startswith("00")}):
        entry = text[start : start + length]
        try:
            yield entry.decode()
        except UnicodeDecodeError:
            yield entry.decode("cp1252", "replace")


def number(digits: str) -> int:
    """A number of an index."""
    value = 0
    for digit in digits:
        value = value * len(DIGITS) + DIGITS[digit]
    return value


def gcide(index: Path) -> Iterator[str]:
    """The entries of GCIDE, without the marks of its sources, references and pronunciation."""
    for entry in entries(index):
        text = PRONUNCIATION.sub("", SOURCE.sub("\n", entry)).translate({ord(brace): None for brace in "{}"})
        for name, ligature in LIGATURES.items():
            text = text.replace(name, ligature)
        text = re.sub(r"\[(['`^\"~,=])([A-Za-z])\]", lambda match: match[2] + ACCENTS[match[1]], text)
        yield paragraphs(unicodedata.normalize("NFC", text))


def wordnet(index: Path) -> Iterator[str]:
    """The entries of WordNet, without synonyms, and without definitions of an earlier entry."""
    seen: set[str] = set()
    for entry in entries(index):
        word, _, rest = entry.partition("\n")
        parts, kind, senses = SENSE.split(rest), "", []
        for mark, part in zip(parts[1::2], parts[2::2], strict=True):
            kind, sense = mark or kind, " ".join(RELATED.sub("", part).split())
            if sense not in seen:
                senses.append(f"{word} ({kind}): {sense}")
            seen.add(sense)
        if senses:
            yield "\n".join(senses)


class Sections(HTMLParser):
    """Collects the text of a page, cut before each <h2>."""

    def __init__(self) -> None:
        super().__init__()
        self.texts = [""]
        self._hidden = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a section or a paragraph."""
        self._hidden = self._hidden or tag == "head"
        if tag == "h2":
            self.texts.append("")
        self._separate(tag)

    def handle_endtag(self, tag: str) -> None:
        """End a paragraph."""
        self._hidden = self._hidden and tag != "head"
        self._separate(tag)

    def handle_data(self, data: str) -> None:
        """Append text."""
        if not self._hidden:
            self.texts[-1] += " ".join(data.split("\n"))

    def _separate(self, tag: str) -> None:
        self.texts[-1] += "\n\n" if tag in BLOCKS else ""


def anarchism(folder: Path) -> Iterator[str]:
    """The sections of the FAQ and of its appendices, in the order of the files' names."""
    for path in sorted([*folder.glob("append*.html"), *folder.glob("sec*.html")]):
        page = Sections()
        page.feed(path.read_text(encoding="utf-8", errors="replace"))
        page.close()
        yield from filter(None, map(paragraphs, page.texts))


def bible(data: Path) -> Iterator[str]:
    """The chapters of the Bible, as the program of bible-kjv reads them."""
    program = data.parents[1] / "bin" / "bible"
    if not program.exists():
        print("bible-kjv: not there, so bible-kjv-text cannot be read")
        return
    arguments = [str(program), "-f", "-p", str(data.parent), "ge1:1-re22:21"]
    try:
        done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"bible-kjv: cannot be executed here ({error})")
        return
    printed = done.stdout.decode(errors="replace")
    verses = [match for line in printed.splitlines() if (match := CHAPTER.fullmatch(line))]
    for _, chapter in groupby(verses, key=lambda match: match["chapter"]):
        yield " ".join(verse["verse"] for verse in chapter)


def paragraphs(text: str) -> str:
    """Each paragraph in one line, a blank line between two."""
    joined = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return "\n\n".join(filter(None, joined))


PACKAGES: dict[str, tuple[str, Callable[[Path], Iterator[str]]]] = {
    "dict-gcide": ("usr/share/dictd/gcide.index", gcide),
    "dict-wn": ("usr/share/dictd/wn.index", wordnet),
    "anarchism": ("usr/share/doc/anarchism/html", anarchism),
    "bible-kjv-text": ("usr/lib/bible.data", bible),
}
"""Of each package, what it has and how that is read."""


if __name__ == "__main__":
    command(main)
