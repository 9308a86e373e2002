"""YAML as our manifests write it: block mappings and sequences, plain or quoted scalars, `|` texts, comments.

Anything else is refused, so that what this reads, every YAML parser reads, and alike.
"""

from __future__ import annotations

import re
from typing import Any

_KEY = re.compile(r"([A-Za-z0-9_./-]+):(?: (.+))?")
_QUOTED = re.compile(r'"([^"\\]*)"')
_PLAIN = re.compile(r"[A-Za-z0-9/.-][^#\[\]{}&*!|>'\"@`]*")


def load(text: str) -> Any:
    """The document's value; scalars stay strings. Raises ValueError."""
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1)]
    rest = [(number, line) for number, line in lines if line.strip() and not line.lstrip().startswith("#")]
    value = _block(rest, 0)
    if rest:
        raise ValueError(f"line {rest[0][0]}: {rest[0][1]!r} is indented as nothing before it")
    return value


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _block(rest: list[tuple[int, str]], indent: int) -> Any:
    if rest[0][1].lstrip().startswith("- "):
        return _sequence(rest, indent)
    return _mapping(rest, indent)


def _sequence(rest: list[tuple[int, str]], indent: int) -> list[Any]:
    items: list[Any] = []
    while rest and _indent(rest[0][1]) == indent and rest[0][1].lstrip().startswith("- "):
        number, line = rest[0]
        inner = line[indent + 2 :]
        if _KEY.fullmatch(inner):
            rest[0] = number, " " * (indent + 2) + inner
            items.append(_mapping(rest, indent + 2))
        else:
            rest.pop(0)
            items.append(_scalar(rest, number, inner, indent))
    return items


def _mapping(rest: list[tuple[int, str]], indent: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while rest and _indent(rest[0][1]) == indent and not rest[0][1].lstrip().startswith("- "):
        number, line = rest.pop(0)
        match = _KEY.fullmatch(line[indent:])
        if match is None or match[1] in found:
            raise ValueError(f"line {number}: {line!r} is no `key: value`, or is there twice")
        if match[2] is not None:
            found[match[1]] = _scalar(rest, number, match[2], indent)
        elif not rest or _indent(rest[0][1]) <= indent:
            raise ValueError(f"line {number}: {line!r} has no value")
        else:
            found[match[1]] = _block(rest, _indent(rest[0][1]))
    return found


def _scalar(rest: list[tuple[int, str]], number: int, text: str, indent: int) -> str:
    if text == "|":
        lines = []
        while rest and _indent(rest[0][1]) > indent:
            lines.append(rest.pop(0)[1].strip())
        return "\n".join(lines)
    if quoted := _QUOTED.fullmatch(text):
        return quoted[1]
    if not _PLAIN.fullmatch(text) or ": " in text:
        raise ValueError(f"line {number}: the scalar {text!r} needs a feature of YAML that we do without")
    return text
