"""HTTP/2's frames as bytes: the numbers of RFC 9113, frames going out, and the two ways in which a peer can be wrong.

Holds no state. http2.py reads frames and keeps the connection; hpack.py makes the blocks that HEADERS frames carry.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

FRAME_HEADER: Final = struct.Struct(">IBI")  # length and type in one word, flags, stream: one call reads all
FRAME_HEADER_BYTES: Final = 9

# Frame types (RFC 9113 6). Plain integers: the reader compares them once per frame.
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

# Settings (RFC 9113 6.5.2)
HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

DEFAULT_WINDOW_BYTES: Final = 65_535
DEFAULT_FRAME_BYTES: Final = 16_384
MAX_FRAME_BYTES: Final = 2**24 - 1
MAX_WINDOW_BYTES: Final = 2**31 - 1
MAX_STREAM_ID: Final = 2**31 - 1

_WORD: Final = struct.Struct(">I")
_WINDOW_UPDATE: Final = struct.Struct(">IBII")
_RST_STREAM: Final = _WINDOW_UPDATE
_GOAWAY: Final = struct.Struct(">IBIII")
_SETTING: Final = struct.Struct(">HI")


class Code(IntEnum):
    """Why a stream or a connection ends (RFC 9113 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class ConnectionFault(Exception):
    """The peer broke a rule of the connection: it gets GOAWAY with `code`, and nothing more is read from it."""

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(f"{code.name}: {detail}")
        self.code = code
        self.detail = detail


class StreamFault(Exception):
    """The peer broke a rule of one stream: that one is reset with `code`, the others go on."""

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(f"{code.name}: {detail}")
        self.code = code
        self.detail = detail


def frame_header(kind: int, length: int, *, flags: int, stream_id: int) -> bytes:
    """The nine bytes before a payload of `length` bytes."""
    return FRAME_HEADER.pack(length << 8 | kind, flags, stream_id)


def settings_frame(values: dict[int, int]) -> bytes:
    """SETTINGS with `values`."""
    payload = b"".join(_SETTING.pack(key, value) for key, value in values.items())
    return frame_header(SETTINGS, len(payload), flags=0, stream_id=0) + payload


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """The pairs of a SETTINGS payload, in order. Raises ConnectionFault."""
    if len(payload) % 6:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "SETTINGS is no multiple of six bytes")
    return list(_SETTING.iter_unpack(payload))


def window_update_frame(stream_id: int, increment: int) -> bytes:
    """WINDOW_UPDATE; stream 0 is the connection."""
    return _WINDOW_UPDATE.pack(4 << 8 | WINDOW_UPDATE, 0, stream_id, increment)


def rst_stream_frame(stream_id: int, code: int) -> bytes:
    """RST_STREAM."""
    return _RST_STREAM.pack(4 << 8 | RST_STREAM, 0, stream_id, code)


def goaway_frame(last_stream_id: int, code: int, detail: bytes = b"") -> bytes:
    """GOAWAY; `detail` is for people."""
    return _GOAWAY.pack(8 + len(detail) << 8 | GOAWAY, 0, 0, last_stream_id, code) + detail


def ping_frame(payload: bytes, *, flags: int) -> bytes:
    """PING with its eight bytes, or with ACK the answer to it."""
    return frame_header(PING, 8, flags=flags, stream_id=0) + payload


def word_at(payload: bytes, position: int) -> int:
    """Four bytes as a number, without the reserved top bit."""
    return int(_WORD.unpack_from(payload, position)[0]) & MAX_STREAM_ID


def without_padding(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the rest of a padded frame begins and ends. Raises ConnectionFault."""
    if start == end:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "no room for the length of the padding")
    padding = data[start]
    if start + 1 + padding > end:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "more padding than frame")  # RFC 9113 6.1, 6.2
    return start + 1, end - padding


def without_extras(data: bytes, start: int, end: int, flags: int) -> tuple[int, int]:
    """The same for HEADERS, which may have a priority, too. Nobody asks for it (RFC 9113 5.3.2)."""
    if flags & PADDED:
        start, end = without_padding(data, start, end)
    if flags & HAS_PRIORITY:
        start += 5
        if start > end:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "no room for the priority")
    return start, end


def headers_frames(stream_id: int, block: bytes, *, flags: int, frame_bytes: int) -> bytes:
    """HEADERS with `block`, cut into CONTINUATION frames where it is longer than the peer takes."""
    if len(block) <= frame_bytes:
        return frame_header(HEADERS, len(block), flags=flags | END_HEADERS, stream_id=stream_id) + block
    pieces = [block[start : start + frame_bytes] for start in range(0, len(block), frame_bytes)]
    made = [frame_header(HEADERS, len(pieces[0]), flags=flags, stream_id=stream_id), pieces[0]]
    for piece in pieces[1:]:
        last = END_HEADERS if piece is pieces[-1] else 0
        made += frame_header(CONTINUATION, len(piece), flags=last, stream_id=stream_id), piece
    return b"".join(made)
