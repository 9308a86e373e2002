"""Mixed load leaves the proxy as it was: memory, descriptors, threads. NETLOOM_SOAK_S=3600 (`make soak`): an hour."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.meshproxy.live.processes import EndpointProcess, Load, ProxyProcess
from waiting import wait_until

SOAK_S = float(os.environ.get("NETLOOM_SOAK_S", "4"))
WARM_UP = 3  # rounds until the heap and the bounded memories have their size
ROUNDS_MIN = 4
# An interpreter's heap breathes; a leak of 100 bytes a request would be 20 MB in a minute.
GROWTH_KIB = 6_000

CONFIG = """
admin: {port: 0}
access_log: {mode: all, path: LOG}
listeners:
  - name: web
    port: 0
    routes:
      - match: {path: {prefix: /fails}}
        cluster: fails
        retry: {retry_on: [5xx, reset], num_retries: 1}
      - cluster: web
        retry: {retry_on: [connect-failure, reset], num_retries: 2}
        hash: [{header: x-key}]
clusters:
  - name: web
    endpoints: [ENDPOINTS]
    balancing: {policy: maglev}
    idle_timeout: 1s
  - name: fails
    endpoints: [127.0.0.1:FAILS]
    idle_timeout: 1s
  - name: changes
    endpoints: [127.0.0.1:CHANGES]
"""


class Round:
    """One turn of everything that a proxy sees in a day."""

    def __init__(self, running: ProxyProcess, config: str) -> None:
        self.running, self.config = running, config
        self.number = 0

    def run(self) -> None:
        self.number += 1
        with Load(self.running.port, clients=8) as load, Load(self.running.port, clients=2, method="POST"):
            load.more(300)
            self._http2()
            self._rude_clients()
            self.running.rewrite(self.config.replace("CHANGES", str(2000 + self.number % 500)))
            assert self.running.admin("/reload", method="POST") == "taken\n"
            load.more(100)
        assert load.failures == []
        assert set(load.statuses) == {200}

    def _http2(self) -> None:
        for path, streams in (("/", "10"), ("/fails", "1")):
            url = f"http://127.0.0.1:{self.running.port}{path}"
            done = subprocess.run(
                ["h2load", "-n", "400", "-c", "4", "-m", streams, "-H", f"x-key: {self.number}", url],
                capture_output=True,
                text=True,
                check=True,
            )
            assert "400 done" in done.stdout
            assert ("400 2xx" in done.stdout) == (path == "/"), done.stdout

    def _rude_clients(self) -> None:
        """They say half of a request, nonsense, or go before the answer."""
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        three = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n" * 3
        for said in (b"", b"GET / HT", b"\x00\xff\r\n\r\n", three, preface + b"\xff" * 30):
            for _ in range(10):
                place = ("127.0.0.1", self.running.port)
                with socket.create_connection(place, timeout=10) as client, suppress(ConnectionError):
                    client.sendall(said)


def _status(pid: int, key: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key + ":")).split()[1])


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.skipif(shutil.which("h2load") is None, reason="needs h2load (nghttp2-client)")
def test_a_soak_leaves_memory_and_descriptors_flat(tmp_path: Path) -> None:
    with ExitStack() as stack:
        endpoints = [stack.enter_context(EndpointProcess()) for _ in range(3)]
        fails = stack.enter_context(EndpointProcess("fail"))
        places = {
            "LOG": str(tmp_path / "access.log"),
            "ENDPOINTS": ", ".join(f"127.0.0.1:{each.port}" for each in endpoints),
            "FAILS": str(fails.port),
        }
        config = CONFIG
        for name, value in places.items():
            config = config.replace(name, value)
        running = stack.enter_context(ProxyProcess(tmp_path, config.replace("CHANGES", "1999")))
        turn = Round(running, config)
        for _ in range(WARM_UP):
            turn.run()
        memory_kib = _status(running.pid, "VmRSS")
        ended = time.monotonic() + SOAK_S
        rounds = 0
        while rounds < ROUNDS_MIN or time.monotonic() < ended:
            turn.run()
            rounds += 1
        grown_kib = _status(running.pid, "VmRSS") - memory_kib
        print(f"{rounds} rounds; memory {memory_kib} KiB, grown by {grown_kib}; {running.stats()}")
        assert grown_kib < GROWTH_KIB
        # What is left: listener, admin, log, event loop, standard streams.
        wait_until(lambda: _descriptors(running.pid) < 25, within=20)
        assert _status(running.pid, "Threads") < 12
