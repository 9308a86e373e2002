"""Ways to have a plugin's call answered (chain.Ask), and to have the one who answers killed at a border.

- `Direct`: each call in a process of its own, which is killed, as without an agent.
- `ByAgent`: launchers hand the calls to an agent, which is killed.
- `Programs`: each call by an installed executable, which is killed; the interpreter's start included.
- `ByLauncher`: these hand the calls to an agent that lives; they are killed.

Each runs one verb of a chain, killed at a border or whole. Children are forks of this process, which has imported
everything already; the installed executables apart.
"""

from __future__ import annotations

import os
import pickle
import posix
import signal
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NoReturn, Protocol

from cni_plugins import agent, agent_process, handover, netlink, registry, skel
from cni_plugins.skel import Answer
from tests.kill.chain import Ask, Outcome
from tests.kill.tracing import NEVER, Border, Run, Tracer

SOCKET = handover.SOCKET_PATH
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_READY_S = 20.0

Verb = Callable[[Ask], Outcome]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a verb ended: its outcome (None: the plugin was killed), and the traced run."""

    outcome: Outcome | None
    run: Run


class Way(Protocol):
    """A way to run a verb. `goes_on`: what was asked for may be done yet after the kill, by an agent."""

    goes_on: bool

    def killed(self, verb: Verb, border: Border) -> Ended: ...

    def whole(self, verb: Verb) -> Outcome: ...

    def close(self) -> None: ...


def here(plugin: str, environ: Mapping[str, str], stdin: bytes) -> Answer:
    """The plugin's handler, in this process and thread."""
    return skel.answer(registry.load(plugin), environ, stdin)


def handed_over(plugin: str, environ: Mapping[str, str], stdin: bytes) -> Answer:
    """What a launcher does, without the start of an interpreter: for a forked child, whose environment and standard
    output it takes."""
    posix.environ.clear()
    posix.environ.update({os.fsencode(key): os.fsencode(value) for key, value in environ.items()})
    output = os.memfd_create("stdout")
    os.dup2(output, 1)
    code = handover.hand_over(agent.program_id(), plugin.encode(), stdin, SOCKET)
    if code is None:
        return here(plugin, environ, stdin)
    return Answer(_content(output), code)


def _content(descriptor: int) -> bytes:
    with open(descriptor, "rb", closefd=True) as file:
        file.seek(0)
        return file.read()


