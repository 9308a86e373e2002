"""Network configuration lists: the files of /etc/cni/net.d as values, with errors that name the file and the key.

A `.conflist` holds a list of plugins, a `.conf` or `.json` a single one, which is read as a list of one
(CNI SPEC 1.1.0, section 1). Read next: runtime.py, which executes a list.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .errors import CniError, Code, invalid_config
from .fields import Fields
from .protocol import NAME, is_plugin_type
from .results import VERSIONS, version_order

DEFAULT_CONF_DIR = "/etc/cni/net.d"
_LIST_ENDINGS = (".conflist",)
_SINGLE_ENDINGS = (".conf", ".json")  # libcni looks at them after all lists


@dataclass(frozen=True, slots=True)
class PluginConfig:
    """One plugin of a list: its type, its declared capabilities, and the JSON object as it stands in the file."""

    type: str
    capabilities: frozenset[str]
    body: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class NetworkList:
    """One network: what is executed for it, in order. `source` is the file's path, for messages."""

    name: str
    cni_version: str
    plugins: tuple[PluginConfig, ...]
    disable_check: bool = False
    disable_gc: bool = False
    source: str = ""

    def to_json(self) -> dict[str, object]:
        """The list as one self-contained file: plugins of a folder are inlined, and the folder is not read again."""
        body: dict[str, object] = {"cniVersion": self.cni_version, "name": self.name}
        if self.disable_check:
            body["disableCheck"] = True
        if self.disable_gc:
            body["disableGC"] = True
        body["loadOnlyInlinedPlugins"] = True
        body["plugins"] = [dict(plugin.body) for plugin in self.plugins]
        return body


def parse_list(content: bytes, source: str, folder: Sequence[tuple[str, bytes]] = ()) -> NetworkList:
    """Read a `.conflist`. `folder` are the (path, content) of the network's plugin folder, which follow the inlined
    plugins unless `loadOnlyInlinedPlugins` says no. Raises CniError 1, 6 or 7."""
    fields = Fields(_decode(content, source), f"{source}: ")
    name = _name(fields)
    inlined_only = _flag(fields, "loadOnlyInlinedPlugins")
    if inlined_only and "plugins" not in fields:
        raise invalid_config(f"{source}: loadOnlyInlinedPlugins is true, but there are no plugins")
    plugins = [_plugin(item, f"{source}: plugins[{i}].") for i, item in enumerate(fields.items("plugins"))]
    if not inlined_only:
        for path, inner in folder:
            plugins.append(_plugin(Fields(_decode(inner, path), f"{path}: "), f"{path}: "))
    if not plugins:
        raise invalid_config(f"{source}: no plugins", "a list needs at least one")
    return NetworkList(
        name=name,
        cni_version=_version(fields, source),
        plugins=tuple(plugins),
        disable_check=_flag(fields, "disableCheck"),
        disable_gc=_flag(fields, "disableGC"),
        source=source,
    )


def parse_single(content: bytes, source: str) -> NetworkList:
    """Read a `.conf` or `.json` that holds one plugin. Raises CniError 1, 6 or 7."""
    fields = Fields(_decode(content, source), f"{source}: ")
    if "plugins" in fields:
        raise invalid_config(f"{source}: this is a list of plugins", "its file name must end in .conflist")
    plugin = _plugin(fields, f"{source}: ")
    return NetworkList(_name(fields), _version(fields, source), (plugin,), source=source)


def load(conf_dir: str, name: str) -> NetworkList:
    """The first list of network `name`: lists in file-name order, then single plugins. Raises CniError 5, 6 or 7.

    A file that cannot be read does not stand in the way of others; it is named where nothing is found."""
    broken: list[str] = []
    names: list[str] = []
    for path in _files(conf_dir):
        try:
            found = load_file(path)
        except CniError as error:
            # A broken file may be the one that is meant: its name is read leniently
            if _lenient_name(path) == name:
                raise
            broken.append(str(error))
            continue
        if found.name == name:
            return found
        names.append(found.name)
    known = "there are " + ", ".join(dict.fromkeys(names)) if names else "it holds no readable configuration"
    raise invalid_config(f"no network {name!r} in {conf_dir}", "; ".join((known, *broken)))


def load_file(path: str) -> NetworkList:
    """Read one file, with the plugin folder beside it. Raises CniError 1, 5, 6 or 7."""
    content = _read(path)
    if not path.endswith(_LIST_ENDINGS):
        return parse_single(content, path)
    return parse_list(content, path, plugin_folder(os.path.dirname(path), _lenient_name(path)))


def plugin_folder(conf_dir: str, name: str) -> list[tuple[str, bytes]]:
    """The plugin files of network `name`: <conf_dir>/<name>/*.conf in file-name order. Raises CniError 5."""
    folder = os.path.join(conf_dir, name)
    if not NAME.fullmatch(name) or not os.path.isdir(folder):
        return []
    paths = [os.path.join(folder, file) for file in sorted(os.listdir(folder)) if file.endswith(".conf")]
    return [(path, _read(path)) for path in paths if os.path.isfile(path)]


def _files(conf_dir: str) -> list[str]:
    try:
        names = sorted(os.listdir(conf_dir))
    except OSError as error:
        raise CniError(
            Code.IO_FAILURE,
            f"could not read the configuration folder {conf_dir}: {os.strerror(error.errno or 0)}",
            "--conf-dir or NETCONFPATH names another",
        ) from error
    paths = [os.path.join(conf_dir, name) for name in names]
    return [
        path
        for endings in (_LIST_ENDINGS, _SINGLE_ENDINGS)
        for path in paths
        if path.endswith(endings) and os.path.isfile(path)
    ]


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise CniError(Code.IO_FAILURE, f"could not read {path}: {os.strerror(error.errno or 0)}") from error


def _decode(content: bytes, source: str) -> dict[str, object]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CniError(Code.DECODING_FAILURE, f"{source}: not JSON: {reason}") from error
    if not isinstance(body, dict):
        raise CniError(Code.DECODING_FAILURE, f"{source}: must be a JSON object")
    return body


def _lenient_name(path: str) -> str:
    try:
        return str(_decode(_read(path), path).get("name", ""))
    except CniError:
        return ""


def _name(fields: Fields) -> str:
    name = fields.text("name")
    if not NAME.fullmatch(name):
        raise fields.error("name", "letters, digits, '_', '.' and '-', starting with a letter or digit")
    return name


def _plugin(fields: Fields, where: str) -> PluginConfig:
    kind = fields.text("type")
    if not is_plugin_type(kind):
        raise invalid_config(f"{where}type must be the file name of a plugin, not {kind[:80]!r}")
    declared = fields.inner("capabilities")
    capabilities = frozenset(key for key in declared.raw() if declared.flag(key))
    return PluginConfig(kind, capabilities, fields.raw())


def _flag(fields: Fields, key: str) -> bool:
    """true or false; libcni takes the words as strings, too."""
    value = fields.raw().get(key)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return fields.flag(key)


def _version(fields: Fields, source: str) -> str:
    """CNI SPEC 1.1.0: the newest of `cniVersions` and `cniVersion` that we know. Raises CniError 1 or 7."""
    stated = fields.text("cniVersion")
    offered = [*fields.texts("cniVersions"), *([stated] if stated else [])]
    known = [version for version in offered if version in VERSIONS]
    if known:
        return max(known, key=version_order)
    if offered:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"{source}: cniVersion {', '.join(offered)} is not supported",
            "supported: " + " ".join(VERSIONS),
        )
    return VERSIONS[0]
