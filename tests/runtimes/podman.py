"""podman on a test host: its own configuration, storage and networks, with the CNI plugins of one folder.

Containers are root folders with busybox, so no image is needed; each answers as images.SERVER does. Everything lives in
a cell and in one temporary folder; close() removes the containers, ends the cell and says what resisted.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from namespaces import Namespace
from tests.runtimes.cell import Cell, Cgroups
from tests.runtimes.images import SERVER

PROGRAMS = ("podman", "conmon", "runc")
# Made by podman itself: 10.88.0.0/16 on the bridge cni-podman0.
DEFAULT_NETWORK = "podman"

CONTAINERS_CONF = """\
[containers]
# The machine's hard limits may be lower than podman's own, which would then refuse to start.
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[engine]
# No systemd, no journal, no shared memory: nothing that belongs to the machine.
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
# No static_dir: conmon's clean-up process is told the graph root alone, and would look for the database below that.
tmp_dir = "{folder}/tmp"
volume_path = "{folder}/volumes"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{bin_dir}"]
network_config_dir = "{folder}/net.d"
"""

STORAGE_CONF = """\
[storage]
driver = "vfs"
graphroot = "{folder}/graph"
runroot = "{folder}/run"
"""


@dataclass(frozen=True)
class Attachment:
    """What podman says of a container on one network; empty texts where there is none."""

    address: str
    address6: str
    mac: str


@dataclass(frozen=True)
class Container:
    """A container that runs. `netns` is a path valid from anywhere while it does."""

    name: str
    netns: Path
    networks: Mapping[str, Attachment]


class Podman:
    """One podman on `node`, with the plugins in `bin_dir`; containers have the root folder `root`."""

    def __init__(self, node: Namespace, bin_dir: Path, folder: Path, *, root: Path) -> None:
        self.folder = folder
        self.bin_dir = bin_dir
        self.root = root
        for name in ("graph", "net.d", "run", "tmp", "volumes"):
            (folder / name).mkdir()
        files = {"containers.conf": CONTAINERS_CONF, "storage.conf": STORAGE_CONF}
        for name, text in files.items():
            (folder / name).write_text(text.format(folder=folder, bin_dir=bin_dir))
        self.cgroups = Cgroups("podman")
        environment = {
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "HOME": str(folder),
        }
        self.cell = Cell(node, "podman", environment=environment)

    def __repr__(self) -> str:
        return f"<Podman {self.folder} {self.cell}>"

    def podman(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one podman command. Raises CommandFailed when `check` and it fails."""
        return self.cell.run("podman", *argv, check=check)

    def run(self, name: str, *options: str) -> Container:
        """`podman run --detach` with further options, e.g. `--publish 8080:80`; its host name is `name`."""
        self._run(name, "--detach", *options)
        return self.inspect(name)

    def run_to_end(self, name: str, *command: str, options: tuple[str, ...] = ()) -> str:
        """`podman run --rm` in the foreground; returns what the command printed."""
        return self._run(name, "--rm", *options, command=command)

    @contextlib.contextmanager
    def container(self, name: str, *options: str) -> Iterator[Container]:
        """As run(), removed at the end."""
        try:
            yield self.run(name, *options)
        finally:
            self.remove(name)

    def inspect(self, name: str) -> Container:
        """What podman knows of a running container."""
        settings = json.loads(self.podman("inspect", name).stdout)[0]["NetworkSettings"]
        networks = {
            network: Attachment(found["IPAddress"], found["GlobalIPv6Address"], found["MacAddress"])
            for network, found in settings["Networks"].items()
        }
        return Container(name, self.cell.path(settings["SandboxKey"]), networks)

    def restart(self, name: str) -> Container:
        """Stop and start: a new network namespace, and the network set up anew."""
        self.podman("restart", "--time", "0", name)
        return self.inspect(name)

    def stop(self, name: str) -> None:
        """End the processes and take the network down; the container stays known."""
        self.podman("stop", "--time", "0", name)

    def remove(self, name: str) -> None:
        """End it, if it runs, and forget it, also when DEL failed; does nothing when there is none."""
        self.podman("rm", "--force", "--time", "0", "--ignore", name)

    def network_create(self, name: str, *options: str) -> str:
        """`podman network create`; returns the name of the bridge it will have."""
        self.podman("network", "create", *options, name)
        description: list[dict[str, Any]] = json.loads(self.podman("network", "inspect", name).stdout)
        return str(description[0]["network_interface"])

    def network_remove(self, name: str) -> None:
        """Forget a network without containers, and delete its bridge."""
        self.podman("network", "rm", name)

    def collect_garbage(self, network: str) -> None:
        """`netloom gc`, as an operator runs it on podman's networks."""
        options = ("--conf-dir", str(self.folder / "net.d"), "--bin-dir", str(self.bin_dir))
        self.cell.run(sys.executable, "-m", "cni_plugins.cli", "gc", network, "--yes", *options)

    def close(self) -> None:
        """Remove every container and prove that neither a conmon, a runc nor a cgroup is left."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.cgroups.remove)
            stack.callback(self.cell.close)
            self.podman("rm", "--all", "--force", "--time", "0")
            self.cell.wait_until_empty()

    def _run(self, name: str, *options: str, command: tuple[str, ...] = SERVER) -> str:
        own = ("--name", name, "--hostname", name, "--cgroup-parent", self.cgroups.parent)
        # The root folder is shared by all containers, so none may write to it.
        argv = ("run", *own, *options, "--read-only", "--rootfs", str(self.root), *command)
        return self.podman(*argv).stdout
