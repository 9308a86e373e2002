"""YAML nodes to frozen dataclasses, strictly, by the dataclasses' own annotations; finds all faults, not the first.

Works on the node tree, so that each fault has its line, and reads scalars by their text, so that `off` can be a word
and `80:80` no number. A field `timeout_s` is the key `timeout`, written `250ms`; `max_head_bytes` is `max_head`,
written `64KiB`. Where one value may be written in several ways, config_file.py has a reader of its own for that class.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

# What a value that could not be read stands as until its owner drops it.
BAD: Any = object()

_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_UNITS_BYTES = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "kB": 1000, "MB": 10**6, "GB": 10**9}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:us|ms|s|m|h|d))+|0")
_DURATION_PART = re.compile(r"([0-9.]+)(us|ms|s|m|h|d)")
_SIZE = re.compile(r"([0-9]+)([A-Za-z]*)")
_NULLS = {"", "~", "null", "Null", "NULL"}

# Reads a node as a class written in more than one way.
Special = Callable[["Reader", yaml.Node, str], Any]
# Says what was expected, where a value of the right type is impossible.
Check = Callable[[Any], str | None]


class Reader:
    """Reads one file. Collects `problems` as (line, text), and where each value stood."""

    def __init__(self, *, checks: Mapping[str, Check], specials: Mapping[type, Special]) -> None:
        self.checks = checks
        self.specials = specials
        self.problems: list[tuple[int, str]] = []
        self.lines: dict[str, int] = {}
        # Every key that was given: (class, field) -> line and value. What the sample file is tested by.
        self.given: dict[tuple[str, str], list[tuple[int, Any]]] = {}

    def __repr__(self) -> str:
        return f"Reader({len(self.problems)} problems)"

    def fail(self, at: yaml.Node | int, where: str, text: str) -> Any:
        line = at if isinstance(at, int) else line_of(at)
        self.problems.append((line, f"{where}: {text}" if where else text))
        return BAD

    def refuse(self, node: yaml.Node, where: str, expected: str) -> Any:
        return self.fail(node, where, f"expected {expected}, found {describe(node)}")

    def pairs(self, node: yaml.Node, where: str, expected: str) -> list[tuple[str, yaml.Node, yaml.Node]] | None:
        """The keys of a mapping with their nodes, each key once; None where it is no mapping."""
        if not isinstance(node, yaml.MappingNode):
            self.refuse(node, where, expected)
            return None
        found: dict[str, tuple[str, yaml.Node, yaml.Node]] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.refuse(key_node, where, "a key of plain text")
                continue
            key = str(key_node.value)
            if key in found:
                first = line_of(found[key][1])
                self.fail(key_node, join(where, key), f"expected each key once, found it again (first in line {first})")
                continue
            found[key] = (key, key_node, value_node)
        return list(found.values())

    def record(self, node: yaml.Node, kind: type, where: str) -> Any:
        """A dataclass from a mapping of its fields' keys."""
        pairs = self.pairs(node, where, f"a mapping with {some(keys_of(kind))}")
        return BAD if pairs is None else self.build(node, kind, where, pairs)

    def build(
        self,
        node: yaml.Node,
        kind: type,
        where: str,
        pairs: Iterable[tuple[str, yaml.Node, yaml.Node]],
        *,
        extra: Mapping[str, Any] | None = None,
    ) -> Any:
        """A dataclass from pairs; `extra` are fields that the caller has read (BAD where it could not)."""
        known = keys_of(kind)
        values: dict[str, Any] = dict(extra or {})
        for key, key_node, value_node in pairs:
            if key not in known:
                self.unknown(key_node, where, key, known)
                continue
            field, annotation = known[key]
            at = join(where, key)
            self.lines[at] = line_of(key_node)
            value = self.value(value_node, annotation, at, name=field.name)
            values[field.name] = self.checked(value_node, f"{kind.__name__}.{field.name}", at, value)
            self.note(kind, field.name, key_node, values[field.name])
        for key, (field, _) in known.items():
            if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
                values[field.name] = self.fail(node, where, f"expected the key `{key}`, which has no default")
        if any(value is BAD for value in values.values()):
            return BAD
        built = kind(**values)
        return self.checked(node, kind.__name__, where, built)

    def note(self, kind: type, name: str, key_node: yaml.Node, value: Any) -> None:
        self.given.setdefault((kind.__name__, name), []).append((line_of(key_node), value))

    def unknown(self, key_node: yaml.Node, where: str, key: str, known: Iterable[str]) -> None:
        names = list(known)
        close = difflib.get_close_matches(key, names, n=1)
        # `timeout_s`, as the values in the program are called.
        close = [name for name in names if key in (name + "_s", name + "_bytes")] or close
        hint = f"did you mean `{close[0]}`?" if close else f"expected {some(names)}"
        self.fail(key_node, where, f"unknown key `{key}`: {hint}")

    def checked(self, node: yaml.Node, name: str, where: str, value: Any) -> Any:
        if value is BAD or (check := self.checks.get(name)) is None:
            return value
        for item in value if isinstance(value, tuple) and not is_dataclass(value) else (value,):
            if item is not None and (expected := check(item)) is not None:
                found = describe(node) if not isinstance(node, yaml.CollectionNode) else repr_of(item)
                return self.fail(node, where, f"expected {expected}" + (f", found {found}" if found else ""))
        return value

    def value(self, node: yaml.Node, annotation: Any, where: str, *, name: str) -> Any:
        """A value of an annotated type. `name` is the field's, for its unit."""
        origin = get_origin(annotation)
        if origin in (Union, types.UnionType):
            options = [option for option in get_args(annotation) if option is not type(None)]
            if is_null(node):
                return None
            return self.value(node, options[0], where, name=name)
        if annotation in self.specials:
            return self.specials[annotation](self, node, where)
        if is_dataclass(annotation) and isinstance(annotation, type):
            return self.record(node, annotation, where)
        if origin is tuple:
            return self.sequence(node, get_args(annotation)[0], where, name=name)
        if origin is not None and origin is not Literal and issubclass(origin, Mapping):
            pairs = self.pairs(node, where, "a mapping of text to text")
            if pairs is None:
                return BAD
            texts = {key: self.scalar(value, str, join(where, key), name=name) for key, _, value in pairs}
            return BAD if any(text is BAD for text in texts.values()) else texts
        return self.scalar(node, annotation, where, name=name)

    def sequence(self, node: yaml.Node, annotation: Any, where: str, *, name: str) -> Any:
        """A tuple from a list; one value alone stands for a list of it."""
        if isinstance(node, yaml.SequenceNode):
            items = node.value
        elif is_null(node) or not self._may_stand_alone(node, annotation):
            return self.refuse(node, where, "a list")
        else:
            return self._whole([self.value(node, annotation, where, name=name)])
        values = []
        for number, item in enumerate(items):
            at = f"{where}[{number}]"
            self.lines[at] = line_of(item)
            values.append(self.value(item, annotation, at, name=name))
        return self._whole(values)

    def _may_stand_alone(self, node: yaml.Node, annotation: Any) -> bool:
        if isinstance(node, yaml.MappingNode):
            return is_dataclass(annotation)
        return annotation in self.specials or not is_dataclass(annotation)

    @staticmethod
    def _whole(values: list[Any]) -> Any:
        return BAD if any(value is BAD for value in values) else tuple(values)

    def scalar(self, node: yaml.Node, annotation: Any, where: str, *, name: str) -> Any:
        if get_origin(annotation) is Literal:
            choices = {str(choice): choice for choice in get_args(annotation)}
            if isinstance(node, yaml.ScalarNode) and node.value in choices:
                return choices[node.value]
            hint = ""
            if isinstance(node, yaml.ScalarNode):
                close = difflib.get_close_matches(node.value.lower(), choices, n=1)
                hint = f" (did you mean {close[0]}?)" if close else ""
            return self.fail(node, where, f"expected {either(choices)}, found {describe(node)}{hint}")
        if not isinstance(node, yaml.ScalarNode):
            return self.refuse(node, where, _expected(annotation, name))
        text: str = node.value
        value: Any = BAD
        if annotation is str:
            value = text if not is_null(node) else BAD
        elif annotation is bool:
            value = {"true": True, "false": False}.get(text, BAD)
        elif name.endswith("_s"):
            value = duration_s(text, whole=annotation is int)
        elif name.endswith("_bytes"):
            value = size_bytes(text)
        elif annotation is int and re.fullmatch(r"[0-9][0-9_]*", text):
            value = int(text)
        elif annotation is float and re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
            value = float(text)
        return self.refuse(node, where, _expected(annotation, name)) if value is BAD else value


