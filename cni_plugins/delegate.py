"""One plugin calling another, as bridge calls its IPAM plugin (CNI SPEC, section 4 'Plugin Delegation').

The delegate is what CNI_PATH says. Where that is an executable of ours, of this version and this code, its handler
runs in this process: the same answer, without the 50 ms of a second Python. Anything else is executed.
Undoing a delegate's ADD is the caller's business, as is the order of calls.
"""

from __future__ import annotations

import json
import sys

from . import __version__, registry, skel
from .errors import CniError, Code
from .execute import execute, find_plugin, shown, supported_versions
from .protocol import Call
from .results import Result, parse_result, version_order
from .script import is_this_program


def delegate_add(call: Call, kind: str) -> Result:
    """ADD by the plugin `kind`. Raises its CniError, or CniError 106 where it gave no answer."""
    stdout = _run(call, kind, "ADD", find_plugin(kind, call.path))
    try:
        return parse_result(json.loads(stdout))
    except (ValueError, RecursionError, CniError) as error:
        reason = error.details if isinstance(error, CniError) and error.details else shown(stdout)
        raise CniError(Code.DELEGATE, f"the plugin {kind!r} answered ADD with no result", reason) from error


def preview(call: Call, kind: str) -> Result:
    """What ADD by the plugin `kind` would most likely answer, without doing it; empty for a plugin that cannot tell."""
    if not is_ours(find_plugin(kind, call.path), kind):
        return Result()
    plugin = registry.load(kind)
    return plugin.preview(call) if plugin.preview else Result()


def delegate_del(call: Call, kind: str) -> None:
    """DEL by the plugin `kind`. Raises CniError."""
    _run(call, kind, "DEL", find_plugin(kind, call.path))


def undo_add(call: Call, kind: str) -> None:
    """DEL by the plugin `kind` after an ADD that failed. Its errors go to the log: the answer is why the ADD failed."""
    try:
        delegate_del(call, kind)
    except CniError as error:
        print(f"{call.config.type}: undoing the ADD by {kind}: {error}", file=sys.stderr)


def delegate_check(call: Call, kind: str) -> None:
    """CHECK by the plugin `kind`. Raises CniError."""
    _run(call, kind, "CHECK", find_plugin(kind, call.path))


def delegate_gc(call: Call, kind: str) -> None:
    """GC by the plugin `kind`, where it knows that verb. Raises CniError."""
    _run_if_known(call, kind, "GC")


def delegate_status(call: Call, kind: str) -> None:
    """STATUS by the plugin `kind`, where it knows that verb. Raises CniError (50 or 51: it cannot serve)."""
    _run_if_known(call, kind, "STATUS")


def _run_if_known(call: Call, kind: str, verb: str) -> None:
    """GC and STATUS came with 1.1.0: a configuration of an older version has neither, and a delegate whose VERSION does
    not list the configuration's version is passed over. Some list a version whose verbs they lack; they say so by code
    1, or by 'unknown CNI_COMMAND', and are passed over, too."""
    if version_order(call.config.cni_version) < (1, 1):
        return
    path = find_plugin(kind, call.path)
    if is_ours(path, kind):
        _run(call, kind, verb, path)
        return
    if call.config.cni_version not in supported_versions(path, call.environ):
        return
    try:
        _run(call, kind, verb, path)
    except CniError as error:
        if error.code != Code.INCOMPATIBLE_VERSION and "unknown CNI_COMMAND" not in error.msg:
            raise


def _run(call: Call, kind: str, verb: str, path: str) -> bytes:
    environ = {**call.environ, "CNI_COMMAND": verb}
    stdin = json.dumps(call.config.body).encode()
    if not is_ours(path, kind):
        return execute(path, environ, stdin)
    if call.netns is None:
        environ["CNI_NETNS"] = ""  # it is gone, and stays gone for the delegate, whatever its path may mean here
    answer = skel.answer(registry.load(kind), environ, stdin, call.netns)
    if answer.exit_code == 0:
        return answer.stdout
    body = json.loads(answer.stdout)
    raise CniError(body["code"], body["msg"], body.get("details", ""))


def is_ours(path: str, kind: str) -> bool:
    """Whether the executable at `path` is our plugin `kind`, of this very code."""
    try:
        return kind in registry.MODULES and is_this_program(path, kind, __version__, registry.SOURCE)
    except OSError:
        return False
