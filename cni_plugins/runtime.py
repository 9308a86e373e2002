"""Executing a network's chain of plugins as libcni does: what containerd, CRI-O and podman do, here for people.

ADD runs the plugins in order, each with its predecessor's result; DEL in reverse, with the cached one; CHECK and GC in
order; STATUS until one cannot serve (CNI SPEC 1.1.0, section 3 'Execution of Network Configurations'). Plugins are
really executed, from CNI_PATH. Read next: cli.py, which calls this.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface

from .attachments import Attachment, Cached, ResultCache, unknown_attachment
from .conflist import NetworkList, PluginConfig, parse_list
from .delegate import preview
from .errors import CniError, Code
from .execute import execute, find_plugin, shown
from .owner import Owner
from .protocol import parse_call
from .results import Interface, IPConfig, Result, parse_result, version_order
from .script import read_program

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where plugins are, where results are remembered, and the environment that plugins inherit."""

    bin_path: tuple[str, ...]
    cache: ResultCache
    environ: Mapping[str, str]

    def add(self, network: NetworkList, attachment: Attachment) -> Json:
        """Attach, remember and return the result. Raises CniError.

        Where a later plugin fails, the attachment was new (the first plugin refuses one that exists), so all that
        were asked are told to DEL. Where the first one fails nothing is undone: it may be somebody's live pod."""
        if self.cache.read(attachment) is not None:
            raise CniError(
                Code.ALREADY_EXISTS, f"{attachment.file_name} is attached already", "detach it first: netloom del"
            )
        result: Json | None = None
        for done, plugin in enumerate(network.plugins):
            try:
                stdout = self._execute("ADD", plugin, chain_config(network, plugin, attachment, result), attachment)
                result = result_in_version(stdout, network.cni_version, plugin.type)
            except CniError as error:
                left = [] if result is None else self._undo(network.plugins[: done + 1], network, attachment, result)
                details = "; ".join(part for part in (error.details, *left) if part)
                raise CniError(error.code, f"plugin {plugin.type} failed (ADD): {error.msg}", details) from error
        assert result is not None, "a list has at least one plugin"
        try:
            self.cache.write(attachment, json.dumps(network.to_json()).encode(), result)
        except CniError as error:
            left = self._undo(network.plugins, network, attachment, result)
            raise CniError(error.code, error.msg, "; ".join(left)) from error
        return result

    def _undo(
        self, plugins: tuple[PluginConfig, ...], network: NetworkList, attachment: Attachment, result: Json
    ) -> list[str]:
        """DEL of these plugins, in reverse; returns what could not be undone, in words."""
        left = []
        for plugin in reversed(plugins):
            try:
                self._execute("DEL", plugin, chain_config(network, plugin, attachment, result), attachment)
            except CniError as error:
                left.append(f"the DEL that should undo {plugin.type} failed, too: {error}")
        return left

    def delete(self, network: NetworkList, attachment: Attachment) -> None:
        """Detach and forget. Raises CniError at the first plugin that fails, as libcni; again is safe."""
        cached = self.cache.read(attachment)
        result = self._previous(network, cached) if version_order(network.cni_version) >= (0, 4) else None
        for plugin in reversed(network.plugins):
            config = chain_config(network, plugin, attachment, result)
            self._named("DEL", plugin, config, attachment)
        self.cache.remove(attachment)

    def check(self, network: NetworkList, attachment: Attachment) -> bool:
        """Ask whether all is as ADD left it; False: the list says `disableCheck`. Raises CniError."""
        if version_order(network.cni_version) < (0, 4):
            raise CniError(
                Code.INCOMPATIBLE_VERSION,
                f"network {network.name} has cniVersion {network.cni_version}, which has no CHECK",
                "it came with 0.4.0: raise cniVersion in the configuration",
            )
        if network.disable_check:
            return False
        result = self._previous(network, self.cache.read(attachment))
        if result is None:
            raise unknown_attachment(attachment)
        for plugin in network.plugins:
            self._named("CHECK", plugin, chain_config(network, plugin, attachment, result), attachment)
        return True

    def gc(self, network: NetworkList, valid: Iterable[Attachment]) -> bool:
        """Remove what belongs to no valid attachment: DEL for those that the cache knows, then GC of each plugin
        (from 1.1.0 on). False: the list says `disableGC`. Goes on after an error. Raises CniError 107."""
        if network.disable_gc:
            return False
        keep = {(attachment.container_id, attachment.ifname) for attachment in valid}
        failures = []
        for cached in self.cache.all(network.name):
            stale = cached.attachment
            if (stale.container_id, stale.ifname) in keep:
                continue
            try:
                self.delete(as_added(network, cached) or network, stale)
            except CniError as error:
                failures.append(f"{stale.file_name}: {error}")
        if version_order(network.cni_version) >= (1, 1):
            listed = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in sorted(keep)]
            for plugin in network.plugins:
                config = {
                    **_base(network, plugin),
                    "cni.dev/valid-attachments": listed,
                    "cni.dev/attachments": listed,  # what the specification called it at first; libcni sends both
                }
                try:
                    self._named("GC", plugin, config)
                except CniError as error:
                    failures.append(str(error))
        if failures:
            raise CniError(Code.SWEEP_FAILED, f"GC of network {network.name} is incomplete", "; ".join(failures))
        return True

    def status(self, network: NetworkList) -> bool:
        """Ask whether an ADD could be served; False: cniVersion has no STATUS. Raises CniError (50, 51, ...)."""
        if version_order(network.cni_version) < (1, 1):
            return False
        for plugin in network.plugins:
            self._named("STATUS", plugin, _base(network, plugin))
        return True

    def explain(self, network: NetworkList, attachment: Attachment) -> str:
        """What an ADD would do, plugin by plugin, as text. Executes only plugins of netloom, which touch nothing.
        Raises CniError."""
        first, *_ = network.plugins
        cached = self.cache.read(attachment)
        result = None if cached is None else self._previous(network, cached)
        result = result or self._preview(network, first, attachment)
        parts = []
        if result is None and len(network.plugins) > 1:
            result = example_result(first, network.cni_version, attachment)
            parts.append("# Addresses that ADD would allocate are not known yet; later plugins are shown examples.\n")
        for plugin in network.plugins:
            path = find_plugin(plugin.type, self.bin_path)
            parts.append(f"# {plugin.type} ({path})\n")
            if read_program(path) is None:
                parts.append("(not netloom's: it cannot explain itself)\n")
                continue
            config = chain_config(network, plugin, attachment, None if plugin is first else result)
            environ = self._environment("ADD", attachment)
            parts.append(execute(path, environ, json.dumps(config).encode(), ("--explain",)).decode())
        return "".join(part if part.endswith("\n") else part + "\n" for part in parts)

    def _preview(self, network: NetworkList, first: PluginConfig, attachment: Attachment) -> Json | None:
        """The result that the first plugin would give, where its IPAM plugin is ours and can tell."""
        config = chain_config(network, first, attachment, None)
        try:
            call = parse_call(self._environment("ADD", attachment), json.dumps(config).encode(), first.type)
            ips = preview(call, call.config.fields.inner("ipam").text("type")).ips
        except CniError:
            return None  # its own explanation, which follows, tells why
        if not ips:
            return None
        interfaces = _example_interfaces(first, attachment)
        return Result(interfaces, ips).with_interface_index(len(interfaces) - 1).to_json(network.cni_version)

    def _previous(self, network: NetworkList, cached: Cached | None) -> Json | None:
        if cached is None or not cached.result:
            return None
        try:
            return _in_version(cached.result, network.cni_version)
        except CniError:
            return None  # as libcni: DEL goes on without

    def _named(self, verb: str, plugin: PluginConfig, config: Json, attachment: Attachment | None = None) -> None:
        try:
            self._execute(verb, plugin, config, attachment)
        except CniError as error:
            msg = f"plugin {plugin.type} failed ({verb}): {error.msg}"
            raise CniError(error.code, msg, error.details) from error

    def _execute(self, verb: str, plugin: PluginConfig, config: Json, attachment: Attachment | None = None) -> bytes:
        path = find_plugin(plugin.type, self.bin_path)
        return execute(path, self._environment(verb, attachment), json.dumps(config).encode())

    def _environment(self, verb: str, attachment: Attachment | None) -> dict[str, str]:
        at = attachment or Attachment("", "", "")
        return {
            **self.environ,
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": at.container_id,
            "CNI_NETNS": at.netns,
            "CNI_IFNAME": at.ifname,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in at.args),
            "CNI_PATH": os.pathsep.join(self.bin_path),
        }


