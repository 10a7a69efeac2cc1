"""Grammar files: text, and the JSON files of Allen-Zhu and Li (2023), arXiv:2305.13673.

A text file has one `A -> right | right` per line, symbols separated by spaces; `#` starts a comment. An alternative may
end in a weight in brackets, `S -> A B [0.7] | c [0.3]`; weights are relative, and without any the alternatives are
equally likely. The alternatives of a symbol may be spread over several lines. The first left side is the start. Symbols
without rules are the terminals. A symbol is any text of up to 100 printable characters without white space and without
`|`, `[`, `]` and `#`.

The grammars cfg3b to cfg3i in `grammars/` are those of that paper, but cfg3b is the one in the code of Panigrahi et al.
(2025), arXiv:2410.05464: there 9 -> 3 2 1 is the only rule of 9, while the file of Allen-Zhu and Li, `cfg3b-released`,
has 9 -> 2 1 as well.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.pcfg.grammar import Alternative, Grammar, make_grammar

GRAMMARS = Path(__file__).parent / "grammars"

MAX_BYTES = 2**24
"""Of a grammar file."""

MAX_NAME = 100
"""Characters of a symbol."""


def grammar_names() -> tuple[str, ...]:
    """Names of the grammars that come with this package."""
    return tuple(sorted(path.stem for path in GRAMMARS.glob("*.cfg")))


def load_grammar(name_or_path: str, start: str | None = None) -> Grammar:
    """A grammar of this package by its name, or one from a file.

    A file whose name ends in `.json` is one of those that Allen-Zhu and Li released with "Physics of Language Models,
    part 1": nodes in levels, `all[level][i]` with the alternatives `children`, whose elements are indices into the next
    level; `idx[level][i]` is the node's symbol, level 0 has the start alone, the last level the terminals.
    Any other file is text, see above.

    Args:
        name_or_path: such as `cfg3b`, or a path.
        start: start symbol; by default the first left side.

    Raises:
        UserError: no such grammar, the file cannot be read, or the grammar is refused (see `parse_grammar`).
    """
    if name_or_path in grammar_names():
        path = GRAMMARS / f"{name_or_path}.cfg"
    else:
        path = Path(name_or_path)
        if not path.is_file():
            names = ", ".join(grammar_names())
            raise UserError(f"{name_or_path} is neither a grammar file nor one of {names}")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{name_or_path} is no grammar: it has more than {MAX_BYTES:,} bytes")
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the grammar {name_or_path} ({error}): give a text file in UTF-8") from error
    if path.suffix == ".json":
        alternatives = _from_json(text, name_or_path)
        return make_grammar(name_or_path, alternatives, alternatives[0].left if start is None else start)
    return parse_grammar(text, name_or_path, start)


def parse_grammar(text: str, name: str, start: str | None = None) -> Grammar:
    """The grammar that a text describes.

    Args:
        text: the content of a grammar file.
        name: of the grammar or its file, for messages.
        start: start symbol; by default the first left side. Symbols that it does not reach are left out, but terminals
            keep the token ids that they have in the whole grammar.

    Raises:
        UserError: names the line if the text cannot be parsed; or as `make_grammar`.
    """
    alternatives = [
        alternative
        for number, line in enumerate(text.split("\n"), 1)
        for alternative in _parse_line(line, f"{name}, line {number}")
    ]
    if not alternatives:
        raise UserError(f"{name} has no rules: write lines such as S -> A B | c")
    return make_grammar(name, alternatives, start)


def _parse_line(line: str, where: str) -> list[Alternative]:
    content = line.split("#")[0].strip()
    if not content:
        return []
    left, arrow, rights = content.partition("->")
    if not arrow or len(left.split()) != 1:
        raise UserError(
            f"{where}: {content[:MAX_NAME]!r} is not a rule: write one symbol, then ->, then its alternatives"
        )
    return [_parse_alternative(_symbol(left.strip(), where), right.strip(), where) for right in rights.split("|")]


def _parse_alternative(left: str, text: str, where: str) -> Alternative:
    weight = None
    if text.endswith("]"):
        text, _, number = text[:-1].partition("[")
        weight = _weight(number.strip(), where)
    right = tuple(_symbol(symbol, where) for symbol in text.split())
    if not right:
        raise UserError(f"{where}: an alternative of {left} is empty: give it at least one symbol")
    return Alternative(left, right, weight, where)


def _symbol(text: str, where: str) -> str:
    if "->" in text or set(text) & set("|[]") or not text.isprintable():
        raise UserError(
            f"{where}: {_shown(text)} is not a symbol: write one rule per line, and a weight such as [0.5] last"
        )
    if re.fullmatch(r"[0-9]*\.[0-9]+", text):
        raise UserError(f"{where}: {text} is not a symbol: write a weight in brackets, [{text}], or name the symbol")
    if len(text) > MAX_NAME:
        raise UserError(f"{where}: the symbol {_shown(text)} has more than {MAX_NAME} characters")
    return text


def _shown(text: str) -> str:
    """The beginning of a text, in quotes if it would not be readable without."""
    beginning = text if len(text) <= MAX_NAME else f"{text[:MAX_NAME]}..."
    return beginning if beginning.isprintable() and " " not in beginning else repr(beginning)


def _weight(text: str, where: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise UserError(f"{where}: the weight [{_shown(text)}] is not a positive finite number")
    return weight


def _from_json(text: str, name: str) -> list[Alternative]:
    """The rules of Allen-Zhu and Li's file. They draw alternatives uniformly, so a repeated one counts twice.

    Options that make a token differ from its leaf's symbol are refused.
    """
    try:
        content: Any = json.loads(text)
        for setting in ("content_depth", "multi_vocab", "double_data_layer", "rand_flip", "ptb"):
            if content.get(setting) not in (None, False, "false"):
                raise UserError(
                    f"{name} has {setting}, which changes the tokens: give a grammar without it, or as text"
                )
        symbols = [[str(_whole(number)) for number in level] for level in content["idx"]]
        if repeated := [symbol for symbol, count in Counter(chain(*symbols)).items() if count > 1]:
            raise ValueError(f"symbol {repeated[0]} is there twice")
        alternatives = []
        for level, (here, below) in enumerate(pairwise(symbols)):
            for symbol, node in zip(here, content["all"][level], strict=True):
                rights = Counter(tuple(_child(i, below) for i in right) for right in node["children"])
                if not rights or () in rights:
                    raise ValueError(f"symbol {symbol} has no alternatives, or an empty one")
                alternatives += [Alternative(symbol, right, number, name) for right, number in rights.items()]
        if not alternatives:
            raise ValueError("it has fewer than two levels")
        return alternatives
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{name} is not a grammar of Allen-Zhu and Li ({type(error).__name__}: {_shown(str(error))}): "
            "give one of their JSON files, or a text file with another suffix"
        ) from error


def _whole(number: Any) -> int:
    if isinstance(number, bool) or not isinstance(number, int | float) or number != int(number):
        raise TypeError(f"{number!r} is not a whole number")
    return int(number)


def _child(index: Any, below: Sequence[str]) -> str:
    """The symbol of an index, which must not count from the end."""
    if not 0 <= _whole(index) < len(below):
        raise IndexError(f"child {index} of {len(below)}")
    return below[index]
