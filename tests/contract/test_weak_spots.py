"""Where the reference plugins fail, as claims put to both: ours must keep them, and the reference shows that each test
would see the failure. Debian's 1.1.1; where a weakness came with later versions, only ours is judged, and it says so.
"""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from namespaces import Namespace, Pod
from tests import forked
from tests.bridges import V4, bridge_config
from tests.calls import REFERENCE, Plugins
from tests.leftovers import leftovers

pytestmark = [
    pytest.mark.skipif(not (REFERENCE / "bridge").exists(), reason="needs containernetworking-plugins"),
    pytest.mark.one_mode,  # no agent serves the reference, and a kill of the launcher is not one of the agent
]

# 1.0.0 is the newest version that the reference speaks here.
VERSION = "1.0.0"
RESERVATIONS = "/var/lib/cni/networks/net"


@pytest.fixture(params=["ours", "reference"])
def folder(request: pytest.FixtureRequest, bin_dir: Path) -> Path:
    return bin_dir if request.param == "ours" else REFERENCE


def judge(folder: Path, *, holds: bool) -> None:
    """Ours keeps the claim; the reference does not."""
    assert holds == (folder != REFERENCE), f"the claim {'holds' if holds else 'does not hold'} for {folder}"


def network(host: Namespace, folder: Path, **keys: Any) -> Plugins:
    return Plugins(host, folder, bridge_config(cniVersion=VERSION, **keys))


def is_clean(host: Namespace) -> bool:
    return leftovers(host, links=["br0"]) == []


def test_del_removes_masquerade_though_the_netns_is_gone(folder: Path, host: Namespace) -> None:
    """`ctr run --cni` always calls DEL that late."""
    pod = host.add_pod("a")
    bridge = network(host, folder, ipMasq=True)
    bridge.add(pod)
    pod.close()
    bridge.delete("a", netns="")
    judge(folder, holds=is_clean(host))


def test_no_address_is_lost_when_add_is_killed(folder: Path, host: Namespace) -> None:
    """SIGKILL as the reservation is written: an empty file has no owner, so that no DEL frees it."""
    config = {"cniVersion": VERSION, "name": "net", "type": "host-local", "ipam": V4}
    env = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "a",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": host.add_pod("a").path,
        "CNI_PATH": str(folder),
    }
    files = (f"{RESERVATIONS}/10.1.0.2", "/var/lib/cni/networks/.netloom/net/new")
    done = host.run(
        "strace", "-f", "-qq", "-o", "/dev/null", *itertools.chain(*(("-P", path) for path in files)),
        "-e", "inject=write:signal=KILL", str(folder / "host-local"), input=json.dumps(config), env=env, check=False,
    )  # fmt: skip
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    host_local = Plugins(host, folder, config)
    host_local.delete("a")
    judge(folder, holds=is_clean(host))


def test_a_failed_add_is_no_obstacle_for_the_next(folder: Path, host: Namespace) -> None:
    pod = host.add_pod("a")
    dry = {
        "type": "host-local",
        "ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.9"}]],
    }
    bridge = network(host, folder, ipam=dry)
    bridge.add(host.add_pod("first"))
    assert bridge.try_add(pod).exit_code != 0
    links = pod.run("ip", "link").stdout
    retried = bridge.other(ipam=V4).try_add(pod)
    judge(folder, holds="eth0" not in links and retried.exit_code == 0)


