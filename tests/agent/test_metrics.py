"""What the agent tells of itself: a JSON line a call, and Prometheus metrics."""

from __future__ import annotations

import re
import socket
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from namespaces import Namespace
from tests.agent import clients
from tests.agent.conftest import AgentFactory
from tests.agent.running import SOCKET, RunningAgent, connect
from tests.bridges import V4
from tests.calls import Plugins
from tests.forked import in_child
from waiting import wait_until

PORT = 9469
SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
Scrape = Callable[[], dict[str, float]]


@pytest.fixture
def measured(start_agent: AgentFactory) -> RunningAgent:
    """An agent that serves metrics."""
    return start_agent("--metrics", f"127.0.0.1:{PORT}")


@pytest.fixture
def scrape(host: Namespace, measured: RunningAgent) -> Scrape:
    """`scrape()["name{labels}"]` is a value that the agent shows now."""

    def read() -> dict[str, float]:
        with host.inside(), socket.create_connection(("127.0.0.1", PORT), timeout=10) as sock:
            sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            with sock.makefile() as stream:
                text = stream.read()
        samples = [SAMPLE.fullmatch(line) for line in text.splitlines() if not line.startswith("#")]
        return {f"{found[1]}{{{found[2] or ''}}}": float(found[3]) for found in samples if found}

    return read


def test_a_call_is_one_line_with_its_fields(agent: RunningAgent, bridge: Plugins, host: Namespace) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    bridge.add(host.add_pod("a"), environ={"TRACEPARENT": trace})
    bridge.try_add(host.pods["a"])
    first, second = agent.calls()
    assert 0 < first.pop("duration_ms") < 60_000
    assert first == {
        "event": "call", "plugin": "bridge", "verb": "ADD", "containerID": "a", "ifname": "eth0", "code": 0,
        "traceparent": trace,
    }  # fmt: skip
    assert (second["code"], "traceparent" in second) == (101, False)


def test_what_callers_write_cannot_break_the_log(agent: RunningAgent, bridge: Plugins, host: Namespace) -> None:
    odd = 'a"\n{"event": "forged"}'
    bridge.call("ADD", host.add_pod("a"), environ={"CNI_CONTAINERID": odd, "TRACEPARENT": odd})
    assert agent.calls()[0]["containerID"] == odd
    assert agent.events("forged") == []


def test_calls_errors_and_durations_are_counted(bridge: Plugins, scrape: Scrape, host: Namespace) -> None:
    pod = host.add_pod("a")
    bridge.add(pod)
    bridge.try_add(pod)
    bridge.call("ADD", pod, stdin="{")
    bridge.delete(pod)
    found = scrape()
    for verb, code, count in (("ADD", 0, 1), ("ADD", 101, 1), ("ADD", 6, 1), ("DEL", 0, 1)):
        assert found[f'netloom_calls_total{{code="{code}",plugin="bridge",verb="{verb}"}}'] == count
    assert found['netloom_call_duration_seconds_count{plugin="bridge",verb="ADD"}'] == 3
    assert found['netloom_call_duration_seconds_bucket{le="+Inf",plugin="bridge",verb="ADD"}'] == 3
    assert 0 < found['netloom_call_duration_seconds_sum{plugin="bridge",verb="DEL"}'] < 60


def test_addresses_used_and_free_are_told_for_each_network(bridge: Plugins, scrape: Scrape, host: Namespace) -> None:
    pods = [host.add_pod(f"p{number}") for number in range(3)]
    for pod in pods:
        bridge.add(pod)
    bridge.other(name="other", ipam=V4).add(pods[0], ifname="eth1")
    found = scrape()
    assert found['netloom_addresses_used{network="net"}'] == 6  # a pod has one of each family
    assert found['netloom_addresses_free{network="net"}'] > 2**63
    assert found['netloom_addresses_used{network="other"}'] == 1
    assert found['netloom_addresses_free{network="other"}'] == 252  # of 254: the gateway, and the one used
    bridge.delete(pods[0])
    assert scrape()['netloom_addresses_used{network="net"}'] == 4


def test_starts_are_counted_from_agent_to_agent(measured: RunningAgent, scrape: Scrape) -> None:
    assert scrape()["netloom_agent_starts{}"] == 1
    measured.kill()
    measured.start()
    measured.stop()
    measured.start()
    assert scrape()["netloom_agent_starts{}"] == 3


def test_connections_without_a_call_are_counted(
    measured: RunningAgent, scrape: Scrape, host: Namespace, bridge: Plugins
) -> None:
    with clients.client_of(host) as client:
        client.send(b"garbage")
        assert clients.is_hung_up(client)

    def give_up_before_go() -> None:
        with connect(SOCKET) as client:
            clients.hand(client, clients.message("STATUS", bridge.config))
            client.recv(1)

    in_child(host, give_up_before_go)
    wait_until(lambda: measured.events("lost"), within=10)
    found = scrape()
    assert found['netloom_connections_dropped_total{reason="declined"}'] == 1
    assert found['netloom_connections_dropped_total{reason="lost"}'] == 1


def test_what_callers_invent_makes_no_metric_of_its_own(bridge: Plugins, scrape: Scrape, host: Namespace) -> None:
    """Each pair of labels is memory that stays."""
    for number in range(20):
        assert bridge.call("ADD", "a", environ={"CNI_COMMAND": f"verb{number}"}).code == 4
    names = [name for name in scrape() if name.startswith("netloom_calls_total")]
    assert names == ['netloom_calls_total{code="4",plugin="bridge",verb="other"}']


@pytest.mark.parametrize("ipam", [5, {"type": 5, "x": "host-local"}, {"type": "host-local", "ranges": "x"}])
def test_a_configuration_that_metrics_cannot_read_breaks_no_call(
    ipam: Any, agent: RunningAgent, bridge: Plugins, host: Namespace
) -> None:
    """tuning has no use for `ipam`, whatever it holds."""
    pod = host.add_pod("a")
    prev = {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": pod.path}], "ips": []}
    pod.run("ip", "link", "add", "eth0", "type", "bridge")
    tuning = bridge.other(type="tuning", ipam=ipam, prevResult=prev, filler="host-local")
    assert tuning.try_add(pod).exit_code == 0
    assert agent.calls()[0]["code"] == 0


def test_metrics_answer_with_the_content_type_of_prometheus(measured: RunningAgent, host: Namespace) -> None:
    with host.inside(), urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=10) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")
