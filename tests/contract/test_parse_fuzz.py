"""The border under fuzz, in this process: whatever comes in, one error object of the specification comes out, never a
defect (code 100), and the configuration of each plugin is read or refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cni_plugins import bandwidth, bridge_config, firewall, portmap_config, tuning
from cni_plugins.protocol import Call
from cni_plugins.results import Result
from cni_plugins.skel import Plugin, answer
from ipam import host_local, ranges, static
from tests.cni_plugins.stand_in import environ_of

READERS: dict[str, Callable[[Call], object]] = {
    "bridge": lambda call: bridge_config.parse(call.config, call.args),
    "portmap": lambda call: portmap_config.parse(call.config),
    "firewall": lambda call: firewall.parse(call.config),
    "bandwidth": lambda call: bandwidth.parse(call.config),
    "tuning": lambda call: tuning.parse(call.config, call.args, call.ifname),
    "host-local": lambda call: ranges.parse_settings(call.config, call.args),
    "static": static.add,
    "host-local's STATUS": lambda call: host_local.explain(call),
    "attachments": lambda call: call.config.valid_attachments(),
}
KEYS = """
    cniVersion name type ipam runtimeConfig args cni prevResult dns bridge mtu vlan vlanTrunk id minID maxID mac ips
    ranges subnet rangeStart rangeEnd gateway routes dst gw scope table addresses address interfaces sandbox ip4 ip6 ip
    version portMappings hostPort containerPort protocol hostIP conditionsV4 backend ingressPolicy ingressRate
    egressBurst bandwidth sysctl txQLen promisc dataDir resolvConf nameservers search cni.dev/valid-attachments
    containerID ifname
""".split()  # noqa: SIM905 - a list of seventy quoted words is hard to read
WORDS = [
    "1.1.0", "0.1.0", "net", "bridge", "10.1.0.0/24", "10.1.0.5", "fd01::/64", "fd01::5", "::ffff:10.0.0.1", "tcp",
    "open", "02:00:00:00:00:01", "net.ipv4.ip_forward", "/tmp", "../x", "eth0", "", ".", "..", "a/b", "a%d", "\ud800",
    "a\0b", "ä",
]  # fmt: skip
values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(WORDS),
        st.sampled_from([0, 1, -1, 65536, 4095, 2**32, 2**64, 10**30]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)),
    max_leaves=20,
)  # fmt: skip
configs = st.dictionaries(st.sampled_from(KEYS), values, max_size=10).map(
    lambda body: {"cniVersion": "1.1.0", "name": "net", "type": "x", **body}
)


def reading(name: str) -> Plugin:
    """A plugin whose verbs read one plugin's configuration, and do nothing."""

    def read(call: Call) -> None:
        READERS[name](call)

    def add(call: Call) -> Result:
        read(call)
        return call.config.prev_result or Result()

    return Plugin(name, "", add, read, read, read, read, lambda call: "")


PLUGINS = [reading(name) for name in READERS]


def claim(plugin: Plugin, environ: Mapping[str, str], stdin: bytes) -> None:
    done = answer(plugin, environ, stdin)
    if done.exit_code == 0:
        assert done.stdout == b"" or isinstance(json.loads(done.stdout), dict)
        return
    body: dict[str, Any] = json.loads(done.stdout)
    assert set(body) <= {"cniVersion", "code", "msg", "details"}
    assert body["code"] != 100, (plugin.name, body)
    assert body["msg"]


def nested(depth: int, key: str = "x") -> bytes:
    return b'{"cniVersion": "1.1.0", "name": "net", "type": "x", "%s": %s%s}' % (
        key.encode(), b"[" * depth, b"]" * depth,
    )  # fmt: skip


@given(configs, st.sampled_from(PLUGINS), st.sampled_from(["STATUS", "GC", "DEL"]))
@example({"name": "net", "bridge": "\ud800"}, PLUGINS[0], "DEL")
@example({"cniVersion": "1.1.0", "name": "\ud800"}, PLUGINS[0], "DEL")
@settings(deadline=None, max_examples=250)
def test_any_configuration_is_read_or_refused(body: dict[str, Any], plugin: Plugin, verb: str) -> None:
    claim(plugin, {**environ_of(verb), "CNI_NETNS": ""}, json.dumps(body).encode())


@given(st.binary(max_size=200), st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"]))
@settings(deadline=None, max_examples=100)
def test_any_bytes_are_refused(stdin: bytes, verb: str) -> None:
    claim(PLUGINS[0], environ_of(verb), stdin)


@given(
    st.dictionaries(
        st.sampled_from(["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS", "CNI_PATH"]),
        st.one_of(
            st.text(st.characters(blacklist_characters="\0"), max_size=20), st.sampled_from(WORDS + ["ADD", "DEL"])
        ),
    )
)
@settings(deadline=None, max_examples=100)
def test_any_environment_is_refused(environ: dict[str, str]) -> None:
    config = {"cniVersion": "1.1.0", "name": "net", "type": "x", "bridge": "br0"}
    claim(PLUGINS[0], environ, json.dumps(config).encode())


@given(st.integers(1, 3000), st.sampled_from(KEYS), st.sampled_from(PLUGINS))
@settings(deadline=None, max_examples=100)
def test_nesting_of_any_depth_is_read_or_refused(depth: int, key: str, plugin: Plugin) -> None:
    claim(plugin, {**environ_of("STATUS"), "CNI_NETNS": ""}, nested(depth, key))
