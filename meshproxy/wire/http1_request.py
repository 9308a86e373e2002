"""HTTP/1.1 request heads: bytes to RequestHead, strictly; what two readers could read in two ways is refused.

Hot. One regular expression validates a usual head whole and finds what matters in it (2 us for eight fields, where a
loop over them takes 8 us); `_read_slowly` takes the others and says what is wrong. What a head may not be: RFC 9112
and the table in tests/meshproxy/wire/abuse.py. To write heads: http1_write.py; bodies: chunked.py.
"""

from __future__ import annotations

import re
import string
from typing import Final

from meshproxy.message import Fields, RequestHead
from meshproxy.wire.http1_fields import (
    HTTP1,
    NEVER_HOP_BY_HOP,
    TOKEN,
    VALUE_LINE,
    BadMessage,
    any_case,
    connection_options,
    content_length_of,
    split_fields,
    without,
)

# What decides on framing or routing, or is changed on the way: the quick expression leaves no such field unseen.
_TOKEN_LETTERS: Final = set("!#$%&'*+-.^_`|~" + string.digits + string.ascii_letters)
_SPECIAL: Final = (
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "traceparent",
    "tracestate",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-request-id",
)
_INITIALS = {letter for name in _SPECIAL for letter in (name[0], name[0].upper())}
# A class rather than a look-ahead before a token: 0.3 us for eight fields.
_PLAIN_INITIAL = b"[%b]" % "".join(sorted(_TOKEN_LETTERS - _INITIALS)).replace("-", r"\-").replace("^", r"\^").encode()
_NOT_SPECIAL = rb"(?!(?:%b):)" % b"|".join(any_case(name) for name in _SPECIAL)

# RFC 9112 3: no white space but the two spaces; a target in origin form has no fragment. Bytes above 0x7e do not belong
# in a target, but clients send raw UTF-8 and every peer forwards it.
_TARGET = rb"[^\x00-\x20\x7f#]*+"
# RFC 3986 3.2.2, without userinfo.
_HOST_VALUE = rb"(?:[0-9A-Za-z.\-_~%!$&'()*+,;=]++|\[[0-9A-Fa-f:.]++\])(?::[0-9]{0,5}+)?+"

# Each of these at most once: the conditional before each group lets nobody into it twice, and a second such line
# matches nothing else. That is also what makes the groups reliable: CPython 3.11 does not restore a group's start where
# a branch inside a possessive repetition fails, so none may fail inside a group that has matched before.
_FORWARDED_VALUE = rb"[^\x00-\x20\x7f]++(?:[ \t]++[^\x00-\x20\x7f]++)*+"


def _once(group: int, name: str, rest: bytes) -> bytes:
    """The line `name: rest` unless `group` has matched. The first letter comes first, by which branches are chosen."""
    return any_case(name[0]) + b"(?(%d)(?!))" % group + any_case(name[1:]) + rest


_NAMED = [
    _once(3, "host", rb":[ \t]*+(%b)[ \t]*+\r\n" % _HOST_VALUE),
    # From the colon on; what is cut out begins before it, see keep_alive_span.
    _once(4, "connection", rb"(: ?%b\r\n)" % any_case("keep-alive")),
    _once(5, "content-length", rb": ?([0-9]{1,15})\r\n"),
    _once(6, "x-request-id", rb"(:)" + VALUE_LINE),
    _once(7, "x-forwarded-for", rb":[ \t]*+(%b)[ \t]*+\r\n" % _FORWARDED_VALUE),
    _once(8, "x-forwarded-proto", rb"(:)" + VALUE_LINE),
    # Version 00 of W3C Trace Context 2.2.2, not all zero; another one is for the slow reader.
    _once(9, "traceparent", rb": ?(00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})\r\n"),
    _once(10, "tracestate", rb"(:)" + VALUE_LINE),
]
# Most fields are told to be ordinary by their first letter, the others by not being any of the names above.
_QUICK = re.compile(
    rb"(?!CONNECT )(%b) (/%b) HTTP/1\.1\r\n(?:%b%b:%b|%b|%b%b:%b)*+\r\n"
    % (
        TOKEN,
        _TARGET,
        _PLAIN_INITIAL,
        TOKEN.replace(b"++", b"*+"),
        VALUE_LINE,
        b"|".join(_NAMED),
        _NOT_SPECIAL,
        TOKEN,
        VALUE_LINE,
    )
)
# The groups of what quick_match found.
METHOD, PATH, HOST, KEEP_ALIVE, LENGTH, REQUEST_ID, FORWARDED_FOR, FORWARDED_PROTO, TRACE_PARENT, TRACE_STATE = range(
    1, 11
)
quick_match = _QUICK.match

