"""Side by side with the reference plugin: one directory, both programs, the same bytes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ipam.plugin import REFERENCE_DIR, Network, environment, needs_reference, one_range

pytestmark = needs_reference

CONFIGS = [
    one_range("10.1.0.0/29"),
    {"ranges": [[{"subnet": "10.1.0.0/29", "rangeEnd": "10.1.0.4"}, {"subnet": "10.2.0.0/29", "gateway": "10.2.0.3"}]]},
    {"ranges": [[{"subnet": "fd00::/125"}], [{"subnet": "10.1.0.0/29", "rangeStart": "10.1.0.3"}]]},
]
# Verb, container, interface, whether the reference executes it where the two alternate, requested address
steps = st.tuples(
    st.sampled_from(["ADD", "ADD", "ADD", "DEL", "DEL", "CHECK"]),
    st.sampled_from("abcdefg"),
    st.sampled_from(["eth0", "eth0", "eth1"]),
    st.booleans(),
    st.sampled_from(["", "", "", "IP=10.1.0.4"]),
)


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(steps, max_size=18), ipam=st.sampled_from(CONFIGS))
def test_ours_theirs_and_both_alternating_answer_and_write_the_same(
    steps: list[tuple[str, str, str, bool, str]],
    ipam: dict[str, object],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("contract")
    ours, theirs, both = (Network(root / name, ipam) for name in ("ours", "theirs", "both"))
    held: set[tuple[str, str]] = set()
    for verb, container, ifname, reference_does_it, wish in steps:
        if verb == "ADD" and (container, ifname) in held and wish:
            continue  # the reference gives a second address to who asks for one by name; we refuse
        callers = (ours.call, theirs.reference, both.reference if reference_does_it else both.call)
        outcomes = [caller(verb, container, ifname=ifname, cni_args=wish, version="1.0.0") for caller in callers]
        assert len({outcome.exit_code for outcome in outcomes}) == 1, outcomes
        if verb == "ADD" and outcomes[0].code == 0:
            held.add((container, ifname))
            assert outcomes[0] == outcomes[1] == outcomes[2]
        if verb == "DEL":
            held.discard((container, ifname))
        if ours.directory.exists():  # the reference makes one even for DEL and CHECK
            assert _bookkeeping(ours) == _bookkeeping(theirs) == _bookkeeping(both)


def _bookkeeping(network: Network) -> dict[str, bytes]:
    return {name: content for name, content in network.files().items() if name != "lock"}


def test_swapped_in_and_back_under_live_pods(tmp_path: Path) -> None:
    network = Network(tmp_path, one_range("10.1.0.0/24"))
    network.reference("ADD", "theirs")
    network.call("ADD", "ours")
    assert network.call("CHECK", "theirs").code == network.reference("CHECK", "ours").exit_code == 0
    assert network.call("ADD", "theirs").code == 101
    assert network.reference("ADD", "ours").exit_code != 0
    assert network.call("DEL", "theirs").code == network.reference("DEL", "ours").exit_code == 0
    assert network.reservations() == {}
    assert network.call("CHECK", "ours").code == 102


def test_both_at_once_never_give_one_address_twice(tmp_path: Path) -> None:
    network = Network(tmp_path, one_range("10.1.0.0/24"))
    started = []
    for number in range(40):
        program = subprocess.Popen(
            [REFERENCE_DIR / "host-local"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment("ADD", f"theirs{number}", "eth0", ""),
        )
        assert program.stdin is not None
        program.stdin.write(network.config("1.0.0", {}))
        program.stdin.close()
        started.append(program)
        assert network.call("ADD", f"ours{number}").code == 0
    for program in started:
        assert program.stdout is not None
        with program.stdout:
            program.stdout.read()
        assert program.wait() == 0
    assert len(network.reservations()) == 80
    owners = {content.decode().split()[0] for content in network.reservations().values()}
    assert owners == {f"{who}{number}" for who in ("ours", "theirs") for number in range(40)}
