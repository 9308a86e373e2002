"""Who gets a host port: conflicts as with bind(2), told by name, decided by the kernel however many ask at once."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from namespaces import Namespace
from tests import forked
from tests.calls import Answer, Plugins, together
from tests.plugin import environment
from tests.ports import Ports, mapping, netloom_tables, runtime


def prev_result(number: int) -> dict[str, object]:
    """A pod that needs no wiring: taking a port needs its address alone."""
    return {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x"}],
        "ips": [
            {"address": f"10.1.{number // 250}.{number % 250 + 2}/16", "interface": 0},
            {"address": f"fd01::{number + 2:x}/64", "interface": 0},
        ],
    }


class Market:
    """Attachments without namespaces of their own that ask for ports: any netns will do for CNI_NETNS."""

    def __init__(self, host: Namespace, folder: Path, **portmap: object) -> None:
        self.host = host
        self.pod = host.add_pod("any")
        self.plugins = Plugins(host, folder, {"cniVersion": "1.1.0", "name": "net", "type": "portmap", **portmap})

    def call(self, verb: str, number: int, *mappings: dict[str, object], **more: object) -> Answer:
        keys = {"prevResult": prev_result(number), "runtimeConfig": runtime(*mappings), **more}
        return self.plugins.call(verb, self.pod, environ={"CNI_CONTAINERID": f"c{number}"}, **keys)  # type: ignore[arg-type]

    def ask(self, number: int, *mappings: dict[str, object], **more: object) -> int:
        """ADD; returns the error code."""
        return self.call("ADD", number, *mappings, **more).code

    def give_back(self, number: int, *mappings: dict[str, object], **more: object) -> None:
        answer = self.call("DEL", number, *mappings, **more)
        assert (answer.exit_code, answer.stdout) == (0, ""), answer

    def gc(self, *valid: int) -> None:
        listed = [{"containerID": f"c{number}", "ifname": "eth0"} for number in valid]
        answer = self.plugins.call("GC", environ={}, **{"cni.dev/valid-attachments": listed})  # type: ignore[arg-type]
        assert answer.exit_code == 0, answer

    def ruleset(self) -> str:
        return self.host.run("nft", "list", "ruleset").stdout


@pytest.fixture
def market(host: Namespace, bin_dir: Path) -> Market:
    return Market(host, bin_dir)


def test_a_port_that_is_held_is_refused_and_the_holder_named(market: Market) -> None:
    assert market.ask(1, mapping(8080, 80)) == 0
    before = market.ruleset()
    refused = market.call("ADD", 2, mapping(8081, 80), mapping(8080, 80))
    assert refused.code == 104
    assert "host port 8080/tcp is held by net/c1/eth0" in refused.words
    assert "GC of network net" in refused.words
    assert market.ruleset() == before
    market.give_back(1, mapping(8080, 80))
    assert market.ask(2, mapping(8081, 80), mapping(8080, 80)) == 0


ANY, V4, V6 = "", "0.0.0.0", "::"
ONE, TWO, SIX = "192.0.2.1", "192.0.2.9", "2001:db8:1::1"


@pytest.mark.parametrize(
    ("first", "second", "is_conflict"),
    [
        (mapping(80, 1), mapping(80, 1), True),
        (mapping(80, 1), mapping(81, 1), False),
        (mapping(80, 1), mapping(80, 1, "udp"), False),
        (mapping(80, 1, "sctp"), mapping(80, 1, "sctp"), True),
        (mapping(80, 1, host_ip=V4), mapping(80, 1, host_ip=V6), False),
        (mapping(80, 1, host_ip=V4), mapping(80, 1), True),
        (mapping(80, 1), mapping(80, 1, host_ip=ONE), True),
        (mapping(80, 1, host_ip=ONE), mapping(80, 1), True),
        (mapping(80, 1, host_ip=ONE), mapping(80, 1, host_ip=V6), False),
        (mapping(80, 1, host_ip=ONE), mapping(80, 1, host_ip=TWO), False),
        (mapping(80, 1, host_ip=ONE), mapping(80, 1, host_ip=ONE), True),
        (mapping(80, 1, host_ip=SIX), mapping(80, 1, host_ip=ONE), False),
        (mapping(80, 1, host_ip=SIX), mapping(80, 1, host_ip=V6), True),
        (mapping(80, 1, host_ip=SIX), mapping(80, 1), True),
    ],
)
def test_ports_conflict_as_with_bind(
    first: dict[str, object], second: dict[str, object], is_conflict: bool, market: Market
) -> None:
    assert market.ask(1, first) == 0
    answer = market.call("ADD", 2, second)
    assert answer.code == (104 if is_conflict else 0), answer
    if is_conflict:
        assert "net/c1/eth0" in answer.words
    # And the other way round, after all is given back.
    market.give_back(1, first)
    market.give_back(2, second)
    assert netloom_tables(market.host) == []


@pytest.mark.parametrize("conditions", [{}, {"conditionsV4": ["-s", "192.0.2.0/24"]}], ids=["plain", "conditions"])
def test_one_address_that_was_given_back_leaves_the_port_to_any_address(
    conditions: dict[str, object], market: Market
) -> None:
    """The shared mark stays behind as long as the table lives; it must not be in the way."""
    assert market.ask(9, mapping(9999, 1)) == 0
    assert market.ask(1, mapping(80, 1, host_ip=ONE), **conditions) == 0
    assert market.ask(2, mapping(80, 1, host_ip=TWO), **conditions) == 0
    market.give_back(1, mapping(80, 1, host_ip=ONE), **conditions)
    refused = market.call("ADD", 3, mapping(80, 1), **conditions)
    assert (refused.code, "held by net/c2/eth0" in refused.words) == (104, True)
    market.give_back(2, mapping(80, 1, host_ip=TWO), **conditions)
    assert market.ask(3, mapping(80, 1), **conditions) == 0
    assert market.ask(4, mapping(80, 1, host_ip=ONE)) == 104
    market.give_back(3, mapping(80, 1), **conditions)
    market.give_back(9, mapping(9999, 1))
    assert netloom_tables(market.host) == []


def test_networks_with_conditions_of_their_own_share_one_ledger(market: Market) -> None:
    assert market.ask(1, mapping(80, 1), name="one", conditionsV4=["-i", "eth1"]) == 0
    assert len(netloom_tables(market.host)) == 2
    refused = market.call("ADD", 2, mapping(80, 1), name="two", conditionsV4=["-i", "eth2"])
    assert (refused.code, "held by one/c1/eth0" in refused.words) == (104, True)
    assert market.ask(2, mapping(81, 1), name="two", conditionsV4=["-i", "eth2"]) == 0
    assert len(netloom_tables(market.host)) == 3
    market.give_back(1, mapping(80, 1), name="one", conditionsV4=["-i", "eth1"])
    market.give_back(2, mapping(81, 1), name="two", conditionsV4=["-i", "eth2"])
    assert netloom_tables(market.host) == []


@pytest.mark.parametrize(
    "wanted",
    [
        lambda n: mapping(8080, 80),
        lambda n: mapping(8080, 80, host_ip=ONE),
        lambda n: mapping(8080, 80, host_ip=ANY if n % 2 else ONE),
    ],
    ids=["any address", "one address", "both kinds"],
)
def test_of_32_that_ask_at_once_exactly_one_gets_the_port(
    wanted: Callable[[int], dict[str, object]], market: Market
) -> None:
    answers = together([partial(market.call, "ADD", n, wanted(n)) for n in range(32)], at_once=32)
    winners = [n for n, answer in enumerate(answers) if answer.code == 0]
    assert len(winners) == 1, answers
    assert {answer.code for answer in answers} == {0, 104}
    holder = f"net/c{winners[0]}/eth0"
    assert all(holder in answer.words for answer in answers if answer.code)
    assert set(re.findall(r"net/c\d+/eth0", market.ruleset())) == {holder}


def test_what_comes_and_goes_at_once_leaves_nothing_and_refuses_nobody(market: Market) -> None:
    """Tables are made and dropped by parallel calls; each has a port of its own."""

    def life(number: int) -> Answer:
        wanted = mapping(2000 + number, 80, host_ip="" if number % 3 else ONE)
        for _ in range(3):
            for verb in ("ADD", "CHECK", "DEL"):
                answer = market.call(verb, number, wanted)
                if answer.exit_code:
                    return answer
        return Answer(0, "", "")

    answers = together([partial(life, number) for number in range(8)], at_once=8)
    assert [answer for answer in answers if answer.exit_code] == []
    assert netloom_tables(market.host) == []


def test_parallel_dels_and_gc_of_the_same_pods_succeed(market: Market) -> None:
    for number in range(4):
        assert market.ask(number, mapping(80 + number, 1), mapping(80 + number, 1, "udp", ONE)) == 0
    calls: list[Callable[[], Answer]] = [
        partial(market.call, "DEL", number, mapping(80 + number, 1), mapping(80 + number, 1, "udp", ONE))
        for number, _ in itertools.product(range(4), range(3))
    ]
    collect = partial(market.plugins.call, "GC", **{"cni.dev/valid-attachments": []})  # type: ignore[arg-type]
    answers = together([*calls, collect, collect], at_once=16)
    assert [answer for answer in answers if answer.exit_code] == []
    assert netloom_tables(market.host) == []


@pytest.mark.one_mode
@pytest.mark.parametrize(("verb", "stride"), [("ADD", 1), ("DEL", 4)])  # tests/kill goes through all of them
def test_what_a_killed_call_leaves_is_removed_by_the_next_del(verb: str, stride: int, market: Market) -> None:
    wanted = (mapping(80, 1), mapping(81, 1, "udp", ONE))
    keys: dict[str, Any] = {
        "prevResult": prev_result(1), "runtimeConfig": runtime(*wanted), "conditionsV4": ["-s", "192.0.2.0/24"],
    }  # fmt: skip

    def call(verb: str, kill_at: int = 0, **more: Any) -> forked.Done:
        body = {**market.plugins.config, **keys, **more}
        env = environment(verb, netns=market.pod.path, container_id="c1")
        return forked.call(market.host, "portmap", env, json.dumps(body).encode(), kill_at=kill_at)

    for step in itertools.count(1, stride):
        if verb == "DEL":
            call("ADD")
        killed = call(verb, step)
        # By key, by listing, or in the way of containerd: whichever comes first must do.
        ways: list[dict[str, Any]] = [{}, {"prevResult": None}, {"prevResult": None, "runtimeConfig": None}]
        done = call("DEL", **ways[step % 3])
        assert done.answer is not None
        assert done.answer.exit_code == 0, done
        assert netloom_tables(market.host) == [], step
        if not killed.signal:
            break
    assert step > 5


def test_gc_frees_the_ports_of_dead_pods_of_this_network_alone(market: Market) -> None:
    conditions = {"conditionsV4": ["-s", "192.0.2.0/24"]}
    assert market.ask(1, mapping(80, 1)) == 0
    assert market.ask(2, mapping(81, 1), mapping(82, 1, host_ip=ONE)) == 0
    assert market.ask(3, mapping(83, 1), mapping(84, 1, host_ip=ONE), **conditions) == 0
    assert market.ask(4, mapping(85, 1), name="other") == 0
    assert market.ask(5, mapping(86, 1), name="other", **conditions) == 0
    market.gc(1)
    assert set(re.findall(r"\w+/c\d/eth0", market.ruleset())) == {"net/c1/eth0", "other/c4/eth0", "other/c5/eth0"}
    assert "specifics: " not in market.ruleset()
    for port in (81, 82, 83, 84):
        assert market.ask(6, mapping(port, 1)) == 0
        market.give_back(6, mapping(port, 1))


def test_ports_of_the_whole_range_are_taken_by_one_pod(host: Namespace, bin_dir: Path) -> None:
    market = Market(host, bin_dir)
    many = [mapping(port, port) for port in range(1, 200)] + [mapping(65535, 65535, "udp")]
    assert market.ask(1, *many) == 0
    assert market.call("CHECK", 1, *many).code == 0
    market.give_back(1, *many)
    assert netloom_tables(host) == []


def test_the_pod_that_has_an_address_now_takes_it_over(market: Market) -> None:
    """Its former holder died without a DEL: its ports stay held until GC, its address is no reason to refuse."""
    assert market.ask(1, mapping(80, 1)) == 0
    wider = prev_result(1)
    wider["ips"] = [{"address": "10.1.0.3/24", "interface": 0}]
    assert market.ask(2, mapping(81, 1), prevResult=wider) == 0
    assert market.ask(3, mapping(82, 1), prevResult=prev_result(1)) == 0
    market.give_back(2, mapping(81, 1), prevResult=wider)
    market.give_back(3, mapping(82, 1), prevResult=prev_result(1))
    market.give_back(1, mapping(80, 1))
    assert netloom_tables(market.host) == []


def test_two_networks_of_one_container_do_not_touch_each_others_ports(host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    one = Ports(host, bin_dir, bridge={"name": "one"})
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.2.0.0/24"}]]}
    two = Ports(host, bin_dir, bridge={"name": "two", "bridge": "br1", "ipam": ipam})
    one.publish(pod, mapping(8080, 80))
    two.bridge.results[pod.name, "eth0"] = two.bridge.add(pod, ifname="eth1")
    second = {**two.bridge.results[pod.name, "eth0"]}
    asked = runtime(mapping(8081, 80))
    two.portmap.add(pod, ifname="eth1", prevResult=second, runtimeConfig=asked)
    one.unpublish(pod)
    one.portmap.delete(pod, prevResult=None)
    two.portmap.check(pod, ifname="eth1", runtimeConfig=asked)
    assert "one/a" not in host.run("nft", "list", "table", "inet", "netloom_portmap").stdout
