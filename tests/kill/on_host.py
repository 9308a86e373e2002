"""The chain on a host of a test, by the installed executables: for tests that kill nothing, or did."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cni_plugins.skel import Answer
from namespaces import Namespace
from tests.kill.chain import Ask, Chain

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def executing(host: Namespace) -> Ask:
    """Calls by the installed executables."""

    def ask(plugin: str, environ: Mapping[str, str], stdin: bytes) -> Answer:
        program = Path(environ["CNI_PATH"], plugin)
        done = host.run(program, input=stdin, env={"PATH": _PATH, **environ}, check=False, text=False)
        return Answer(done.stdout, done.returncode)

    return ask


def attach(host: Namespace, chain: Chain) -> dict[str, Any]:
    """Make the pod and ADD; returns the result."""
    host.add_pod(chain.container_id)
    outcome = chain.add(executing(host))
    assert outcome.ok, outcome.words
    return outcome.result
