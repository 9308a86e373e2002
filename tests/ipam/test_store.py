"""When the index is believed: never over what the files say, whoever wrote them, and whenever."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ipam.store import opened, owner_content
from tests.ipam.plugin import Network, one_range


@pytest.fixture
def network(tmp_path: Path) -> Network:
    network = Network(tmp_path, one_range("10.1.0.0/24"))
    network.call("ADD", "a")
    return network


def walks(network: Network) -> bool:
    """Whether the next call has to walk. It is then no longer so."""
    before = (network.state / "index").stat()
    with opened(str(network.directory), create=False):
        pass
    after = (network.state / "index").stat()
    return (before.st_mtime_ns, before.st_ino) != (after.st_mtime_ns, after.st_ino)


def test_our_own_changes_need_no_walk(network: Network) -> None:
    network.call("ADD", "b")
    network.call("DEL", "a")
    assert not walks(network)


def test_the_stamp_lies_in_the_past(network: Network) -> None:
    """Else a change within the same tick of the kernel's clock would leave the directory as we stamped it."""
    written = (network.directory / "10.1.0.2").stat().st_mtime
    assert written - 12 < network.directory.stat().st_mtime < written - 5


def test_a_file_added_right_after_our_change_is_seen(network: Network) -> None:
    for number in range(50, 100):  # all within a few ticks of the kernel's clock
        network.call("ADD", f"ours{number}")
        network.put(f"10.1.0.{number + 100}", f"theirs{number}\r\neth0")
        assert network.call("CHECK", f"theirs{number}").code == 0


def test_a_file_removed_right_after_our_change_is_free(network: Network) -> None:
    for number in range(50):
        added = network.call("ADD", f"c{number}")
        (network.directory / added.addresses[0]).unlink()
        assert network.call("CHECK", f"c{number}").code == 102
        assert network.call("ADD", f"d{number}", cni_args=f"IP={added.addresses[0]}").code == 0
        network.call("DEL", f"d{number}")


def test_a_file_replaced_by_another_owner_s_is_seen(network: Network) -> None:
    (network.directory / "10.1.0.2").unlink()
    network.put("10.1.0.2", "b\r\neth0")
    assert network.call("DEL", "a").code == 0
    assert network.reservations() == {"10.1.0.2": b"b\r\neth0"}


def test_a_content_changed_in_place_is_not_taken_for_ours(network: Network) -> None:
    (network.directory / "10.1.0.2").write_bytes(b"b\r\neth0")
    assert network.call("DEL", "a").code == 0
    assert network.reservations() == {"10.1.0.2": b"b\r\neth0"}
    assert network.call("CHECK", "b").code == 0


def test_a_lost_index_is_built_anew(network: Network) -> None:
    shutil.rmtree(network.state.parent)
    assert network.call("ADD", "a").code == 101
    assert network.call("ADD", "b").addresses == ["10.1.0.3"]


def test_an_index_of_before_the_reboot_is_not_believed(network: Network) -> None:
    index = network.state / "index"
    content = bytearray(index.read_bytes())
    content[8:24] = bytes(16)  # the boot id
    index.write_bytes(content)
    assert walks(network)
    assert not walks(network)


def test_a_damaged_index_is_built_anew(network: Network) -> None:
    os.truncate(network.state / "index", 4096)
    assert network.call("CHECK", "a").code == 0
    os.truncate(network.state / "index", 4096)
    assert network.call("ADD", "b").addresses == ["10.1.0.3"]
    assert [network.call("DEL", c).code for c in "ab"] == [0, 0]
    assert network.reservations() == {}


def test_a_removed_network_starts_afresh(network: Network) -> None:
    shutil.rmtree(network.directory)  # as people do: rm -rf /var/lib/cni/networks/*
    assert network.call("ADD", "a").addresses == ["10.1.0.2"]


def test_a_copied_directory_is_walked(network: Network) -> None:
    copy = Network(network.data_dir.with_name("copy"), network.ipam)
    shutil.copytree(network.data_dir, copy.data_dir, copy_function=shutil.copy2)
    (copy.directory / "10.1.0.2").unlink()
    os.utime(copy.directory, ns=(0, network.directory.stat().st_mtime_ns))
    assert copy.call("CHECK", "a").code == 102


def test_empty_files_are_freed(network: Network) -> None:
    network.put("10.1.0.3", "")  # what a killed reference leaves
    assert network.call("ADD", "b").addresses == ["10.1.0.3"]
    network.put("10.1.0.9", "")
    assert network.gc(("a", "eth0"), ("b", "eth0")).code == 0
    assert set(network.reservations()) == {"10.1.0.2", "10.1.0.3"}


def test_del_works_where_no_index_can_be_written(network: Network) -> None:
    shutil.rmtree(network.state.parent)
    network.state.parent.write_text("in the way")
    assert network.call("CHECK", "a").code == 0
    assert network.call("DEL", "a").code == 0
    assert network.reservations() == {}
    assert network.call("ADD", "b").code == 5
    assert network.reservations() == {}


def test_a_file_that_comes_without_the_lock_is_stepped_over(network: Network) -> None:
    content = owner_content("b", "eth0")
    with opened(str(network.directory), create=False) as store:
        assert store is not None
        network.put("10.1.0.3", "intruder\r\neth0")
        number = store.first_free(0xFFFF0A010003, 0xFFFF0A010003)
        assert number is not None, "the index does not know yet"
        assert not store.reserve(number, content)
        store.rebuild()
        assert store.first_free(0xFFFF0A010003, 0xFFFF0A010004) == 0xFFFF0A010004
    assert network.reservations()["10.1.0.3"] == b"intruder\r\neth0"


@pytest.mark.parametrize("text", ["", "10.1.0.", "fd00::1%lo", "10.9.0.1", "10.1.0.2\n"])
def test_a_strange_last_reserved_address_costs_only_the_place(text: str, network: Network) -> None:
    network.put("last_reserved_ip.0", text)
    assert network.call("ADD", "b").addresses == ["10.1.0.3"]
    assert network.files()["last_reserved_ip.0"] == b"10.1.0.3"
