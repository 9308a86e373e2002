"""Every .conflist in conf/ is a network: netloom's reader takes it, and its whole chain works in a real namespace."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from cni_plugins.conflist import load_file
from cni_plugins.results import version_order
from cni_plugins.script import read_program
from namespaces import Namespace
from tests.leftovers import leftovers

CONF = Path(__file__).resolve().parents[1] / "conf"
SAMPLES = sorted(path for path in CONF.iterdir() if path.suffix == ".conflist")
PORTS = json.dumps({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}]})


def test_no_two_samples_share_a_name_a_bridge_or_a_subnet() -> None:
    bodies = [json.loads(path.read_text()) for path in SAMPLES]
    bridges = [plugin for body in bodies for plugin in body["plugins"] if plugin["type"] == "bridge"]
    subnets = [item["subnet"] for plugin in bridges for ranges in plugin["ipam"]["ranges"] for item in ranges]
    for values in ([body["name"] for body in bodies], [plugin["bridge"] for plugin in bridges], subnets):
        assert len(values) == len(set(values))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_a_sample_names_plugins_that_netloom_has(path: Path, bin_dir: Path) -> None:
    network = load_file(str(path))
    assert network.source == str(path)
    for plugin in network.plugins:
        assert read_program(str(bin_dir / plugin.type)) is not None


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_a_sample_adds_checks_and_deletes_pods_and_leaves_nothing(path: Path, bin_dir: Path, node: Namespace) -> None:
    network = load_file(str(path))
    wires = [plugin.body for plugin in network.plugins if plugin.type == "bridge"]
    environ = {"PATH": os.environ["PATH"], "NETCONFPATH": str(CONF), "CNI_PATH": str(bin_dir)}

    def netloom(verb: str, *arguments: str) -> str:
        return node.run(sys.executable, "-m", "cni_plugins.cli", verb, network.name, *arguments, env=environ).stdout

    if version_order(network.cni_version) >= (1, 1):
        netloom("status")
    node.add_pod("one")
    node.add_pod("two")
    assert "bridge" in netloom("add", "--explain", "one")
    results = [json.loads(netloom("add", name, *more)) for name, more in (("one", ("--cap-args", PORTS)), ("two", ()))]
    assert results[0]["ips"][0]["address"] != results[1]["ips"][0]["address"]
    for name in ("one", "two"):
        netloom("check", name)
    netloom("gc", "--yes")
    for name in ("one", "two"):
        netloom("check", name)  # GC spared the living
        netloom("del", name)
        netloom("del", name)
    assert leftovers(node, links=[str(body["bridge"]) for body in wires]) == []
