"""What single kills left once, each made by hand: the kill tests find such things only when they pass that border."""

from __future__ import annotations

from pathlib import Path

import pytest

from namespaces import Namespace
from tests.kill.chain import BRIDGE, Chain
from tests.kill.on_host import attach, executing
from tests.leftovers import leftovers


@pytest.fixture
def chain(bin_dir: Path) -> Chain:
    return Chain("a", "/run/netns/a", str(bin_dir))


def elements_of(host: Namespace, tag: str) -> str:
    """A script for nft(8) that deletes the elements of an attachment, whichever tables they are in."""
    script, table, holder = [], "", ""
    for line in host.run("nft", "list", "ruleset").stdout.splitlines():
        words = line.split()
        if line.startswith("table"):
            table = " ".join(words[1:3])
        elif line.startswith("\t") and not line.startswith("\t\t") and words[0] in ("set", "map"):
            holder = words[1]
        elif f'comment "{tag}"' in line:
            for element in line.removeprefix("\t\telements = {").strip("\t {},").split(", "):
                key, _, rest = element.partition(" comment ")
                if tag in rest:
                    script.append(f"delete element {table} {holder} {{ {key.strip()} }}")
    return "\n".join(script)


@pytest.mark.parametrize("with_result", [True, False])
def test_tables_that_a_killed_del_emptied_go_with_the_next_one(
    with_result: bool, host: Namespace, chain: Chain
) -> None:
    result = attach(host, chain)
    host.run("nft", "-f", "-", input=elements_of(host, "net/a/eth0"))
    assert elements_of(host, "net/a/eth0") == ""
    assert "netloom_portmap" in host.run("nft", "list", "tables").stdout
    outcome = chain.delete(executing(host), result if with_result else None)
    assert outcome.ok, outcome.words
    assert leftovers(host, links=[BRIDGE]) == []
    assert host.run("sysctl", "-n", f"net.ipv4.conf.{BRIDGE}.route_localnet").stdout.strip() == "0"
