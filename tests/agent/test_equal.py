"""Both modes give the same results: one sequence of calls, direct and through an agent, compared byte for byte.

The same calls are made in two fresh hosts; what is random by design (addresses of links) is named in order of its first
appearance.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from namespaces import Namespace, Pod
from tests.agent.running import RunningAgent
from tests.bridges import DUAL, V4, bridge_config
from tests.leftovers import leftovers
from tests.snapshot import snapshot

MAC = re.compile(r"\b[0-9a-f]{2}(?::[0-9a-f]{2}){5}\b")
STATIC = {"type": "static", "addresses": [{"address": "10.1.0.9/24", "gateway": "10.1.0.1"}]}
PORTS = [
    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
    {"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"},
]
CHAIN: tuple[dict[str, Any], ...] = (
    {"type": "bridge", "bridge": "br0", "isDefaultGateway": True, "ipMasq": True, "macspoofchk": True, "ipam": DUAL},
    {"type": "portmap", "runtimeConfig": {"portMappings": PORTS}},
    {"type": "firewall", "ingressPolicy": "same-bridge"},
    {"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 800_000},
    {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "mtu": 1400},
)
IDLE: tuple[dict[str, Any], ...] = (
    {"type": "portmap"},
    {"type": "firewall"},
    {"type": "bandwidth"},
    {"type": "tuning"},
)
PLUGINS = ("bridge", "host-local", "static", "loopback", "portmap", "firewall", "bandwidth", "tuning")


class Transcript:
    """Calls on one host, and what they answered."""

    def __init__(self, host: Namespace, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.lines: list[str] = []
        self._names: dict[str, str] = {}

    def call(
        self, verb: str, config: Mapping[str, Any] | bytes, pod: Pod | str = "", plugin: str = "", **environ: str
    ) -> dict[str, Any]:
        """Execute one verb; returns the answer."""
        name = pod if isinstance(pod, str) else pod.name
        env = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": name,
            "CNI_NETNS": pod.path if isinstance(pod, Pod) else "",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.folder),
            **environ,
        }
        stdin = config if isinstance(config, bytes) else json.dumps(config).encode()
        program = plugin or str(json.loads(stdin)["type"])
        done = self.host.run(self.folder / program, input=stdin, env=env, check=False, text=False)
        asked = self._normal(stdin.decode(errors="replace"))[:200]
        answered = self._normal(done.stdout.decode())
        self.lines.append(f"{verb} {program} {name} {environ} {asked!r}\n-> {done.returncode} {answered}")
        body = json.loads(done.stdout or "{}")
        assert isinstance(body, dict)
        return body

    def note(self, what: str, lines: list[str]) -> None:
        """Add what the host holds."""
        self.lines.append(self._normal("\n".join([what, *lines])))

    def _normal(self, text: str) -> str:
        def name(match: re.Match[str]) -> str:
            return self._names.setdefault(match[0], f"MAC{len(self._names)}")

        return MAC.sub(name, text).replace(f"/proc/{self.host.pid}/", "/proc/HOST/")


def network(version: str, plugin: Mapping[str, Any], **keys: Any) -> dict[str, Any]:
    return {"cniVersion": version, "name": "net", **plugin, **keys}


def chain(book: Transcript, version: str, plugins: tuple[dict[str, Any], ...], pod: Pod) -> None:
    """ADD, CHECK, a second ADD, DEL, DEL again of a list of plugins, as a runtime passes the results on."""
    result: dict[str, Any] = {}
    added: list[dict[str, Any]] = []
    for plugin in plugins:
        config = network(version, plugin, **({"prevResult": result} if result else {}))
        answer = book.call("ADD", config, pod)
        added.append(config)
        result = answer if "ips" in answer or "ip4" in answer else result
    book.note("after ADD", snapshot(book.host) + snapshot(pod))
    for config in added:
        book.call("CHECK", {**config, "prevResult": result}, pod)
    for config in added[:2]:
        book.call("ADD", config, pod)
    book.note("after a second ADD", snapshot(book.host) + snapshot(pod))
    for _ in range(2):
        for config in reversed(added):
            book.call("DEL", {**config, "prevResult": result}, pod)
    book.note("after DEL", snapshot(book.host) + snapshot(pod))


def good_input(book: Transcript) -> None:
    for number, version in enumerate(("0.2.0", "0.4.0", "1.0.0", "1.1.0")):
        chain(book, version, CHAIN, book.host.add_pod(f"full{number}"))
    pod = book.host.add_pod("idle")
    chain(book, "1.1.0", ({"type": "bridge", "bridge": "br0", "ipam": STATIC}, *IDLE), pod)
    chain(book, "1.1.0", ({"type": "loopback"},), pod)
    chain(book, "1.0.0", ({"type": "host-local", "ipam": V4},), pod)
    chain(book, "1.1.0", ({"type": "static", "ipam": STATIC},), pod)
    for plugin in CHAIN:
        book.call("STATUS", network("1.1.0", plugin))
        book.call("VERSION", {"cniVersion": "1.0.0"}, plugin=str(plugin["type"]))


def gone_and_collected(book: Transcript) -> None:
    """DEL without a namespace, with a dead path; GC with and without valid attachments."""
    config = bridge_config(ipam=DUAL, ipMasq=True)
    pods = [book.host.add_pod(f"g{number}") for number in range(4)]
    for pod in pods:
        book.call("ADD", config, pod)
    book.call("DEL", config, pods[0].name)
    book.call("DEL", config, pods[1].name, CNI_NETNS="/proc/1/no/such/ns")
    valid = [{"containerID": pods[2].name, "ifname": "eth0"}]
    book.call("GC", {**config, "cni.dev/valid-attachments": valid})
    book.note("after GC", snapshot(book.host))
    for plugin in CHAIN:
        book.call("GC", network("1.1.0", plugin, **{"cni.dev/valid-attachments": []}))
        book.call("GC", network("1.1.0", plugin))
        book.call("GC", network("1.0.0", plugin, **{"cni.dev/valid-attachments": []}))
    book.note("after GC of everything", snapshot(book.host))


BAD_INPUT: tuple[bytes, ...] = (
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"cniVersion": 5}',
    b'{"cniVersion": "9.9.9", "name": "net", "type": "bridge"}',
    b'{"cniVersion": "1.1.0"}',
    b'{"cniVersion": "1.1.0", "name": "../etc", "type": "bridge"}',
    b'{"cniVersion": "1.1.0", "name": "net", "type": "a/b"}',
    b'{"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": 5}',
    b'{"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": {"type": 5, "x": "host-local"}}',
    b'{"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": {"type": "../host-local"}}',
    b'{"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": {"type": "none-such"}}',
    b'{"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": {"type": "host-local", "ranges": 1}}',
    b'{"cniVersion": "1.1.0", "name": "net", "type": "bridge", "mtu": "x", "vlan": 99999}',
    b'{"cniVersion": "1.1.0", "name": "net", "type": "bridge", "prevResult": {"ips": 1}}',
    b'{"cniVersion": "1.1.0", "name": "net", "type": "portmap", "runtimeConfig": {"portMappings": [{"hostPort": 0}]}}',
    b'{"cniVersion": "1.1.0", "name": "net", "type": "tuning", "sysctl": {"../../etc": "1"}}',
    b"[" * 100_000,
    b'{"a":' * 20_000,
    b'{"x": "' + b"y" * 1_000_000 + b'"}',
)
BAD_ENVIRONMENTS: tuple[dict[str, str], ...] = (
    {"CNI_COMMAND": "EAT"},
    {"CNI_COMMAND": "add"},
    {"CNI_CONTAINERID": ""},
    {"CNI_CONTAINERID": "../x"},
    {"CNI_CONTAINERID": "\udcff"},
    {"CNI_CONTAINERID": "x" * 2000},
    {"CNI_IFNAME": ""},
    {"CNI_IFNAME": "a/b"},
    {"CNI_IFNAME": "much-too-long-a-name"},
    {"CNI_NETNS": ""},
    {"CNI_NETNS": "/nowhere"},
    {"CNI_NETNS": "/etc/passwd"},
    {"CNI_NETNS": "/etc/passwd/x"},
    {"CNI_NETNS": "/"},
    {"CNI_NETNS": "/dev/null"},
    {"CNI_NETNS": "x" * 5000},
    {"CNI_NETNS": "relative/path"},
    {"CNI_NETNS": "/proc/self/ns/net"},
    {"CNI_NETNS": "/proc/self/ns/net", "CNI_NETNS_OVERRIDE": "1"},
    {"CNI_NETNS": "/proc/self/ns/mnt"},
    {"CNI_ARGS": "nonsense"},
    {"CNI_ARGS": "IgnoreUnknown=1;IP=10.1.0.77;K8S_POD_NAME=\udcfe"},
    {"CNI_PATH": ""},
    {"CNI_PATH": "/nowhere:/etc"},
)


def bad_input(book: Transcript) -> None:
    pod = book.host.add_pod("bad")
    for number, stdin in enumerate(BAD_INPUT):
        book.call("ADD", stdin, pod, plugin="bridge")
        book.call("DEL", stdin, pod, plugin=PLUGINS[number % len(PLUGINS)])
        book.call("ADD", stdin, pod, plugin=PLUGINS[(number + 3) % len(PLUGINS)])
    book.note("after bad input", snapshot(book.host) + snapshot(pod))


def bad_environments(book: Transcript) -> None:
    pod = book.host.add_pod("bad")
    config = bridge_config()
    for number, environ in enumerate(BAD_ENVIRONMENTS):
        added = book.call("ADD", config, pod, **{"CNI_COMMAND": "ADD", **environ})
        for verb in ("DEL", ("CHECK", "STATUS", "GC")[number % 3]):
            book.call(verb, config, pod, **{"CNI_COMMAND": verb, **environ})
        if "ips" in added:
            book.call("DEL", config, pod)
    book.note("after bad environments", snapshot(book.host) + snapshot(pod))


ACTS = {act.__name__: act for act in (good_input, gone_and_collected, bad_input, bad_environments)}


@pytest.fixture
def other_host(host: Namespace) -> Iterator[Namespace]:
    """A second host without links."""
    with Namespace.create("other") as other:
        yield other


@pytest.mark.parametrize("act", ACTS)
def test_results_are_the_same_with_and_without_an_agent(
    act: str, host: Namespace, other_host: Namespace, bin_dir: Path, tmp_path: Path
) -> None:
    direct = Transcript(host, bin_dir)
    ACTS[act](direct)
    handed = Transcript(other_host, bin_dir)
    with RunningAgent(other_host, tmp_path / "agent.log") as agent:
        ACTS[act](handed)
        assert len(agent.calls()) > len(handed.lines) * 0.6  # not VERSION, not what is too large, not what has no netns
    assert handed.lines == direct.lines
    if act == "good_input":
        assert leftovers(other_host, links=["br0"]) == leftovers(host, links=["br0"]) == []
