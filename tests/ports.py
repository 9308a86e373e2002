"""Pods with host ports on a test host: a bridge network and a portmap chained to it, as a runtime would call both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from namespaces import Namespace, Pod
from tests.bridges import DUAL, bridge_config
from tests.calls import Answer, Plugins


def mapping(host_port: int, container_port: int, protocol: str = "tcp", host_ip: str = "") -> dict[str, Any]:
    """One entry of `portMappings`, as runtimes write it."""
    entry: dict[str, Any] = {"hostPort": host_port, "containerPort": container_port, "protocol": protocol}
    return {**entry, "hostIP": host_ip} if host_ip else entry


def runtime(*mappings: dict[str, Any]) -> dict[str, Any]:
    """`runtimeConfig` with these mappings."""
    return {"portMappings": list(mappings)}


class Ports:
    """One network on one host: `bridge` wires a pod, `portmap` maps its ports."""

    def __init__(
        self, host: Namespace, folder: Path, *, bridge: dict[str, Any] | None = None, **portmap: object
    ) -> None:
        keys = {"ipam": DUAL, "ipMasq": True, **(bridge or {})}
        self.bridge = Plugins(host, folder, bridge_config(**keys))
        config = {"cniVersion": "1.1.0", "name": self.bridge.config["name"], "type": "portmap", **portmap}
        self.portmap = Plugins(host, folder, config)
        self._asked: dict[str, tuple[dict[str, Any], ...]] = {}

    def wire(self, pod: Pod) -> dict[str, Any]:
        """The bridge's ADD, with `lo` up in the pod; returns its result."""
        pod.run("ip", "link", "set", "lo", "up")
        return self.bridge.add(pod)

    def try_publish(self, pod: Pod, *mappings: dict[str, Any], **more: Any) -> Answer:
        """portmap's ADD for a pod that is wired."""
        self._asked[pod.name] = mappings
        prev = self.bridge.results[pod.name, "eth0"]
        return self.portmap.try_add(pod, prevResult=prev, runtimeConfig=runtime(*mappings), **more)

    def publish(self, pod: Pod, *mappings: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Both ADDs; returns the result."""
        if (pod.name, "eth0") not in self.bridge.results:
            self.wire(pod)
        answer = self.try_publish(pod, *mappings, **more)
        assert answer.exit_code == 0, answer
        return answer.body

    def check(self, pod: Pod, **more: Any) -> Answer:
        """portmap's CHECK."""
        return self.portmap.try_check(pod, runtimeConfig=runtime(*self._asked[pod.name]), **more)

    def unpublish(self, pod: Pod | str, **more: Any) -> None:
        """portmap's DEL, as libcni does it: with prevResult and runtimeConfig."""
        name = pod if isinstance(pod, str) else pod.name
        self.portmap.delete(pod, **{"runtimeConfig": runtime(*self._asked[name]), **more})

    def gc(self, *valid: Pod | str) -> None:
        """portmap's GC, which must succeed."""
        answer = self.portmap.gc(valid)
        assert (answer.exit_code, answer.stdout) == (0, ""), answer


def netloom_tables(host: Namespace) -> list[str]:
    """The tables of the host ports, as nft(8) lists them."""
    lines = host.run("nft", "list", "tables").stdout.splitlines()
    return sorted(line for line in lines if "portmap" in line)
