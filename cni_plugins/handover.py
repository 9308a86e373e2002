"""Handing a call to the node agent: the launcher's half, and what both halves agree on.

One SOCK_SEQPACKET connection per call, so that a message is whole or not there:

    launcher -> agent   the call (encode_call), with descriptors: own network namespace [, the pod's]
    agent -> launcher   WAIT     it is queued; from now on the launcher waits (not said where READY follows at once)
                        DECLINE  it is not for this agent: the launcher runs it itself
                        READY    all is free for it to run
    launcher -> agent   GO       from here on the launcher never runs the call itself
    agent -> launcher   ERRORS+bytes ..., OUTPUT+bytes ..., EXIT+code

The agent runs a call only after GO, and the launcher runs it only where GO was not sent: so it runs once. An agent that
dies after GO leaves an unknown state: the answer is error 11 (try again).

Imports here are paid by every call of every plugin: `posix` and `_socket` are built in, `os`, `socket` and `json` cost
10 ms together.
"""

import posix
import sys
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_CLOEXEC, SOCK_SEQPACKET, SOL_SOCKET, socket

SOCKET_PATH = "/run/netloom/agent.sock"
PROTOCOL = b"netloom-call-1"

WAIT, DECLINE, READY, GO, ERRORS, OUTPUT, EXIT = b"W", b"D", b"R", b"G", b"E", b"O", b"X"

MESSAGE_MAX = 160_000  # the kernel's default bound for one message (net.core.wmem_max, 212,992) less its overhead
_FIRST_ANSWER_S = 2.0  # an agent that is alive says WAIT or READY within a millisecond
_QUEUE_S = 300.0  # longer than any runtime waits for a plugin
_TRY_AGAIN = 11


def encode_call(program: bytes, plugin: bytes, environ: dict[bytes, bytes], stdin: bytes) -> bytes:
    """A call as one message. `program` is version and source folder: an agent of another one declines."""
    variables = b"\0".join(key + b"=" + value for key, value in environ.items())
    return b"\n".join((PROTOCOL, program, plugin, b"%d" % len(variables))) + b"\n" + variables + stdin


def decode_call(message: bytes) -> tuple[bytes, bytes, dict[bytes, bytes], bytes]:
    """The inverse: program, plugin, environment, standard input. Raises ValueError."""
    protocol, program, plugin, length, rest = message.split(b"\n", 4)
    if protocol != PROTOCOL:
        raise ValueError("another protocol")
    size = int(length)
    if not 0 <= size <= len(rest):
        raise ValueError("a wrong length")
    pairs = (pair.partition(b"=") for pair in rest[:size].split(b"\0") if pair)
    return program, plugin, {key: value for key, _, value in pairs}, rest[size:]


def read_all(descriptor: int) -> bytes:
    """Everything up to the end of a file."""
    parts = []
    while part := posix.read(descriptor, 1 << 16):
        parts.append(part)
    return b"".join(parts)


def hand_over(program: bytes, plugin: bytes, stdin: bytes, path: str = SOCKET_PATH) -> int | None:
    """Let the agent answer this process's call: writes standard output, returns the exit code. None where no agent
    took it, and then nothing has happened."""
    environ = posix.environ
    message = encode_call(program, plugin, environ, stdin)
    if len(message) > MESSAGE_MAX:
        return None
    agent = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    descriptors = []
    try:
        try:
            agent.settimeout(_FIRST_ANSWER_S)
            agent.connect(path)
            descriptors = _namespaces(environ)
            if not descriptors:
                return None
            rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in descriptors)
            agent.sendmsg([message], [(SOL_SOCKET, SCM_RIGHTS, rights)])
            answer = agent.recv(1)
            if answer == WAIT:
                agent.settimeout(_QUEUE_S)
                answer = agent.recv(1)
            if answer != READY:
                return None
            agent.settimeout(None)
            agent.send(GO)
        except OSError:
            return None  # nobody there, another's socket, a full queue, no answer in time, or it died
        return _relay(agent)
    finally:
        for descriptor in descriptors:
            posix.close(descriptor)
        agent.close()


def _namespaces(environ: dict[bytes, bytes]) -> list[int]:
    """Descriptors of this process's network namespace and of the pod's, where it is there. An empty list: the pod's
    cannot be opened, for a reason that the plugin itself can tell better."""
    flags = posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK
    found = [posix.open("/proc/self/ns/net", flags)]
    path = environ.get(b"CNI_NETNS")
    if path:
        try:
            found.append(posix.open(path, flags))
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError):
            posix.close(found[0])
            return []
    return found


def _relay(agent: socket) -> int:
    """Write the agent's answer. One that breaks off is error 11: the call may have run, in part or whole."""
    output = []
    while True:
        try:
            message = agent.recv(MESSAGE_MAX + 1)
        except OSError:
            message = b""
        kind, body = message[:1], message[1:]
        if kind == ERRORS:
            try:  # noqa: SIM105 - contextlib is an import more
                write_all(2, body)
            except OSError:
                pass  # a runtime that closes it has no log
        elif kind == OUTPUT:
            output.append(body)
        elif kind == EXIT:
            write_all(1, b"".join(output))
            return int(body)
        else:
            write_all(1, _LOST)
            return 1


_LOST = (
    b"""{
  "cniVersion": "1.1.0",
  "code": %d,
  "msg": "the netloom agent ended while it ran this call",
  "details": "try again: a DEL removes what the call may have left"
}
"""
    % _TRY_AGAIN
)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte."""
    while data:
        data = data[posix.write(descriptor, data) :]