_REQUEST_LINE = re.compile(rb"(%b) ([^\x00-\x20\x7f]++) HTTP/([0-9])\.([0-9])\r\n" % TOKEN)
_ABSOLUTE = re.compile(rb"(?i:(https?))://(%b)((?:/|\?)%b)?+" % (_HOST_VALUE, _TARGET))
_AUTHORITY = re.compile(_HOST_VALUE)
_ORIGIN_FORM = re.compile(rb"/%b" % _TARGET)
_SHORTEST_LINE = len(b"a:\r\n")


class Request:
    """A request's head with what concerns this connection only."""

    __slots__ = ("head", "is_chunked", "is_http10", "keep_alive")

    def __init__(
        self, head: RequestHead, *, keep_alive: bool = True, is_chunked: bool = False, is_http10: bool = False
    ) -> None:
        self.head = head
        self.keep_alive = keep_alive
        self.is_chunked = is_chunked
        self.is_http10 = is_http10


def quick_request(data: bytes, *, max_fields: int) -> re.Match[bytes] | None:
    """Find a usual head at the start of `data`; None: read_request must say. Raises BadMessage."""
    match = quick_match(data)
    if match is None or match[HOST] is None:
        return None
    end = match.end()
    if end > max_fields * _SHORTEST_LINE and data.count(b"\n", 0, end) - 2 > max_fields:
        raise BadMessage(431, f"more than {max_fields} fields")
    return match


def keep_alive_span(match: re.Match[bytes]) -> tuple[int, int]:
    """Where the line `Connection: keep-alive` is, which ends here; below 0 where there is none."""
    start, end = match.span(KEEP_ALIVE)
    return (start, end) if start < 0 else (start - len("connection"), end)


def quick_head(match: re.Match[bytes], origin: bytes) -> RequestHead:
    """The head that the quick expression found; `origin` is what to forward of it."""
    method, path, host, _, length = match.group(METHOD, PATH, HOST, KEEP_ALIVE, LENGTH)
    if length is None:
        return RequestHead(method, b"http", host, path, None, None, False, None, origin, HTTP1)
    size = int(length)
    return RequestHead(method, b"http", host, path, None, size, size > 0, None, origin, HTTP1)


def read_request(data: bytes, *, max_fields: int) -> Request:
    """Read one whole head, blank line included. Raises BadMessage."""
    match = quick_request(data, max_fields=max_fields)
    if match is not None and match.end() == len(data):
        start, end = keep_alive_span(match)
        return Request(quick_head(match, data[:-2] if start < 0 else data[:start] + data[end:-2]))
    return _read_slowly(data, max_fields=max_fields)


