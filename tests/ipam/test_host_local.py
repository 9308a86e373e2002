"""host-local's verbs, as a runtime uses them."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_plugins.skel import explain
from ipam.host_local import PLUGIN
from tests.ipam.plugin import Network, environment, one_range

DUAL = {"ranges": [[{"subnet": "10.1.0.0/29"}], [{"subnet": "fd00::/125"}]]}


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return Network(tmp_path, one_range("10.1.0.0/29"))  # .2 to .6: five addresses


def test_addresses_are_given_in_turn_and_not_again_at_once(network: Network) -> None:
    assert network.call("ADD", "a").addresses == ["10.1.0.2"]
    assert network.call("DEL", "a").code == 0
    assert [network.call("ADD", c).addresses for c in "bcdef"] == [[f"10.1.0.{n}"] for n in (3, 4, 5, 6, 2)]


def test_what_lies_on_disk_is_the_contract(network: Network) -> None:
    network.call("ADD", "a")
    assert network.files() == {"lock": b"", "10.1.0.2": b"a\r\neth0", "last_reserved_ip.0": b"10.1.0.2"}
    modes = {path.name: path.stat().st_mode & 0o777 for path in network.directory.iterdir()}
    assert modes == {"lock": 0o750, "10.1.0.2": 0o600, "last_reserved_ip.0": 0o600}
    assert network.directory.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in network.state.iterdir()] == ["index"]


def test_a_full_set_is_error_103_and_a_release_helps(network: Network) -> None:
    for container in "abcde":
        assert network.call("ADD", container).code == 0
    before = network.files()
    assert network.call("ADD", "f").code == 103
    assert network.files() == before
    network.call("DEL", "c")
    assert network.call("ADD", "f").addresses == ["10.1.0.4"]


def test_a_second_add_is_error_101_and_changes_nothing(network: Network) -> None:
    network.call("ADD", "a")
    before = network.files()
    assert network.call("ADD", "a").code == 101
    assert network.call("ADD", "a", cni_args="IP=10.1.0.5").code == 101
    assert network.files() == before


def test_two_interfaces_of_a_container_are_two_attachments(network: Network) -> None:
    assert network.call("ADD", "a").addresses != network.call("ADD", "a", ifname="eth1").addresses
    network.call("DEL", "a", ifname="eth1")
    assert network.reservations() == {"10.1.0.2": b"a\r\neth0"}


def test_a_set_without_free_address_gives_the_other_sets_back(tmp_path: Path) -> None:
    network = Network(tmp_path, DUAL)
    for number in range(1, 8):
        network.put(f"fd00::{number}", "other\r\neth0")
    assert network.call("ADD", "a").code == 103
    assert b"a\r\neth0" not in network.reservations().values()
    assert network.call("STATUS").code == 50
    network.call("DEL", "other")
    assert network.call("ADD", "a").addresses == ["10.1.0.3", "fd00::2"]


def test_a_taken_requested_address_is_error_104_and_names_the_holder(network: Network) -> None:
    network.call("ADD", "a", cni_args="IP=10.1.0.5")
    refused = network.call("ADD", "b", cni_args="IP=10.1.0.5")
    assert (refused.code, refused.body["details"]) == (104, "by container a")
    assert network.call("ADD", "b").addresses == ["10.1.0.6"], "the round robin goes on behind a requested address"


def test_del_succeeds_again_and_where_nothing_is(network: Network) -> None:
    assert network.call("DEL", "a").code == 0
    assert not network.directory.exists()
    network.call("ADD", "a")
    assert [network.call("DEL", "a").code for _ in range(2)] == [0, 0]
    assert network.reservations() == {}


def test_del_frees_all_addresses_of_the_attachment(tmp_path: Path) -> None:
    network = Network(tmp_path, DUAL)
    network.call("ADD", "a")
    network.put("10.77.0.7", "a\r\neth0")  # of ranges that the configuration had once
    network.call("DEL", "a")
    assert network.reservations() == {}


def test_files_of_old_versions_are_honoured(network: Network) -> None:
    network.put("10.1.0.2", "old")
    assert network.call("ADD", "old", ifname="eth7").code == 101
    assert network.call("CHECK", "old").code == 0
    network.put("10.1.0.3", "old\r\neth0")
    network.call("DEL", "old")
    assert network.reservations() == {"10.1.0.2": b"old"}, "the exact match comes first"
    network.call("DEL", "old")
    assert network.reservations() == {}


def test_check_wants_the_reservation(network: Network) -> None:
    assert network.call("CHECK", "a").code == 102
    network.call("ADD", "a")
    assert network.call("CHECK", "a").code == 0
    (network.directory / "10.1.0.2").unlink()
    assert network.call("CHECK", "a").code == 102


def test_check_wants_the_address_of_prev_result(network: Network) -> None:
    network.call("ADD", "a")
    right = {"prevResult": {"ips": [{"address": "10.1.0.2/29"}, {"address": "192.0.2.1/24"}]}}
    assert network.call("CHECK", "a", top=right).code == 0
    wrong = network.call("CHECK", "a", top={"prevResult": {"ips": [{"address": "10.1.0.3/29"}]}})
    assert (wrong.code, "10.1.0.3" in wrong.body["msg"]) == (102, True)


def test_gc_keeps_the_valid_and_frees_the_rest(network: Network) -> None:
    for container in "abc":
        network.call("ADD", container)
    network.put("10.1.0.5", "b")  # of an old version: valid with any interface
    network.put("10.1.0.6", "gone")
    network.put("notes.txt", "not ours")
    assert network.gc(("a", "eth0"), ("b", "eth9")).code == 0
    assert set(network.reservations()) == {"10.1.0.2", "10.1.0.5", "notes.txt"}
    assert network.call("CHECK", "a").code == 0
    assert network.call("CHECK", "c").code == 102


def test_gc_with_an_empty_list_frees_everything(network: Network) -> None:
    for container in "abcde":
        network.call("ADD", container)
    (network.state / "new").write_bytes(b"killed\r\neth0")
    assert network.gc().code == 0
    assert network.reservations() == {}
    assert not (network.state / "new").exists()
    assert network.gc().code == 0


def test_gc_goes_on_after_an_error_and_reports_it(network: Network) -> None:
    network.call("ADD", "a")
    (network.directory / "10.1.0.4").mkdir()
    failed = network.gc()
    assert (failed.code, "10.1.0.4" in failed.body["details"]) == (107, True)
    assert set(network.reservations()) == {"10.1.0.4"}


def test_what_cannot_be_read_is_taken(network: Network) -> None:
    for number in (2, 3):
        (network.directory / f"10.1.0.{number}").mkdir(parents=True)
    (network.directory / "10.1.0.4").symlink_to("/nowhere")
    assert network.call("ADD", "a").addresses == ["10.1.0.5"]
    assert network.call("ADD", "b", cni_args="IP=10.1.0.2").code == 104


def test_status_is_ok_before_the_first_add_and_touches_nothing(network: Network) -> None:
    assert network.call("STATUS").code == 0
    assert not any(network.data_dir.iterdir())


def test_status_is_50_when_a_set_is_full(network: Network) -> None:
    for container in "abcd":
        network.call("ADD", container)
        assert network.call("STATUS").code == 0
    network.call("ADD", "e")
    assert network.call("STATUS").code == 50


def test_status_is_50_when_the_directory_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert Network(tmp_path / "file" / "networks", one_range("10.1.0.0/24")).call("STATUS").code == 50


def test_explain_shows_the_next_address_and_touches_nothing(network: Network) -> None:
    def shown(top: dict[str, object]) -> str:
        return explain(PLUGIN, environment("ADD", "a", "eth0", ""), network.config("1.1.0", top)).stdout.decode()

    assert "would reserve 10.1.0.2/29, gateway 10.1.0.1" in shown({})
    assert not any(network.data_dir.iterdir())
    network.call("ADD", "a")
    before = sorted(p.stat().st_mtime_ns for p in network.data_dir.rglob("*"))
    assert "would reserve 10.1.0.3/29" in shown({})
    assert "10.1.0.2 is taken" in shown({"args": {"cni": {"ips": ["10.1.0.2"]}}})
    assert before == sorted(p.stat().st_mtime_ns for p in network.data_dir.rglob("*"))


def test_networks_do_not_share_addresses_or_sweeps(tmp_path: Path) -> None:
    one, two = (Network(tmp_path, one_range("10.1.0.0/29"), name=name) for name in ("one", "two"))
    assert one.call("ADD", "a").addresses == two.call("ADD", "a").addresses
    one.gc()
    assert two.call("CHECK", "a").code == 0


operations = st.lists(st.tuples(st.sampled_from(["ADD", "ADD", "DEL"]), st.integers(0, 9)), max_size=40)


@settings(deadline=None, max_examples=40)
@given(
    operations=operations,
    sets=st.sampled_from(
        [
            [[{"subnet": "10.1.0.0/29"}]],
            [[{"subnet": "10.1.0.0/30"}, {"subnet": "10.2.0.0/30"}, {"subnet": "10.3.0.0/29", "gateway": "10.3.0.4"}]],
            [[{"subnet": "fd00::/126"}, {"subnet": "fd01::/126"}], [{"subnet": "10.1.0.0/29"}]],
        ]
    ),
)
def test_never_twice_never_outside_and_all_before_full(
    operations: list[tuple[str, int]],
    sets: list[list[dict[str, str]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    network = Network(tmp_path_factory.mktemp("n"), {"ranges": sets})
    usable = _usable(sets)
    capacity = min(map(len, usable))
    held: dict[str, list[str]] = {}
    for verb, number in operations:
        container = f"c{number}"
        outcome = network.call(verb, container)
        if verb == "DEL":
            assert outcome.code == 0
            held.pop(container, None)
        elif container in held:
            assert outcome.code == 101
        elif len(held) == capacity:
            assert outcome.code == 103
        else:
            held[container] = outcome.addresses
            assert all(address in allowed for address, allowed in zip(outcome.addresses, usable, strict=True))
        taken = [address for addresses in held.values() for address in addresses]
        assert len(taken) == len(set(taken))
        assert set(taken) == set(network.reservations())


def _usable(sets: list[list[dict[str, str]]]) -> list[set[str]]:
    """What each set may hand out, by the book."""
    usable = []
    for ranges in sets:
        allowed: set[str] = set()
        for part in ranges:
            subnet = ip_network(part["subnet"])
            gateway = part.get("gateway", str(subnet[1]))
            last = -1 if subnet.version == 4 else None
            allowed |= {str(address) for address in list(subnet)[1:last]} - {gateway}
        usable.append(allowed)
    return usable
