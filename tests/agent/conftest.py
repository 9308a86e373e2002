"""Fixtures of the agent's tests: a real agent in the test host `host`, and a plugin that can be stopped midway."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from namespaces import Namespace
from tests.agent.gate import Gate
from tests.agent.running import RunningAgent
from tests.bridges import DUAL, bridge_config
from tests.calls import Plugins

AgentFactory = Callable[..., RunningAgent]


@pytest.fixture
def start_agent(host: Namespace, tmp_path: Path) -> Iterator[AgentFactory]:
    """`start_agent("--metrics", ...)` starts an agent in `host`; all are killed at the end."""
    with ExitStack() as stack:

        def start(*options: str, **more: Any) -> RunningAgent:
            number = len(list(tmp_path.glob("agent*.log")))
            return stack.enter_context(RunningAgent(host, tmp_path / f"agent{number}.log", *options, **more))

        yield start


@pytest.fixture
def agent(start_agent: AgentFactory) -> RunningAgent:
    """An agent in `host`, ready."""
    return start_agent()


@pytest.fixture
def bridge(host: Namespace, bin_dir: Path) -> Plugins:
    """A network with all that bridge makes: addresses of both families, masquerade, spoof check."""
    return Plugins(host, bin_dir, bridge_config(ipam=DUAL, ipMasq=True, macspoofchk=True))


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """An IPAM plugin that waits in its ADD."""
    with Gate(tmp_path) as gate:
        yield gate


@pytest.fixture
def gated(host: Namespace, bin_dir: Path, gate: Gate) -> Plugins:
    """A bridge network whose addresses come from `gate`."""
    return Plugins(host, bin_dir, bridge_config(ipam={"type": "gate"}), path=[gate.bin, bin_dir])
