"""What HTTP/1.1 requests, answers and trailers share: fields, which of them end here, and what is wrong with bad ones.

RFC 9110 5 and 7.6.1, RFC 9112 5. Names come out in lower case, values without the white space around them.
"""

from __future__ import annotations

import re
from typing import Final

from meshproxy.message import Fields

# RFC 9110 5.6.2. Possessive: what cannot match fails at once, so that no input takes more than linear time.
TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
# RFC 9110 5.5: visible characters, space, tab, and bytes above 0x7f. No CR, LF, NUL or other control character.
VALUE_LINE: Final = rb"[^\x00-\x08\x0a-\x1f\x7f]*+\r\n"
_FIELD = re.compile(rb"(%b):[ \t]*+((?:[^\x00-\x20\x7f]++(?:[ \t]++(?!\r))?+)*+)[ \t]*+\r\n" % TOKEN)
_FIELD_BLOCK = re.compile(rb"(?:%b:%b)*+" % (TOKEN, VALUE_LINE))
_FIND_BAD_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_MAX_EXPRESSIONS = 256
# A length beyond this is no length but an attempt to overflow one: 10^15 bytes.
_LENGTH = re.compile(rb"[0-9]{1,15}")

# RFC 9110 7.6.1, and what came of bad habit.
HOP_BY_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade"}
)
# If Connection could remove these, a client could hide from the endpoint what the proxy has decided by.
NEVER_HOP_BY_HOP: Final = frozenset(
    {
        b"authorization",
        b"content-length",
        b"cookie",
        b"host",
        b"transfer-encoding",
        b"traceparent",
        b"x-forwarded-for",
        b"x-forwarded-proto",
        b"x-request-id",
    }
)


class BadMessage(Exception):
    """A message that is refused, with the status that says so to a client; an endpoint's becomes a 502."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


def any_case(name: str) -> bytes:
    """An expression for `name` in any case. A class for each letter: (?i:...) may not have a lower-case prefix."""
    return "".join(f"[{c}{c.upper()}]" if c.isalpha() else re.escape(c) for c in name).encode()


def split_fields(data: bytes, start: int, *, max_fields: int) -> Fields:
    """The fields of a whole head, from `start` to the blank line that ends `data`. Raises BadMessage."""
    block = _FIELD_BLOCK.match(data, start)
    end = start if block is None else block.end()
    if data[end:] != b"\r\n":
        raise BadMessage(400, _what_is_wrong(data, end))
    pairs = [(name.lower(), value) for name, value in _FIELD.findall(data, start)]
    if len(pairs) > max_fields:
        raise BadMessage(431, f"more than {max_fields} fields")
    return pairs


def fields_of_lines(lines: bytes, start: int) -> Fields:
    """The fields of validated lines."""
    return [(name.lower(), value) for name, value in _FIELD.findall(lines, start)]


class Http1Origin:
    """ReadOrigin of HTTP/1: a validated head without its blank line. Host and content-length are in it, but no fields.

    Called, it reads all fields (3 us for eight); `values` finds one (0.4 us).
    """

    __slots__ = ("_expressions",)

    def __init__(self) -> None:
        # By name; few, since only configured names are asked for, but bounded all the same.
        self._expressions: dict[bytes, re.Pattern[bytes]] = {}

    def __call__(self, origin: object) -> Fields:
        assert isinstance(origin, bytes)
        pairs = fields_of_lines(origin, origin.find(b"\n") + 1)
        return [pair for pair in pairs if pair[0] != b"host" and pair[0] != b"content-length"]

    def values(self, origin: object, name: bytes) -> list[bytes]:
        assert isinstance(origin, bytes)
        expression = self._expressions.get(name)
        if expression is None:
            if len(self._expressions) >= _MAX_EXPRESSIONS:
                self._expressions.clear()
            expression = self._expressions[name] = re.compile(
                rb"\n%b:[ \t]*+([^\r]*?)[ \t]*+\r" % any_case(name.decode("latin-1"))
            )
        return expression.findall(origin)


HTTP1: Final = Http1Origin()


def connection_options(pairs: Fields) -> frozenset[bytes]:
    """What Connection names, in lower case."""
    return frozenset(
        option.strip(b" \t").lower() for name, value in pairs if name == b"connection" for option in value.split(b",")
    )


def content_length_of(pairs: Fields) -> int | None:
    """The one content-length. RFC 9112 6.3; equal ones, too, are refused: somebody added one."""
    lengths = [value for name, value in pairs if name == b"content-length"]
    if not lengths:
        return None
    if len(lengths) > 1 or _LENGTH.fullmatch(lengths[0]) is None:
        raise BadMessage(400, "bad content-length")
    return int(lengths[0])


def without(pairs: Fields, options: frozenset[bytes], *more: bytes) -> Fields:
    """The fields that go on to the next hop, without what frames the message."""
    gone = HOP_BY_HOP.union(options, more, (b"content-length",))
    return [pair for pair in pairs if pair[0] not in gone]


def has_bad_line_end(data: bytes, start: int = 0) -> bool:
    """Whether a line ends in a bare LF, or a CR stands alone: no head that begins so can become good.

    A CR at the very end is not known yet.
    """
    found = _FIND_BAD_LINE_END.search(data, start)
    return found is not None and found.end() < len(data) + (found[0] == b"\n")


def _what_is_wrong(data: bytes, at: int) -> str:
    """Name the fault of the line at `at`, for the log and for whoever debugs a client."""
    line = data[at : data.find(b"\n", at) + 1]
    name, colon, _ = line.partition(b":")
    if line[:1] in (b" ", b"\t"):
        return "folded line"  # RFC 9112 5.2
    if b"\0" in line:
        return "NUL in a field"
    if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
        return "bare CR or LF"
    if not colon:
        return "field without a colon"
    if name[-1:] in (b" ", b"\t"):
        return "white space before a colon"  # RFC 9112 5.1
    if re.fullmatch(TOKEN, name) is None:
        return "bad field name"
    return "control character in a field"
