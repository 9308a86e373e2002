"""The border: environment and standard input become a `Call`, or a CniError that tells the operator what to do.

Nothing behind this module sees an environment variable or an unchecked name. It refuses what the specification
forbids (CNI SPEC 1.1.0, section 2 'Parameters' and section 1 'Network configuration format').
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import CniError, Code, invalid_config
from .fields import Fields
from .netns import Netns
from .owner import Owner
from .results import VERSIONS, Result, parse_result, version_order

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)  # CNI SPEC: container ids and network names
_NAME_MAX = 1024  # no runtime comes near; keeps tags, paths and messages bounded

# What each verb needs: CNI SPEC, section 2. The reference also wants CNI_PATH for all but VERSION; we do without.
_REQUIRED: dict[str, tuple[str, ...]] = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "GC": ("CNI_PATH",),
    "STATUS": (),
    "VERSION": (),
}
_SINCE = {"CHECK": (0, 4, 0), "GC": (1, 1, 0), "STATUS": (1, 1, 0)}


@dataclass(frozen=True, slots=True)
class Config:
    """The network configuration of one plugin. `body` is the whole JSON object, `fields` reads its keys."""

    cni_version: str
    name: str
    type: str
    body: Mapping[str, object]
    prev_result: Result | None = None

    @property
    def fields(self) -> Fields:
        return Fields(self.body)

    @property
    def runtime(self) -> Fields:
        """`runtimeConfig`: what the runtime says of this pod, by capability."""
        return self.fields.inner("runtimeConfig")

    @property
    def cni_args(self) -> Fields:
        """`args.cni`: wins over CNI_ARGS (CNI CONVENTIONS)."""
        return self.fields.inner("args").inner("cni")

    def valid_attachments(self) -> frozenset[Owner]:
        """GC's `cni.dev/valid-attachments`. Raises CniError 7 when the key is missing or malformed: an empty
        list means that nothing is valid, so silence must not be read as one."""
        key = "cni.dev/valid-attachments"
        if key not in self.fields:
            raise invalid_config(f"GC without {key}", "give the list of live attachments; an empty list removes all")
        items = self.fields.items(key)
        for item in items:
            for part in ("containerID", "ifname"):
                if not item.text(part):
                    raise item.error(part, "a non-empty string")
        return frozenset(Owner(self.name, item.text("containerID"), item.text("ifname")) for item in items)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a plugin.

    `netns` is open for ADD and CHECK, and for DEL where the namespace still exists. `args` is CNI_ARGS, `path` is
    CNI_PATH. `environ` goes on to delegates.
    """

    command: str
    config: Config
    container_id: str = ""
    ifname: str = ""
    netns_path: str = ""
    netns: Netns | None = None
    args: Mapping[str, str] = field(default_factory=dict)
    path: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> Owner:
        """The tag of all that this attachment owns."""
        return Owner(self.config.name, self.container_id, self.ifname)

    @property
    def pod(self) -> Netns:
        """The pod's namespace, where the verb requires one."""
        assert self.netns is not None, "only ADD and CHECK may ask"
        return self.netns

    def valid_tags(self) -> frozenset[str]:
        """The tags that GC keeps."""
        return frozenset(owner.tag for owner in self.config.valid_attachments())


def parse_call(environ: Mapping[str, str], stdin: bytes, plugin: str) -> Call:
    """Read a call. Raises CniError 1, 4, 6 or 7. The namespace is not opened here (skel.py does)."""
    command = environ.get("CNI_COMMAND", "")
    if command not in _REQUIRED:
        raise CniError(
            Code.INVALID_ENVIRONMENT, f"unknown CNI_COMMAND {command!r}", "expected one of " + " ".join(_REQUIRED)
        )
    missing = [name for name in _REQUIRED[command] if not environ.get(name)]
    if missing:
        raise CniError(
            Code.INVALID_ENVIRONMENT, f"{command} needs {', '.join(missing)}", "the runtime must set it (CNI SPEC, 2)"
        )
    container_id = environ.get("CNI_CONTAINERID", "")
    if container_id:
        check_name("CNI_CONTAINERID", container_id)
    ifname = environ.get("CNI_IFNAME", "")
    if ifname:
        check_ifname(ifname)
    config = parse_config(stdin, plugin, command)
    return Call(
        command=command,
        config=config,
        container_id=container_id,
        ifname=ifname,
        netns_path=environ.get("CNI_NETNS", ""),
        args=parse_args(environ.get("CNI_ARGS", "")),
        path=tuple(part for part in environ.get("CNI_PATH", "").split(":") if part),
        environ=environ,
    )


