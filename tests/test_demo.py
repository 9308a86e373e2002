"""`make demo` tells its whole story, as root and as an ordinary user, and leaves nothing, however it ends."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cni_plugins.demo import Teller
from cni_plugins.demo_stage import StepFailed
from cni_plugins.install import library_folders
from pytest_netns import machine_state, skip_without_root
from waiting import wait_until

ROOT = Path(__file__).resolve().parents[1]
DEMO = ("-m", "cni_plugins.demo")
NOBODY = 65534
# What is expected is 5 s; a busy machine may need several times that.
TIMEOUT_S = 120.0
# The map of a process in no user namespace: only there may a process become another user.
WHOLE_ID_MAP = ["0", "0", "4294967295"]

CLAIMS = (
    "api -> web, IPv4",
    "api -> web, IPv6",
    "outside saw 192.0.2.1 ",
    "outside saw 2001:db8:1::1 ",
    "node -> 127.0.0.1:8080",
    "web -> [2001:db8:1::1]:8080, itself",
    "host port 8080/tcp is held",
    "nft chain netloom_masquerade postrouting",
    "0 addresses, 0 links, 0 nft tables with 0 elements, 0 cached results",
    "nothing is left on this machine",
)


@pytest.fixture(autouse=True)
def _leaves_nothing(pytestconfig: pytest.Config) -> Iterator[None]:
    """Each of these tests leaves the machine's links, namespaces and processes as they were."""
    skip_without_root(pytestconfig)
    before = machine_state()
    yield
    wait_until(lambda: machine_state() == before, within=10)


def run_demo(
    *, python: str = sys.executable, environ: Mapping[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *DEMO], cwd=ROOT, env={"PATH": os.environ["PATH"], **(environ or {})}, text=True, timeout=TIMEOUT_S,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **options,
    )  # fmt: skip


def assert_told(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout
    assert [claim for claim in CLAIMS if claim not in done.stdout] == [], done.stdout


def test_the_demo_tells_its_whole_story_in_plain_text() -> None:
    done = run_demo()
    assert_told(done)
    assert "\x1b" not in done.stdout


def test_an_ordinary_user_sees_the_same() -> None:
    as_nobody: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    if os.geteuid() != 0 or Path("/proc/self/uid_map").read_text().split() != WHOLE_ID_MAP:
        pytest.skip("only root of the machine can become another user; the other tests ran as an ordinary one already")
    unshare = ("unshare", "--user", "--map-root-user", "true")
    if subprocess.run(unshare, **as_nobody, check=False, stderr=subprocess.DEVNULL).returncode != 0:
        pytest.skip("user namespaces are not allowed here")
    version = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    for python in (sys.executable, shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin")):
        with contextlib.suppress(PermissionError):
            can_read = f"{version} or not open({__file__!r})"
            if python and subprocess.run((python, "-c", can_read), **as_nobody, check=False).returncode == 0:
                break
    else:
        pytest.skip(f"no Python {sys.version_info[0]}.{sys.version_info[1]}, or not these files, for an ordinary user")
    environ = {"PYTHONPATH": os.pathsep.join(library_folders()), "HOME": "/nonexistent"}
    assert_told(run_demo(python=python, environ=environ, **as_nobody))


def test_an_interrupt_ends_the_demo_and_all_it_made() -> None:
    process = subprocess.Popen(
        [sys.executable, *DEMO], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        wait_for = iter(process.stdout.readline, "")
        assert any("web has" in line for line in wait_for), "it ended before the first pod"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the plugins, too
        rest = process.stdout.read()
    assert process.wait(TIMEOUT_S) == 130, rest
    assert "interrupted" in rest


def test_without_the_checkout_around_it_one_line_says_what_is_missing(tmp_path: Path) -> None:
    # As it would lie in site-packages, after `pip install`.
    shutil.copytree(ROOT / "cni_plugins", tmp_path / "cni_plugins", ignore=shutil.ignore_patterns("__pycache__"))
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{tmp_path}:{library_folders()[-1]}"}
    done = subprocess.run(
        [sys.executable, *DEMO], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "FAILED the demo needs a checkout of netloom" in done.stdout


def test_a_claim_that_does_not_hold_says_what_was_expected_and_found() -> None:
    with pytest.raises(StepFailed, match="api -> web: expected 'web saw me', found 'nobody'"):
        Teller(io.StringIO(), {}).claim("api -> web", lambda: "nobody", "web saw me")


@pytest.mark.parametrize(
    ("environ", "is_coloured"),
    [({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colours_are_for_terminals_that_want_them(environ: dict[str, str], *, is_coloured: bool) -> None:
    ours, theirs = pty.openpty()
    with open(ours, "rb"), open(theirs, "w") as terminal:
        assert ("\x1b" in Teller(terminal, environ).paint("bold", "word")) is is_coloured
    assert Teller(io.StringIO(), environ).paint("bold", "word") == "word"
