"""Proxies and endpoints as real processes, and a load on them that counts each request that fails.

A proxy listens on port 0 and says where on standard error; its configuration is a template in which `PORTS` stands for
the endpoints. Everything ends with its context, also where the test has failed.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from waiting import wait_until

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
START_S = 20.0


class Process:
    """A child process that is killed at the end of its context."""

    def __init__(self, *arguments: str, log: Path | None = None) -> None:
        self.log = log
        stderr = log.open("ab") if log is not None else subprocess.DEVNULL
        self.popen = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT)
        if log is not None:
            assert not isinstance(stderr, int)
            stderr.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self.popen.pid

    def send(self, number: int) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()
        if self.popen.stdout is not None:
            self.popen.stdout.close()

    def wait(self, within: float) -> int:
        return self.popen.wait(within)


class EndpointProcess(Process):
    """endpoint_process.py. `port` stays its own when it is started again with it."""

    def __init__(self, mode: str = "ok", *, port: int = 0) -> None:
        super().__init__(sys.executable, str(HERE / "endpoint_process.py"), str(port), mode)
        assert self.popen.stdout is not None
        self.port = int(self.popen.stdout.readline())

    def __enter__(self) -> EndpointProcess:
        return self

    def served(self) -> int:
        return int(get(self.port, "/count")[1])


class ProxyProcess(Process):
    """`meshproxy run` on a file in `folder`, started when it serves."""

    def __init__(self, folder: Path, config: str, *, hot_restart: bool = False, name: str = "proxy") -> None:
        self.path = folder / f"{name}.yaml"
        self.path.write_text(config)
        arguments = ["run", "--config", str(self.path)] + (["--hot-restart"] if hot_restart else [])
        log = folder / f"{name}-{len(list(folder.glob(f'{name}-*.log')))}.log"
        super().__init__(sys.executable, "-m", "meshproxy", *arguments, log=log)
        try:
            wait_until(self._serves, within=START_S)
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> ProxyProcess:
        return self

    def text(self) -> str:
        assert self.log is not None
        return self.log.read_text()

    def _serves(self) -> bool:
        assert self.popen.poll() is None, self.text()
        found = re.search(r" info serving .*admin=\S+:(\d+)", self.text())
        if found is None:
            return False
        self.admin_port = int(found[1])
        return True

    @property
    def port(self) -> int:
        """Of the first listener."""
        found = re.search(r" info serving [^=]+=\S+:(\d+)", self.text())
        assert found is not None
        return int(found[1])

    def admin(self, path: str, *, method: str = "GET") -> str:
        return get(self.admin_port, path, method=method)[1]

    def stats(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.admin("/stats"))
        return answer

    def rewrite(self, config: str) -> None:
        """Put another configuration into the file, as editors do: at once."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(config)
        os.replace(fresh, self.path)


def get(port: int, path: str = "/", *, method: str = "GET", body: bytes | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body=body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


class Load:
    """Clients with keep-alive connections that ask as fast as they are answered, each in a thread.

    `answers` counts by status and by body; `failures` says what broke. A connection is made anew where the answer said
    that it closes, and in every 50th request, so that accept queues are never empty for long.
    """

    def __init__(self, port: int, *, clients: int = 4, method: str = "GET", first: int = 50) -> None:
        self.port = port
        self.method = method
        self.first = first
        self.statuses: Counter[int] = Counter()
        self.bodies: Counter[bytes] = Counter()
        self.failures: list[str] = []
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.more(self.first)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    @property
    def total(self) -> int:
        return sum(self.statuses.values())

    def more(self, count: int, *, within: float = 20) -> None:
        """Wait until so many more requests have ended."""
        goal = self.total + len(self.failures) + count
        if count:
            wait_until(lambda: self.total + len(self.failures) >= goal, within=within)

    def _run(self) -> None:
        stream: _Client | None = None
        number = 0
        while not self._is_over.is_set():
            number += 1
            try:
                if stream is None:
                    stream = _Client(self.port)
                status, body, closes = stream.ask(self.method)
            except OSError as error:
                with self._lock:
                    self.failures.append(f"{type(error).__name__}: {error}")
                if stream is not None:
                    stream.close()
                stream = None
                continue
            with self._lock:
                self.statuses[status] += 1
                self.bodies[body] += 1
            if closes or number % 50 == 0:
                stream.close()
                stream = None
        if stream is not None:
            stream.close()


class _Client:
    """One connection that asks one request after the other, and takes nothing but a whole answer."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=15)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, method: str) -> tuple[int, bytes, bool]:
        body = b"content-length: 4\r\n\r\nbody" if method == "POST" else b"\r\n"
        self.sock.sendall(method.encode() + b" /x HTTP/1.1\r\nhost: a.test\r\n" + body)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._receive()
        head, _, rest = data.partition(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head.lower())
        length = int(found[1]) if found else 0
        while len(rest) < length:
            rest += self._receive()
        return int(head.split(b" ", 2)[1]), rest, b"connection: close" in head.lower()

    def _receive(self) -> bytes:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionResetError("closed before the answer was whole")
        return data

    def close(self) -> None:
        self.sock.close()