def check_name(what: str, name: str) -> None:
    """Refuse a container id that is none. Raises CniError 4."""
    if len(name) > _NAME_MAX or not NAME.fullmatch(name):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"invalid {what} {name[:80]!r}",
            "letters, digits, '_', '.' and '-', starting with a letter or digit (CNI SPEC, 2)",
        )


def check_ifname(name: str) -> None:
    """Refuse an interface name that the kernel would not take. Raises CniError 4."""
    if not is_ifname(name):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"invalid CNI_IFNAME {name[:80]!r}",
            "1 to 15 bytes without '/', ':', '%' or white space, and not '.' or '..'",
        )


def is_ifname(name: str) -> bool:
    """Whether the kernel takes `name` for a link, and takes it as it is (net/core/dev.c, dev_valid_name): `%d` would
    become a number."""
    try:
        size = len(name.encode(errors="surrogateescape"))
    except UnicodeEncodeError:  # half a surrogate pair: JSON can spell it
        return False
    return 0 < size <= 15 and name not in (".", "..") and not any(c in "/:%\0" or c.isspace() for c in name)


def parse_args(text: str) -> dict[str, str]:
    """CNI_ARGS: `K=V;K=V`. Raises CniError 4."""
    args: dict[str, str] = {}
    for pair in text.split(";"):
        if not pair.strip():
            continue
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_ARGS: {pair[:80]!r} is not KEY=VALUE")
        args[key] = value
    return args


def decode_json(stdin: bytes) -> dict[str, object]:
    """Standard input as a JSON object. Raises CniError 6."""
    try:
        body = json.loads(stdin)
    except (ValueError, RecursionError) as error:  # RecursionError: nested deeper than the interpreter allows
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CniError(
            Code.DECODING_FAILURE, "the network configuration on standard input is not JSON", reason
        ) from error
    if not isinstance(body, dict):
        raise CniError(Code.DECODING_FAILURE, "the network configuration must be a JSON object")
    return body


def config_version(body: Mapping[str, object]) -> str:
    """The `cniVersion` of a configuration; the oldest where it has none. Raises CniError 1."""
    version = body.get("cniVersion")
    if version is None or version == "":
        return VERSIONS[0]
    if version not in VERSIONS:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"cniVersion {version!r} is not supported" if isinstance(version, str) else "cniVersion must be a string",
            "supported: " + " ".join(VERSIONS),
        )
    return str(version)


def parse_config(stdin: bytes, plugin: str, command: str) -> Config:
    """Read the configuration for `command`. Raises CniError 1, 6 or 7."""
    body = decode_json(stdin)
    version = config_version(body)
    if command == "VERSION":
        return Config(version, "", plugin, body)
    since = _SINCE.get(command, (0,))
    if version_order(version) < since:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"{command} does not exist in cniVersion {version}",
            f"it came with {'.'.join(map(str, since))}: raise cniVersion in the configuration",
        )
    fields = Fields(body)
    name = fields.text("name")
    if len(name) > _NAME_MAX or not NAME.fullmatch(name):
        raise invalid_config(
            f"invalid network name {name[:80]!r}",
            "letters, digits, '_', '.' and '-', starting with a letter or digit (CNI SPEC, 1)",
        )
    kind = fields.text("type", plugin)
    if not is_plugin_type(kind):
        raise invalid_config(f"invalid plugin type {kind[:80]!r}", "a plugin type is a file name without a path")
    prev = body.get("prevResult")
    return Config(version, name, kind, body, None if prev is None else parse_result(prev))


def is_plugin_type(kind: str) -> bool:
    """Whether `kind` can name a program on CNI_PATH: one path component."""
    return bool(kind) and kind not in (".", "..") and "/" not in kind and "\0" not in kind and len(kind) < 256
