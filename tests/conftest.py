"""Fixtures for all tests: network topologies (pytest_netns), netloom's executables, and the two modes they run in.

A test in one of the folders BOTH_MODES that has a host runs twice: [direct], where each executable does its work
itself, and [agent], where a node agent runs in the host and does it. `one_mode` marks one that no agent could serve.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from namespaces import Namespace
from network import Network
from pytest_netns import NetworkFactory
from tests.agent.running import Host, RunningAgent

pytest_plugins = ["pytest_netns"]

ROOT = Path(__file__).resolve().parents[1]
# To put the same claims to other plugins, e.g. the reference's in /usr/lib/cni.
BIN_DIR_VARIABLE = "NETLOOM_TEST_BIN_DIR"
BOTH_MODES = ("contract", "netns", "runtimes")
RUNS_PODS = "node"  # in every topology; other hosts are what pods talk to

# A busy machine is slow, not wrong: an example is never refused for the time it took.
settings.register_profile("netloom", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("netloom")

Serving = Callable[[Host], contextlib.AbstractContextManager[None]]


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "one_mode: executes no plugin that an agent could serve")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Both modes for what executes plugins on a host; the agent serves our own plugins alone."""
    folder = metafunc.definition.path.relative_to(ROOT / "tests").parts[0]
    if folder in BOTH_MODES and "mode" in metafunc.fixturenames:
        has_one = metafunc.definition.get_closest_marker("one_mode") or BIN_DIR_VARIABLE in os.environ
        metafunc.parametrize("mode", ("direct",) if has_one else ("direct", "agent"), indirect=True, scope="module")


@pytest.fixture(scope="module")
def mode(request: pytest.FixtureRequest) -> str:
    """`direct` or `agent`."""
    return str(getattr(request, "param", "direct"))


@pytest.fixture(scope="module")
def serving(mode: str, tmp_path_factory: pytest.TempPathFactory) -> Serving:
    """`with serving(host):` has an agent there, in the mode `agent`, and proves in the end that calls came to it."""

    @contextlib.contextmanager
    def serve(host: Host) -> Iterator[None]:
        if mode == "direct":
            yield
            return
        with RunningAgent(host, tmp_path_factory.mktemp("agent") / "log") as agent:
            yield
            assert agent.is_running
            assert agent.calls(), "no call came to the agent: mark the test with one_mode"
            assert not agent.events("declined"), "these calls were run by their launchers"

    return serve


@pytest.fixture
def host(host: Namespace, serving: Serving) -> Iterator[Namespace]:
    """As pytest_netns has it, served."""
    with serving(host):
        yield host


def _served(factory: NetworkFactory, serving: Serving) -> Iterator[NetworkFactory]:
    with contextlib.ExitStack() as stack:

        def make(topology: str | Path) -> Network:
            network = factory(topology)
            if RUNS_PODS in network:
                stack.enter_context(serving(network[RUNS_PODS]))
            return network

        yield make


@pytest.fixture
def network(network: NetworkFactory, serving: Serving) -> Iterator[NetworkFactory]:
    """As pytest_netns has it, the host that runs pods served."""
    yield from _served(network, serving)


@pytest.fixture(scope="module")
def module_network(module_network: NetworkFactory, serving: Serving) -> Iterator[NetworkFactory]:
    """As `network`, for all tests of a module."""
    yield from _served(module_network, serving)


@pytest.fixture(scope="session")
def bin_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugins under test: ours, as `netloom install` writes them, unless the environment names others."""
    if other := os.environ.get(BIN_DIR_VARIABLE):
        return Path(other)
    folder = tmp_path_factory.mktemp("bin")
    netloom = (sys.executable, "-c", "import sys; from cni_plugins.cli import main; sys.exit(main())")
    subprocess.run([*netloom, "install", "--bin-dir", str(folder)], cwd=ROOT, check=True, capture_output=True)
    return folder
