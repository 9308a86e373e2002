"""Many calls at once, by the installed executables: a hundred pods of one bridge, and one pod asked for eight times."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from namespaces import Namespace
from tests.bridges import DUAL, bridge_config
from tests.calls import Plugins, addresses_of, together
from tests.leftovers import leftovers
from tests.snapshot import snapshot

# As many as a busy kubelet has in flight; more only wait for the two cores of a small machine.
AT_ONCE = 16


def test_a_hundred_parallel_adds_all_succeed_and_a_hundred_dels_leave_nothing(host: Namespace, bin_dir: Path) -> None:
    bridge = Plugins(host, bin_dir, bridge_config(ipam=DUAL, ipMasq=True, macspoofchk=True))
    pods = [host.add_pod(f"p{i}") for i in range(100)]
    added = together((partial(bridge.try_add, pod) for pod in pods), at_once=AT_ONCE)
    assert [answer for answer in added if answer.exit_code != 0] == []
    given = [address for answer in added for address in addresses_of(answer.body)]
    assert len(set(given)) == 200
    held = {pod.name: pod.run("ip", "-json", "address", "show", "dev", "eth0").stdout for pod in pods[::10]}
    for pod in pods[::10]:
        for address in addresses_of(bridge.results[pod.name, "eth0"]):
            assert f'"{address}"' in held[pod.name]
    assert len({answer.body["interfaces"][0]["mac"] for answer in added}) == 1  # one bridge, made once
    deleted = together((partial(bridge.try_delete, pod) for pod in pods), at_once=AT_ONCE)
    assert [answer for answer in deleted if answer.exit_code != 0 or answer.stdout] == []
    assert leftovers(host, links=["br0"]) == []


def test_of_eight_parallel_adds_of_one_attachment_one_wins_and_one_del_cleans(host: Namespace, bin_dir: Path) -> None:
    bridge = Plugins(host, bin_dir, bridge_config(ipam=DUAL, ipMasq=True, macspoofchk=True))
    pod = host.add_pod("a")
    before = snapshot(host), snapshot(pod)
    answers = together([partial(bridge.try_add, pod)] * 8, at_once=8)
    assert sorted(answer.code for answer in answers) == [0] + [101] * 7, answers
    bridge.check(pod)
    bridge.delete(pod)
    assert leftovers(host, links=["br0"]) == []
    host.run("ip", "link", "delete", "br0")
    for family in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
        host.run("sysctl", "-q", "-w", f"net.{family}=0")
    assert (snapshot(host), snapshot(pod)) == before


def test_adds_and_dels_of_the_same_network_at_once_never_disturb_each_other(host: Namespace, bin_dir: Path) -> None:
    """The tables are made by the first and dropped by the last: both happen many times here."""
    bridge = Plugins(host, bin_dir, bridge_config(ipMasq=True, macspoofchk=True))
    pods = [host.add_pod(f"p{i}") for i in range(4)]

    def cycle(number: int) -> list[int]:
        codes = []
        for _ in range(2):
            codes.append(bridge.try_add(pods[number]).code)
            codes.append(bridge.try_delete(pods[number]).code)
        return codes

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(cycle, range(4))) == [[0] * 4] * 4
    assert leftovers(host, links=["br0"]) == []
