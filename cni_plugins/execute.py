"""Running a plugin as a program: find it on CNI_PATH, execute it, turn what it answers into bytes or a CniError.

Used for delegates (delegate.py) and for whole chains (runtime.py). `os.posix_spawn`, because importing subprocess costs
a plugin more than the spawn itself.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
from collections.abc import Mapping, Sequence

from .errors import CniError, Code, invalid_config
from .protocol import is_plugin_type
from .results import LATEST

_SHOWN = 200  # of what a program printed, in an error
# Python ignores SIGPIPE and SIGXFSZ; a program that we start must not inherit that
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)


def find_plugin(kind: str, folders: Sequence[str]) -> str:
    """The first executable regular file called `kind` in `folders`. Raises CniError 7 or 106."""
    if not is_plugin_type(kind):
        raise invalid_config(f"invalid plugin type {kind[:80]!r}", "a plugin type is a file name without a path")
    for folder in folders:
        path = os.path.join(folder, kind)
        try:
            if stat.S_ISREG(os.stat(path).st_mode) and os.access(path, os.X_OK):
                return path
        except (OSError, ValueError):
            continue
    searched = ", ".join(folders) or "nothing: CNI_PATH is empty"
    raise CniError(Code.DELEGATE, f"could not find the plugin {kind!r}", f"searched {searched}")


def execute(path: str, environ: Mapping[str, str], stdin: bytes, arguments: Sequence[str] = ()) -> bytes:
    """Run a program to its end; returns its standard output. Standard error is ours.

    Raises CniError: the program's own where it printed an error object, 106 where it failed otherwise, 11 where it is
    being replaced at this moment."""
    status, stdout = _spawn(path, environ, stdin, arguments)
    if status == 0:
        return stdout
    raise _failure(path, status, stdout)


def supported_versions(path: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """What the program answers to VERSION; nothing where it does not know that verb (CNI 0.1.0)."""
    asked = json.dumps({"cniVersion": LATEST}).encode()
    try:
        body = json.loads(execute(path, {**environ, "CNI_COMMAND": "VERSION"}, asked))
        return tuple(str(version) for version in body["supportedVersions"])
    except (CniError, ValueError, TypeError, KeyError):
        return ()


def _spawn(path: str, environ: Mapping[str, str], stdin: bytes, arguments: Sequence[str]) -> tuple[int, bytes]:
    source = os.memfd_create("netloom-stdin")  # a file, so that no program can block us by not reading its input
    reader, writer = os.pipe()
    with open(source, "wb") as file, open(reader, "rb") as output:
        try:
            file.write(stdin)
            file.flush()
            os.lseek(source, 0, os.SEEK_SET)
            child = os.posix_spawn(
                path,
                (path, *arguments),
                dict(environ),
                file_actions=((os.POSIX_SPAWN_DUP2, source, 0), (os.POSIX_SPAWN_DUP2, writer, 1)),
                setsigdef=_DEFAULT_SIGNALS,
            )
        except OSError as error:
            busy = error.errno == errno.ETXTBSY  # it is being written right now
            code = Code.TRY_AGAIN if busy else Code.DELEGATE
            raise CniError(code, f"could not execute {path}: {os.strerror(error.errno or 0)}") from error
        finally:
            os.close(writer)
        try:
            stdout = output.read()
        finally:
            _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), stdout


def _failure(path: str, status: int, stdout: bytes) -> CniError:
    if status < 0:
        return CniError(Code.DELEGATE, f"{path} was killed by {_signal_name(-status)}")
    try:
        body = json.loads(stdout)
    except (ValueError, RecursionError):
        body = None
    if isinstance(body, dict) and ("code" in body or "msg" in body):
        code, msg, details = body.get("code"), body.get("msg"), body.get("details")
        if not isinstance(code, int) or isinstance(code, bool):
            code = Code.DELEGATE
        msg = msg if isinstance(msg, str) and msg else f"{path} failed without a message"
        return CniError(code, msg, details if isinstance(details, str) else "")
    return CniError(Code.DELEGATE, f"{path} failed with exit code {status} and no error object", shown(stdout))


def shown(stdout: bytes) -> str:
    """What a program printed, short enough for an error."""
    text = stdout[:_SHOWN].decode(errors="replace").strip()
    return f"it printed {text!r}" if text else "it printed nothing; see its standard error"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
