"""The chain of plugins whose calls are killed: all that netloom makes for a pod, asked for by one attachment.

`Chain` runs a verb as a runtime does (ADD in order, each plugin with its predecessor's result, DEL in reverse), through
an `Ask`, which is a way to have one plugin's call answered. It stops at the first error, as libcni does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cni_plugins.skel import Answer

NETWORK = "net"
BRIDGE = "br0"
IFNAME = "eth0"

Ask = Callable[[str, Mapping[str, str], bytes], Answer]

_RUNTIME: dict[str, dict[str, Any]] = {
    "portmap": {
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
            # A port of one address goes another way through the ledger than one of all.
            {"hostPort": 9090, "containerPort": 90, "protocol": "tcp", "hostIP": "127.0.0.1"},
        ]
    },
    "bandwidth": {
        "bandwidth": {
            "ingressRate": 80_000_000,
            "ingressBurst": 8_000_000,
            "egressRate": 80_000_000,
            "egressBurst": 8_000_000,
        }
    },
}
_PLUGINS: tuple[dict[str, Any], ...] = (
    {
        "type": "bridge",
        "bridge": BRIDGE,
        "isDefaultGateway": True,
        "ipMasq": True,
        "macspoofchk": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            # The second ADD already writes an address of another length: the round robin's file grows and shrinks.
            "ranges": [
                [{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.8", "rangeEnd": "10.1.0.11"}],
                [{"subnet": "fd01::/64", "rangeStart": "fd01::e", "rangeEnd": "fd01::11"}],
            ],
        },
    },
    {"type": "portmap"},
    {"type": "firewall", "ingressPolicy": "isolated"},
    {"type": "bandwidth"},
    {
        "type": "tuning",
        "mtu": 1400,
        "txQLen": 500,
        "allmulti": True,
        "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"},
    },
)
NAMES = tuple(str(plugin["type"]) for plugin in _PLUGINS)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a verb went: the last answer, and the plugin that gave it."""

    plugin: str
    answer: Answer

    @property
    def ok(self) -> bool:
        return self.answer.exit_code == 0

    @property
    def code(self) -> int:
        """The error object's code; 0 for success, -1 where there is no error object."""
        if self.ok:
            return 0
        try:
            return int(json.loads(self.answer.stdout)["code"])
        except (ValueError, KeyError):
            return -1

    @property
    def result(self) -> dict[str, Any]:
        """What an ADD that went well answered."""
        assert self.ok, self.words
        body: dict[str, Any] = json.loads(self.answer.stdout)
        return body

    @property
    def words(self) -> str:
        if self.ok:
            return "success"
        return f"{self.plugin} exits with {self.answer.exit_code}: {' '.join(self.answer.stdout.decode().split())}"


@dataclass(frozen=True, slots=True)
class Chain:
    """One attachment: a container and its namespace. `offset` moves host ports, so that two can live side by side."""

    container_id: str
    netns: str
    bin_dir: str
    offset: int = 0

    def add(self, ask: Ask) -> Outcome:
        """ADD."""
        result: dict[str, Any] | None = None
        outcome = None
        for name, body in self._calls(NAMES):
            outcome = Outcome(name, ask(name, self._environment("ADD"), self._stdin(body, result)))
            if not outcome.ok:
                break
            result = outcome.result
        assert outcome is not None
        return outcome

    def delete(self, ask: Ask, result: Mapping[str, Any] | None) -> Outcome:
        """DEL, with ADD's result where the runtime has it."""
        return self._all(ask, "DEL", NAMES[::-1], result)

    def check(self, ask: Ask, result: Mapping[str, Any]) -> Outcome:
        """CHECK."""
        return self._all(ask, "CHECK", NAMES, result)

    def gc(self, ask: Ask, valid: tuple[Chain, ...]) -> Outcome:
        """GC of the network, which keeps the `valid` attachments. Goes on after an error, as libcni; the outcome is the
        first failure, if there was one."""
        listed = [{"containerID": chain.container_id, "ifname": IFNAME} for chain in valid]
        environ = {"CNI_COMMAND": "GC", "CNI_PATH": self.bin_dir}
        outcomes = []
        for name, body in self._calls(NAMES):
            body.pop("runtimeConfig", None)
            outcomes.append(Outcome(name, ask(name, environ, self._stdin(body, None, valid=listed))))
        return next((outcome for outcome in outcomes if not outcome.ok), outcomes[-1])

    def _all(self, ask: Ask, verb: str, names: tuple[str, ...], result: Mapping[str, Any] | None) -> Outcome:
        outcome = None
        for name, body in self._calls(names):
            outcome = Outcome(name, ask(name, self._environment(verb), self._stdin(body, result)))
            if not outcome.ok:
                break
        assert outcome is not None
        return outcome

    def _calls(self, names: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
        for plugin in sorted(_PLUGINS, key=lambda plugin: names.index(plugin["type"])):
            runtime = json.loads(json.dumps(_RUNTIME.get(plugin["type"], {})))
            for mapping in runtime.get("portMappings", ()):
                mapping["hostPort"] += self.offset
            body = {"cniVersion": "1.1.0", "name": NETWORK, **plugin}
            yield plugin["type"], {**body, "runtimeConfig": runtime} if runtime else body

    def _environment(self, verb: str) -> dict[str, str]:
        return {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": self.container_id,
            "CNI_NETNS": self.netns,
            "CNI_IFNAME": IFNAME,
            "CNI_PATH": self.bin_dir,
        }

    @staticmethod
    def _stdin(body: Mapping[str, Any], result: Mapping[str, Any] | None, **more: Any) -> bytes:
        keys = {"prevResult": result, "cni.dev/valid-attachments": more.get("valid")}
        return json.dumps({**body, **{key: value for key, value in keys.items() if value is not None}}).encode()
