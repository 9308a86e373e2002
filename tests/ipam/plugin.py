"""Calling an IPAM plugin: ours in this process, or the reference's program, on one directory."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from cni_plugins.skel import Plugin, answer
from ipam.host_local import PLUGIN as HOST_LOCAL

REFERENCE_DIR = Path("/usr/lib/cni")
needs_reference = pytest.mark.skipif(
    not (REFERENCE_DIR / "host-local").exists(), reason="needs the reference plugins in /usr/lib/cni"
)
NOTHING: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call printed, and how it ended."""

    exit_code: int
    body: dict[str, Any]

    @property
    def addresses(self) -> list[str]:
        assert self.exit_code == 0, self.body
        return [ip["address"].split("/")[0] for ip in self.body.get("ips", ())]

    @property
    def code(self) -> int:
        """The error code; 0 where there was no error."""
        return int(self.body["code"]) if self.exit_code else 0


@dataclass(slots=True)
class Network:
    """One network: `ipam` are the keys of its `ipam` object, `data_dir` holds its reservations."""

    data_dir: Path
    ipam: Mapping[str, object]
    plugin: Plugin = HOST_LOCAL
    name: str = "net"
    top: Mapping[str, object] = field(default_factory=dict)

    def config(self, version: str, top: Mapping[str, object]) -> bytes:
        ipam = {"type": self.plugin.name, "dataDir": str(self.data_dir), **self.ipam}
        return json.dumps({"cniVersion": version, "name": self.name, "ipam": ipam, **self.top, **top}).encode()

    def call(
        self,
        verb: str,
        container: str = "c1",
        *,
        ifname: str = "eth0",
        cni_args: str = "",
        version: str = "1.1.0",
        top: Mapping[str, object] = NOTHING,
    ) -> Outcome:
        """Our plugin; `top` are keys of the configuration itself."""
        if verb == "CHECK":
            top = {"prevResult": {}, **top}
        done = answer(self.plugin, environment(verb, container, ifname, cni_args), self.config(version, top))
        return Outcome(done.exit_code, json.loads(done.stdout or b"{}"))

    def gc(self, *valid: tuple[str, str]) -> Outcome:
        """GC with these (container, interface) as the valid attachments."""
        attachments = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
        return self.call("GC", top={"cni.dev/valid-attachments": attachments})

    def reference(
        self,
        verb: str,
        container: str = "c1",
        *,
        ifname: str = "eth0",
        cni_args: str = "",
        version: str = "1.0.0",
        top: Mapping[str, object] = NOTHING,
    ) -> Outcome:
        """The reference's program."""
        done = subprocess.run(
            [REFERENCE_DIR / self.plugin.name],
            input=self.config(version, {"prevResult": {"cniVersion": version}, **top} if verb == "CHECK" else top),
            env=environment(verb, container, ifname, cni_args),
            capture_output=True,
            check=False,
        )
        return Outcome(done.returncode, json.loads(done.stdout or b"{}"))

    @property
    def directory(self) -> Path:
        return self.data_dir / self.name

    @property
    def state(self) -> Path:
        return self.data_dir / ".netloom" / self.name

    def files(self) -> dict[str, bytes]:
        """All files of the network's directory."""
        paths = self.directory.iterdir() if self.directory.exists() else ()
        return {path.name: path.read_bytes() if path.is_file() else b"" for path in paths}

    def reservations(self) -> dict[str, bytes]:
        """Its reservations alone."""
        return {k: v for k, v in self.files().items() if k != "lock" and not k.startswith("last_reserved_ip.")}

    def put(self, address: str, content: str) -> None:
        """A reservation as somebody else makes it, without the lock."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / address).write_bytes(content.encode())


def environment(verb: str, container: str, ifname: str, args: str) -> dict[str, str]:
    return {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container,
        "CNI_IFNAME": ifname,
        "CNI_NETNS": "/proc/self/ns/net",
        "CNI_NETNS_OVERRIDE": "1",
        "CNI_PATH": str(REFERENCE_DIR),
        "CNI_ARGS": args,
    }


def one_range(subnet: str, **keys: str) -> dict[str, object]:
    """An `ipam` object with one range."""
    return {"ranges": [[{"subnet": subnet, **keys}]]}


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process; returns its id. The process ends with 0, or with 1 where `work` raised."""
    pid = os.fork()
    if pid:
        return pid
    exit_code = 1
    try:
        work()
        exit_code = 0
    finally:
        os._exit(exit_code)


def exit_of(pid: int) -> int:
    """How the process ended: an exit code, or the negative number of the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