def duration_s(text: str, *, whole: bool = False) -> Any:
    """`250ms`, `15s`, `1h30m`, `0` as seconds; BAD for anything else, a number without its unit included."""
    if not _DURATION.fullmatch(text):
        return BAD
    # Rounded: 0.1 + 0.2 shall be what 300ms is.
    seconds = round(sum(float(number) * _UNITS_S[unit] for number, unit in _DURATION_PART.findall(text)), 9)
    return int(seconds) if whole else seconds


def size_bytes(text: str) -> Any:
    match = _SIZE.fullmatch(text)
    return int(match[1]) * _UNITS_BYTES[match[2]] if match and match[2] in _UNITS_BYTES else BAD


@cache
def keys_of(kind: type) -> dict[str, tuple[Field[Any], Any]]:
    """The keys of a class as they are written, with the field and its type."""
    hints = get_type_hints(kind)
    return {key_of(field.name): (field, hints[field.name]) for field in fields(kind)}


def key_of(name: str) -> str:
    return name.removesuffix("_s").removesuffix("_bytes")


def line_of(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not node.style and node.value in _NULLS


def join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def describe(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "nothing" if is_null(node) else repr_of(node.value)


def repr_of(value: object) -> str:
    if is_dataclass(value):
        return ""
    text = str(value)
    return f"`{text[:60]}...`" if len(text) > 60 else f"`{text}`"


def some(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def either(names: Iterable[str]) -> str:
    return " or ".join((", ".join(list(names)[:-1]), list(names)[-1])).removeprefix(" or ")


def _expected(annotation: Any, name: str) -> str:
    if annotation is bool:
        return "true or false"
    if annotation is str:
        return "text"
    if name.endswith("_s"):
        return "a duration such as 250ms, 15s or 1h30m"
    if name.endswith("_bytes"):
        return "a size such as 64KiB"
    return "a whole number" if annotation is int else "a number"