def _base(network: NetworkList, plugin: PluginConfig) -> dict[str, object]:
    return {**plugin.body, "name": network.name, "cniVersion": network.cni_version}


def chain_config(
    network: NetworkList, plugin: PluginConfig, attachment: Attachment, result: Json | None
) -> dict[str, object]:
    """What one plugin of a chain gets on standard input (CNI SPEC, 3 'Deriving execution configuration')."""
    config = _base(network, plugin)
    asked = {key: value for key, value in attachment.capability_args.items() if key in plugin.capabilities}
    if asked:
        config["runtimeConfig"] = asked
    if result is not None:
        config["prevResult"] = result
    return config


def as_added(network: NetworkList | None, cached: Cached | None) -> NetworkList | None:
    """The list that an attachment was made with, where the cache has it: DEL and CHECK must get what ADD got, even
    if the file changed since (CNI SPEC, 3). libcni's copy lacks the plugins of the network's folder: `network`, the
    list as it is now, counts where it has more plugins, as a DEL too many does no harm."""
    if cached is None or not cached.config:
        return network
    try:
        then = parse_list(cached.config, f"cached configuration of {cached.attachment.file_name}")
    except CniError:
        return network
    if network is not None and len(network.plugins) > len(then.plugins) and b'"loadOnlyInlined' not in cached.config:
        return network
    return then


