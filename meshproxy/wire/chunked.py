"""The chunked coding, both ways, in pieces. RFC 9112 7.1.

Strict: a size is hexadecimal digits and nothing else, a line ends in CRLF, extensions are well formed, short, and not
forwarded (two readers of a sloppy extension see two different bodies). Chunk borders mean nothing and are not kept.
"""

from __future__ import annotations

import re

from meshproxy.message import Fields
from meshproxy.wire.http1_fields import TOKEN, BadMessage, has_bad_line_end, split_fields

_QUOTED = rb'"(?:[^\x00-\x08\x0a-\x1f\x7f"\\]|\\[^\x00-\x08\x0a-\x1f\x7f])*+"'
_CHUNK_LINE = re.compile(
    # 15 digits: a size beyond 2^60 is no size.
    rb"([0-9A-Fa-f]{1,15}+)(?:[ \t]*+;[ \t]*+%b(?:[ \t]*+=[ \t]*+(?:%b|%b))?+)*+\r\n" % (TOKEN, TOKEN, _QUOTED)
)
_MAX_LINE_BYTES = 256
_MAX_TRAILER_BYTES = 8192
_MAX_TRAILERS = 32
# RFC 9110 6.5.1: what frames or routes a message comes before its body or not at all.
_NOT_IN_TRAILERS = frozenset(
    {b"connection", b"content-length", b"host", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)

LAST_CHUNK = b"0\r\n\r\n"


class ChunkedReader:
    """Takes a body's bytes as they come and gives them without the coding."""

    __slots__ = ("_buffer", "_left", "_state", "rest", "trailers")

    _LINE, _DATA, _DATA_END, _TRAILERS, _DONE = range(5)

    def __init__(self) -> None:
        self._state = self._LINE
        self._buffer = b""
        self._left = 0
        self.trailers: Fields | None = None  # set once the body has ended
        self.rest = b""  # what came after the end

    def __repr__(self) -> str:
        return f"ChunkedReader(state={self._state}, left={self._left})"

    def feed(self, data: bytes) -> bytes:
        """Return the body in `data`, maybe none. Raises BadMessage."""
        if self._state == self._DATA and len(data) <= self._left:  # in the middle of a big chunk: no copy
            self._left -= len(data)
            if not self._left:
                self._state = self._DATA_END
            return data
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        pieces: list[bytes] = []
        at = 0
        while at < len(data):
            if self._state == self._LINE:
                line = _CHUNK_LINE.match(data, at, at + _MAX_LINE_BYTES)
                if line is None:
                    self._check_partial_line(data, at)
                    break
                at = line.end()
                self._left = int(line[1], 16)
                self._state = self._DATA if self._left else self._TRAILERS
            elif self._state == self._DATA:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = self._DATA_END
            elif self._state == self._DATA_END:
                end = data[at : at + 2]
                if not b"\r\n".startswith(end):
                    raise BadMessage(400, "chunk longer than its size")
                if len(end) < 2:
                    break
                at += 2
                self._state = self._LINE
            else:
                at = self._read_trailers(data, at)
                if self._state == self._TRAILERS:
                    break
                self.rest = data[at:]
                return b"".join(pieces)
        self._buffer = data[at:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _check_partial_line(self, data: bytes, at: int) -> None:
        """A line that is not all here may still become good; anything else is refused at once."""
        line = data[at:]
        if (
            b"\n" in line
            or len(line) >= _MAX_LINE_BYTES
            or re.match(rb"[0-9A-Fa-f]{1,15}(?:[ \t;\r]|\Z)", line) is None
        ):
            raise BadMessage(400, "bad chunk size")

    def _read_trailers(self, data: bytes, at: int) -> int:
        if data.startswith(b"\r\n", at):
            end = at + 2
        else:
            found = data.find(b"\r\n\r\n", at)
            if found < 0:
                if len(data) - at > _MAX_TRAILER_BYTES:
                    raise BadMessage(431, "trailers too large")
                if has_bad_line_end(data, at):
                    raise BadMessage(400, "bare CR or LF in trailers")
                return at
            end = found + 4
            if end - at > _MAX_TRAILER_BYTES:
                raise BadMessage(431, "trailers too large")
        trailers = split_fields(data[at:end], 0, max_fields=_MAX_TRAILERS)
        if any(name in _NOT_IN_TRAILERS for name, _ in trailers):
            raise BadMessage(400, "a trailer that frames or routes")
        self.trailers = trailers
        self._state = self._DONE
        return end


def last_chunk(trailers: Fields) -> bytes:
    """The end of a chunked body."""
    if not trailers:
        return LAST_CHUNK
    return b"0\r\n%b\r\n" % b"".join([b"%b: %b\r\n" % pair for pair in trailers])
