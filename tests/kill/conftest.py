"""The campaigns as a fixture, and how many kills they made as the run's last words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_netns import skip_without_root
from tests.kill.campaigns import PLANS, Campaigns, Findings, Plan
from tests.kill.tracing import is_supported

FINDINGS = pytest.StashKey[dict[Plan, Findings]]()


@pytest.fixture(scope="session")
def campaigns(pytestconfig: pytest.Config, bin_dir: Path) -> Iterator[Campaigns]:
    """All campaigns that are asked for, running."""
    skip_without_root(pytestconfig)
    if not is_supported():
        pytest.skip("the system calls of this machine are not in tests/kill/tracing.py")
    with Campaigns(PLANS, bin_dir) as campaigns:
        yield campaigns


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line a campaign."""
    findings = terminalreporter.config.stash.get(FINDINGS, {})
    for plan, found in findings.items():
        terminalreporter.write_line(f"{plan.name}: {found.words}")
    if findings:
        total = sum(sum(found.kills.values()) for found in findings.values())
        terminalreporter.write_line(f"{total} kills")
