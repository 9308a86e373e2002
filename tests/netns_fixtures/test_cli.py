"""`python netns-fixtures`, as a person types it."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from keeper import find, start_time, stop
from topology import shipped_names
from waiting import wait_until

FIXTURES = Path(__file__).resolve().parents[2] / "netns-fixtures"


def netns_fixtures(*arguments: str | Path, states: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, FIXTURES, "--state-directory", states, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def states(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "states"
    yield directory
    for name in shipped_names():
        if find(name, directory) is not None:
            stop(name, directory)


def test_up_shows_how_to_enter_each_host_and_down_ends_it(states: Path) -> None:
    shown = netns_fixtures("up", "two-pods", states=states)
    assert (shown.returncode, shown.stderr) == (0, "")
    enter = {line.split()[0]: line.split(maxsplit=1)[1] for line in shown.stdout.splitlines()[1:]}
    assert set(enter) == {"a", "b"}
    entered = [*shlex.split(enter["b"]), "cat", "/proc/net/fib_trie"]
    assert "192.0.2.2" in subprocess.run(entered, capture_output=True, text=True, check=True).stdout
    assert enter["a"] in netns_fixtures("list", states=states).stdout

    again = netns_fixtures("up", "two-pods", states=states)
    assert (again.returncode, again.stderr.strip()) == (1, "netns-fixtures: two-pods is up already; take it down first")

    kept = find("two-pods", states)
    assert kept is not None
    assert netns_fixtures("down", "two-pods", states=states).returncode == 0
    assert start_time(kept.keeper) is None
    down_again = netns_fixtures("down", "two-pods", states=states)
    assert (down_again.returncode, down_again.stderr.strip()) == (1, "netns-fixtures: two-pods is not up")
    assert list(states.iterdir()) == []


def test_a_killed_keeper_counts_as_down_and_leaves_nothing(states: Path) -> None:
    shown = netns_fixtures("up", "two-pods", states=states)
    holder = next(int(word.partition("=")[2]) for word in shown.stdout.split() if word.startswith("--target="))
    kept = find("two-pods", states)
    assert kept is not None
    os.kill(kept.keeper, signal.SIGKILL)
    wait_until(lambda: find("two-pods", states) is None, within=5)
    wait_until(lambda: start_time(holder) is None, within=5)
    assert netns_fixtures("up", "two-pods", states=states).returncode == 0


def test_list_draws_every_topology(states: Path) -> None:
    shown = netns_fixtures("list", states=states).stdout
    for name in shipped_names():
        assert f"{name}\n   +--" in shown
    assert "is up" not in shown


def test_run_gives_outputs_and_exit_code_of_the_command(states: Path) -> None:
    script = "cat /proc/net/fib_trie; echo problem >&2; exit 7"
    shown = netns_fixtures("run", "node", "outside", "--", "sh", "-c", script, states=states)
    assert (shown.returncode, shown.stderr) == (7, "problem\n")
    assert "198.51.100.2" in shown.stdout


def test_run_takes_a_file_and_its_first_host(states: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[hosts.z]\nloopback = ["203.0.113.9/32"]\n[hosts.a]\n')
    assert "203.0.113.9" in netns_fixtures("run", file, "--", "cat", "/proc/net/fib_trie", states=states).stdout


MISTAKES = {
    "unknown topology": (["up", "nodes"], 1, "no topology 'nodes'; there are: node"),
    "unknown host": (["run", "node", "nowhere", "--", "true"], 1, "node has no host 'nowhere'; it has: node, outside"),
    "no command": (["run", "node"], 2, "run needs a command after `--`"),
    "command for up": (["up", "node", "--", "true"], 2, "`--` is for run alone"),
    "nothing": ([], 2, "required: COMMAND"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_clear_line(states: Path, case: str) -> None:
    arguments, code, words = MISTAKES[case]
    shown = netns_fixtures(*arguments, states=states)
    assert shown.returncode == code
    assert words in shown.stderr.splitlines()[-1]


def test_help_has_examples(states: Path) -> None:
    assert "python netns-fixtures up two-pods" in netns_fixtures("--help", states=states).stdout
