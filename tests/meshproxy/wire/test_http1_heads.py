"""HTTP/1.1 heads, with h11 as the strict second opinion, and chunks however they are cut."""

from __future__ import annotations

from itertools import pairwise

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshproxy.message import Fields, RequestHead, ResponseHead
from meshproxy.wire.chunked import ChunkedReader, last_chunk
from meshproxy.wire.http1_fields import HTTP1, BadMessage, has_bad_line_end
from meshproxy.wire.http1_request import quick_match, read_request
from meshproxy.wire.http1_response import BY_CHUNKS, BY_CLOSE, BY_LENGTH, NO_BODY, read_response
from meshproxy.wire.http1_write import request_bytes, response_lines
from tests.meshproxy.wire.http1_abuse import CASES

MAX_FIELDS = 100

TOKENS = st.text("abcXYZ019-_.!#$%&'*+^`|~", min_size=1, max_size=8).map(str.encode)
VALUES = st.text('ab Z09\t:,;="é/', max_size=12).map(lambda text: text.strip(" \t").encode())
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SPECIAL_NAMES = st.sampled_from(
    [b"Host", b"Connection", b"Content-Length", b"Transfer-Encoding", b"X-Request-ID", b"TE", b"Upgrade", b"Expect"]
    + [b"X-Forwarded-For", b"X-Forwarded-Proto", b"traceparent", b"tracestate", b"X-Requested", b"Trace"]
)
SPECIAL_VALUES = st.sampled_from(
    [
        b"a",
        b"a:80",
        b"close",
        b"keep-alive",
        b"5",
        b"05",
        b"chunked",
        b"Chunked",
        b"trailers",
        b"websocket",
        b"x",
        TRACE,
    ]
)
LINES = st.lists(st.tuples(TOKENS, VALUES) | st.tuples(SPECIAL_NAMES, SPECIAL_VALUES), max_size=8)
# What a careless or malicious client may leave in a head.
NOISE = st.sampled_from([b"", b"", b"", b"\r", b"\n", b"\0", b" ", b"\t", b":", b"\r\n", b"\r\n ", b"\x0b", b"\x7f"])


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Mostly well-formed heads, some with one piece of noise in any place."""
    method = draw(st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"PURGE"]))
    target = draw(st.sampled_from([b"/", b"/a?b=c", b"/%20", b"*", b"http://a/", b"a"]))
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0"]))
    lines = draw(LINES)
    if draw(st.booleans()):
        lines.insert(0, (b"Host", b"a"))
    data = b"%b %b HTTP/%b\r\n" % (method, target, version)
    data += b"".join(b"%b: %b\r\n" % line for line in lines) + b"\r\n"
    at = draw(st.integers(0, len(data)))
    return data[:at] + draw(NOISE) + data[at:]


def read_by_h11(data: bytes) -> h11.Request | None:
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    try:
        event = server.next_event()
    except h11.RemoteProtocolError:
        return None
    return event if isinstance(event, h11.Request) else None


@settings(max_examples=400, deadline=None, derandomize=True)
@given(heads())
def test_what_we_accept_h11_reads_as_we_do(data: bytes) -> None:
    end = data.find(b"\r\n\r\n") + 4
    if end < 4:
        return
    data = data[:end]
    try:
        request = read_request(data, max_fields=MAX_FIELDS)
    except BadMessage:
        return
    head = request.head
    oracle = read_by_h11(data)
    if oracle is None:
        pytest.fail(f"we accept what h11 refuses: {data!r}")
    assert oracle.method == head.method
    if oracle.target.startswith(b"/"):
        assert oracle.target == head.path
    theirs = [(name, value) for name, value in oracle.headers if name not in (b"host", b"content-length")]
    lengths = [int(value) for name, value in oracle.headers if name == b"content-length"]
    assert lengths == ([] if head.content_length is None else [head.content_length])
    assert request.is_chunked == any(name == b"transfer-encoding" for name, _ in theirs)
    for field in head.fields:
        assert field in theirs


@settings(max_examples=300, deadline=None, derandomize=True)
@given(heads())
def test_the_quick_and_the_slow_reader_agree(data: bytes) -> None:
    match = quick_match(data)
    if match is None or match.end() != len(data) or match[3] is None:
        return
    quick = read_request(data, max_fields=MAX_FIELDS)
    # A header that only the slow reader takes, and that goes no further.
    slow = read_request(data[:-2] + b"keep-alive: 1\r\n\r\n", max_fields=MAX_FIELDS)
    for name in ("method", "authority", "path", "fields", "content_length", "has_body", "upgrade"):
        assert getattr(quick.head, name) == getattr(slow.head, name), name
    assert (quick.keep_alive, quick.is_chunked) == (slow.keep_alive, slow.is_chunked)
    again = read_request(request_bytes(quick.head), max_fields=MAX_FIELDS)
    assert again.head.fields == quick.head.fields
    assert again.head.content_length == quick.head.content_length


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(TOKENS.map(bytes.lower), VALUES), max_size=6), st.booleans())
def test_heads_that_are_written_are_read_as_they_were(fields: Fields, has_length: bool) -> None:
    known = (b"host", b"connection", b"te", b"expect", b"upgrade", b"content-length", b"transfer-encoding")
    fields = [field for field in fields if field[0] not in known]
    length = 5 if has_length else None
    head = RequestHead(b"PUT", b"http", b"a", b"/x", fields, length, has_body=True)
    read = read_request(request_bytes(head), max_fields=MAX_FIELDS)
    assert read.head.fields == fields
    assert (read.head.content_length, read.is_chunked) == (length, not has_length)
    answer = ResponseHead(200, fields, length)
    again = read_response(response_lines(answer) + b"\r\n", method=b"GET", max_fields=MAX_FIELDS)
    assert again.head.fields == fields
    assert again.framing == (BY_LENGTH if has_length else BY_CLOSE)


def test_values_are_found_in_the_bytes_as_in_the_fields() -> None:
    data = b"GET / HTTP/1.1\r\nHost: a\r\nX-User:  one \r\nx-userx: no\r\nX-USER:two\r\nX-Empty:\r\n\r\n"
    head = read_request(data, max_fields=MAX_FIELDS).head
    for name in (b"x-user", b"x-empty", b"x-none"):
        assert HTTP1.values(head.origin, name) == head.all_of(name)


def test_a_head_that_is_changed_no_longer_goes_out_as_it_came() -> None:
    head = read_request(b"GET /a HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nX-B: 2\r\n\r\n", max_fields=MAX_FIELDS).head
    head.add(b"x-c", b"3")
    assert request_bytes(head) == b"GET /a HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nX-B: 2\r\nx-c: 3\r\n\r\n"
    copy = head.copy()
    copy.put(b"x-a", b"9")
    copy.drop(b"x-b")
    copy.retarget(path=b"/b", authority=b"b")
    assert request_bytes(copy) == b"GET /b HTTP/1.1\r\nhost: b\r\nx-c: 3\r\nx-a: 9\r\n\r\n"
    assert head.path == b"/a"
    assert head.get(b"x-b") == b"2"


ANSWERS = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", BY_LENGTH),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", NO_BODY),
    (b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n", BY_CHUNKS),
    (b"HTTP/1.0 200 OK\r\n\r\n", BY_CLOSE),
    (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", NO_BODY),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", NO_BODY),
    (b"HTTP/1.1 100 Continue\r\n\r\n", NO_BODY),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", None),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", None),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", None),
    (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None),
    (b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n", None),
    (b"HTTP/1.1 200 OK\r\n X-Folded: 1\r\n\r\n", None),
    (b"HTTP/1.1 200 OK\r\nX-A : 1\r\n\r\n", None),
    (b"HTTP/1.1 200 OK\nX-A: 1\r\n\r\n", None),
    (b"HTTP/1.1 200 OK\r\nX-A: \0\r\n\r\n", None),
    (b"HTTP/1.1 20 OK\r\n\r\n", None),
    (b"HTTP/1.1 2000 OK\r\n\r\n", None),
    (b"HTTP/1.1  200 OK\r\n\r\n", None),
    (b"HTTP/2 200 OK\r\n\r\n", None),
    (b"ICY 200 OK\r\n\r\n", None),
    (b"HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 5\r\n\r\n", None),
]


@pytest.mark.parametrize(("data", "framing"), ANSWERS)
def test_answers_have_one_framing_or_none(data: bytes, framing: int | None) -> None:
    if framing is None:
        with pytest.raises(BadMessage):
            read_response(data, method=b"GET", max_fields=MAX_FIELDS)
    else:
        assert read_response(data, method=b"GET", max_fields=MAX_FIELDS).framing == framing
        assert read_response(data, method=b"HEAD", max_fields=MAX_FIELDS).framing == NO_BODY


def feed(data: bytes, cuts: list[int]) -> tuple[bytes, Fields | None, bytes] | int:
    """What the reader makes of `data` cut at `cuts`; the status where it refuses."""
    reader = ChunkedReader()
    body = b""
    borders = [0, *sorted(cuts), len(data)]
    try:
        for start, end in pairwise(borders):
            if reader.trailers is not None:
                return body, reader.trailers, reader.rest + data[start:]
            body += reader.feed(data[start:end])
    except BadMessage as error:
        return error.status
    return body, reader.trailers, reader.rest


CHUNKED_BODIES = [case.data.partition(b"\r\n\r\n")[2] for case in CASES if b"chunked\r\n\r\n" in case.data]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.binary(min_size=1, max_size=20), max_size=5),
    st.sampled_from([b"", b"x: 1\r\n"]),
    st.lists(st.integers(0, 80), max_size=10),
)
def test_chunks_are_the_same_however_they_are_cut(pieces: list[bytes], trailer: bytes, cuts: list[int]) -> None:
    data = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailer + b"\r\n"
    data += b"GET /"
    expected = (b"".join(pieces), [(b"x", b"1")] if trailer else [], b"GET /")
    assert feed(data, []) == expected
    assert feed(data, [cut % len(data) for cut in cuts]) == expected


@pytest.mark.parametrize("data", CHUNKED_BODIES)
def test_bad_chunks_are_bad_however_they_are_cut(data: bytes) -> None:
    assert feed(data, list(range(len(data)))) == feed(data, [])


def test_the_end_of_a_body_carries_its_trailers() -> None:
    assert last_chunk([]) == b"0\r\n\r\n"
    assert feed(last_chunk([(b"a", b"1"), (b"b", b"")]), []) == (b"", [(b"a", b"1"), (b"b", b"")], b"")


@pytest.mark.parametrize(
    ("data", "is_bad"),
    [(b"a\r\nb", False), (b"a\r", False), (b"a\nb", True), (b"a\rb", True), (b"\n", True), (b"a\r\r\n", True)],
)
def test_a_bad_line_end_is_seen_as_soon_as_it_is_there(data: bytes, is_bad: bool) -> None:
    assert has_bad_line_end(data) is is_bad
