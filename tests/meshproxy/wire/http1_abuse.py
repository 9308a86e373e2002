"""Requests that smuggle, lie or attack, as data: what is sent, and the status that refuses it.

`None` as status: it must be served as it says, since the strict reading is also the only one. test_http1_abuse.py sends
each through a proxy, whole and byte by byte, and sees that no endpoint hears of a refused one.
"""

from __future__ import annotations

from dataclasses import dataclass

OK = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Case:
    """One attack."""

    name: str
    data: bytes
    status: int | None


def get(*lines: bytes) -> bytes:
    return b"\r\n".join([b"GET / HTTP/1.1", b"Host: a", *lines, b"", b""])


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([b"POST / HTTP/1.1", b"Host: a", *lines, b"", b""]) + body


CHUNKED = b"Transfer-Encoding: chunked"

CASES = (
    # Framing: RFC 9112 6.3
    Case("length beside chunked", post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n"), 400),
    Case("chunked beside length", post(CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n"), 400),
    Case("two different lengths", post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello!"), 400),
    Case("two equal lengths", post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"), 400),
    Case("a list of lengths", post(b"Content-Length: 5, 5", body=b"hello"), 400),
    Case("length with a sign", post(b"Content-Length: +5", body=b"hello"), 400),
    Case("negative length", post(b"Content-Length: -1"), 400),
    Case("length in hexadecimal", post(b"Content-Length: 0x5", body=b"hello"), 400),
    Case("length with a space inside", post(b"Content-Length: 5 5", body=b"hello"), 400),
    Case("empty length", post(b"Content-Length:"), 400),
    Case("length beyond any body", post(b"Content-Length: 99999999999999999999"), 400),
    Case("chunked twice", post(CHUNKED, CHUNKED, body=b"0\r\n\r\n"), 501),
    Case("chunked, then something", post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"), 400),
    Case("something, then chunked", post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 501),
    Case("unknown coding", post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 501),
    Case("coding behind a vertical tab", post(b"Transfer-Encoding:\x0bchunked", body=b"0\r\n\r\n"), 400),
    Case("quoted coding", post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"), 400),
    Case("space before the colon of a coding", post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"), 400),
    Case("tab before the colon of a length", post(b"Content-Length\t: 5", body=b"hello"), 400),
    Case("coding in HTTP/1.0", b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    Case("coding in another case", post(b"tRANSFER-eNCODING: Chunked", body=b"0\r\n\r\n"), None),
    # Lines and fields: RFC 9112 2.2 and 5, RFC 9110 5
    Case("folded line", get(b"X-A: 1", b" 2"), 400),
    Case("folded by a tab", get(b"X-A: 1", b"\tTransfer-Encoding: chunked"), 400),
    Case("fold before the first field", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    Case("bare LF ends the request line", b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
    Case("bare LF ends a field", b"GET / HTTP/1.1\r\nHost: a\nX-A: 1\r\n\r\n", 400),
    Case("bare LFs end the head", b"GET / HTTP/1.1\r\nHost: a\n\n", 400),
    Case("CR inside a value", get(b"X-A: 1\rTransfer-Encoding: chunked"), 400),
    Case("CR before CRLF", get(b"X-A: 1\r"), 400),
    Case("NUL in a value", get(b"X-A: 1\x002"), 400),
    Case("NUL in a name", get(b"X-\x00A: 1"), 400),
    Case("control character in a value", get(b"X-A: \x01"), 400),
    Case("delete in a value", get(b"X-A: \x7f"), 400),
    Case("empty name", get(b": 1"), 400),
    Case("space in a name", get(b"X A: 1"), 400),
    Case("bracket in a name", get(b"X[A]: 1"), 400),
    Case("no colon", get(b"X-A"), 400),
    Case("name beyond ASCII", get("X-É: 1".encode()), 400),
    Case("value beyond ASCII", get("X-A: É".encode()), None),
    # Request line: RFC 9112 3
    Case("two spaces in the request line", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    Case("tab in the request line", b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    Case("space in the target", b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    Case("fragment in the target", b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    Case("control character in the target", b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    Case("method that is no token", b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    Case("target without a slash", b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    Case("asterisk but OPTIONS", b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    Case("HTTP/0.9", b"GET /\r\n\r\n", 400),
    Case("HTTP/2.0", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    Case("HTTP/1.10", b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400),
    Case("version in lower case", b"GET / http/1.1\r\nHost: a\r\n\r\n", 400),
    Case("TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    # Host: RFC 9112 3.2
    Case("no host", b"GET / HTTP/1.1\r\n\r\n", 400),
    Case("two hosts", get(b"Host: b"), 400),
    Case("two equal hosts", get(b"Host: a"), 400),
    Case("host with a path", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    Case("host with a user", b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    Case("host with a space", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    Case("host with a port that is none", b"GET / HTTP/1.1\r\nHost: a:8x\r\n\r\n", 400),
    Case("absolute target and another host", b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    Case("absolute target with a user", b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    Case("absolute target and its host", b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", None),
    # Connection and its kin: RFC 9110 7.6.1, 7.8, 10.1.1
    Case("Connection hides the length", post(b"Connection: content-length", b"Content-Length: 0"), 400),
    Case("Connection hides the host", get(b"Connection: close, Host"), 400),
    Case("Connection hides who asks", get(b"Connection: X-Forwarded-For"), 400),
    Case("unknown expectation", get(b"Expect: a-miracle"), 417),
    Case("CONNECT where it is not allowed", b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 405),
    Case("CONNECT without a port", b"CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    Case("CONNECT with a path", b"CONNECT /a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    # Size
    Case("too many fields", get(*[b"X-%d: 1" % number for number in range(101)]), 431),
    Case("many tiny fields", get(*[b"a:"] * 200), 431),
    Case("head too large", get(b"X-A: " + b"a" * 70_000), 431),
    Case("endless request line", b"GET /" + b"a" * 70_000, 431),
    # Chunks: RFC 9112 7.1. The head is good, so the endpoint may hear of it; never of a whole body.
    Case("chunk size that is none", post(CHUNKED, body=b"x\r\n\r\n"), 400),
    Case("chunk size with a sign", post(CHUNKED, body=b"+1\r\na\r\n0\r\n\r\n"), 400),
    Case("chunk size with 0x", post(CHUNKED, body=b"0x1\r\na\r\n0\r\n\r\n"), 400),
    Case("chunk size beyond any body", post(CHUNKED, body=b"ffffffffffffffffff\r\na\r\n"), 400),
    Case("chunk size ends in a bare LF", post(CHUNKED, body=b"1\na\r\n0\r\n\r\n"), 400),
    Case("space before a chunk size", post(CHUNKED, body=b" 1\r\na\r\n0\r\n\r\n"), 400),
    Case("bare LF in an extension", post(CHUNKED, body=b"1;a\nb\r\na\r\n0\r\n\r\n"), 400),
    Case("CR in an extension", post(CHUNKED, body=b"1;a\rb\r\na\r\n0\r\n\r\n"), 400),
    Case("extension without a name", post(CHUNKED, body=b"1;=b\r\na\r\n0\r\n\r\n"), 400),
    Case("endless extension", post(CHUNKED, body=b"1;a=" + b"b" * 300 + b"\r\na\r\n0\r\n\r\n"), 400),
    Case("chunk longer than its size", post(CHUNKED, body=b"1\r\nab\r\n0\r\n\r\n"), 400),
    Case("chunk that ends in a bare LF", post(CHUNKED, body=b"1\r\na\n0\r\n\r\n"), 400),
    Case("length in the trailers", post(CHUNKED, body=b"0\r\nContent-Length: 5\r\n\r\n"), 400),
    Case("coding in the trailers", post(CHUNKED, body=b"0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400),
    Case("folded trailer", post(CHUNKED, body=b"0\r\nX-A: 1\r\n b\r\n\r\n"), 400),
    Case("bare LF in the trailers", post(CHUNKED, body=b"0\r\nX-A: 1\nX-B: 2\r\n\r\n"), 400),
    Case("well-formed extension", post(CHUNKED, body=b'1;a="b;c"\r\na\r\n0\r\n\r\n'), None),
    Case("trailers", post(CHUNKED, body=b"0\r\nX-A: 1\r\n\r\n"), None),
)
