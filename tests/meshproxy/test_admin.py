"""The admin server's manners: methods, what it refuses, connections that go on, streams that end with their reader."""

from __future__ import annotations

import asyncio

import pytest

from meshproxy.admin import Admin, Page, Query, Reply, Send


async def look(query: Query) -> Reply:
    return Reply(body=f"looked {sorted(query.values.items())}\n")


async def change(_query: Query) -> Reply:
    return Reply(body="changed\n")


PAGES = {"/look": Page("looks", get=look), "/do": Page("does", post=change), "/both": Page("both", look, change)}


def talk(*sent: bytes, pages: dict[str, Page] = PAGES) -> bytes:
    """What a server with these pages answers until it closes, or has answered everything."""

    async def run() -> bytes:
        admin = Admin(pages)
        server = await asyncio.start_server(admin.serve, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for part in sent:
                writer.write(part)
            writer.write_eof()
            try:
                return await reader.read()
            finally:
                writer.close()
                admin.close()

    return asyncio.run(run())


def ask(method: str, target: str, *fields: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "host: 127.0.0.1:15000", *fields]
    return talk("\r\n".join(lines).encode() + b"\r\n\r\n")


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_get_looks_and_post_changes() -> None:
    assert ask("GET", "/look?b=2&a=1").endswith(b"\r\n\r\nlooked [('a', '1'), ('b', '2')]\n")
    assert ask("POST", "/do").endswith(b"\r\n\r\nchanged\n")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/look", b"GET, HEAD"),
        ("GET", "/do", b"POST"),
        ("HEAD", "/do", b"POST"),
        ("DELETE", "/both", b"GET, HEAD, POST"),
    ],
)
def test_another_method_is_refused_with_those_there_are(method: str, path: str, allow: bytes) -> None:
    answer = ask(method, path)
    assert status(answer) == 405
    assert b"\r\nallow: " + allow + b"\r\n" in answer


def test_the_root_lists_what_there_is() -> None:
    answer = ask("GET", "/")
    assert b"GET      /look      looks\n" in answer
    assert b"POST     /do        does\n" in answer


def test_head_has_the_length_and_no_body() -> None:
    whole, bare = ask("GET", "/look"), ask("HEAD", "/look")
    assert bare == whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


def test_what_is_not_there_is_404() -> None:
    assert status(ask("GET", "/nothing")) == 404


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["origin: http://evil.example"], 403),
        (["sec-fetch-site: cross-site"], 403),
        (["sec-fetch-site: none"], 200),
    ],
)
def test_web_pages_are_refused(fields: list[str], expected: int) -> None:
    assert status(ask("POST", "/do", *fields)) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost:1", 200), ("[::1]:1", 200), ("10.0.0.1", 200), ("evil.example:15000", 403), ("::1", 403)],
)
def test_a_host_that_is_a_name_is_refused(host: str, expected: int) -> None:
    assert status(talk(f"GET /look HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())) == expected


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET look HTTP/1.1\r\n\r\n", 400),
        (b"GET /look HTTP/2.0\r\n\r\n", 400),
        (b"GET /look HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /look HTTP/1.1\r\nname : x\r\n\r\n", 400),
        (b"GET /look HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n", 400),
        (b"POST /do HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /do HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n", 413),
        (b"POST /do HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 413),
        (b"GET /look HTTP/1.1\r\nx: " + b"x" * 70_000 + b"\r\n\r\n", 431),
    ],
)
def test_what_is_no_sound_request_is_refused_and_ends(sent: bytes, expected: int) -> None:
    answer = talk(sent, b"GET /look HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert status(answer) == expected
    assert b"\r\nconnection: close\r\n" in answer
    assert b"looked" not in answer


def test_a_connection_goes_on_and_bodies_are_passed_over() -> None:
    post = b"POST /do HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n\r\nbody"
    answer = talk(post, post, b"GET /look HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    assert answer.count(b"changed") == 2
    assert b"looked" in answer


def test_a_stream_ends_when_its_reader_goes() -> None:
    ended: list[bool] = []

    async def stream(send: Send) -> None:
        try:
            await send(b"first\n")
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def tail(_query: Query) -> Reply:
        return Reply(stream=stream)

    assert talk(b"GET /t HTTP/1.1\r\n\r\n", pages={"/t": Page("", get=tail)}).endswith(b"\r\n\r\nfirst\n")
    assert ended == [True]
