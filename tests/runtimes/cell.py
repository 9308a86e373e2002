"""A cell: the process and mount namespace on a test host in which one container runtime lives.

Everything the runtime starts, however often it forks away from its parent, stays in the cell's process namespace and
ends with it. Its first process collects orphans, as an init does: podman waits 20 s for a conmon that nobody collects.
Mounts made here are seen here only; /run and /var/lib/cni are the host's. Also holds the cgroups of a runtime. Refuses
to know any runtime: see podman.py and containerd.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from namespaces import CommandFailed, Namespace
from waiting import wait_until

# With SIGCHLD ignored the kernel collects the children by itself. (`trap '' CHLD` of dash does not ignore it.)
FIRST_PROCESS = ("env", "--ignore-signal=CHLD", "sleep", "infinity")
# Runtimes and plugins get this and nothing of ours: a kubelet or a systemd unit gives no more.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
COMMAND_TIMEOUT_S = 60.0
# What conmon or a shim may take to end after its last container.
END_TIMEOUT_S = 10.0


class Cell:
    """Runs commands in a process and mount namespace of its own on `node`; close() ends them all."""

    def __init__(self, node: Namespace, name: str, *, environment: Mapping[str, str] | None = None) -> None:
        self.node = node
        self.name = name
        self.environment = {"PATH": PATH, "HOME": "/root", **(environment or {})}
        self._started: list[subprocess.Popen[Any]] = []
        self._unshare = node.popen(
            "unshare", "--pid", "--fork", "--kill-child", "--mount", "--propagation", "private", "--mount-proc",
            *FIRST_PROCESS, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/",
        )  # fmt: skip
        self.pid = wait_until(self._first_process, within=10)
        self._namespace = os.stat(f"/proc/{self.pid}/ns/pid").st_ino

    def __repr__(self) -> str:
        return f"<Cell {self.node.name}/{self.name} pid={self.pid}>"

    def run(
        self, *argv: str, check: bool = True, timeout: float = COMMAND_TIMEOUT_S, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here and return both outputs. Raises CommandFailed when `check` and its exit code is not 0."""
        process = subprocess.run(
            self._command(argv), env=self.environment, check=False, timeout=timeout, text=True,
            capture_output=True, **({"stdin": subprocess.DEVNULL} if input is None else {"input": input}),
        )  # fmt: skip
        if check and process.returncode != 0:
            process.args = list(argv)
            raise CommandFailed(f"{self.node.name}/{self.name}", process)
        return process

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[Any]:
        """Start a command here that runs until it is ended, or the cell is closed."""
        process: subprocess.Popen[Any] = subprocess.Popen(
            self._command(argv), env=self.environment, stdin=subprocess.DEVNULL, **options
        )
        self._started.append(process)
        return process

    def path(self, inner: str | os.PathLike[str]) -> Path:
        """Where the rest of the machine finds a path of this cell, mounts included."""
        return Path(f"/proc/{self.pid}/root{os.fspath(inner)}")

    def bind(self, source: Path, target: str) -> None:
        """Show `source` at `target` in this cell; the machine needs no folder `target`, and gets none."""
        if not self.path(target).exists():
            top = target
            while not self.path(top).exists():
                top = os.path.dirname(top)
            upper = f"/run/{self.name}-upper{top}"
            self.run("mkdir", "-p", f"{upper}/over", f"{upper}/work")
            layers = f"lowerdir={top},upperdir={upper}/over,workdir={upper}/work"
            self.run("mount", "-t", "overlay", "-o", layers, "overlay", top)
            self.run("mkdir", "-p", target)
        self.run("mount", "--bind", str(source), target)

    def processes(self) -> list[str]:
        """`pid command line` of each process here, except the first."""
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == self.pid:
                continue
            # A container has a process namespace below ours, so it is looked up by the chain of its parents too.
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry}/ns/pid").st_ino == self._namespace or self._descends(int(entry)):
                    command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found.append(f"{entry} {command.strip()}")
        return found

    def wait_until_empty(self) -> None:
        """Wait for the runtime's processes to end by themselves; AssertionError with those that do not."""
        try:
            wait_until(lambda: not self.processes(), within=END_TIMEOUT_S)
        except AssertionError:
            raise AssertionError(f"left in {self!r}: {self.processes()}") from None

    def close(self) -> None:
        """Kill the first process: the kernel then kills all others of the cell, and unmounts what they mounted."""
        if self._unshare.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._unshare.wait(COMMAND_TIMEOUT_S)
        for process in self._started:  # each an nsenter on our side of the namespace, waiting for what it entered with
            process.wait(COMMAND_TIMEOUT_S)

    def _command(self, argv: tuple[str, ...]) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--mount", "--net", "--pid", "--", *argv]

    def _first_process(self) -> int:
        """The pid of the first process, 0 as long as it is not ready."""
        if self._unshare.poll() is not None:
            assert self._unshare.stderr is not None
            raise AssertionError(f"no process namespace to be had: {self._unshare.stderr.read().decode()}")
        pid = self._unshare.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        # `sleep` comes last, after /proc is mounted and SIGCHLD is ignored.
        if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == "sleep":
            return int(children[0])
        return 0

    def _descends(self, pid: int) -> bool:
        while pid > 1:
            if pid == self.pid:
                return True
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        return False


class Cgroups:
    """The cgroups of one runtime: all below `parent`, in whichever hierarchies the machine has."""

    def __init__(self, name: str) -> None:
        # The pid keeps two test runs on one machine apart: cgroups belong to the machine, not to the test host.
        self.parent = f"/netloom-tests-{name}-{os.getpid()}"

    def folders(self) -> list[Path]:
        """Those that exist."""
        roots = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines() if " cgroup" in line]
        return [Path(root + self.parent) for root in roots if Path(root + self.parent).is_dir()]

    def remove(self) -> None:
        """Remove them; OSError (busy) when a process is left in one."""
        for folder in self.folders():
            for inner, _, _ in os.walk(folder, topdown=False):
                os.rmdir(inner)
