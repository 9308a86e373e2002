"""The command: what it says, what it returns, and how little it loads."""

import subprocess
import sys
from pathlib import Path

import pytest

from meshproxy.cli import EX_CONFIG, EX_OSERR, main
from meshproxy.config import Config, Listener
from meshproxy.listening import CannotListen, ListeningSockets, places

CONF = Path(__file__).resolve().parents[2] / "conf"
MINIMAL = CONF / "meshproxy-minimal.yaml"

# What `meshproxy run` must not need before a cluster asks for it, or ever.
NEVER = (
    "dns",
    "grpc",
    "h2",
    "h11",
    "prometheus_client",
    "pyroute2",
    "multiprocessing",
    "urllib.request",
    "http.client",
)


def test_help_tells_how_and_what_is_returned(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in ("run", "check", "--hot-restart", "exit codes", "conf/meshproxy.yaml"):
        assert word in text


def test_check_says_that_a_file_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(MINIMAL)]) == 0
    assert "fine (1 listeners, 1 routes, 1 clusters)" in capsys.readouterr().out


def test_check_and_run_refuse_a_bad_file_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("listeners: []\nworker: 2\n")
    for arguments in (["check", str(path)], ["run", "--config", str(path)]):
        assert main(arguments) == EX_CONFIG
        assert capsys.readouterr().err == f"{path}:2: unknown key `worker`: did you mean `workers`?\n"


def test_a_port_that_is_taken_is_said_so_with_what_to_do(tmp_path: Path) -> None:
    config = Config(listeners=(Listener(name="a", port=0, address="127.0.0.1"),), admin=None)
    held = ListeningSockets(1)
    held.ensure(places(config))
    try:
        port = held.share("127.0.0.1:a", 0)[0].getsockname()[1]
        path = tmp_path / "taken.yaml"
        path.write_text(
            "admin: off\n"
            f"listeners: [{{name: a, address: 127.0.0.1, port: {port}, routes: {{answer: {{status: 200}}}}}}]\n"
        )
        command = [sys.executable, "-m", "meshproxy", "run", "--config", str(path)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20, cwd=CONF.parent)
        assert ended.returncode == EX_OSERR
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in ended.stderr
        assert "--hot-restart" in ended.stderr
    finally:
        held.close()


def test_sockets_are_bound_all_or_none() -> None:
    first = Listener(name="a", port=0, address="127.0.0.1")
    held = ListeningSockets(2)
    held.ensure(places(Config(listeners=(first,), admin=None)))
    try:
        port = held.share("127.0.0.1:a", 0)[0].getsockname()[1]
        assert {sock.getsockname()[1] for index in (0, 1) for sock in held.share("127.0.0.1:a", index)} == {port}
        other = ListeningSockets(1)
        taken = Listener(name="b", port=port, address="127.0.0.1")
        with pytest.raises(CannotListen):
            other.ensure(places(Config(listeners=(first, taken), admin=None)))
        assert other.held == {}
    finally:
        held.close()


def test_the_sidecar_loads_little() -> None:
    code = "import sys; import meshproxy.cli, meshproxy.run; print(len(sys.modules)); print(*sys.modules, sep='\\n')"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CONF.parent)
    count, *modules = out.stdout.split()
    assert [name for name in modules if name in NEVER] == []
    # 288 with Python 3.11: asyncio with ssl, which uvloop wants, are most of them, and 60 are ours.
    assert int(count) < 340


def test_check_loads_no_event_loop() -> None:
    code = "import sys; from meshproxy.cli import main; main(['check', sys.argv[1]]); print(*sys.modules, sep='\\n')"
    command = [sys.executable, "-c", code, str(MINIMAL)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CONF.parent)
    assert [name for name in out.stdout.split() if name in ("asyncio", "uvloop", "ssl")] == []
