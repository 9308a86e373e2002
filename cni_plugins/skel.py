"""The frame of every plugin: reads the call, runs the verb, prints the result or the error object.

A plugin is a `Plugin`: five functions of a `Call`. `run` is the one crash barrier: whatever happens, standard output
carries either the result or one error object, and the exit code tells which.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

from . import turns
from .errors import CniError, Code, from_import_error, from_os_error
from .netns import Netns, open_netns, own_netns
from .protocol import Call, config_version, decode_json, parse_call
from .results import LATEST, VERSIONS, Result


@dataclass(frozen=True, slots=True)
class Plugin:
    """A CNI plugin. `explain` returns the text that `--explain` prints, `preview` the result that an ADD would most
    likely give (for IPAM plugins: bridge's plan shows the address); both touch nothing."""

    name: str
    about: str
    add: Callable[[Call], Result]
    delete: Callable[[Call], None]
    check: Callable[[Call], None]
    gc: Callable[[Call], None]
    status: Callable[[Call], None]
    explain: Callable[[Call], str]
    preview: Callable[[Call], Result] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the process does: bytes for standard output, an exit code."""

    stdout: bytes
    exit_code: int


def answer(
    plugin: Plugin,
    environ: Mapping[str, str],
    stdin: bytes,
    netns: Netns | None = None,
    *,
    opener: Callable[[str], Netns] = open_netns,
) -> Answer:
    """Run one call. `netns` is the pod's namespace where somebody else opened it already; it stays theirs. Otherwise
    `opener` opens it, as open_netns does."""
    if environ.get("CNI_COMMAND") == "VERSION":
        return version_answer(stdin)
    version = LATEST
    try:
        version = _version_for_errors(stdin)
        call = parse_call(environ, stdin, plugin.name)
        return _dispatch(plugin, call, netns, opener)
    except CniError as error:
        return failed(error, version)
    except OSError as error:
        return failed(from_os_error(error, plugin.name), version)
    except ImportError as error:  # pyroute2 is loaded where it is needed
        return failed(from_import_error(error, plugin.name), version)
    except Exception as error:  # noqa: BLE001 - the crash barrier: the runtime must get an error object
        import traceback

        traceback.print_exc()
        what = f"{type(error).__name__}: {error}"
        return failed(CniError(Code.INTERNAL, f"{plugin.name}: a defect of netloom", what), version)


def version_answer(stdin: bytes) -> Answer:
    """VERSION: never fails, whatever is asked, as it is how a runtime finds out (CNI SPEC, VERSION). Needs no plugin.
    Echoes a cniVersion that we know, else names our newest. The installed launcher (script.py) answers the same."""
    version = LATEST
    try:
        asked = decode_json(stdin).get("cniVersion")
        version = asked if isinstance(asked, str) and asked in VERSIONS else LATEST
    except CniError:
        pass  # old runtimes send nothing
    return _ok({"cniVersion": version, "supportedVersions": list(VERSIONS)})


def _dispatch(plugin: Plugin, call: Call, netns: Netns | None, opener: Callable[[str], Netns]) -> Answer:
    with ExitStack() as stack:
        if call.command in ("ADD", "CHECK", "DEL"):
            stack.enter_context(turns.alone(plugin.name, call.container_id, call.ifname))
        opened = netns or open_pod(call, stack, opener)
        call = replace(call, netns=opened)
        match call.command:
            case "ADD":
                return _ok(plugin.add(call).to_json(call.config.cni_version))
            case "DEL":
                plugin.delete(call)
            case "CHECK":
                if call.config.prev_result is None:
                    raise CniError(Code.INVALID_CONFIG, "CHECK needs prevResult", "the runtime must pass ADD's result")
                plugin.check(call)
            case "GC":
                plugin.gc(call)
            case "STATUS":
                plugin.status(call)
    return Answer(b"", 0)


def open_pod(call: Call, stack: ExitStack, opener: Callable[[str], Netns]) -> Netns | None:
    """Open the pod's namespace for the call. Raises CniError 4 or 8; DEL goes on without one."""
    if call.command not in ("ADD", "CHECK", "DEL") or not call.netns_path:
        return None
    try:
        netns = opener(call.netns_path)
    except FileNotFoundError as error:
        if call.command == "DEL":
            return None  # CNI SPEC, DEL: no error when the namespace is gone
        raise CniError(
            Code.INVALID_NETNS, f"there is no network namespace at {call.netns_path!r}", "was the pod stopped?"
        ) from error
    except CniError:
        if call.command == "DEL":
            return None  # a path that is unmounted but not yet unlinked is a namespace that is gone
        raise
    stack.callback(netns.close)
    if not call.environ.get("CNI_NETNS_OVERRIDE"):
        home = own_netns()
        stack.callback(home.close)
        if home.identity == netns.identity:
            raise CniError(
                Code.INVALID_NETNS,
                f"CNI_NETNS {call.netns_path!r} is the plugin's own network namespace",
                "a pod needs one of its own; set CNI_NETNS_OVERRIDE=1 if this is meant",
            )
    return netns


def _version_for_errors(stdin: bytes) -> str:
    try:
        return config_version(decode_json(stdin))
    except CniError:
        return LATEST


def _ok(body: object) -> Answer:
    return Answer(json.dumps(body, indent=2).encode() + b"\n", 0)


def failed(error: CniError, version: str = LATEST) -> Answer:
    """The error object."""
    return Answer(json.dumps(error.to_json(version), indent=2).encode() + b"\n", 1)


def explain(plugin: Plugin, environ: Mapping[str, str], stdin: bytes) -> Answer:
    """`--explain`: what an ADD would do, as text."""
    try:
        filled = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "explain", "CNI_IFNAME": "eth0", "CNI_NETNS": "POD"}
        call = parse_call({**filled, **environ, "CNI_COMMAND": "ADD"}, stdin, plugin.name)
        return Answer(plugin.explain(call).encode(), 0)
    except CniError as error:
        return failed(error, LATEST)


def about(plugin: Plugin) -> str:
    """What a call with an empty CNI_COMMAND prints on standard error, as the reference does."""
    return f"netloom CNI plugin {plugin.name}: {plugin.about}\nCNI protocol versions supported: {', '.join(VERSIONS)}\n"


HELP = """\
usage: CNI_COMMAND=ADD|DEL|CHECK|GC|STATUS|VERSION CNI_...=... {name} < network-configuration.json
       {name} --explain < network-configuration.json    print what an ADD would do, and touch nothing
       {name} --help

{about}
A container runtime executes this program; by hand, `netloom add NETWORK NETNS` is easier.
"""


def main(plugin: Plugin, argv: list[str], environ: Mapping[str, str], stdin: bytes | None = None) -> int:
    """The process: argv without the program's name; `stdin` where somebody has read it already."""
    if "--help" in argv or "-h" in argv:
        print(HELP.format(name=plugin.name, about=plugin.about))
        return 0
    if "--explain" in argv:
        done = explain(plugin, environ, sys.stdin.buffer.read())
    elif not environ.get("CNI_COMMAND"):
        sys.stderr.write(about(plugin))
        return 0
    else:
        done = answer(plugin, environ, sys.stdin.buffer.read() if stdin is None else stdin)
    return write(done)


def write(done: Answer) -> int:
    """Print the answer; returns the exit code."""
    sys.stdout.buffer.write(done.stdout)
    sys.stdout.buffer.flush()
    return done.exit_code
