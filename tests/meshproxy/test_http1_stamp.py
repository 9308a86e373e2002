"""The quick stamp writes what the slow one writes."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshproxy.config import Listener
from meshproxy.http1_stamp import Http1Stamp
from meshproxy.identity import Randomness
from meshproxy.listener import ListenerRuntime
from meshproxy.route import Router
from meshproxy.shell import Shell
from meshproxy.wire.http1_fields import HTTP1
from meshproxy.wire.http1_request import quick_request, read_request
from tests.meshproxy.proxying import run

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
LINES = st.sampled_from(
    [
        b"X-Forwarded-For: 10.0.0.1",
        b"x-forwarded-for:\t10.0.0.1, 10.0.0.2 ",
        b"x-forwarded-for: ",
        b"X-Forwarded-Proto: https",
        b"X-Request-Id: mine",
        b"traceparent: " + TRACE,
        b"Traceparent:" + TRACE,
        b"traceparent: 01" + TRACE[2:] + b"-more",
        b"traceparent: nonsense",
        b"tracestate: a=b",
        b"Connection: keep-alive",
        b"X-Other: 1",
        b"Accept: */*",
    ]
)
MODES: tuple[Literal["append", "replace", "keep"], ...] = ("append", "replace", "keep")


@pytest.mark.parametrize("mode", MODES)
def test_the_quick_stamp_writes_what_the_slow_one_writes(mode: Literal["append", "replace", "keep"]) -> None:
    async def story() -> None:
        config = Listener(name="in", port=0, forwarded_for=mode)
        # Nothing random: every id is sevens.
        randomness = Randomness(lambda size: b"\x77" * size)
        async with asyncio.TaskGroup() as tasks:
            shell = Shell(asyncio.get_running_loop(), tasks, randomness=randomness)
            listener = ListenerRuntime(config, router=Router(config), clusters={}, shell=shell)
            quick = Http1Stamp(b"192.0.2.1", mode, randomness)
            stamped = 0

            @settings(max_examples=200, deadline=None, derandomize=True)
            @given(st.lists(LINES, max_size=6))
            def check(lines: list[bytes]) -> None:
                nonlocal stamped
                data = b"\r\n".join([b"GET / HTTP/1.1", b"Host: a", *lines, b"", b""])
                match = quick_request(data, max_fields=100)
                origin = None if match is None else quick.origin(match, data)
                if origin is None:
                    return
                stamped += 1
                slow = read_request(data, max_fields=100).head
                listener.stamp(slow, "192.0.2.1")
                assert sorted(HTTP1(origin)) == sorted(slow.fields)

            check()
            assert stamped

    run(story())