def result_in_version(stdout: bytes, version: str, kind: str) -> Json:
    """A plugin's answer to ADD as the next one's prevResult. Raises CniError 106."""
    try:
        body = json.loads(stdout)
        if not isinstance(body, dict):
            raise ValueError("not an object")
        return _in_version(body, version)
    except (ValueError, RecursionError, CniError) as error:
        raise CniError(Code.DELEGATE, f"{kind} answered with no result", shown(stdout)) from error


def _in_version(body: Json, version: str) -> Json:
    """`body` itself where it is of that version, with all its unknown keys, else translated. Raises CniError 6."""
    result = parse_result(body)
    return body if body.get("cniVersion") == version else result.to_json(version)


def example_result(first: PluginConfig, version: str, attachment: Attachment) -> Json:
    """A result with example addresses (RFC 5737, RFC 3849) in the families that the first plugin's IPAM may give."""
    addresses = ["192.0.2.2/24"]
    if ":" in "".join(_subnets(first.body.get("ipam"))):
        addresses.append("2001:db8::2/64")
    interfaces = _example_interfaces(first, attachment)
    ips = tuple(IPConfig(ip_interface(address), interface=len(interfaces) - 1) for address in addresses)
    return Result(interfaces, ips).to_json(version)


def _example_interfaces(first: PluginConfig, attachment: Attachment) -> tuple[Interface, ...]:
    """What the first plugin makes; of a bridge also the host's side, which later plugins may ask for (firewall)."""
    pod = Interface(attachment.ifname, "02:00:00:00:00:02", sandbox=attachment.netns)
    if first.type != "bridge":
        return (pod,)
    owner = Owner(attachment.network, attachment.container_id, attachment.ifname)
    return Interface(str(first.body.get("bridge") or "cni0")), Interface(owner.link_name("veth")), pod


def _subnets(body: object) -> list[str]:
    """The values of all `subnet` and `address` keys, however deep."""
    if isinstance(body, Mapping):
        found = [value for key, value in body.items() if key in ("subnet", "address") and isinstance(value, str)]
        return found + [text for value in body.values() for text in _subnets(value)]
    if isinstance(body, list):
        return [text for value in body for text in _subnets(value)]
    return []
