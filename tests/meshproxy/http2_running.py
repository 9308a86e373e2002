"""Processes for end-to-end tests of HTTP/2: the proxy of one_route.py, nghttpd, and whatever else listens on a port."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_for_port(port: int, *, within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            select.select([], [], [], 0.02)  # nobody tells when a foreign program listens


class RunningProxy:
    """One proxy process; `port` is where it listens."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    def peak_kib(self) -> int:
        """The most memory it has had."""
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found is not None
        return int(found[1])

    def drain(self) -> None:
        self.process.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def proxy(*ports: int, upstream: str = "http2", more: tuple[str, ...] = ()) -> Iterator[RunningProxy]:
    """In front of these ports of this machine."""
    endpoints = [word for port in ports for word in ("--endpoint", f"127.0.0.1:{port}")]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.meshproxy.one_route", *endpoints, "--upstream", upstream, *more],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        yield RunningProxy(process, int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def nghttpd(folder: Path, *options: str) -> Iterator[int]:
    """Serves a folder by HTTP/2 without TLS."""
    port = free_port()
    process = subprocess.Popen(
        ["nghttpd", "--no-tls", "-d", str(folder), *options, str(port)], stdout=subprocess.DEVNULL
    )
    try:
        wait_for_port(port)
        yield port
    finally:
        process.kill()
        process.wait()