class InThread:
    """Answers in a thread that keeps its netlink sockets, as an agent's worker: the fastest way that there is."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, initializer=netlink.keep_sockets_open)

    def __call__(self, plugin: str, environ: Mapping[str, str], stdin: bytes) -> Answer:
        return self._thread.submit(here, plugin, environ, stdin).result()


class _Killed(Exception):
    """The process that should have answered was killed."""


class _Traced:
    """An Ask: each call in a traced child. Counts borders over all of them."""

    def __init__(
        self, tracer: Tracer, border: Border, answering: Callable[[str, Mapping[str, str], bytes], None]
    ) -> None:
        self._tracer, self._border, self._answering = tracer, border, answering
        self.run = Run()

    def __call__(self, plugin: str, environ: Mapping[str, str], stdin: bytes) -> Answer:
        source, output = os.memfd_create("stdin"), os.memfd_create("stdout")
        os.write(source, stdin)
        os.lseek(source, 0, os.SEEK_SET)

        def work() -> None:
            os.dup2(source, 0)
            os.dup2(output, 1)
            self._answering(plugin, environ, stdin)

        child = self._tracer.start(work)
        os.close(source)
        left = self._border.number - len(self.run.calls)
        run = self._tracer.follow(child, Border(left, self._border.when) if left > 0 else NEVER)
        self.run = Run(run.killed, run.status, self.run.calls + run.calls)
        answer = Answer(_content(output), run.status)
        if run.killed:
            raise _Killed
        return answer


def _run_traced(traced: _Traced, verb: Verb) -> Ended:
    try:
        outcome = verb(traced)
    except _Killed:
        return Ended(None, traced.run)
    return Ended(outcome, traced.run)


class Direct:
    """No agent."""

    goes_on = False

    def __init__(self) -> None:
        self._tracer = Tracer()
        self._in_thread = InThread()

    def killed(self, verb: Verb, border: Border) -> Ended:
        return _run_traced(_Traced(self._tracer, border, self._main), verb)

    @staticmethod
    def _main(plugin: str, environ: Mapping[str, str], stdin: bytes) -> None:
        os._exit(skel.main(registry.load(plugin), [], environ, stdin))

    def whole(self, verb: Verb) -> Outcome:
        return verb(self._in_thread)

    def close(self) -> None:
        pass


class _Notices:
    """A running agent, or one that is about to: where it says that it is ready, and where it logs."""

    def __init__(self) -> None:
        self._name = f"netloom-kill-{os.getpid()}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind(f"\0{self._name}")
        self._socket.settimeout(_READY_S)
        self.log = os.memfd_create("log")

    def __enter__(self) -> _Notices:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        os.close(self.log)

    def run_agent(self) -> None:
        """For a forked child: be the agent."""
        os.dup2(self.log, 2)
        os.environ["NOTIFY_SOCKET"] = f"@{self._name}"
        os._exit(agent_process.run(SOCKET))

    def wait(self) -> None:
        """Wait until the agent is ready, or nobody waits for it any more."""
        self._socket.recv(64)

    def give_up(self) -> None:
        """The agent was killed: let whoever waits go on."""
        self._socket.sendto(b"GONE=1", f"\0{self._name}")


def _forked(work: Callable[[], Outcome]) -> tuple[int, int]:
    """Run `work` in a child: its pid, and where its outcome will be."""
    output = os.memfd_create("outcome")
    child = os.fork()
    if child == 0:
        _report(output, work)
    return child, output


def _report(output: int, work: Callable[[], Outcome]) -> NoReturn:
    code = 125
    try:
        os.write(output, pickle.dumps(work()))
        code = 0
    finally:
        os._exit(code)


def _in_runtime(verb: Verb) -> Outcome:
    """Run a verb in a child that hands its calls over."""
    runtime, output = _forked(lambda: verb(handed_over))
    os.waitpid(runtime, 0)
    return _outcome(output)


def _outcome(output: int) -> Outcome:
    outcome = pickle.loads(_content(output))
    assert isinstance(outcome, Outcome)
    return outcome


class ByAgent:
    """The agent is killed, anywhere from its start on. Afterwards a new agent answers, or none: in turn."""

    goes_on = False

    def __init__(self) -> None:
        self._tracer = Tracer()
        self._in_thread = InThread()
        self._successor = _Successor()
        self._has_successor = False

    def killed(self, verb: Verb, border: Border) -> Ended:
        self._successor.close()
        self._has_successor = not self._has_successor
        with _Notices() as notices:
            traced = self._tracer.start(notices.run_agent)

            def run_verb() -> Outcome:
                notices.wait()
                return verb(handed_over)

            runtime, output = _forked(run_verb)
            over: list[int] = []

            def is_over(child: int, _: int) -> bool:
                over.append(child)
                return child == runtime

            run = self._tracer.follow(traced, border, until=is_over)
            notices.give_up()
            if runtime not in over:
                os.waitpid(runtime, 0)
            return Ended(_outcome(output), run)

    def whole(self, verb: Verb) -> Outcome:
        if not self._has_successor:
            return verb(self._in_thread)
        self._successor.ensure()
        return _in_runtime(verb)

    def close(self) -> None:
        self._successor.close()


class _Successor:
    """An agent that nobody kills."""

    def __init__(self) -> None:
        self._pid = 0

    def ensure(self) -> None:
        """Start one, where there is none yet."""
        if self._pid:
            return
        with _Notices() as notices:
            self._pid = os.fork()
            if self._pid == 0:
                notices.run_agent()
            notices.wait()

    def close(self) -> None:
        """End it in order: its socket goes."""
        if not self._pid:
            return
        os.kill(self._pid, signal.SIGTERM)
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        assert os.waitstatus_to_exitcode(status) == 0, f"the agent ended with {status:#x}"
        assert not os.path.exists(SOCKET), "the agent left its socket"


class Programs:
    """The installed executables, from the shell's first step on, without an agent. They are killed."""

    goes_on = False

    def __init__(self, *, talking: bool = False) -> None:
        self._tracer = Tracer(talking=talking)
        self._in_thread = InThread()

    def killed(self, verb: Verb, border: Border) -> Ended:
        return _run_traced(_Traced(self._tracer, border, self._execute), verb)

    @staticmethod
    def _execute(plugin: str, environ: Mapping[str, str], _: bytes) -> None:
        os.execve(os.path.join(environ["CNI_PATH"], plugin), [plugin], {"PATH": _PATH, **environ})

    def whole(self, verb: Verb) -> Outcome:
        return verb(self._in_thread)

    def close(self) -> None:
        pass


class ByLauncher(Programs):
    """The installed executables are killed, an agent lives, and may be running the call that was handed over."""

    goes_on = True

    def __init__(self) -> None:
        super().__init__(talking=True)
        self._agent = _Successor()
        self._agent.ensure()

    def whole(self, verb: Verb) -> Outcome:
        return _in_runtime(verb)

    def close(self) -> None:
        self._agent.close()