def _read_slowly(data: bytes, *, max_fields: int) -> Request:
    line = _REQUEST_LINE.match(data)
    if line is None:
        raise BadMessage(400, "bad request line")
    method, target, major, minor = line.groups()
    if major != b"1":
        raise BadMessage(505, "HTTP/1.0 and HTTP/1.1 are spoken here")
    is_http10 = minor == b"0"
    pairs = split_fields(data, line.end(), max_fields=max_fields)
    hosts = [value for name, value in pairs if name == b"host"]
    if len(hosts) > 1:
        raise BadMessage(400, "more than one host")
    if not hosts and not is_http10:
        raise BadMessage(400, "no host")
    host = hosts[0] if hosts else b""
    if host and _AUTHORITY.fullmatch(host) is None:
        raise BadMessage(400, "bad host")
    scheme, authority, path = _target(method, target, host)

    options = connection_options(pairs)
    if not options.isdisjoint(NEVER_HOP_BY_HOP):
        raise BadMessage(400, "Connection names a field that is not its own")
    length, is_chunked = _framing(pairs, is_http10=is_http10)
    expects = [value for name, value in pairs if name == b"expect"]
    if any(value.lower() != b"100-continue" for value in expects):
        raise BadMessage(417, "unknown expectation")
    has_body = is_chunked or bool(length)
    upgrade = None
    if method == b"CONNECT":
        if has_body:
            raise BadMessage(400, "CONNECT with a body")
        upgrade = b"connect"
    elif b"upgrade" in options and not has_body and not is_http10:
        named = [value.lower() for name, value in pairs if name == b"upgrade"]
        # h2c by Upgrade is gone since RFC 9113 3.1; who asks for it goes on in HTTP/1.1.
        upgrade = named[0] if len(named) == 1 and named[0] != b"h2c" else None
    elif is_http10:
        pairs = [pair for pair in pairs if pair[0] != b"expect"]  # RFC 9110 10.1.1
    fields = _end_to_end(pairs, options)
    head = RequestHead(method, scheme, authority, path, fields, length, has_body, upgrade)
    # RFC 9112 9.3: a client of HTTP/1.0 may ask for more on the connection; it is answered and the connection closed.
    keep_alive = not is_http10 and b"close" not in options
    return Request(head, keep_alive=keep_alive, is_chunked=is_chunked, is_http10=is_http10)


def _target(method: bytes, target: bytes, host: bytes) -> tuple[bytes, bytes, bytes]:
    """Return scheme, authority and path. RFC 9112 3.2."""
    if method == b"CONNECT":
        if _AUTHORITY.fullmatch(target) is None or not re.search(rb":[0-9]++\Z", target):
            raise BadMessage(400, "CONNECT wants a host and a port")
        return b"http", target, b""
    if _ORIGIN_FORM.fullmatch(target):
        return b"http", host, target
    if target == b"*" and method == b"OPTIONS":
        return b"http", host, target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise BadMessage(400, "bad target")
    # RFC 9112 3.2.2: a client must send the same in both; who reads only one of them would be led astray.
    if host and host.lower() != absolute[2].lower():
        raise BadMessage(400, "target and host differ")
    path = absolute[3] or b"/"
    return absolute[1].lower(), absolute[2], path if path.startswith(b"/") else b"/" + path


def _framing(pairs: Fields, *, is_http10: bool) -> tuple[int | None, bool]:
    """Return the body's length and whether it is chunked. RFC 9112 6.3."""
    codings = [value for name, value in pairs if name == b"transfer-encoding"]
    length = content_length_of(pairs)
    if not codings:
        return length, False
    if is_http10:
        raise BadMessage(400, "transfer-encoding in HTTP/1.0")
    if length is not None:
        raise BadMessage(400, "content-length beside transfer-encoding")
    if len(codings) > 1 or codings[0].lower() != b"chunked":
        raise BadMessage(501 if codings[0].lower().endswith(b"chunked") else 400, "transfer-encoding but chunked")
    return None, True


def _end_to_end(pairs: Fields, options: frozenset[bytes]) -> Fields:
    """The fields to forward. RFC 9110 7.6.1."""
    fields = without(pairs, options, b"host", b"http2-settings")
    if (b"te", b"trailers") in pairs:
        fields.append((b"te", b"trailers"))
    return fields
