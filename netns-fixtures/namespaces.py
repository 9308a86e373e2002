"""Hosts for tests: a Namespace is one machine (network and mounts of its own), a Pod is a network namespace on it.

Holds entering, running and undoing; refuses to know addresses or links (topology.py does). The holder process is in
holder.py; nothing outlives it, and it does not outlive its parent. Reading order: Place, Pod, Namespace.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, overload

from entering import NamespaceError as NamespaceError
from entering import find_program, visit_network
from entering import has_root as has_root
from entering import require_root_or_userns as require_root_or_userns

HOLDER = Path(__file__).resolve().with_name("holder.py")
# Directories every host has to itself besides /run: reservations and caches of CNI must not meet the machine's own.
PRIVATE_DIRECTORIES = ("/var/lib/cni",)
# What a slow machine may need to start or end a process; reached only when something is wrong.
HOLDER_TIMEOUT_S = 20.0
# A background process gets this long to end on SIGTERM before SIGKILL.
TERMINATE_TIMEOUT_S = 3.0
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class CommandFailed(subprocess.CalledProcessError):
    """A command in a host exited with an error; its text shows both outputs."""

    def __init__(self, place: str, process: subprocess.CompletedProcess[Any]) -> None:
        super().__init__(process.returncode, process.args, process.stdout, process.stderr)
        self.place = place

    def __str__(self) -> str:
        parts = [f"in {self.place}: {super().__str__()}"]
        for label, output in (("stdout", self.stdout), ("stderr", self.stderr)):
            shown = output.decode(errors="backslashreplace") if isinstance(output, bytes) else output
            parts.append(f"{label}: {shown.rstrip() if shown else '(empty)'}")
        return "\n".join(parts)


class Place(ABC):
    """Where commands run: what a host and a pod have in common."""

    name: str

    def __init__(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise NamespaceError(
                f"{name!r} is no name: letters, digits, '_', '.', '-', starting with a letter or digit"
            )
        self.name = name
        self._processes: list[subprocess.Popen[Any]] = []

    @property
    @abstractmethod
    def netns_path(self) -> str:
        """A path of the network namespace, valid from anywhere while the holder lives."""

    @property
    @abstractmethod
    def enter_argv(self) -> tuple[str, ...]:
        """The nsenter command line that enters this place; a command follows it."""

    @abstractmethod
    def close(self) -> None:
        """End the background processes, then remove the place. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @overload
    def run(
        self, *argv: str | os.PathLike[str], input: str | bytes | None = None, env: Mapping[str, str] | None = None,
        check: bool = True, timeout: float | None = 60.0, text: Literal[True] = True,
        cwd: str | os.PathLike[str] | None = None,
    ) -> subprocess.CompletedProcess[str]: ...  # fmt: skip

    @overload
    def run(
        self, *argv: str | os.PathLike[str], input: str | bytes | None = None, env: Mapping[str, str] | None = None,
        check: bool = True, timeout: float | None = 60.0, text: Literal[False],
        cwd: str | os.PathLike[str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]: ...  # fmt: skip

    def run(
        self, *argv: str | os.PathLike[str], input: str | bytes | None = None, env: Mapping[str, str] | None = None,
        check: bool = True, timeout: float | None = 60.0, text: bool = True,
        cwd: str | os.PathLike[str] | None = None,
    ) -> subprocess.CompletedProcess[Any]:  # fmt: skip
        """Run a command here and return both outputs.

        `env` replaces the environment, as in subprocess; `timeout` is in seconds. Raises CommandFailed, which shows
        both outputs, when `check` and the exit code is not 0; subprocess.TimeoutExpired when it took too long.
        """
        data = input.encode() if isinstance(input, str) else input
        process = subprocess.run(
            self._command(argv, cwd),
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            env=env,
            timeout=timeout,
            check=False,
        )
        result: subprocess.CompletedProcess[Any] = process
        result.args = [os.fspath(word) for word in argv]
        if text:
            result.stdout = process.stdout.decode(errors="backslashreplace")
            result.stderr = process.stderr.decode(errors="backslashreplace")
        if check and process.returncode != 0:
            raise CommandFailed(self.name, result)
        return result

    def popen(
        self, *argv: str | os.PathLike[str], cwd: str | os.PathLike[str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a command here in the background; it ends, and its pipes are closed, with this place."""
        process: subprocess.Popen[Any] = subprocess.Popen(self._command(argv, cwd), **options)
        self._processes.append(process)
        return process

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread joins this network (not the mounts), and returns at the end.

        A socket made inside stays here for its whole life. Threads started inside stay here too; do not `await` inside.
        """
        with visit_network(self.netns_path):
            yield

    def _command(self, argv: tuple[str | os.PathLike[str], ...], cwd: str | os.PathLike[str] | None) -> list[str]:
        if not argv:
            raise ValueError("a command is needed")
        # nsenter leaves us in / of the host's mounts, and its own --wdns is missing before util-linux 2.38 (2022).
        directory = os.fspath(cwd) if cwd is not None else os.getcwd()
        words = [os.fspath(word) for word in argv]
        return [*self.enter_argv, "--", find_program("env"), f"--chdir={directory}", *words]

    def _end_processes(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(TERMINATE_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):  # unsent input of a process that is gone
                        pipe.close()
        self._processes.clear()


class Pod(Place):
    """A named network namespace at /run/netns/NAME of its host, as a runtime would make it: `lo` is down."""

    def __init__(self, host: Namespace, name: str) -> None:
        super().__init__(name)
        self.host = host
        self.path = f"/run/netns/{name}"  # valid in the host's mount namespace only
        self._closed = False

    def __repr__(self) -> str:
        return f"<Pod {self.host.name}/{self.name}{' closed' if self._closed else ''}>"

    @property
    def netns_path(self) -> str:
        """The path through the holder's root: valid from anywhere."""
        return f"/proc/{self.host.pid}/root{self.path}"

    @property
    def enter_argv(self) -> tuple[str, ...]:
        return (*self.host.enter_argv[:-1], f"--net={self.netns_path}")

    def close(self) -> None:
        """Remove the pod as `ip netns del` would: unmount and unlink, and its links go with it."""
        if self._closed:
            return
        self._end_processes()
        self._closed = True
        self.host.pods.pop(self.name, None)
        self.host.ask(f"unpod {self.name}")


class Namespace(Place):
    """One host of a test: a network namespace and a private mount namespace, kept by a holder process.

    /run and /var/lib/cni are empty and its own, `lo` is up; everything else is the machine's file system.
    """

    def __init__(self, name: str, holder: subprocess.Popen[bytes], channel: socket.socket) -> None:
        super().__init__(name)
        self.pid = holder.pid
        self.pods: dict[str, Pod] = {}
        self._holder = holder
        self._channel = channel
        self._lock = threading.Lock()
        self._closed = False

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<Namespace {self.name} pid={self.pid} pods={sorted(self.pods)}{state}>"

    @classmethod
    def create(cls, name: str, *, private: tuple[str, ...] = ()) -> Self:
        """Make a host and wait until it is ready.

        `private` names further directories that shall be empty and the host's own, e.g. /etc/cni/net.d.
        Raises NamespaceError when the kernel refuses.
        """
        host = cls.start(name, private=private)
        host.wait_ready()
        return host

    @classmethod
    def start(cls, name: str, *, private: tuple[str, ...] = ()) -> Self:
        """Begin to make a host; wait_ready() must follow. For making several at once."""
        if not NAME.fullmatch(name):
            raise NamespaceError(f"{name!r} is no name for a host")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as stack:
            stack.enter_context(ours)
            with theirs:
                holder = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(HOLDER), name, *PRIVATE_DIRECTORIES, *private],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for pytest, which then closes us in order
                )
            stack.pop_all()
        return cls(name, holder, ours)

    def wait_ready(self) -> None:
        """Wait for the holder; closes the host and raises NamespaceError when the kernel refuses."""
        try:
            self._expect("ready")
        except NamespaceError:
            self.close()
            raise

    @property
    def netns_path(self) -> str:
        """/proc/PID/ns/net of the holder."""
        return f"/proc/{self.pid}/ns/net"

    @property
    def enter_argv(self) -> tuple[str, ...]:
        return (find_program("nsenter"), f"--target={self.pid}", "--mount", "--net")

    def path_from_outside(self, path: str | os.PathLike[str]) -> Path:
        """Where the rest of the machine finds a file of this host, e.g. a socket below its /run."""
        return Path(f"/proc/{self.pid}/root{os.fspath(path)}")

    def add_pod(self, name: str) -> Pod:
        """Make /run/netns/NAME here. Raises NamespaceError when it exists."""
        pod = Pod(self, name)
        self.ask(f"pod {name}")
        self.pods[name] = pod
        return pod

    def ask(self, request: str) -> None:
        """Send the holder one request and wait for its answer; NamespaceError with its text when it fails."""
        with self._lock:
            if self._closed:
                raise NamespaceError(f"host {self.name} is closed")
            try:
                self._channel.send(request.encode())
            except OSError as error:
                raise NamespaceError(f"host {self.name}: the holder {self.pid} is gone") from error
            self._expect("ok")

    def close(self) -> None:
        """End everything: pods' and host's processes, then the holder, and with it networks and mounts."""
        if self._closed:
            return
        for pod in self.pods.values():
            pod._end_processes()
            pod._closed = True
        self.pods.clear()
        self._end_processes()
        self._closed = True
        self._channel.close()
        try:
            self._holder.wait(HOLDER_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait()
            raise NamespaceError(f"host {self.name}: the holder {self.pid} did not end and was killed") from None

    def _expect(self, wanted: str) -> None:
        self._channel.settimeout(HOLDER_TIMEOUT_S)
        try:
            answer = self._channel.recv(4096).decode()
        except OSError as error:
            self._refuse(str(error), error)
        if answer != wanted:
            self._refuse(answer.removeprefix("error ") or "the holder ended")

    def _refuse(self, reason: str, cause: BaseException | None = None) -> NoReturn:
        raise NamespaceError(f"host {self.name}: {reason}") from cause
