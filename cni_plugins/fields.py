"""Typed reading of a plugin's configuration keys, with errors that name the key and what was expected.

Unknown keys are nobody's business here: the specification lets them pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from .errors import CniError, invalid_config

T = TypeVar("T")


def _is_clean(text: str) -> bool:
    """Whether text can become a name or a path: no NUL, and no half of a surrogate pair (JSON can spell one)."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


class Fields:
    """One JSON object of a configuration, read key by key. `where` is its path, for errors."""

    def __init__(self, body: Mapping[str, object], where: str = "") -> None:
        self._body = body
        self._where = where
        self._folded: dict[str, object] | None = None

    def __repr__(self) -> str:
        return f"Fields({self._where or '.'}: {', '.join(self._body)})"

    def __contains__(self, key: str) -> bool:
        return self._get(key) is not None

    def error(self, key: str, expected: str) -> CniError:
        """The error for a key whose value is not what was expected."""
        value = repr(self._get(key))
        shown = value if len(value) <= 80 else value[:77] + "..."
        return invalid_config(f"{self._where}{key} must be {expected}, not {shown}")

    def _get(self, key: str) -> object:
        """The value of a key. As with the reference (Go's encoding/json), letter case is ignored where the exact key
        is missing: containerd writes `HostPort` and `IngressRate`."""
        value = self._body.get(key)
        if value is None and self._folded is None:
            self._folded = {k.casefold(): v for k, v in self._body.items()}
        return value if value is not None or self._folded is None else self._folded.get(key.casefold())

    def _typed(self, key: str, kind: type[T], expected: str, default: T) -> T:
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(key, expected)
        return value

    def text(self, key: str, default: str = "") -> str:
        """A string; what no name and no path may hold is refused here, for all keys."""
        value = self._typed(key, str, "a string", default)
        if not _is_clean(value):
            raise self.error(key, "a string without NUL and without half surrogate pairs")
        return value

    def flag(self, key: str, *, default: bool = False) -> bool:
        """true or false."""
        return self._typed(key, bool, "true or false", default)

    def number(self, key: str, default: int = 0, *, least: int = 0, most: int = 2**32 - 1) -> int:
        """A whole number from `least` to `most`."""
        value = self._typed(key, int, f"a whole number from {least} to {most}", default)
        if key in self and not least <= value <= most:
            raise self.error(key, f"a whole number from {least} to {most}")
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        """One of some words; empty means the default."""
        value = self.text(key, default) or default
        if value not in choices:
            raise self.error(key, "one of " + ", ".join(choices))
        return value

    def inner(self, key: str) -> Fields:
        """An object; an empty one where the key is missing."""
        value: Mapping[str, object] = self._typed(key, dict, "an object", {})
        return Fields(value, f"{self._where}{key}.")

    def items(self, key: str) -> list[Fields]:
        """A list of objects."""
        value: list[object] = self._typed(key, list, "a list of objects", [])
        if not all(isinstance(item, dict) for item in value):
            raise self.error(key, "a list of objects")
        return [Fields(item, f"{self._where}{key}[{i}].") for i, item in enumerate(value) if isinstance(item, dict)]

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        value: list[object] = self._typed(key, list, "a list of strings", [])
        if not all(isinstance(item, str) and _is_clean(item) for item in value):
            raise self.error(key, "a list of strings")
        return tuple(str(item) for item in value)

    def raw(self) -> Mapping[str, object]:
        """The object itself, for maps whose keys are data (sysctls)."""
        return self._body
