"""A real `netloom agent` in a test host: started, watched, stopped, suspended, killed; always by its process id.

What it did is read from its log, one JSON object a line. Also the launcher's side of the protocol by hand, for clients
that behave badly. Refuses to know what a call does: see tests/calls.py.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from waiting import wait_until

SOCKET = "/run/netloom/agent.sock"
NETLOOM = (sys.executable, "-c", "import sys; from cni_plugins.cli import main; sys.exit(main())")
# Reached only when something is wrong: it takes a quarter of a second on a quiet machine.
START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 70.0  # it drains for 60


class Host(Protocol):
    """Where an agent can run: a Namespace, or the cell of a container runtime."""

    @property
    def name(self) -> str: ...

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[Any]: ...


class RunningAgent:
    """An agent on `host`. `log` is the file for its lines, `prefix` a command line that executes it, `pass_fds` as in
    subprocess; `started_s` is how long it took to be ready."""

    def __init__(
        self, host: Host, log: Path, *options: str, prefix: Sequence[str] = (), pass_fds: Sequence[int] = ()
    ) -> None:
        self.host = host
        self.log = log
        self._argv = (*prefix, *NETLOOM, "agent", *options)
        self._pass_fds = tuple(pass_fds)
        self._process: subprocess.Popen[Any] | None = None
        self.pid = 0
        self.started_s = 0.0
        self._seen = 0
        self.start()

    def __repr__(self) -> str:
        return f"<RunningAgent {self.host.name} pid={self.pid}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it (again), and wait until it is ready."""
        self._seen = self.log.stat().st_size if self.log.exists() else 0
        before = time.monotonic()
        with self.log.open("ab") as file:
            self._process = self.host.popen(
                *self._argv, stdout=subprocess.DEVNULL, stderr=file, pass_fds=self._pass_fds
            )
        self.pid = self._process.pid
        wait_until(self._is_ready, within=START_TIMEOUT_S)
        self.started_s = time.monotonic() - before
        self.pid = _innermost(self._process.pid)

    def _is_ready(self) -> bool:
        assert self._process is not None
        text = self.log.read_bytes()[self._seen :].decode()
        assert self._process.poll() is None, f"the agent ended: {text}"
        return '"event": "ready"' in text

    def stop(self) -> int:
        """SIGTERM; returns the exit code, once it has drained."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self._process is not None:
            if self._process.poll() is None:
                self.signal(signal.SIGKILL)
            self.wait()

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        assert self._process is not None
        return self._process.wait(END_TIMEOUT_S)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)
        if number == signal.SIGSTOP:
            wait_until(lambda: self.status("State").startswith("T"), within=START_TIMEOUT_S)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The lines of one kind, of every start."""
        whole = self.log.read_text().rpartition("\n")[0].splitlines()
        lines = [json.loads(line) for line in whole if line.startswith("{")]
        return [line for line in lines if line["event"] == kind]

    def calls(self, verb: str = "") -> list[dict[str, Any]]:
        """The calls it ran; of one verb."""
        return [line for line in self.events("call") if verb in ("", line["verb"])]

    def status(self, key: str) -> str:
        """One line of /proc/PID/status."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return line.partition(":")[2].strip()
        raise KeyError(key)

    @property
    def cpu_s(self) -> float:
        """Processor time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def memory_kib(self) -> int:
        return int(self.status("VmRSS").split()[0])

    @property
    def threads(self) -> int:
        return int(self.status("Threads"))

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def _innermost(pid: int) -> int:
    """nsenter into a process namespace forks, and waits: the agent is its child."""
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(children[0])
    return pid


def connect(path: Path | str, *, timeout_s: float = 10.0) -> socket.socket:
    """A connection to an agent's socket (`path` as seen from here), which waits where launchers would not: for a place
    in the socket's queue."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        client.connect(str(path))
        client.settimeout(timeout_s)
    except BaseException:
        client.close()
        raise
    return client
