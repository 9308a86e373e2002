"""The bandwidth plugin on a real kernel: what it makes, what really flows, what is left; beside the reference."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import Any

import pytest

from cni_plugins.bandwidth import reference_ifb
from cni_plugins.owner import Owner
from namespaces import Namespace, Pod
from tests.packets import connected
from tests.plugin import PluginError, command, environment, run_plugin
from tests.wiring import link_of, wire

MBIT = 1_000_000
BOTH = {"ingressRate": 10 * MBIT, "ingressBurst": 200_000, "egressRate": 20 * MBIT, "egressBurst": 300_000}
OWNER = Owner("net", "c1", "eth0")
IFB = OWNER.link_name("ifb")


def bandwidth(node: Namespace, verb: str, pod: Pod | None = None, *, limits: Any = None, **more: Any) -> dict[str, Any]:
    """A call as containerd's: the limits are in runtimeConfig."""
    config = {"runtimeConfig": {"bandwidth": BOTH if limits is None else limits}, **more.pop("config", {})}
    return run_plugin(node, "bandwidth", verb, config, pod, **more)


def queues(node: Namespace) -> list[dict[str, Any]]:
    """What tc sees, but for the queues that links have by themselves."""
    found = json.loads(node.run("tc", "-json", "qdisc", "show").stdout)
    return sorted((q for q in found if q["kind"] != "noqueue"), key=lambda q: (q["dev"], q["kind"]))


def filters(node: Namespace, link: str) -> list[dict[str, Any]]:
    return list(json.loads(node.run("tc", "-json", "filter", "show", "dev", link, "parent", "ffff:").stdout))


def ifbs(node: Namespace) -> list[str]:
    return [
        link["ifname"] for link in json.loads(node.run("ip", "-json", "link", "show", "type", "ifb").stdout) if link
    ]


# --- ADD


