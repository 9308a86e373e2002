"""The pytest plugin: networks as fixtures, each undone after its test, and a proof at the end that nothing is left.

Put netns-fixtures on `pythonpath` and `pytest_plugins = ["pytest_netns"]` into the top conftest.py. Without root the
run starts itself again in a user namespace; where the machine forbids that, tests with a network are skipped.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

from entering import NamespaceError, has_root, require_root_or_userns
from namespaces import HOLDER, Namespace
from topology import Topology
from waiting import wait_until

if TYPE_CHECKING:
    from network import Network

NetworkFactory: TypeAlias = "Callable[[str | Path], Network]"

NO_ROOT = pytest.StashKey[str]()
# The kernel takes a namespace's links apart after its last process is gone, on its own time.
LEAK_TIMEOUT_S = 5.0


def pytest_configure(config: pytest.Config) -> None:
    """Become root of a user namespace if we are an ordinary user and the machine lets us."""
    if hasattr(config, "workerinput"):  # an xdist worker is what its controller is
        return
    capture = None if has_root() else config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.suspend_global_capture(in_=True)  # the new process must inherit the real outputs, not our capture files
    try:
        require_root_or_userns()
    except NamespaceError as error:
        config.stash[NO_ROOT] = str(error)
    if capture is not None:
        capture.resume_global_capture()


def skip_without_root(config: pytest.Config) -> None:
    """Skip the test, saying what the machine would have to allow."""
    if not has_root():
        pytest.skip(config.stash.get(NO_ROOT, "network namespaces need root"))


@contextlib.contextmanager
def networks(config: pytest.Config) -> Iterator[NetworkFactory]:
    """A factory of networks that closes what it made, last first."""
    skip_without_root(config)
    with contextlib.ExitStack() as stack:

        def factory(topology: str | Path) -> Network:
            return stack.enter_context(Topology.load(topology).up())

        yield factory


@pytest.fixture
def network(pytestconfig: pytest.Config) -> Iterator[NetworkFactory]:
    """`network("node")` brings a topology up for this test."""
    with networks(pytestconfig) as factory:
        yield factory


@pytest.fixture(scope="module")
def module_network(pytestconfig: pytest.Config) -> Iterator[NetworkFactory]:
    """As `network`, for all tests of a module; for what is expensive to prepare and not changed by the tests."""
    with networks(pytestconfig) as factory:
        yield factory


@pytest.fixture
def host(pytestconfig: pytest.Config) -> Iterator[Namespace]:
    """One host without any link but `lo`: the quickest place for a plugin to work in."""
    skip_without_root(pytestconfig)
    with Namespace.create("host") as created:
        yield created


@pytest.fixture
def node_network(network: NetworkFactory) -> Network:
    """The topology `node`."""
    return network("node")


@pytest.fixture
def node(node_network: Network) -> Namespace:
    """The host that runs pods, of the topology `node`."""
    return node_network["node"]


@pytest.fixture
def outside(node_network: Network) -> Namespace:
    """The world behind the uplink, of the topology `node`: it has no way back to pods."""
    return node_network["outside"]


def machine_state() -> set[str]:
    """What tests could leave behind: links and named namespaces of the machine, and holders that we started."""
    state = {f"link {name}" for _, name in socket.if_nameindex()}
    with contextlib.suppress(FileNotFoundError):
        state |= {f"namespace /run/netns/{name}" for name in os.listdir("/run/netns")}
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread or a child may end as we look
            for pid in children.read_text().split():
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if os.fsencode(HOLDER) in command:
                    name = command[command.index(os.fsencode(HOLDER)) + 1]
                    state.add(f"holder {pid} of host {os.fsdecode(name)}")
    return state


@pytest.fixture(scope="session", autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Fail the run if it left a link, a named namespace or a holder on the machine."""
    before = machine_state()
    yield

    def is_as_before() -> bool:
        leaked = machine_state() - before
        assert not leaked, f"left by these tests, or made by another program meanwhile: {', '.join(sorted(leaked))}"
        return True

    # A host's close() waits for its holder: one that is there now will stay.
    has_holders = any(item.startswith("holder ") for item in machine_state() - before)
    wait_until(is_as_before, within=0 if has_holders else LEAK_TIMEOUT_S)
