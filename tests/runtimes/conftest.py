"""Fixtures of the runtime tests: one host, one podman and one containerd for each module, on the plugins of `bin_dir`.

All are module-scoped, since a runtime takes a second to start. A program that is missing skips the tests; in CI, as
root, it fails them, since there the skip would never be read.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from namespaces import Namespace
from network import Network
from pytest_netns import networks
from tests.conftest import Serving
from tests.runtimes import containerd as containerd_runtime
from tests.runtimes import podman as podman_runtime
from tests.runtimes.containerd import Containerd
from tests.runtimes.images import build_root
from tests.runtimes.podman import Podman

ROOT = Path(__file__).resolve().parents[2]
CONFLIST = ROOT / "conf/10-netloom.conflist"
TOOLS = ("busybox", "ip", "mount", "nft", "nsenter", "tc", "unshare")
# Only root of the machine has this map; cgroups and device mounts are closed to root of a user namespace.
WHOLE_ID_MAP = ["0", "0", "4294967295"]


def require_programs(*names: str) -> None:
    """Skip, or fail in CI, unless this is root of the machine and all programs are installed."""
    if Path("/proc/self/uid_map").read_text().split() != WHOLE_ID_MAP or os.geteuid() != 0:
        pytest.skip("container runtimes need root of the machine")
    missing = [name for name in (*TOOLS, *names) if shutil.which(name) is None]
    if missing:
        reason = f"not installed: {', '.join(missing)} (tests/setup-machine tests)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def folder(mode: str) -> Iterator[Path]:
    """A folder with a short name: sockets lie below it, and the path of a socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="netloom-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root file system of every container."""
    require_programs()
    return build_root(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def node_network(pytestconfig: pytest.Config, mode: str) -> Iterator[Network]:
    """The topology `node`, for a whole module. An agent of it lives where the runtime does: see below."""
    with networks(pytestconfig) as factory:
        yield factory("node")


@pytest.fixture(scope="module")
def node(node_network: Network) -> Namespace:
    """The host that runs the containers."""
    return node_network["node"]


@pytest.fixture(scope="module")
def outside(node_network: Network) -> Namespace:
    """The world behind the uplink: it has no way back to containers."""
    return node_network["outside"]


@pytest.fixture(scope="module")
def podman(node: Namespace, bin_dir: Path, folder: Path, root: Path, serving: Serving) -> Iterator[Podman]:
    """podman on `node`."""
    require_programs(*podman_runtime.PROGRAMS)
    runtime = Podman(node, bin_dir, folder, root=root)
    with serving(runtime.cell):
        yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def containerd(node: Namespace, bin_dir: Path, folder: Path, root: Path, serving: Serving) -> Iterator[Containerd]:
    """containerd on `node`, with the sample configuration as its network."""
    require_programs(*containerd_runtime.PROGRAMS)
    runtime = Containerd(node, bin_dir, folder, conflist=CONFLIST, root=root)
    with serving(runtime.cell):
        yield runtime
    runtime.close()
