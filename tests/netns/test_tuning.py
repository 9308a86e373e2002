"""The tuning plugin on a real kernel: values before, during and after; files; beside the reference."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from namespaces import Namespace, Pod
from tests.plugin import PluginError, environment, run_plugin
from tests.wiring import link_of, wire

MAC = "02:11:22:33:44:aa"
ALL = {"mac": MAC, "mtu": 1400, "promisc": True, "allmulti": True, "txQLen": 77}
SYSCTLS = {"net.core.somaxconn": "500", "net/ipv4/conf/IFNAME/forwarding": "1"}


def tuning(node: Namespace, verb: str, pod: Pod | None, prev: Any = None, **keys: Any) -> dict[str, Any]:
    more = {key: keys.pop(key) for key in ("reference", "args", "netns", "container_id") if key in keys}
    config = {**keys, "prevResult": prev} if prev else keys
    return run_plugin(node, "tuning", verb, config, pod, **more)


def files(node: Namespace, folder: str = "/run/cni/tuning") -> dict[str, str]:
    """The kept originals, by name."""
    where = node.path_from_outside(folder)
    return {path.name: path.read_text() for path in sorted(where.iterdir())} if where.exists() else {}


def state(pod: Pod) -> dict[str, Any]:
    """All that tuning may change, and what it must not lose."""
    link = link_of(pod, "eth0")
    flags = {name: name in link["flags"] for name in ("PROMISC", "ALLMULTI", "UP")}
    settings = pod.run("sysctl", "-n", "net.core.somaxconn", "net.ipv4.conf.eth0.forwarding").stdout.split()
    routes = pod.run("ip", "route").stdout + pod.run("ip", "-6", "route").stdout
    addresses = [(a["local"], a["prefixlen"]) for a in link["addr_info"]]
    return {**flags, "settings": settings, "routes": routes, "addresses": addresses} | {
        key: link[key] for key in ("address", "mtu", "txqlen")
    }


def test_add_tunes_the_link_and_the_namespace_and_del_puts_the_link_back(host: Namespace) -> None:
    pod, prev = wire(host)
    before = state(pod)
    result = tuning(host, "ADD", pod, prev, **ALL, sysctl=SYSCTLS)
    tuned = state(pod)
    assert tuned == {
        **before,
        "address": MAC,
        "mtu": 1400,
        "txqlen": 77,
        "PROMISC": True,
        "ALLMULTI": True,
        "settings": ["500", "1"],
        "routes": tuned["routes"],
    }
    assert [line.split(" mtu ")[0] for line in tuned["routes"].splitlines()] == before["routes"].splitlines()
    changed = {**prev["interfaces"][1], "mac": MAC, "mtu": 1400}
    assert result == {**prev, "interfaces": [prev["interfaces"][0], changed]}
    tuning(host, "CHECK", pod, result, **ALL, sysctl=SYSCTLS)
    tuning(host, "DEL", pod, result, **ALL, sysctl=SYSCTLS)
    assert {**state(pod), "settings": 0} == {**before, "settings": 0}
    assert files(host) == {}


def test_the_result_is_the_references(host: Namespace) -> None:
    pod, prev = wire(host)
    prev["cniVersion"] = "1.0.0"
    keys = {"cniVersion": "1.0.0", "mac": MAC, "mtu": 1400, "sysctl": SYSCTLS}
    theirs = tuning(host, "ADD", pod, prev, **keys, reference=True)
    tuned = state(pod)
    tuning(host, "DEL", pod, prev, **keys, reference=True)
    assert json.dumps(tuning(host, "ADD", pod, prev, **keys)) == json.dumps(theirs)
    assert state(pod) == tuned


@pytest.mark.parametrize("maker", ["reference", "netloom"])
def test_each_restores_what_the_other_changed(maker: str, host: Namespace) -> None:
    pod, prev = wire(host)
    prev["cniVersion"] = "1.0.0"
    before = state(pod)
    keys = {"cniVersion": "1.0.0", **{key: value for key, value in ALL.items() if key != "txQLen"}}
    tuning(host, "ADD", pod, prev, **keys, reference=maker == "reference")
    assert state(pod)["address"] == MAC
    (kept,) = files(host).values()
    assert {**json.loads(kept), "network": "net"} == {
        "mac": prev["interfaces"][1]["mac"],
        "promisc": False,
        "mtu": 1500,
        "allmulti": False,
        "network": "net",
    }
    tuning(host, "DEL", pod, prev, **keys, reference=maker == "netloom")
    assert state(pod) == before
    assert files(host) == {}


@pytest.mark.parametrize(
    ("given", "wins"),
    [("plain env runtime args", "args"), ("plain env runtime", "runtime"), ("plain env", "env"), ("plain", "plain")],
)
def test_the_mac_address_is_the_one_the_reference_takes(given: str, wins: str, host: Namespace) -> None:
    pod, prev = wire(host)
    prev["cniVersion"] = "1.0.0"
    macs = {name: f"02:00:00:00:00:0{number}" for number, name in enumerate(("plain", "env", "runtime", "args"), 1)}
    keys: dict[str, Any] = {"cniVersion": "1.0.0", "mac": macs["plain"]}
    if "env" in given:
        keys["args"] = f"IgnoreUnknown=1;K8S_POD_NAME=a;MAC={macs['env']}"
    config: dict[str, Any] = {"mac": macs["plain"]}
    if "runtime" in given:
        config["runtimeConfig"] = {"mac": macs["runtime"]}
    if "args" in given.split():
        config["args"] = {"cni": {"mac": macs["args"]}}
    for reference in (True, False):
        more = {"args": f"IgnoreUnknown=1;MAC={macs['env']}"} if "env" in given else {}
        body = {"cniVersion": "1.0.0", "prevResult": prev, **config}
        run_plugin(host, "tuning", "ADD", body, pod, reference=reference, **more)
        assert link_of(pod, "eth0")["address"] == macs[wins]
        run_plugin(host, "tuning", "DEL", body, pod, reference=reference, **more)


def test_args_win_over_plain_keys(host: Namespace) -> None:
    pod, prev = wire(host)
    args = {"cni": {"mtu": 1300, "sysctl": {"net.core.somaxconn": "300"}, "promisc": False}}
    body = {"prevResult": prev, "args": args, "mtu": 1400, "promisc": True, "sysctl": SYSCTLS}
    run_plugin(host, "tuning", "ADD", body, pod)
    tuned = state(pod)
    assert (tuned["mtu"], tuned["PROMISC"], tuned["settings"]) == (1300, False, ["300", "1"])


@pytest.mark.parametrize("spelling", ["net/ipv4/conf/eth0.5/forwarding", "net.ipv4.conf.IFNAME.forwarding"])
def test_a_link_with_a_dot_in_its_name_can_be_meant(spelling: str, host: Namespace) -> None:
    pod, prev = wire(host)
    pod.run("ip", "link", "add", "eth0.5", "type", "veth", "peer", "name", "v5")
    body = {"prevResult": prev, "sysctl": {spelling: "1"}}
    run_plugin(host, "tuning", "ADD", body, pod, ifname="eth0.5")
    assert pod.run("cat", "/proc/sys/net/ipv4/conf/eth0.5/forwarding").stdout == "1\n"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"sysctl": {"kernel.shm_rmid_forced": "1"}}, "not a setting of the network"),
        ({"sysctl": {"net/../kernel/shm_rmid_forced": "1"}}, "is no sysctl"),
        ({"sysctl": {"net.nope": "1"}}, "the pod has no sysctl net/nope"),
        ({"sysctl": {"net.core.somaxconn": 500}}, "net.core.somaxconn must be a string"),
        ({"sysctl": ["net.core.somaxconn"]}, "sysctl must be an object"),
        ({"sysctl": {"net.core.somaxconn": "1", "net/core/somaxconn": "2"}}, "given twice"),
        ({"mac": "zz"}, "no unicast MAC"),
        ({"mac": "01:00:5e:00:00:01"}, "no unicast MAC"),
        ({"mtu": "1400"}, "mtu must be"),
        ({"txQLen": -1}, "txQLen must be"),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value),
)
def test_what_cannot_be_is_refused_and_nothing_changes(keys: dict[str, Any], words: str, host: Namespace) -> None:
    pod, prev = wire(host)
    before = state(pod)
    with pytest.raises(PluginError, match=words) as caught:
        tuning(host, "ADD", pod, prev, **keys)
    assert caught.value.code == 7
    assert (state(pod), files(host)) == (before, {})


def test_add_outside_a_chain_is_refused(host: Namespace) -> None:
    pod, _ = wire(host)
    with pytest.raises(PluginError, match="no prevResult") as caught:
        tuning(host, "ADD", pod, None, **ALL)
    assert caught.value.code == 7


def test_a_failed_add_restores_what_it_changed(host: Namespace) -> None:
    """The kernel refuses the MTU, which comes last."""
    pod, prev = wire(host)
    before = state(pod)
    with pytest.raises(PluginError, match="setting mtu 99999999") as caught:
        tuning(host, "ADD", pod, prev, **{**ALL, "mtu": 99999999}, sysctl=SYSCTLS)
    assert caught.value.code == 105
    assert state(pod) == before
    assert files(host) == {}


def test_a_failed_second_add_keeps_the_first_ones_original(host: Namespace) -> None:
    pod, prev = wire(host)
    before = state(pod)
    tuning(host, "ADD", pod, prev, mac=MAC)
    kept = files(host)
    with pytest.raises(PluginError):
        tuning(host, "ADD", pod, prev, mac="02:00:00:00:00:01", mtu=99999999)
    assert files(host) == kept
    tuning(host, "DEL", pod, prev)
    assert state(pod) == before


def test_the_node_says_which_settings_are_allowed(host: Namespace) -> None:
    host.run("mount", "-t", "tmpfs", "none", "/mnt")
    host.run("mkdir", "/mnt/upper", "/mnt/work")
    host.run("mount", "-t", "overlay", "none", "-o", "lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work", "/etc")
    host.run("mkdir", "-p", "/etc/cni/tuning")
    host.run("tee", "/etc/cni/tuning/allowlist.conf", input="\n^net\\.core\\.\n^net/ipv4/conf/IFNAME/[a-z_]*$\n")
    pod, prev = wire(host)
    tuning(host, "ADD", pod, prev, sysctl=SYSCTLS)
    with pytest.raises(PluginError, match="is not allowed"):
        tuning(host, "ADD", pod, prev, sysctl={"net.ipv4.ip_forward": "1"})
    assert pod.run("sysctl", "-n", "net.ipv4.ip_forward").stdout == "0\n"
    with pytest.raises(PluginError, match="is not allowed") as caught:
        tuning(host, "STATUS", None, sysctl={"net.ipv4.ip_forward": "1"})
    assert caught.value.code == 50


# --- CHECK


@pytest.mark.parametrize(
    ("breaking", "words"),
    [
        ("ip link set eth0 address 02:00:00:00:00:01", f"mac of eth0 is 02:00:00:00:00:01, not {MAC}"),
        ("ip link set eth0 mtu 1300", "mtu of eth0 is 1300, not 1400"),
        ("ip link set eth0 promisc off", "promisc of eth0 is off, not on"),
        ("ip link set eth0 allmulticast off", "allmulti of eth0 is off, not on"),
        ("ip link set eth0 txqueuelen 1", "txqlen of eth0 is 1, not 77"),
        ("sysctl -w net.core.somaxconn=1", "net/core/somaxconn is '1' in the pod, not '500'"),
        ("ip link del eth0", "eth0"),
    ],
)
def test_check_names_what_does_not_hold(breaking: str, words: str, host: Namespace) -> None:
    pod, prev = wire(host)
    result = tuning(host, "ADD", pod, prev, **ALL, sysctl=SYSCTLS)
    pod.run(*breaking.split())
    with pytest.raises(PluginError, match=words) as caught:
        tuning(host, "CHECK", pod, result, **ALL, sysctl=SYSCTLS)
    assert caught.value.code == 102


def test_check_compares_settings_by_words_and_addresses_by_value(host: Namespace) -> None:
    """The kernel answers with tabs, and in lower case."""
    pod, prev = wire(host)
    keys: dict[str, Any] = {
        "sysctl": {"net.ipv4.tcp_rmem": "4096 131072 6291456"},
        "mac": MAC.upper().replace(":", "-"),
    }
    result = tuning(host, "ADD", pod, prev, **keys)
    assert result["interfaces"][1]["mac"] == MAC
    tuning(host, "CHECK", pod, result, **keys)


# --- DEL, GC, STATUS


@pytest.mark.parametrize("netns", ["", "/run/netns/gone"])
def test_del_without_the_namespace_forgets_the_originals(netns: str, host: Namespace) -> None:
    pod, prev = wire(host)
    tuning(host, "ADD", pod, prev, **ALL)
    assert list(files(host)) == ["c1_eth0.json"]
    for _ in range(2):
        tuning(host, "DEL", None, netns=netns)
        assert files(host) == {}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"mtu": "x"}'])
def test_del_gets_over_a_broken_file(content: str, host: Namespace) -> None:
    pod, prev = wire(host)
    tuning(host, "ADD", pod, prev, **ALL)
    host.path_from_outside("/run/cni/tuning/c1_eth0.json").write_text(content)
    tuning(host, "DEL", pod)
    assert files(host) == {}


def test_del_without_the_link_forgets_the_originals(host: Namespace) -> None:
    pod, prev = wire(host)
    tuning(host, "ADD", pod, prev, **ALL)
    host.run("ip", "link", "del", "vetha")
    tuning(host, "DEL", pod)
    assert files(host) == {}


def test_files_are_private_and_where_the_configuration_says(host: Namespace) -> None:
    pod, prev = wire(host)
    tuning(host, "ADD", pod, prev, mtu=1400, dataDir="/run/elsewhere/deep")
    path = host.path_from_outside("/run/elsewhere/deep/c1_eth0.json")
    assert path.stat().st_mode & 0o777 == 0o600
    tuning(host, "DEL", pod, dataDir="/run/elsewhere/deep")
    assert files(host, "/run/elsewhere/deep") == {}


def test_gc_forgets_this_networks_dead_attachments_alone(host: Namespace) -> None:
    for number, (container, network) in enumerate([("c1", "net"), ("c2", "net"), ("c3", "other")], 1):
        pod, prev = wire(host, f"p{number}", number)
        tuning(host, "ADD", pod, prev, mtu=1400, name=network, container_id=container)
    folder = host.path_from_outside("/run/cni/tuning")
    (folder / "c4_eth0.json").write_text('{"mtu": 1500}')  # the reference's
    gc: dict[str, Any] = {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}
    tuning(host, "GC", None, **gc)
    assert list(files(host)) == ["c1_eth0.json", "c3_eth0.json", "c4_eth0.json"]
    tuning(host, "GC", None, **{"cni.dev/valid-attachments": []})
    assert list(files(host)) == ["c3_eth0.json", "c4_eth0.json"]


@pytest.mark.parametrize("function", ["links.set_link", "os.replace"])
@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_what_a_killed_add_leaves_is_removed(verb: str, function: str, host: Namespace) -> None:
    pod, prev = wire(host)
    before = state(pod)
    code = (
        "import os, signal, sys, pathlib; from cni_plugins import skel, tuning, links\n"
        "def kill(*a, **k): os.kill(os.getpid(), signal.SIGKILL)\n"
        + ("links.set_link = kill\n" if function == "links.set_link" else "pathlib.Path.replace = kill\n")
        + "skel.main(tuning.PLUGIN, [], os.environ)"
    )
    config = {"cniVersion": "1.1.0", "name": "net", "type": "tuning", "prevResult": prev, "promisc": True, "mtu": 1400}
    env = environment("ADD", netns=pod.path)
    done = host.run(sys.executable, "-c", code, input=json.dumps(config), env=env, check=False)
    assert done.returncode in (-9, 137), done
    assert len(files(host)) == 1
    if verb == "DEL":
        tuning(host, "DEL", pod)
        assert state(pod) == before
    else:
        tuning(host, "GC", None, **{"cni.dev/valid-attachments": []})
    assert files(host) == {}


def test_status_is_silent(host: Namespace) -> None:
    assert tuning(host, "STATUS", None, **ALL, sysctl=SYSCTLS) == {}


# --- the cheap ways


@pytest.mark.one_mode
@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL", "STATUS"])
@pytest.mark.parametrize("keys", [{}, {"sysctl": {"net.core.somaxconn": "4096"}}], ids=["idle", "sysctl"])
def test_without_a_link_to_change_no_library_is_loaded(verb: str, keys: dict[str, Any], host: Namespace) -> None:
    """podman has `tuning {}` in each network."""
    pod, prev = wire(host)
    code = (
        "import os, sys; from cni_plugins import registry, skel\n"
        "code = skel.main(registry.load('tuning'), [], os.environ)\n"
        "assert not {'pyroute2', 'cni_plugins.links'} & set(sys.modules)\n"
        "sys.exit(code)"
    )
    config = {"cniVersion": "1.1.0", "name": "net", "type": "tuning", "prevResult": prev, **keys}
    done = host.run(sys.executable, "-c", code, input=json.dumps(config), env=environment(verb, netns=pod.path))
    assert json.loads(done.stdout or "{}") == (prev if verb == "ADD" else {})
    assert not Path(host.path_from_outside("/run/cni")).exists()
