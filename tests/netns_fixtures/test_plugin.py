"""The pytest plugin itself: the guard against leaks, the run as an ordinary user, and waiting."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from waiting import wait_until

FIXTURES = Path(__file__).resolve().parents[2] / "netns-fixtures"
NOBODY = 65534

LEAKY = """
from namespaces import Namespace
kept = []
def test_leaks():
    kept.append(Namespace.create("forgotten"))
"""

CLEAN = """
def test_works(node, outside):
    assert node.run("id", "--user").stdout == "0\\n"
    assert outside.pid != node.pid
"""


def run_pytest(directory: Path, test: str, *, user: int | None = None) -> subprocess.CompletedProcess[str]:
    """A pytest of its own, with one file of tests. Started in / since a user may not enter pytest's own directory."""
    (directory / "conftest.py").write_text('pytest_plugins = ["pytest_netns"]')
    (directory / "test_it.py").write_text(test)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            directory,
            directory / "test_it.py",
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(FIXTURES), *sys.path]), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=directory,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def may_use(user: int, program: str) -> bool:
    """Whether an ordinary user can run a program here: some machines keep Python below /root."""
    probe = ["unshare", "--user", "--map-root-user", "--mount", "--net", program, "-c", "import os"]
    try:
        return subprocess.run(probe, user=user, group=user, extra_groups=[], cwd="/", check=False).returncode == 0
    except PermissionError:
        return False


def test_a_forgotten_host_fails_the_run(tmp_path: Path, host: object) -> None:
    shown = run_pytest(tmp_path, LEAKY)
    assert shown.returncode == 1
    assert "1 passed, 1 error" in shown.stdout
    assert "of host forgotten" in shown.stdout


def test_a_clean_run_passes(tmp_path: Path, host: object) -> None:
    shown = run_pytest(tmp_path, CLEAN)
    assert shown.returncode == 0, shown.stdout


def test_an_ordinary_user_gets_the_same_in_a_user_namespace(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not may_use(NOBODY, sys.executable):
        pytest.skip("user namespaces are not allowed here, or Python is closed to ordinary users")
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    shown = run_pytest(tmp_path, CLEAN, user=NOBODY)
    assert shown.returncode == 0, shown.stdout + shown.stderr


def test_wait_until_returns_the_first_true_value() -> None:
    values = iter([0, "", None, "ready"])
    assert wait_until(lambda: next(values), within=5) == "ready"


def test_wait_until_shows_the_last_value() -> None:
    with pytest.raises(AssertionError, match=r"did not hold within 0\.01 s; last value: \[\]"):
        wait_until(lambda: [], within=0.01)


def test_wait_until_takes_a_failed_assertion_as_not_yet() -> None:
    tries: list[int] = []

    def claim() -> bool:
        tries.append(1)
        assert len(tries) == 3, f"only {len(tries)}"
        return True

    assert wait_until(claim, within=5)
    tries.extend([1] * 3)
    with pytest.raises(AssertionError, match="last failure: only"):
        wait_until(claim, within=0)


def test_wait_until_tries_twice_even_without_time() -> None:
    values = iter([False, True])
    assert wait_until(lambda: next(values), within=0)
