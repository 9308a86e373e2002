"""What links were like before tuning changed them: one file an attachment, in the reference's folder and format.

    <dataDir>/<container id>_<interface>.json    {"mac", "promisc", "mtu", "allmulti", "txQLen", "network"}

`network` is ours: by it, GC of a network knows its files; the reference ignores it. Files are written whole or not at
all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .errors import CniError, Failures, from_os_error
from .fields import Fields
from .owner import Owner

_ENDING = ".json"


@dataclass(frozen=True, slots=True)
class LinkProperties:
    """Properties of the pod's link; None leaves one as it is."""

    link: str
    mac: str | None = None
    mtu: int | None = None
    txqlen: int | None = None
    promisc: bool | None = None
    allmulti: bool | None = None

    @property
    def is_empty(self) -> bool:
        return self == LinkProperties(self.link)

    @property
    def text(self) -> str:
        words = [
            f"{word} {value}"
            for word, value in (("address", self.mac), ("mtu", self.mtu), ("txqueuelen", self.txqlen))
            if value is not None
        ]
        words += [
            f"{word} {'on' if value else 'off'}"
            for word, value in (("promisc", self.promisc), ("allmulticast", self.allmulti))
            if value is not None
        ]
        return f"pod#  ip link set {self.link} {' '.join(words)}"


def _path(folder: Path, owner: Owner) -> Path:
    return folder / f"{owner.container_id}_{owner.ifname}{_ENDING}"


def _unfinished(folder: Path, owner: Owner) -> Path:
    """Where a file is written first. Its name tells the network, too, to the GC after a kill."""
    return folder / f".{_path(folder, owner).name}{_mark(owner.network)}"


def _mark(network: str) -> str:
    return "." + hashlib.sha256(network.encode()).hexdigest()[:12]


def save(folder: Path, owner: Owner, before: LinkProperties) -> Callable[[], None]:
    """Keep what the link was like. Returns what undoes it. Raises CniError 5."""
    path = _path(folder, owner)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        earlier = path.read_bytes() if path.exists() else None
        _write(folder, owner, _encode(before, owner.network))
    except OSError as error:
        raise from_os_error(error, "keeping what the link was like") from error

    def undo() -> None:
        if earlier is None:
            path.unlink(missing_ok=True)
        else:
            _write(folder, owner, earlier)

    return undo


def _write(folder: Path, owner: Owner, data: bytes) -> None:
    unfinished = _unfinished(folder, owner)
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
    unfinished.replace(_path(folder, owner))


def _encode(before: LinkProperties, network: str) -> bytes:
    body = {
        "mac": before.mac,
        "promisc": before.promisc,
        "mtu": before.mtu,
        "allmulti": before.allmulti,
        "txQLen": before.txqlen,
        "network": network,
    }
    return json.dumps({key: value for key, value in body.items() if value is not None}, indent=1).encode()


def load(folder: Path, owner: Owner) -> LinkProperties | None:
    """What the link was like; None where nothing was kept, or nothing that can be read."""
    found = _read(_path(folder, owner))
    if found is None:
        return None
    try:
        return LinkProperties(
            owner.ifname,
            mac=found.text("mac") or None,
            mtu=found.number("mtu") or None,
            txqlen=found.number("txQLen") if "txQLen" in found else None,
            promisc=found.flag("promisc") if "promisc" in found else None,
            allmulti=found.flag("allmulti") if "allmulti" in found else None,
        )
    except CniError:
        return None


def _read(path: Path) -> Fields | None:
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return Fields(body) if isinstance(body, dict) else None


def remove(folder: Path, owner: Owner) -> None:
    """Forget an attachment; fine if nothing is known of it. Raises OSError."""
    for path in (_path(folder, owner), _unfinished(folder, owner)):
        path.unlink(missing_ok=True)


def sweep(folder: Path, network: str, valid: frozenset[Owner], failures: Failures) -> None:
    """Forget the attachments of `network` that are not valid. Files without a network are the reference's, and stay."""
    keep = {path(folder, owner).name for owner in valid for path in (_path, _unfinished)}
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in sorted(set(names) - keep):
        if name.endswith(_ENDING):
            found = _read(folder / name)
            mine = found is not None and found.raw().get("network") == network
        else:
            mine = name.startswith(".") and name.endswith(_mark(network))
        if mine:
            with failures.trying(f"removing {folder / name}"):
                (folder / name).unlink(missing_ok=True)
