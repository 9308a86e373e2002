"""containerd on a test host: its own root, state, socket and configuration, with the CNI plugins of one folder.

Pods go through the CRI, as a kubelet's do (`run_pod`, `stop_pod`, `remove_pod`), single containers through
`ctr run --cni` (`ctr_run`). Everything lives in a cell and in one temporary folder; close() ends it and says what
resisted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from namespaces import Namespace
from tests.runtimes.cell import Cell, Cgroups
from tests.runtimes.cri import CriClient, CriError, PortMapping
from tests.runtimes.images import build_image
from waiting import wait_until

PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr", "runc")
IMAGE = "netloom.test/busybox:1"
# Fixed in ctr, unlike the CRI's, which the configuration names.
CTR_CONF_DIR = "/etc/cni/net.d"
CTR_BIN_DIR = "/opt/cni/bin"
# Debian's ctr looks here next: without ours in its place, a plugin we lack would silently be the machine's.
CTR_SECOND_BIN_DIR = "/usr/lib/cni"
# The CRI keeps its images apart from ctr's.
CRI_NAMESPACE = "k8s.io"
CTR_NAMESPACE = "default"
# The longest path of a unix socket is 107 bytes.
SOCKET_PATH_MAX = 107

CONFIG = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
# Snapshotters that the tests do not use would only make the start slower; opt makes /opt/containerd on the machine.
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.overlayfs", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = "{socket}"
[ttrpc]
address = "{socket}.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
# Containers of CI machines may neither lower a score nor load a profile.
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{bin_dir}"
conf_dir = "{conf_dir}"
[plugins."io.containerd.grpc.v1.cri".containerd]
# Overlayfs cannot be laid over an overlay, which is what the root of a CI container is.
snapshotter = "native"
"""


@dataclass(frozen=True)
class Sandbox:
    """A pod that runs. `netns` is a path valid from anywhere while it does."""

    id: str
    addresses: tuple[str, ...]
    netns: Path


class Containerd:
    """One containerd on `node`, with the plugins in `bin_dir` and a copy of `conflist` as its network."""

    def __init__(self, node: Namespace, bin_dir: Path, folder: Path, *, conflist: Path, root: Path) -> None:
        self.folder = folder
        self.socket = folder / "containerd.sock"
        if len(f"{self.socket}.ttrpc") > SOCKET_PATH_MAX:
            raise ValueError(f"{self.socket}: too long for a socket")
        self.conf_dir = folder / "net.d"
        self.conf_dir.mkdir()
        (self.conf_dir / conflist.name).write_bytes(conflist.read_bytes())
        self.cgroups = Cgroups("containerd")
        self.cell = Cell(node, "containerd")
        with contextlib.ExitStack() as stack:
            stack.callback(self.cell.close)
            self.cell.bind(self.conf_dir, CTR_CONF_DIR)
            self.cell.bind(bin_dir, CTR_BIN_DIR)
            if self.cell.path(CTR_SECOND_BIN_DIR).exists():
                self.cell.bind(bin_dir, CTR_SECOND_BIN_DIR)
            self._daemon = self._start(bin_dir)
            self.cri = stack.enter_context(contextlib.closing(CriClient(self.socket)))
            wait_until(lambda: self.cri.conditions() == {"RuntimeReady": "", "NetworkReady": ""}, within=20)
            archive = build_image(root, IMAGE, folder / "image.tar")
            for namespace in (CRI_NAMESPACE, CTR_NAMESPACE):
                self.ctr("images", "import", "--snapshotter", "native", str(archive), namespace=namespace)
            wait_until(lambda: self.cri.has_image(IMAGE), within=20)
            stack.pop_all()

    def __repr__(self) -> str:
        return f"<Containerd {self.folder} {self.cell}>"

    def ctr(self, *argv: str, namespace: str = CTR_NAMESPACE, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `ctr` on this containerd."""
        return self.cell.run("ctr", "--address", str(self.socket), "--namespace", namespace, *argv, check=check)

    def ctr_run(self, name: str, *command: str, cni: bool = True, check: bool = True) -> str:
        """`ctr run --rm` of one container to its end; returns what it printed."""
        options = ["--rm", "--snapshotter", "native", "--cgroup", f"{self.cgroups.parent}/{name}"]
        options += ["--cni"] if cni else []
        return self.ctr("run", *options, IMAGE, name, *command, check=check).stdout

    def run_pod(
        self, name: str, *, port_mappings: Sequence[PortMapping] = (), annotations: Mapping[str, str] | None = None
    ) -> Sandbox:
        """Run a pod whose own process answers as images.SERVER does. Raises CriError when it is refused."""
        sandbox_id = self.cri.run_pod_sandbox(
            name, cgroup_parent=self.cgroups.parent, log_directory=str(self.folder / "logs"),
            port_mappings=port_mappings, annotations=annotations,
        )  # fmt: skip
        status = self.cri.pod_sandbox_status(sandbox_id)
        # /var/run is an absolute link, which would lead out of the cell's root.
        netns = self.cell.path(status.netns.replace("/var/run/", "/run/"))
        return Sandbox(sandbox_id, status.addresses, netns)

    def stop_pod(self, sandbox: Sandbox) -> None:
        """End its processes and take its network down; the DEL chain runs at every call."""
        self.cri.stop_pod_sandbox(sandbox.id)

    def remove_pod(self, sandbox: Sandbox) -> None:
        """Forget it; the DEL chain runs once more."""
        self.cri.remove_pod_sandbox(sandbox.id)

    def log(self) -> str:
        """What the daemon wrote: the reasons of refused pods in full."""
        return (self.folder / "containerd.log").read_text(errors="replace")

    def close(self) -> None:
        """Remove the pods, end the daemon by its pid, and prove that no process and no cgroup is left."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.cgroups.remove)
            stack.callback(self.cell.close)
            stack.callback(self.cri.close)
            for sandbox_id in self.cri.sandbox_ids():
                with contextlib.suppress(CriError):  # told below, if it matters: by the processes left
                    self.cri.stop_pod_sandbox(sandbox_id)
                    self.cri.remove_pod_sandbox(sandbox_id)
            self._end_daemon()
            self.cell.wait_until_empty()

    def _start(self, bin_dir: Path) -> subprocess.Popen[bytes]:
        config = self.folder / "config.toml"
        config.write_text(
            CONFIG.format(folder=self.folder, socket=self.socket, image=IMAGE, bin_dir=bin_dir, conf_dir=self.conf_dir)
        )
        with (self.folder / "containerd.log").open("wb") as log:
            return self.cell.popen("containerd", "--config", str(config), stdout=log, stderr=log)

    def _end_daemon(self) -> None:
        # nsenter stays between us and the daemon, which is its only child and belongs to the cell.
        for line in self.cell.processes():
            pid, _, command = line.partition(" ")
            if command.startswith("containerd --config"):
                os.kill(int(pid), signal.SIGTERM)
        self._daemon.wait(20)
