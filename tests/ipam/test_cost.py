"""What a call costs does not depend on how many addresses are taken, counted in system calls."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ipam.plugin import Network, environment, one_range

ROOT = Path(__file__).resolve().parents[2]
FULL = 65_533  # a /16 without network, broadcast and gateway
PROGRAM = "import os, sys; from cni_plugins.skel import main; from ipam.host_local import PLUGIN; " + (
    "sys.exit(main(PLUGIN, [], os.environ))"
)
# Of one call in a process of its own: the interpreter's part varies by some, ours may not.
CALLS_MAX = 60


def filled(root: Path, count: int) -> Network:
    """A network with `count` reservations from 10.1.0.2 on, made by somebody else."""
    network = Network(root, one_range("10.1.0.0/16"))
    network.directory.mkdir(parents=True)
    directory = str(network.directory)
    for number in range(2, count + 2):
        with open(f"{directory}/10.1.{number >> 8}.{number & 255}", "wb") as file:
            file.write(b"c%d\r\neth0" % number)
    last = max(count + 1, 1)
    network.put("last_reserved_ip.0", f"10.1.{last >> 8}.{last & 255}")
    return network


@pytest.fixture(scope="module")
def full(memory_dir: Path) -> Network:
    """A full /16."""
    network = filled(memory_dir, FULL)
    assert network.call("STATUS").code == 50  # builds the index
    return network


def system_calls(network: Network, verb: str, container: str) -> list[str]:
    """The system calls of a process on the network's files (by name, or by what was opened of them)."""
    command = ["strace", "-f", "-y", "-qq", sys.executable, "-c", PROGRAM]
    top: dict[str, object] = {"prevResult": {}} if verb == "CHECK" else {}
    done = subprocess.run(
        command,
        input=network.config("1.1.0", top),
        env={**environment(verb, container, "eth0", ""), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    )
    return [line for line in done.stderr.decode(errors="replace").splitlines() if str(network.data_dir) in line]


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL", "STATUS"])
def test_system_calls_do_not_grow(verb: str, full: Network, tmp_path: Path) -> None:
    counts = []
    for network in (filled(tmp_path / "few", 0), filled(tmp_path / "some", 1000), full):
        for container in ("before", "c2"):
            network.call("DEL", container)  # builds the index, and makes room
        if verb in ("CHECK", "DEL"):
            assert network.call("ADD", "x").code == 0
        counts.append(len(system_calls(network, verb, "x")))
        network.call("DEL", "x")
        network.call("ADD", "c2")
    # A record may lie in a second bucket (two more reads); a nearly full /16 has 16 bitmaps, two reads each.
    assert max(counts[:2]) - min(counts[:2]) <= 4
    assert counts[2] <= counts[0] + (40 if verb in ("ADD", "STATUS") else 6)
    assert max(counts[:2]) <= CALLS_MAX


def test_a_full_16_is_answered_without_a_look_at_each_address(full: Network) -> None:
    names: list[str] = []

    def note(_frame: object, event: str, function: object) -> None:
        if event == "c_call" and getattr(function, "__module__", "") == "posix":
            names.append(getattr(function, "__name__", ""))

    sys.setprofile(note)
    outcome = full.call("ADD", "too-many")
    sys.setprofile(None)
    assert outcome.code == 103
    assert len(names) <= CALLS_MAX + 40


def test_the_one_free_address_of_a_16_is_found(full: Network) -> None:
    assert full.call("DEL", "c40000").code == 0
    assert full.call("STATUS").code == 0
    assert full.call("ADD", "c40000").addresses == [f"10.1.{40000 >> 8}.{40000 & 255}"]
    assert full.call("STATUS").code == 50


def test_gc_of_a_16_frees_all_but_the_valid(full: Network) -> None:
    assert full.gc(("c77", "eth0"), ("c65000", "eth0")).code == 0
    assert set(full.reservations().values()) == {b"c77\r\neth0", b"c65000\r\neth0"}
