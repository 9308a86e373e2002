"""Runs one verb of a plugin on a host of a test, as a runtime would: a process, an environment, JSON in and out."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from namespaces import Namespace, Pod

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = Path("/usr/lib/cni")  # Debian's containernetworking-plugins
LAUNCHER = ROOT / "cni_plugins" / "launcher.py"
FOLDERS = (str(ROOT), sysconfig.get_path("purelib"))


class PluginError(Exception):
    """A plugin answered with an error object."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        super().__init__(json.dumps(body))
        self.code = int(body["code"])
        self.msg = str(body["msg"])
        self.details = str(body.get("details", ""))


def environment(
    verb: str, *, netns: str, container_id: str = "c1", ifname: str = "eth0", args: str = ""
) -> dict[str, str]:
    """What a runtime sets."""
    return {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container_id,
        "CNI_NETNS": netns,
        "CNI_IFNAME": ifname,
        "CNI_ARGS": args,
        "CNI_PATH": str(REFERENCE),
        "PATH": os.environ["PATH"],
    }


def command(plugin: str, *arguments: str) -> list[str]:
    """The process that an installed plugin becomes."""
    return [sys.executable, "-I", "-S", str(LAUNCHER), plugin, *FOLDERS, "--", *arguments]


def run_plugin(
    node: Namespace,
    plugin: str,
    verb: str,
    config: Mapping[str, Any],
    pod: Pod | None = None,
    *,
    reference: bool = False,
    **environ: str,
) -> dict[str, Any]:
    """Run `verb`; returns its answer, empty where it printed none. `environ`: see `environment`. Raises PluginError."""
    environ.setdefault("netns", pod.path if pod else "")
    body = {"cniVersion": "1.1.0", "name": "net", "type": plugin, **config}
    argv = [str(REFERENCE / plugin)] if reference else command(plugin)
    done = node.run(*argv, input=json.dumps(body), env=environment(verb, **environ), check=False)
    assert "Traceback" not in done.stderr, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
    if done.returncode != 0:
        assert answer, f"exit code {done.returncode} without an error object: {done.stderr}"
        raise PluginError(answer)
    return answer