def kill_the_references_del(host: Namespace, pod: Pod, bridge: Plugins, tmp_path: Path) -> None:
    """At the moment when it turns to the rules, by an iptables that kills its caller."""
    fake = tmp_path / "iptables"
    fake.write_text("#!/bin/sh\nkill -KILL $PPID\n")
    fake.chmod(0o755)
    answer = bridge.try_delete(pod, environ={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert answer.exit_code != 0


def test_a_del_killed_anywhere_is_finished_by_the_next(folder: Path, host: Namespace, tmp_path: Path) -> None:
    pod = host.add_pod("a")
    bridge = network(host, folder, ipMasq=True)
    if folder == REFERENCE:
        bridge.add(pod)
        kill_the_references_del(host, pod, bridge, tmp_path)
        bridge.delete(pod)
        judge(folder, holds=is_clean(host))
        return
    env = {"CNI_CONTAINERID": "a", "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0", "CNI_PATH": str(folder)}
    dirty = []
    for step in itertools.count(1):
        stdin = json.dumps(bridge.config).encode()
        added = forked.call(host, "bridge", {**env, "CNI_COMMAND": "ADD"}, stdin)
        assert added.answer is not None
        told = json.dumps({**bridge.config, "prevResult": json.loads(added.answer.stdout)}).encode()
        killed = forked.call(host, "bridge", {**env, "CNI_COMMAND": "DEL"}, told, kill_at=step)
        if killed.answer is not None:
            break
        again = forked.call(host, "bridge", {**env, "CNI_COMMAND": "DEL"}, told).answer
        assert again is not None
        if again.exit_code != 0 or not is_clean(host):
            dirty.append(step)
    assert step > 10
    judge(folder, holds=dirty == [])


def chained(bridge: Plugins, pod: Pod, ports: list[dict[str, Any]], *, ifname: str = "eth0") -> Plugins:
    """The portmap that follows a bridge in its chain, for one pod."""
    config = {
        "cniVersion": VERSION,
        "name": bridge.config["name"],
        "type": "portmap",
        "capabilities": {"portMappings": True},
        "runtimeConfig": {"portMappings": ports},
        "prevResult": bridge.results[pod.name, ifname],
    }
    return Plugins(bridge.host, bridge.folder, config)


PORT_8080 = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
PORT_9090 = [{"hostPort": 9090, "containerPort": 80, "protocol": "tcp"}]


def test_a_host_port_that_is_taken_is_refused(folder: Path, host: Namespace) -> None:
    """The reference lets the last one win, silently."""
    one, two = host.add_pod("a"), host.add_pod("b")
    bridge = network(host, folder)
    for pod in (one, two):
        bridge.add(pod)
    assert chained(bridge, one, PORT_8080).try_add(one).exit_code == 0
    answer = chained(bridge, two, PORT_8080).try_add(two)
    judge(folder, holds=answer.exit_code != 0)


def count_of(port: int, host: Namespace) -> int:
    return host.run("nft", "list", "ruleset").stdout.count(str(port))


@pytest.mark.parametrize("is_same_network", [False, True], ids=["another network", "the same network"])
def test_del_of_one_attachment_leaves_the_ports_of_another(
    is_same_network: bool, folder: Path, host: Namespace
) -> None:
    """1.1.1 knows mappings by container id and network: two networks are told apart (later versions, on nftables, look
    at the id alone), two interfaces of one network are not."""
    pod = host.add_pod("a")
    one = network(host, folder)
    second = {"type": "host-local", "ranges": [[{"subnet": "10.2.0.0/24"}]]}
    two = network(host, folder, name="net" if is_same_network else "net2", bridge="br1", ipam=second)
    one.add(pod)
    two.add(pod, ifname="eth1")
    first_ports, second_ports = chained(one, pod, PORT_8080), chained(two, pod, PORT_9090, ifname="eth1")
    assert first_ports.try_add(pod).exit_code == 0
    assert second_ports.try_add(pod, ifname="eth1").exit_code == 0
    before = count_of(8080, host)
    assert before > 0
    assert second_ports.call("DEL", pod, ifname="eth1").exit_code == 0
    holds = count_of(8080, host) == before and count_of(9090, host) == 0
    if folder == REFERENCE and not is_same_network:
        assert holds
    else:
        judge(folder, holds=holds)


def empty_gc(plugins: Plugins) -> None:
    """GC that calls nothing valid. 1.1.1 does not know the verb; later versions answer 0, and remove nothing."""
    plugins.gc([], cniVersion="1.1.0")


def stale_chain(host: Namespace, folder: Path) -> list[Callable[[], None]]:
    """A pod with everything, gone without any DEL; returns the GCs of its chain."""
    pod = host.add_pod("a")
    bridge = network(host, folder, ipMasq=True)
    bridge.add(pod)
    ports = chained(bridge, pod, PORT_8080)
    assert ports.try_add(pod).exit_code == 0
    pod.close()
    return [lambda: empty_gc(bridge), lambda: empty_gc(ports)]


def test_gc_removes_what_pods_left_that_vanished(folder: Path, host: Namespace) -> None:
    for collect in stale_chain(host, folder):
        collect()
    judge(folder, holds=is_clean(host))


def test_an_ipv6_pod_is_ready_without_waiting_for_duplicate_address_detection(folder: Path, host: Namespace) -> None:
    """The reference sleeps until the kernel has asked for a second or two whether somebody has the address."""
    ranges = {"type": "host-local", "ranges": [[{"subnet": "fd01::/64"}]]}
    pod = host.add_pod("a")
    network(host, folder, ipam=ranges).add(pod)
    (entry,) = json.loads(pod.run("ip", "-6", "-json", "address", "show", "dev", "eth0", "scope", "global").stdout)
    flags = next(address for address in entry["addr_info"] if "local" in address)
    judge(folder, holds="nodad" in flags and "tentative" not in flags)
