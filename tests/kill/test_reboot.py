"""After a restart of the machine (no links, rules, namespaces, nothing in /run; the old /var/lib) GC and ADD just work.

A restarted machine is a new host of a test that gets the old one's reservations.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from namespaces import Namespace
from pytest_netns import skip_without_root
from tests.kill.chain import BRIDGE, NETWORK, Chain
from tests.kill.on_host import attach, executing
from tests.leftovers import KEPT_FILES, RESERVATIONS, leftovers

BEFORE = ("a", "b")


@pytest.fixture(scope="module")
def chains(bin_dir: Path) -> dict[str, Chain]:
    """Attachments of pods that may be made."""
    return {name: Chain(name, f"/run/netns/{name}", str(bin_dir), 100 * i) for i, name in enumerate((*BEFORE, "new"))}


@pytest.fixture(scope="module")
def saved(chains: dict[str, Chain], tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """What is on the disk of a host that had pods when its power failed."""
    skip_without_root(pytestconfig)
    folder = tmp_path_factory.mktemp("disk") / "networks"
    with Namespace.create("node") as host:
        for name in BEFORE:
            attach(host, chains[name])
        shutil.copytree(host.path_from_outside(RESERVATIONS), folder)
    return folder


@pytest.fixture
def restarted(saved: Path) -> Iterator[Namespace]:
    """That host, started again."""
    with Namespace.create("node") as host:
        shutil.copytree(saved, host.path_from_outside(RESERVATIONS))
        yield host


def reserved(host: Namespace) -> dict[str, str]:
    """Addresses and the containers that have them."""
    files = (host.path_from_outside(RESERVATIONS) / NETWORK).iterdir()
    return {path.name: path.read_text().split()[0] for path in files if not KEPT_FILES.fullmatch(path.name)}


def test_gc_with_nothing_valid_frees_all(restarted: Namespace, chains: dict[str, Chain]) -> None:
    assert set(reserved(restarted).values()) == set(BEFORE)
    outcome = chains["a"].gc(executing(restarted), ())
    assert outcome.ok, outcome.words
    assert reserved(restarted) == {}
    assert leftovers(restarted) == []


def test_gc_keeps_what_is_valid(restarted: Namespace, chains: dict[str, Chain]) -> None:
    outcome = chains["a"].gc(executing(restarted), (chains["b"],))
    assert outcome.ok, outcome.words
    assert set(reserved(restarted).values()) == {"b"}


def test_add_works_without_gc_and_takes_a_free_address(restarted: Namespace, chains: dict[str, Chain]) -> None:
    before = reserved(restarted)
    result = attach(restarted, chains["new"])
    addresses = {ip["address"].partition("/")[0] for ip in result["ips"]}
    assert len(addresses) == 2
    assert not addresses & set(before)
    outcome = chains["new"].check(executing(restarted), result)
    assert outcome.ok, outcome.words
    assert chains["new"].gc(executing(restarted), ()).ok
    assert leftovers(restarted, links=[BRIDGE]) == []


def test_a_container_that_is_started_again_is_added_after_its_del(
    restarted: Namespace, chains: dict[str, Chain]
) -> None:
    for name in BEFORE:
        outcome = chains[name].delete(executing(restarted), None)
        assert outcome.ok, outcome.words
        attach(restarted, chains[name])
    assert set(reserved(restarted).values()) == set(BEFORE)
