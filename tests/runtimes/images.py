"""What the containers of these tests are made of: busybox, as a root folder for podman and as an image for containerd.

Needs no registry and no build tool. The container's own process answers each TCP connection on SERVICE_PORT with its
host name, so that a test sees which container it has reached.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import tarfile
from pathlib import Path

SERVICE_PORT = 80
# `-ll` accepts again and again, `-e` runs a program for each connection; busybox makes the socket for both families.
SERVER = ("nc", "-ll", "-p", str(SERVICE_PORT), "-e", "hostname")
APPLETS = ("cat", "hostname", "ip", "nc", "sh", "sleep", "true")
FOLDERS = ("bin", "dev", "etc", "proc", "sys", "tmp")


def find_busybox() -> str | None:
    """A busybox that needs no libraries: Debian's busybox-static."""
    return shutil.which("busybox")


def build_root(folder: Path) -> Path:
    """Fill `folder` with a root file system and return it."""
    busybox = find_busybox()
    if busybox is None:
        raise FileNotFoundError("busybox")
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(busybox, folder / "bin/busybox")
    for name in APPLETS:
        (folder / "bin" / name).symlink_to("busybox")
    return folder


def build_image(root: Path, reference: str, archive: Path) -> Path:
    """Write `root` as a docker archive of one layer, tagged `reference`, which `ctr images import` reads."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(root, arcname=".")
    config = {
        "architecture": _architecture(),
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Entrypoint": list(SERVER)},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
        "history": [{"created_by": "netloom tests"}],
    }
    files = {
        "config.json": json.dumps(config).encode(),
        "layer.tar": layer.getvalue(),
        "manifest.json": json.dumps(
            [{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]
        ).encode(),
    }
    with tarfile.open(archive, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive


def _architecture() -> str:
    """Go's name of this machine, which containerd matches."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
