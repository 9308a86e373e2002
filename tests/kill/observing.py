"""What plugins can leave on a host, as lines of text, seen from inside of it and fast: it is looked at after each kill.

Links by rtnetlink, nftables by nft(8), files by walking; the slower and wholly independent leftovers.py judges at the
end of each campaign. Also what must never be seen, at any time: a file half written, a lock without a holder.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

from cni_plugins import links
from cni_plugins.netlink import NetlinkSocket
from cni_plugins.portmap_table import LOCALNET_OWNER, MARK_OWNER

FOLDERS = ("/run", "/var/lib/cni")
_NOT_OURS = ("/run/netns", "/run/lock")
# By design these stay: locks (empty, or with the holder's pid), where the round robin goes on, the index beside it.
LOCK = re.compile(r"(.*/)?(lock|[^/]*\.lock)")
_KEPT = re.compile(r".*/(lock|[^/]*\.lock|last_reserved_ip\.\d|\.netloom/[^/]+/index)")
# Of the agent, not of a pod: a killed one's stays until the next one starts.
_AGENT = "/run/netloom/agent.sock"
_ELEMENT = re.compile(r'([^\s,{}"][^,{}]*? comment "([^"]*)"(?: : [^,{}]*[^\s,{}])?)')


def observe(host: NetlinkSocket, pod: NetlinkSocket) -> list[str]:
    """Sorted lines for people; equal before an ADD and after its DEL."""
    found = (_links("host", host), _links("pod", pod), _nft(), _files(), _settings())
    return sorted(line for lines in found for line in lines)


def _links(where: str, socket: NetlinkSocket) -> Iterator[str]:
    for link in links.list_links(socket):
        if link.name != "lo":
            yield f"link in {where}: {link.name} {link.kind} mtu {link.mtu} {link.alias}".rstrip()


def _nft() -> Iterator[str]:
    """Tables, rules, elements. All of ours have a comment."""
    ruleset = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    table = block = ""
    for line in ruleset.splitlines():
        words = line.strip().removesuffix(" {")
        if not line.startswith("\t"):
            if words.startswith("table"):
                table = words
                yield f"nft {table}"
        elif not line.startswith("\t\t"):
            block = words
        elif 'comment "' in words and block.startswith("chain"):
            yield f"nft {table} {block}: {words}"
        else:
            for element, owner in _ELEMENT.findall(words):
                if owner not in (MARK_OWNER, LOCALNET_OWNER):  # nobody's; they go with the table (portmap_table.py)
                    yield f"nft {table} {block}: {element}"


def _files() -> Iterator[str]:
    for path in files():
        if not _KEPT.fullmatch(path) and path != _AGENT:
            content = Path(path).read_bytes() if os.path.isfile(path) else b"(no plain file)"
            yield f"file {path}: {content!r}"


def _settings() -> Iterator[str]:
    for path in sorted(Path("/proc/sys/net/ipv4/conf").glob("*/route_localnet")):
        if path.read_text().strip() != "0":
            yield f"setting {path.parent.name}/route_localnet is on"


def files() -> Iterator[str]:
    """The paths of all files that a plugin may have made."""
    for folder in FOLDERS:
        for at, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if os.path.join(at, name) not in _NOT_OURS]
            yield from (os.path.join(at, name) for name in names)


def damage() -> list[str]:
    """Files that are there in part. What they hold is checked; temporary files are for `observe` to find."""
    return [
        f"{path} is half written: {content!r}" for path in files() for content in _read(path) if _is_half(path, content)
    ]


def _read(path: str) -> Iterator[bytes]:
    if os.path.isfile(path):
        yield Path(path).read_bytes()


def _is_half(path: str, content: bytes) -> bool:
    name = os.path.basename(path)
    if LOCK.fullmatch(path) or name in ("index", "new") or name.startswith("."):
        return False  # a name of its own: nobody reads it, and `observe` finds it
    text = content.decode(errors="replace")
    if name.startswith("last_reserved_ip."):
        return text not in EXPECTED_ADDRESSES
    if path.startswith("/var/lib/cni/networks/"):
        return _is_address(name) and re.fullmatch(r"[^\r\n]+\r\n[^\r\n]+", text) is None
    return content == b"" or (name.endswith(".json") and not text.rstrip().endswith("}"))


# What chain.py's ranges hold.
EXPECTED_ADDRESSES = {f"10.1.0.{n}" for n in range(8, 12)} | {f"fd01::{n:x}" for n in range(14, 18)}


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def held_locks(*, but: str = "") -> list[str]:
    """Lock files that somebody holds."""
    return [path for path in files() if LOCK.fullmatch(path) and path != but and not _is_free(path)]


def _is_free(path: str) -> bool:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