def test_add_puts_buckets_on_both_ways_and_the_ifb_into_the_result(host: Namespace) -> None:
    pod, prev = wire(host)
    host.run("ip", "link", "set", "vetha", "mtu", "1400")
    result = bandwidth(host, "ADD", pod, config={"prevResult": prev})
    ifb = link_of(host, IFB)
    assert (ifb["mtu"], ifb["ifalias"], "UP" in ifb["flags"]) == (1400, OWNER.tag, True)
    assert result == {**prev, "interfaces": [*prev["interfaces"], {"name": IFB, "mac": ifb["address"]}]}
    options = {(q["dev"], q["kind"]): q["options"] for q in queues(host)}
    assert options[("vetha", "tbf")] == {"rate": 10 * MBIT // 8, "burst": 25_000, "lat": 25_000}
    assert options[(IFB, "tbf")] == {"rate": 20 * MBIT // 8, "burst": 37_500, "lat": 25_000}
    assert ("vetha", "ingress") in options
    assert filters(host, "vetha")[-1]["options"]["actions"][0]["to_dev"] == IFB


@pytest.mark.parametrize(
    ("keys", "kinds"), [(("ingressRate", "ingressBurst"), ["tbf"]), (("egressRate", "egressBurst"), ["tbf", "ingress"])]
)
def test_one_way_alone_leaves_the_other_way_free(keys: tuple[str, ...], kinds: list[str], host: Namespace) -> None:
    pod, prev = wire(host)
    result = bandwidth(host, "ADD", pod, limits={key: BOTH[key] for key in keys}, config={"prevResult": prev})
    assert [q["kind"] for q in queues(host)] == kinds
    assert (len(result["interfaces"]) == 3) == ("egressRate" in keys)


def test_the_queues_are_the_references(host: Namespace) -> None:
    pod, prev = wire(host)
    prev["cniVersion"] = "1.0.0"
    theirs = bandwidth(host, "ADD", pod, config={"cniVersion": "1.0.0", "prevResult": prev}, reference=True)
    their_queues, their_filter = queues(host), filters(host, "vetha")[-1]
    name = theirs["interfaces"][2]["name"]
    assert name == reference_ifb(OWNER)
    bandwidth(host, "DEL", pod, config={"cniVersion": "1.0.0"}, reference=True)
    for q in ("root", "ingress"):
        host.run("tc", "qdisc", "del", "dev", "vetha", q)

    ours = bandwidth(host, "ADD", pod, config={"cniVersion": "1.0.0", "prevResult": prev})
    our_queues, our_filter = queues(host), filters(host, "vetha")[-1]
    for kept in (theirs, ours):  # name and address of the ifb are each one's own
        kept["interfaces"][2] = sorted(kept["interfaces"][2])
    assert ours == theirs
    rename = {"dev": IFB}
    assert our_queues == sorted(
        ({**q, **(rename if q["dev"] == name else {})} for q in their_queues), key=lambda q: (q["dev"], q["kind"])
    )
    for key in ("match", "flowid"):
        assert our_filter["options"].get(key) == their_filter["options"].get(key)


def test_typing_the_plan_makes_the_same(host: Namespace) -> None:
    pod, prev = wire(host)
    bandwidth(host, "ADD", pod, config={"prevResult": prev})
    made = queues(host), filters(host, "vetha"), {**link_of(host, IFB), "address": "", "addr_info": []}
    bandwidth(host, "DEL", pod)
    for queue in ("root", "ingress"):
        host.run("tc", "qdisc", "del", "dev", "vetha", queue)
    config = {"cniVersion": "1.1.0", "name": "net", "type": "bandwidth", "prevResult": prev, **BOTH}
    env = environment("ADD", netns=pod.path)
    plan = host.run(*command("bandwidth", "--explain"), input=json.dumps(config), env=env).stdout
    for line in plan.replace("VETH", "vetha").splitlines()[1:]:
        host.run(*line.removeprefix("host# ").split())
    typed = queues(host), filters(host, "vetha"), {**link_of(host, IFB), "address": "", "addr_info": []}
    for state in (made, typed):
        state[2].pop("ifindex")
        for rule in state[1]:  # numbered by the kernel
            for action in rule.get("options", {}).get("actions", ()):
                action.pop("index")
    assert typed == made


def test_a_burst_that_was_not_given_is_a_tenth_of_a_second(host: Namespace) -> None:
    """containerd writes 2^32-1 for a pod whose annotation has a rate alone, and capital letters."""
    pod, prev = wire(host)
    limits = {"IngressRate": 10 * MBIT, "IngressBurst": 2**32 - 1, "EgressRate": 0, "EgressBurst": 0}
    bandwidth(host, "ADD", pod, limits=limits, config={"prevResult": prev})
    assert queues(host)[0]["options"]["burst"] == 125_000


def test_a_rate_beyond_32_bits_holds(host: Namespace) -> None:
    pod, prev = wire(host)
    limits = {"ingressRate": 100_000 * MBIT, "ingressBurst": 80_000_000}
    result = bandwidth(host, "ADD", pod, limits=limits, config={"prevResult": prev})
    assert queues(host)[0]["options"]["rate"] == 100_000 * MBIT // 8
    bandwidth(host, "CHECK", pod, limits=limits, config={"prevResult": result})


def test_a_burst_below_one_frame_lets_frames_pass(host: Namespace) -> None:
    pod, prev = wire(host)
    bandwidth(host, "ADD", pod, limits={"ingressRate": 10 * MBIT, "ingressBurst": 8}, config={"prevResult": prev})
    with connected(host, pod, "10.9.1.2") as (sender, receiver):
        sender.sendall(b"x" * 1400)
        assert receiver.recv(1400, socket.MSG_WAITALL) == b"x" * 1400


@pytest.mark.parametrize(
    ("limits", "code", "words"),
    [
        ({"ingressRate": 1000}, 7, "ingressRate without ingressBurst"),
        ({"egressBurst": 1000}, 7, "egressBurst without egressRate"),
        ({"ingressRate": 1000, "ingressBurst": 2**36}, 7, "ingressBurst must be"),
        ({"ingressRate": -1, "ingressBurst": 8}, 7, "ingressRate must be"),
        ({"ingressRate": "10M", "ingressBurst": 8}, 7, "ingressRate must be"),
        ({"ingressRate": 7, "ingressBurst": 8}, 7, "at least|the least"),
        ({**BOTH, "unshapedSubnets": ["10.0.0.0/8"]}, 2, "unshapedSubnets is not supported"),
        ({**BOTH, "shapedSubnets": ["10.0.0.0/8"]}, 2, "shapedSubnets is not supported"),
    ],
)
def test_impossible_limits_are_refused(limits: dict[str, Any], code: int, words: str, host: Namespace) -> None:
    pod, prev = wire(host)
    with pytest.raises(PluginError, match=words) as caught:
        bandwidth(host, "ADD", pod, limits=limits, config={"prevResult": prev})
    assert caught.value.code == code
    assert queues(host) == []


def test_add_outside_a_chain_is_refused(host: Namespace) -> None:
    pod, _ = wire(host)
    with pytest.raises(PluginError, match="no prevResult") as caught:
        bandwidth(host, "ADD", pod)
    assert caught.value.code == 7


def test_a_link_that_is_not_of_the_chain_is_not_touched(host: Namespace) -> None:
    pod, prev = wire(host)
    prev["interfaces"][0]["name"] = "another"
    with pytest.raises(PluginError, match="vetha, is not in prevResult"):
        bandwidth(host, "ADD", pod, config={"prevResult": prev})
    assert queues(host) == []


def test_a_pod_whose_other_end_is_elsewhere_is_told_from_one_with_the_same_index(host: Namespace) -> None:
    """The other end of pod b's link is in pod c, and the host has a link with the index that it has there."""
    _, prev = wire(host, "a")
    pod, _ = host.add_pod("b"), host.add_pod("c")
    index = str(link_of(host, "vetha")["ifindex"])
    pod.run(*f"ip link add eth0 index 77 type veth peer name other index {index} netns".split(), "/run/netns/c")
    with pytest.raises(PluginError, match="the other end of eth0 is not on this host"):
        bandwidth(host, "ADD", pod, config={"prevResult": prev})
    assert queues(host) == []


def test_a_second_add_is_an_error_and_does_not_harm_the_first(host: Namespace) -> None:
    pod, prev = wire(host)
    result = bandwidth(host, "ADD", pod, config={"prevResult": prev})
    before = queues(host), ifbs(host)
    for limits in (BOTH, {"egressRate": 8000, "egressBurst": 8000}):
        with pytest.raises(PluginError) as caught:
            bandwidth(host, "ADD", pod, limits=limits, config={"prevResult": prev})
        assert caught.value.code == 101
    assert (queues(host), ifbs(host)) == before
    bandwidth(host, "CHECK", pod, config={"prevResult": result})


@pytest.mark.parametrize("obstacle", ["ifb", "ingress"])
def test_a_failed_add_leaves_nothing(obstacle: str, host: Namespace) -> None:
    """Somebody else's object stands in the way of a later step."""
    pod, prev = wire(host)
    if obstacle == "ifb":
        host.run("ip", "link", "add", IFB, "type", "ifb")
    else:
        host.run("tc", "qdisc", "add", "dev", "vetha", "handle", "ffff:", "ingress")
    before = queues(host), ifbs(host)
    with pytest.raises(PluginError) as caught:
        bandwidth(host, "ADD", pod, config={"prevResult": prev})
    assert caught.value.code == 101
    assert (queues(host), ifbs(host)) == before


# --- DEL, CHECK, GC, STATUS


@pytest.mark.parametrize("how", ["in order", "netns gone", "no details"])
def test_del_removes_the_ifb_twice(how: str, host: Namespace) -> None:
    pod, prev = wire(host)
    result = bandwidth(host, "ADD", pod, config={"prevResult": prev})
    assert ifbs(host) == [IFB]
    for _ in range(2):
        if how == "in order":
            bandwidth(host, "DEL", pod, config={"prevResult": result})
        elif how == "netns gone":
            bandwidth(host, "DEL", netns="/run/netns/gone")
        else:
            run_plugin(host, "bandwidth", "DEL", {}, netns="")
        assert ifbs(host) == []


def test_del_goes_on_with_limits_that_add_refuses(host: Namespace) -> None:
    pod, prev = wire(host)
    bandwidth(host, "ADD", pod, config={"prevResult": prev})
    bandwidth(host, "DEL", pod, limits={"ingressRate": 5}, config={"prevResult": prev})
    assert ifbs(host) == []


def test_a_pod_that_the_reference_wired_is_checked_and_cleaned(host: Namespace) -> None:
    pod, prev = wire(host)
    prev["cniVersion"] = "1.0.0"
    result = bandwidth(host, "ADD", pod, config={"cniVersion": "1.0.0", "prevResult": prev}, reference=True)
    bandwidth(host, "CHECK", pod, config={"prevResult": result})
    bandwidth(host, "DEL", pod, config={"prevResult": result})
    assert ifbs(host) == []


def test_del_with_limits_taken_from_the_configuration_finds_the_ifb_in_prev_result(host: Namespace) -> None:
    pod, prev = wire(host)
    result = bandwidth(host, "ADD", pod, config={"prevResult": prev})
    run_plugin(host, "bandwidth", "DEL", {"prevResult": result}, pod)
    assert ifbs(host) == []


@pytest.mark.parametrize(
    ("breaking", "words"),
    [
        ("tc qdisc del dev vetha root", "rate of vetha is not limited"),
        (
            "tc qdisc change dev vetha root handle 1: tbf rate 9mbit burst 25000 limit 60000",
            "9000000 bit/s, not 10000000",
        ),
        ("tc qdisc del dev vetha ingress", "not redirected to an ifb"),
        ("tc filter del dev vetha parent ffff:", "not redirected to an ifb"),
        (f"tc qdisc del dev {IFB} root", f"rate of {IFB} is not limited"),
        (f"ip link set {IFB} down", f"link {IFB} is down"),
        (f"ip link del {IFB}", "not redirected to an ifb"),
    ],
)
def test_check_names_what_is_broken(breaking: str, words: str, host: Namespace) -> None:
    pod, prev = wire(host)
    result = bandwidth(host, "ADD", pod, config={"prevResult": prev})
    assert bandwidth(host, "CHECK", pod, config={"prevResult": result}) == {}
    host.run(*breaking.split())
    with pytest.raises(PluginError, match=words) as caught:
        bandwidth(host, "CHECK", pod, config={"prevResult": result})
    assert caught.value.code == 102


def test_gc_removes_what_is_not_valid_of_this_network_alone(host: Namespace) -> None:
    for number, (container, network) in enumerate([("c1", "net"), ("c2", "net"), ("c1", "other")], 1):
        pod, prev = wire(host, f"p{number}", number)
        bandwidth(host, "ADD", pod, config={"prevResult": prev, "name": network}, container_id=container)
    killed, starting = (Owner("net", name, "eth0").link_name("ifb") for name in ("killed", "starting"))
    for untagged in (killed, starting, "ifb9"):
        host.run("ip", "link", "add", untagged, "type", "ifb")
    valid = [{"containerID": name, "ifname": "eth0"} for name in ("c1", "starting")]
    bandwidth(host, "GC", config={"cni.dev/valid-attachments": valid})
    kept = {IFB, starting, "ifb9", Owner("other", "c1", "eth0").link_name("ifb")}
    assert set(ifbs(host)) == kept
    bandwidth(host, "GC", config={"cni.dev/valid-attachments": []})
    assert set(ifbs(host)) == kept - {IFB, starting}


def test_status_asks_the_kernel_and_changes_nothing(host: Namespace) -> None:
    assert bandwidth(host, "STATUS") == {}
    assert queues(host) == []
    assert ifbs(host) == []


def test_adds_of_many_pods_at_once_all_succeed(host: Namespace) -> None:
    pods = [wire(host, f"p{number}", number) for number in range(1, 7)]

    def start(verb: str, number: int, pod: Pod, prev: dict[str, Any]) -> subprocess.Popen[bytes]:
        config = {"cniVersion": "1.1.0", "name": "net", "type": "bandwidth", "prevResult": prev, **BOTH}
        env = environment(verb, netns=pod.path, container_id=f"c{number}")
        words = [f"{key}={value}" for key, value in env.items()]
        process = host.popen("env", "-i", *words, *command("bandwidth"), stdin=-1, stdout=-1)
        assert process.stdin
        process.stdin.write(json.dumps(config).encode())
        process.stdin.close()
        return process

    for verb, left in (("ADD", 6), ("DEL", 0)):
        running = [start(verb, number, pod, prev) for number, (pod, prev) in enumerate(pods, 1)]
        assert [process.wait(30) for process in running] == [0] * 6
        assert len(ifbs(host)) == left


def add_killed_at(host: Namespace, pod: Pod, prev: dict[str, Any], function: str) -> None:
    """An ADD that dies, as by kill -9, when it calls `function` of qdiscs or links."""
    module, name = function.split(".")
    code = (
        "import os, signal, sys; from cni_plugins import skel, bandwidth, links, qdiscs\n"
        f"{module}.{name} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
        "skel.main(bandwidth.PLUGIN, [], os.environ)"
    )
    config = {"cniVersion": "1.1.0", "name": "net", "type": "bandwidth", "prevResult": prev, **BOTH}

    env = environment("ADD", netns=pod.path)
    done = host.run(sys.executable, "-c", code, input=json.dumps(config), env=env, check=False)
    assert done.returncode in (-9, 137), done


@pytest.mark.parametrize("function", ["links.make_link", "qdiscs.add_redirect"])
@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_what_a_killed_add_leaves_is_removed(verb: str, function: str, host: Namespace) -> None:
    pod, prev = wire(host)
    add_killed_at(host, pod, prev, function)
    bandwidth(host, verb, config={"cni.dev/valid-attachments": []})
    assert ifbs(host) == []
    host.run("ip", "link", "del", "vetha")  # the pod's end of the chain
    assert queues(host) == []


# --- the cheap ways


@pytest.mark.one_mode
@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK"])
def test_a_pod_without_limits_costs_no_kernel_and_no_library(verb: str, host: Namespace) -> None:

    pod, prev = wire(host)
    code = (
        "import os, sys; from cni_plugins import registry, skel\n"
        "code = skel.main(registry.load('bandwidth'), [], os.environ)\n"
        "assert not {'pyroute2', 'cni_plugins.links'} & set(sys.modules)\n"
        "sys.exit(code)"
    )
    config = {"cniVersion": "1.1.0", "name": "net", "type": "bandwidth", "prevResult": prev}
    done = host.run(sys.executable, "-c", code, input=json.dumps(config), env=environment(verb, netns=pod.path))
    assert json.loads(done.stdout or "{}") == (prev if verb == "ADD" else {})
