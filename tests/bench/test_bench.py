"""The benchmark runs: one tiny case, and what it writes about it. It measures nothing that a test could hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_netns import skip_without_root
from tests.bench.driver import Chain, Cost
from tests.bench.run import quantile

RUN = Path(__file__).with_name("run.py")


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUN), *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_one_case_is_measured_printed_and_written(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    skip_without_root(pytestconfig)
    file = tmp_path / "bench.json"
    done = run_bench("--quick", "--repeat", "2", "--case", "loopback", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert "loopback" in done.stdout
    rows = [row for row in json.loads(file.read_text())["rows"] if row["implementation"] == "netloom"]
    assert [row["verb"] for row in rows] == ["ADD", "CHECK", "DEL"]
    assert all(len(row["wall_ms"]) == 2 and min(row["wall_ms"]) > 0 for row in rows)


def test_an_unknown_case_names_those_there_are() -> None:
    done = run_bench("--case", "nothing")
    assert done.returncode == 2
    assert "host-local" in done.stderr


def test_a_chain_gives_each_plugin_the_capabilities_that_it_declares_and_no_others() -> None:
    declaring = {"type": "portmap", "capabilities": {"portMappings": True}}
    chain = Chain((declaring, {"type": "tuning"}), {"portMappings": [1], "bandwidth": {}})
    assert json.loads(chain.config(declaring, None))["runtimeConfig"] == {"portMappings": [1]}
    assert "runtimeConfig" not in json.loads(chain.config({"type": "tuning"}, {"ips": []}))


def test_costs_add_up_and_the_90th_percentile_is_one_of_the_values() -> None:
    assert Cost(1.0, 0.5) + Cost(2.0, 0.25) == Cost(3.0, 0.75)
    assert quantile([float(n) for n in range(10)], 0.9) == 9.0
    assert quantile([3.0], 0.9) == 3.0
