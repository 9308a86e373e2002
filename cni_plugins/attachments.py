"""What is attached: libcni's cache of ADD results, one file for each attachment, read and written in its format.

    <cache dir, default /var/lib/cni>/results/<network>-<container>-<ifname>      0600, folder 0700

containerd, CRI-O and podman keep theirs there, too, so that GC sees their pods. Read next: runtime.py.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import CniError, Code, from_os_error
from .netns import open_netns
from .results import parse_result

DEFAULT_CACHE_DIR = "/var/lib/cni"
_KIND = "cniCacheV1"


@dataclass(frozen=True, slots=True)
class Attachment:
    """One interface of one container on one network, and what the runtime says of it. `netns` may be empty."""

    network: str
    container_id: str
    ifname: str
    netns: str = ""
    args: tuple[tuple[str, str], ...] = ()
    capability_args: Mapping[str, object] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        return f"{self.network}-{self.container_id}-{self.ifname}"


@dataclass(frozen=True, slots=True)
class Cached:
    """One file of the cache: the attachment, the configuration list it was made with, ADD's result as JSON.

    Files of libcni before 0.8 hold the result alone: `config` is empty then."""

    attachment: Attachment
    config: bytes
    result: Mapping[str, object]

    def sandboxes(self) -> frozenset[str]:
        """The namespace paths this attachment was made in; libcni before 1.2 wrote them in the result only."""
        if self.attachment.netns:
            return frozenset((self.attachment.netns,))
        try:
            interfaces = parse_result(self.result).interfaces
        except CniError:
            return frozenset()
        return frozenset(interface.sandbox for interface in interfaces if interface.sandbox)

    def is_gone(self) -> bool:
        """Whether its namespace is certainly gone. What cannot be told (no path, no permission) is not."""
        paths = self.sandboxes()
        return bool(paths) and not any(_may_be_namespace(path) for path in paths)


def _may_be_namespace(path: str) -> bool:
    try:
        open_netns(path).close()
    except FileNotFoundError:
        return False
    except CniError as error:
        return isinstance(error.__cause__, OSError)  # it could not be looked at
    return True


class ResultCache:
    """The cache folder."""

    def __init__(self, cache_dir: str = DEFAULT_CACHE_DIR) -> None:
        self._dir = cache_dir
        self._results = os.path.join(cache_dir, "results")

    def __repr__(self) -> str:
        return f"ResultCache({self._dir!r})"

    def write(self, attachment: Attachment, config: bytes, result: Mapping[str, object]) -> None:
        """Remember an ADD. Raises CniError 5."""
        body: dict[str, object] = {
            "kind": _KIND,
            "containerId": attachment.container_id,
            "config": base64.b64encode(config).decode(),
            "ifName": attachment.ifname,
            "networkName": attachment.network,
        }
        if attachment.netns:
            body["netns"] = attachment.netns
        if attachment.args:
            body["cniArgs"] = [list(pair) for pair in attachment.args]
        if attachment.capability_args:
            body["capabilityArgs"] = dict(attachment.capability_args)
        body["result"] = dict(result)
        try:
            os.makedirs(self._results, 0o700, exist_ok=True)
            # Beside the folder, not in it: runtimes take each file in it for an attachment
            descriptor, temporary = tempfile.mkstemp(prefix=".result.", dir=self._dir)
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(body, file)
            os.replace(temporary, self._path(attachment))
        except OSError as error:
            raise from_os_error(error, f"could not remember the result of {attachment.file_name}") from error

    def read(self, attachment: Attachment) -> Cached | None:
        """What is remembered of an attachment: None where nothing is, or nothing readable."""
        return self._read_file(self._path(attachment), attachment)

    def remove(self, attachment: Attachment) -> None:
        """Forget an attachment. Raises CniError 5."""
        try:
            os.unlink(self._path(attachment))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise from_os_error(error, f"could not forget {attachment.file_name}") from error

    def all(self, network: str) -> list[Cached]:
        """The attachments of a network, by file name. Raises CniError 5.

        Files that name no network (libcni before 0.8) belong to nobody: 'a-b-c' may be read in many ways."""
        try:
            names = sorted(os.listdir(self._results))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise from_os_error(error, "could not read the result cache") from error
        found = (self._read_file(os.path.join(self._results, name), None) for name in names)
        return [cached for cached in found if cached and cached.attachment.network == network]

    def _path(self, attachment: Attachment) -> str:
        return os.path.join(self._results, attachment.file_name)

    @staticmethod
    def _read_file(path: str, asked: Attachment | None) -> Cached | None:
        try:
            with open(path, "rb") as file:
                body = json.loads(file.read())
            return _parse(body, asked, os.path.basename(path))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None  # as libcni: a cache is a help, not a condition


def _parse(body: Mapping[str, object], asked: Attachment | None, file_name: str) -> Cached | None:
    """Read one file's JSON. Raises KeyError, TypeError, ValueError or AttributeError where it is another thing."""
    if body.get("kind") != _KIND:
        return Cached(asked, b"", body) if asked and "cniVersion" in body else None
    texts = {key: body[key] for key in ("networkName", "containerId", "ifName", "config")}
    texts["netns"] = body.get("netns") or ""
    network, container_id, ifname, config, netns = map(_text, texts.values())
    pairs = body.get("cniArgs") or []
    capability_args = body.get("capabilityArgs") or {}
    result = body.get("result") or {}
    if not isinstance(pairs, list) or not isinstance(capability_args, dict) or not isinstance(result, dict):
        raise TypeError("cniArgs, capabilityArgs or result")
    args = tuple((_text(key), _text(value)) for key, value in pairs)
    attachment = Attachment(network, container_id, ifname, netns, args, capability_args)
    if attachment.file_name != file_name:
        raise ValueError("a copy of another attachment's file")
    return Cached(attachment, base64.b64decode(config, validate=True), result)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def unknown_attachment(attachment: Attachment) -> CniError:
    """CHECK of what was never added here."""
    return CniError(
        Code.UNKNOWN_CONTAINER,
        f"network {attachment.network} knows no attachment {attachment.ifname} of container {attachment.container_id}",
        "there is no cached result of its ADD (--cache-dir names another cache)",
    )
