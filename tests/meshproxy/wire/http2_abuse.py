"""What a hostile or broken client sends, and the answer it gets: data for test_http2_abuse.py.

Each case is what comes after the preface, SETTINGS and their acknowledgement. The answer is GOAWAY with a code,
RST_STREAM of stream 1 with a code, or nothing: the connection goes on. Cases `from_server` come from an endpoint, after
we have sent one request.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from meshproxy.message import Fields
from meshproxy.wire import http2_frames as f
from meshproxy.wire.http2_frames import Code
from tests.meshproxy.wire.http2_recording import GET, POST, RawPeer

_peer = RawPeer()
frame, headers = _peer.frame, _peer.headers
OPEN = f.END_HEADERS


@dataclass(frozen=True)
class Case:
    """`goaway` or `reset`, or neither; `status`: an answer that the engine gives by itself."""

    name: str
    sent: bytes
    goaway: Code | None = None
    reset: Code | None = None
    status: bytes | None = None
    from_server: bool = field(default=False, kw_only=True)


def _head(name: str, fields: Fields) -> Case:
    return Case(name, headers(1, fields), reset=Code.PROTOCOL_ERROR)


def _without(name: bytes) -> Fields:
    return [pair for pair in GET if pair[0] != name]


def _literal(name: bytes, value: bytes) -> bytes:
    return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value


_BLOCK = b"\x82\x86\x84\x41\x01a"
_TEN = b"\0" * 10

HEADS = [
    _head("no :method", _without(b":method")),
    _head("no :scheme", _without(b":scheme")),
    _head("no :path", _without(b":path")),
    _head("no authority at all", _without(b":authority")),
    _head("an empty :path", [*_without(b":path"), (b":path", b"")]),
    _head("a path without a slash", [*_without(b":path"), (b":path", b"x")]),
    _head("an asterisk for GET", [*_without(b":path"), (b":path", b"*")]),
    _head("a path with a blank", [*_without(b":path"), (b":path", b"/a b")]),
    _head("a path with a fragment", [*_without(b":path"), (b":path", b"/a#b")]),
    _head("a path that smuggles a line", [*_without(b":path"), (b":path", b"/ HTTP/1.1\r\nhost: b")]),
    _head("user information in :authority", [*_without(b":authority"), (b":authority", b"u:p@a")]),
    _head("a slash in :authority", [*_without(b":authority"), (b":authority", b"a/b")]),
    _head("a method that smuggles", [*_without(b":method"), (b":method", b"GET / HTTP/1.1")]),
    _head("a scheme that smuggles", [*_without(b":scheme"), (b":scheme", b"http://b")]),
    _head(":path twice", [*GET, (b":path", b"/")]),
    _head(":method twice", [*GET, (b":method", b"GET")]),
    _head("an unknown pseudo-header", [*GET, (b":foo", b"1")]),
    _head(":status in a request", [*GET, (b":status", b"200")]),
    _head(":protocol, which was not offered", [*GET, (b":protocol", b"websocket")]),
    _head("a pseudo-header after a field", [*GET[:3], (b"a", b"1"), GET[3]]),
    _head("host unlike :authority", [*GET, (b"host", b"b.test")]),
    _head("two hosts", [*_without(b":authority"), (b"host", b"a"), (b"host", b"a")]),
    _head("CONNECT with a path", [(b":method", b"CONNECT"), *GET[1:]]),
    _head("upper case in a name", [*GET, (b"Foo", b"1")]),
    _head("an empty name", [*GET, (b"", b"1")]),
    _head("a blank in a name", [*GET, (b"a b", b"1")]),
    _head("a colon in a name", [*GET, (b"a:b", b"1")]),
    _head("a NUL in a value", [*GET, (b"a", b"1\x002")]),
    _head("a line end in a value", [*GET, (b"a", b"1\r\nx: 2")]),
    _head("a blank before a value", [*GET, (b"a", b" 1")]),
    _head("a blank after a value", [*GET, (b"a", b"1\t")]),
    _head("connection", [*GET, (b"connection", b"close")]),
    _head("keep-alive", [*GET, (b"keep-alive", b"1")]),
    _head("proxy-connection", [*GET, (b"proxy-connection", b"close")]),
    _head("transfer-encoding", [*POST, (b"transfer-encoding", b"chunked")]),
    _head("upgrade", [*GET, (b"upgrade", b"h2c")]),
    _head("te other than trailers", [*GET, (b"te", b"gzip")]),
    _head("content-length that is no number", [*POST, (b"content-length", b"+1")]),
    _head("two values of content-length", [*POST, (b"content-length", b"1"), (b"content-length", b"2")]),
    _head("content-length without content", [*POST, (b"content-length", b"1")]),
    Case(
        "less data than content-length",
        headers(1, [*POST, (b"content-length", b"5")], flags=OPEN) + frame(f.DATA, b"1234", flags=1, stream=1),
        reset=Code.PROTOCOL_ERROR,
    ),
    Case(
        "more data than content-length",
        headers(1, [*POST, (b"content-length", b"3")], flags=OPEN) + frame(f.DATA, b"1234", stream=1),
        reset=Code.PROTOCOL_ERROR,
    ),
    Case(
        "trailers before content-length is reached",
        headers(1, [*POST, (b"content-length", b"3")], flags=OPEN) + headers(1, [(b"a", b"1")]),
        reset=Code.PROTOCOL_ERROR,
    ),
    Case("a head too large", headers(1, [*GET, (b"a", b"x" * 9000)]), status=b"431"),
    Case("too many fields", headers(1, [*GET, *[(b"a", b"1")] * 101]), status=b"431"),
    # 700 bytes that mean 35 KB.
    Case("a bomb of static entries", frame(f.HEADERS, _BLOCK + b"\x90" * 700, flags=5, stream=1), status=b"431"),
    Case("trailers with a pseudo-header", headers(1, POST, flags=OPEN) + headers(1, GET), reset=Code.PROTOCOL_ERROR),
    Case(
        "trailers that do not end the stream",
        headers(1, POST, flags=OPEN) + headers(1, [(b"a", b"1")], flags=OPEN),
        reset=Code.PROTOCOL_ERROR,
    ),
]

HPACK = [
    Case(name, frame(f.HEADERS, block, flags=5, stream=1), goaway=Code.COMPRESSION_ERROR)
    for name, block in [
        ("an entry of the table we refused", _BLOCK + b"\xbe"),
        ("index 0", _BLOCK + b"\x80"),
        ("an index without end", _BLOCK + b"\xff\xff\xff\xff\xff\xff\xff\xff"),
        ("a table size that was not allowed", b"\x3f\xe1\x1f" + _BLOCK),
        ("a table size behind a field", _BLOCK + b"\x20"),
        ("a value longer than the block", _BLOCK + b"\0\x01a\x7eb"),
        ("a block that ends in a name", _BLOCK + b"\0\x05ab"),
        ("bad Huffman padding", _BLOCK + b"\0\x01a\x81\x00"),
        ("Huffman padding of more than seven bits", _BLOCK + b"\0\x01a\x82\x1f\xff"),
        ("EOS in a Huffman string", _BLOCK + b"\0\x01a\x84\xff\xff\xff\xff"),
    ]
]

FRAMES = [
    Case("a frame too long", frame(f.DATA, b"x" * 16_385, stream=1), goaway=Code.FRAME_SIZE_ERROR),
    Case("DATA on stream 0", frame(f.DATA, b"x"), goaway=Code.PROTOCOL_ERROR),
    Case("DATA on an idle stream", frame(f.DATA, b"x", stream=1), goaway=Code.PROTOCOL_ERROR),
    Case("HEADERS on stream 0", headers(0, GET), goaway=Code.PROTOCOL_ERROR),
    Case("HEADERS on an even stream", headers(2, GET), goaway=Code.PROTOCOL_ERROR),
    Case("a stream number that goes back", headers(5, GET) + headers(3, GET), goaway=Code.STREAM_CLOSED),
    Case("HEADERS after the end", headers(1, GET) + headers(1, [(b"a", b"1")]), reset=Code.STREAM_CLOSED),
    Case("DATA after the end", headers(1, GET) + frame(f.DATA, b"x", stream=1), reset=Code.STREAM_CLOSED),
    Case(
        "HEADERS on a stream that its client reset",
        headers(1, GET) + frame(f.RST_STREAM, b"\0\0\0\x08", stream=1) + headers(1, GET),
        goaway=Code.STREAM_CLOSED,
    ),
    Case(
        "more padding than frame",
        headers(1, POST, flags=OPEN) + frame(f.DATA, b"\x05x", flags=8, stream=1),
        goaway=Code.PROTOCOL_ERROR,
    ),
    Case(
        "padding without room for its length",
        headers(1, POST, flags=OPEN) + frame(f.DATA, b"", flags=8, stream=1),
        goaway=Code.FRAME_SIZE_ERROR,
    ),
    Case(
        "HEADERS too short for its priority",
        frame(f.HEADERS, b"abc", flags=0x25, stream=1),
        goaway=Code.FRAME_SIZE_ERROR,
    ),
    Case("PRIORITY on stream 0", frame(f.PRIORITY, b"\0" * 5), goaway=Code.PROTOCOL_ERROR),
    Case("PRIORITY of a wrong size", frame(f.PRIORITY, b"\0" * 4, stream=1), reset=Code.FRAME_SIZE_ERROR),
    Case(
        "RST_STREAM of a wrong size",
        headers(1, GET) + frame(f.RST_STREAM, b"\0" * 3, stream=1),
        goaway=Code.FRAME_SIZE_ERROR,
    ),
    Case("RST_STREAM on stream 0", frame(f.RST_STREAM, b"\0" * 4), goaway=Code.PROTOCOL_ERROR),
    Case("RST_STREAM on an idle stream", frame(f.RST_STREAM, b"\0" * 4, stream=1), goaway=Code.PROTOCOL_ERROR),
    Case("SETTINGS on a stream", frame(f.SETTINGS, stream=1), goaway=Code.PROTOCOL_ERROR),
    Case("SETTINGS of a wrong size", frame(f.SETTINGS, b"\0" * 5), goaway=Code.FRAME_SIZE_ERROR),
    Case("SETTINGS with ACK and a payload", frame(f.SETTINGS, b"\0" * 6, flags=1), goaway=Code.FRAME_SIZE_ERROR),
    Case("ENABLE_PUSH of 2", f.settings_frame({f.ENABLE_PUSH: 2}), goaway=Code.PROTOCOL_ERROR),
    Case(
        "an initial window too large", f.settings_frame({f.INITIAL_WINDOW_SIZE: 2**31}), goaway=Code.FLOW_CONTROL_ERROR
    ),
    Case("a frame size too small", f.settings_frame({f.MAX_FRAME_SIZE: 16_383}), goaway=Code.PROTOCOL_ERROR),
    Case("a frame size too large", f.settings_frame({f.MAX_FRAME_SIZE: 2**24}), goaway=Code.PROTOCOL_ERROR),
    Case(
        "PUSH_PROMISE from a client",
        frame(f.PUSH_PROMISE, b"\0\0\0\x02" + _BLOCK, flags=4, stream=1),
        goaway=Code.PROTOCOL_ERROR,
    ),
    Case("PING on a stream", frame(f.PING, b"\0" * 8, stream=1), goaway=Code.PROTOCOL_ERROR),
    Case("PING of a wrong size", frame(f.PING, b"\0" * 7), goaway=Code.FRAME_SIZE_ERROR),
    Case("GOAWAY on a stream", frame(f.GOAWAY, b"\0" * 8, stream=1), goaway=Code.PROTOCOL_ERROR),
    Case("GOAWAY too short", frame(f.GOAWAY, b"\0" * 7), goaway=Code.FRAME_SIZE_ERROR),
    Case("WINDOW_UPDATE of a wrong size", frame(f.WINDOW_UPDATE, b"\0" * 3), goaway=Code.FRAME_SIZE_ERROR),
    Case("an increment of 0 on the connection", f.window_update_frame(0, 0), goaway=Code.PROTOCOL_ERROR),
    Case("an increment of 0 on a stream", headers(1, GET) + f.window_update_frame(1, 0), reset=Code.PROTOCOL_ERROR),
    Case("the connection's window overflows", f.window_update_frame(0, 2**31 - 1), goaway=Code.FLOW_CONTROL_ERROR),
    Case(
        "a stream's window overflows",
        headers(1, GET) + f.window_update_frame(1, 2**31 - 1),
        reset=Code.FLOW_CONTROL_ERROR,
    ),
    Case("WINDOW_UPDATE on an idle stream", f.window_update_frame(1, 1), goaway=Code.PROTOCOL_ERROR),
    Case("CONTINUATION out of nowhere", frame(f.CONTINUATION, b"", flags=4, stream=1), goaway=Code.PROTOCOL_ERROR),
    Case("a head interrupted by PING", headers(1, GET, flags=1) + frame(f.PING, b"\0" * 8), goaway=Code.PROTOCOL_ERROR),
    Case(
        "a head continued on another stream",
        headers(1, GET, flags=1) + frame(f.CONTINUATION, b"", flags=4, stream=3),
        goaway=Code.PROTOCOL_ERROR,
    ),
    Case(
        "more data than the stream's window",
        headers(1, POST, flags=OPEN) + frame(f.DATA, b"x" * 16_384, stream=1) * 9,
        reset=Code.FLOW_CONTROL_ERROR,
    ),
    Case("an unknown frame is nothing", frame(0x77, b"abc", flags=0xFF, stream=9)),
    Case("an unknown setting is nothing", f.settings_frame({0x99: 1})),
]

FLOODS = [
    Case(name, sent, goaway=Code.ENHANCE_YOUR_CALM)
    for name, sent in [
        ("pings", frame(f.PING, b"\0" * 8) * 300),
        ("settings", f.settings_frame({}) * 30),
        ("priorities", frame(f.PRIORITY, b"\0" * 5, stream=1) * 2000),
        ("empty data", headers(1, POST, flags=OPEN) + frame(f.DATA, b"", stream=1) * 200),
        ("padding instead of data", headers(1, POST, flags=OPEN) + frame(f.DATA, b"\x02\0\0", flags=8, stream=1) * 200),
        ("rapid reset", b"".join(headers(n, GET) + f.rst_stream_frame(n, 8) for n in range(1, 1001, 2))),
        ("made you reset", b"".join(headers(n, GET) + f.window_update_frame(n, 0) for n in range(1, 1001, 2))),
        ("malformed requests", b"".join(headers(n, _without(b":path")) for n in range(1, 1001, 2))),
        ("streams beyond the limit", b"".join(headers(n, POST, flags=OPEN) for n in range(1, 1001, 2))),
        ("empty continuations", headers(1, GET, flags=1) + frame(f.CONTINUATION, stream=1) * 100),
        ("long continuations", headers(1, GET, flags=1) + frame(f.CONTINUATION, b"\0" * 16_000, stream=1) * 10),
    ]
]

FROM_SERVER = [
    Case(name, sent, goaway=goaway, reset=reset, from_server=True)
    for name, sent, goaway, reset in [
        ("an answer without :status", headers(1, [(b"a", b"1")]), None, Code.PROTOCOL_ERROR),
        ("a status that is no number", headers(1, [(b":status", b"2x0")]), None, Code.PROTOCOL_ERROR),
        ("101", headers(1, [(b":status", b"101")], flags=OPEN), None, Code.PROTOCOL_ERROR),
        ("an interim answer that ends", headers(1, [(b":status", b"103")]), None, Code.PROTOCOL_ERROR),
        ("an answer with :path", headers(1, [(b":status", b"200"), (b":path", b"/")]), None, Code.PROTOCOL_ERROR),
        ("DATA before the head", frame(f.DATA, b"x", stream=1), None, Code.PROTOCOL_ERROR),
        ("an answer nobody asked for", headers(3, [(b":status", b"200")]), Code.PROTOCOL_ERROR, None),
        ("a push", frame(f.PUSH_PROMISE, b"\0\0\0\x02\x88", flags=4, stream=1), Code.PROTOCOL_ERROR, None),
        ("pushing by a request", headers(2, GET), Code.PROTOCOL_ERROR, None),
        ("ENABLE_PUSH from a server", f.settings_frame({f.ENABLE_PUSH: 1}), Code.PROTOCOL_ERROR, None),
        (
            "interim answers without end",
            headers(1, [(b":status", b"103")], flags=OPEN) * 200,
            Code.ENHANCE_YOUR_CALM,
            None,
        ),
    ]
]

CASES = [*HEADS, *HPACK, *FRAMES, *FLOODS, *FROM_SERVER]
