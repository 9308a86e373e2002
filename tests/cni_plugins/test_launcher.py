"""Installed executables: what they answer, what they depend on (nothing), and how they come and go."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cni_plugins import __version__, registry
from cni_plugins.errors import CniError
from cni_plugins.install import compile_modules, install, library_folders, parse_plugins, uninstall
from cni_plugins.results import VERSIONS
from cni_plugins.script import Program, quote, read_program, recognise, render
from cni_plugins.skel import version_answer
from namespaces import Namespace
from tests.cni_plugins.stand_in import config_of, environ_of

LAUNCHER = os.path.join(registry.SOURCE, "cni_plugins", "launcher.py")
# /bin/sh is dash on Debian, bash on Red Hat, busybox on Alpine
SHELLS = [(), ("/bin/bash", "--posix"), ("/bin/busybox", "sh")]
STATIC = config_of(type="static", ipam={"type": "static", "addresses": [{"address": "10.1.0.5/24"}]})
HEAVY = ("pyroute2", "asyncio", "ssl", "logging", "subprocess")


def run(
    argv: list[str], environ: dict[str, str], stdin: bytes = b"", cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(argv, env=environ, input=stdin, capture_output=True, cwd=cwd, check=False)


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    install(str(folder), ["static", "bridge"])
    return folder


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "stdin",
    [
        *(json.dumps({"cniVersion": version}).encode() for version in VERSIONS),
        b'{"cniVersion":"0.4.0"}\n',
        b'{\n  "name": "net",\n\t"cniVersion"\t :  "0.4.0",\n  "type": "bridge"\n}\n',
        json.dumps(config_of(plugins=[{"cniVersion": "0.3.1"}])).encode(),
        json.dumps({"name": 'a\\b %s `x` $(x) "cni" \'', "cniVersion": "1.0.0"}).encode(),
        b'{"cniVersion":"9.9.9"}',
        b'{"cniVersion":"1.1.00"}',
        b'{"cniVersion":""}',
        b'{"cniVersion":5}',
        b'{"cniVersion":"$(touch /tmp/x)%s\\\\"}',
        b"{}",
        b"",
        b"\n\n",
        b"nonsense",
        b"\xff\xfe\x00",
    ],
)
def test_version_is_answered_by_the_shell_as_python_does(bin_dir: Path, shell: tuple[str, ...], stdin: bytes) -> None:
    if shell and not os.path.exists(shell[0]):
        pytest.skip(f"needs {shell[0]}")
    for name in ("python", "launcher"):  # neither may be needed
        text = (bin_dir / "bridge").read_text().replace(sys.executable, f"/no/{name}").replace(LAUNCHER, "/no/file")
        (bin_dir / "bridge").write_text(text)
    done = run([*shell, str(bin_dir / "bridge")], {"CNI_COMMAND": "VERSION"}, stdin)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == version_answer(stdin).stdout


def test_version_reads_its_input_to_the_end(bin_dir: Path) -> None:
    with subprocess.Popen(
        [bin_dir / "bridge"], env={"CNI_COMMAND": "VERSION"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b'{"cniVersion": "1.0.0",\n "filler": "' + b"x" * 100_000 + b'"}')
        process.stdin.close()  # raises BrokenPipeError where nobody reads
        assert process.stdout is not None
        assert json.loads(process.stdout.read())["cniVersion"] == "1.0.0"


def test_other_verbs_are_python_s(bin_dir: Path, host: Namespace) -> None:
    pod = host.add_pod("pod").netns_path
    done = run([str(bin_dir / "static")], environ_of("ADD", CNI_NETNS=pod), json.dumps(STATIC).encode())
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["ips"] == [{"address": "10.1.0.5/24"}]
    done = run([str(bin_dir / "static")], environ_of("ADD", CNI_NETNS=pod), b"{")
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 6)


def test_without_a_command_a_plugin_says_what_it_is(bin_dir: Path) -> None:
    done = run([str(bin_dir / "static")], {})
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"static" in done.stderr
    assert b"1.1.0" in done.stderr


def test_arguments_are_for_people_whatever_the_environment(bin_dir: Path) -> None:
    done = run([str(bin_dir / "static"), "--help"], {"CNI_COMMAND": "VERSION"})
    assert done.returncode == 0
    assert b"usage" in done.stdout
    done = run([str(bin_dir / "static"), "--explain"], {}, json.dumps(STATIC).encode())
    assert done.returncode == 0
    assert b"10.1.0.5" in done.stdout


def test_nothing_in_the_environment_changes_what_runs(bin_dir: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    for folder in (evil, evil / "cni_plugins", evil / ".local/lib/python3.11/site-packages"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("json.py", "os.py", "sitecustomize.py", "usercustomize.py", "__init__.py"):
            (folder / name).write_text("raise SystemExit('evil')")
    environ = {
        "PYTHONPATH": str(evil),
        "PYTHONHOME": str(evil),
        "PYTHONSTARTUP": str(evil / "json.py"),
        "PYTHONINSPECT": "1",
        "PYTHONVERBOSE": "1",
        "HOME": str(evil),
        "PATH": str(evil),
        "ENV": str(evil / "json.py"),
        "BASH_ENV": str(evil / "json.py"),
        "BASH_FUNC_printf%%": "() { echo evil; }",
        "BASH_FUNC_read%%": "() { echo evil; }",
        "BASH_FUNC_test%%": "() { echo evil; }",
        "IFS": "n",
        "version": "evil",
        "line": "evil",
    }
    clean = run([str(bin_dir / "static")], environ_of("DEL", CNI_NETNS=""), json.dumps(STATIC).encode())
    assert (clean.returncode, clean.stdout, clean.stderr) == (0, b"", b"")
    done = run(
        [str(bin_dir / "static")], environ_of("DEL", CNI_NETNS="", **environ), json.dumps(STATIC).encode(), cwd=evil
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    for shell in SHELLS[:2]:
        done = run([*shell, str(bin_dir / "static")], {**environ, "CNI_COMMAND": "VERSION"}, b"{}", cwd=evil)
        assert done.stdout == version_answer(b"{}").stdout


def test_a_working_directory_is_not_needed(bin_dir: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"cd {gone} && rmdir {gone} && exec {bin_dir}/static"
    done = run(["/bin/sh", "-c", script], environ_of("DEL", CNI_NETNS=""), json.dumps(STATIC).encode())
    assert (done.returncode, done.stdout) == (0, b"")


@pytest.mark.parametrize("odd", ["a b", "a'b", 'a"b', "a$HOME`x`", "a\\nb", "a\nb", "ä{}%s", "-n"])
def test_odd_paths_are_quoted(tmp_path: Path, odd: str) -> None:
    folder = tmp_path / odd
    folder.mkdir()
    (folder / "source").symlink_to(registry.SOURCE)
    (folder / "python").symlink_to(sys.executable)
    program = Program("static", __version__, str(folder / "python"), (str(folder / "source"), *library_folders()[1:]))
    script = folder / "static"
    script.write_bytes(render(program))
    script.chmod(0o755)
    assert read_program(str(script)) == program
    done = run([str(script)], environ_of("DEL", CNI_NETNS=""), json.dumps(STATIC).encode())
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_word_of_shell_is_one_word() -> None:
    for word in ("", "a b", "it's", "''", "$x", "a\nb"):
        assert run(["/bin/sh", "-c", f"printf %s {quote(word)}"], {}).stdout.decode() == word


def test_a_plugin_whose_program_is_gone_answers_an_error_object(tmp_path: Path) -> None:
    script = tmp_path / "static"
    script.write_bytes(render(Program("static", __version__, "/it's gone/python", ("/gone",))))
    done = run(["/bin/sh", str(script)], environ_of("ADD"), b"{}")
    body = json.loads(done.stdout)
    assert (done.returncode, body["code"]) == (1, 5)
    assert "/it's gone/python" in body["msg"]


def test_running_a_plugin_writes_no_byte_code(tmp_path: Path) -> None:
    for package in ("cni_plugins", "ipam"):
        shutil.copytree(
            os.path.join(registry.SOURCE, package), tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    script = tmp_path / "static"
    script.write_bytes(render(Program("static", __version__, sys.executable, (str(tmp_path),))))
    done = run(["/bin/sh", str(script)], environ_of("DEL", CNI_NETNS=""), json.dumps(STATIC).encode())
    assert (done.returncode, done.stderr) == (0, b"")
    assert not list(tmp_path.rglob("__pycache__"))


def test_installing_compiles_what_plugins_import() -> None:
    assert compile_modules()
    done = run(
        [sys.executable, "-c", "import cni_plugins.links as m; print(m.__cached__)"], {"PYTHONPATH": registry.SOURCE}
    )
    assert Path(done.stdout.decode().strip()).exists()


def test_version_by_python_imports_nothing_heavy() -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['launcher', 'bridge', *{list(library_folders())!r}, '--']\n"
        "try:\n"
        f"    runpy.run_path({LAUNCHER!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    print(end.code, *sys.modules, file=sys.stderr)\n"
    )
    done = run([sys.executable, "-I", "-S", "-c", program], {"CNI_COMMAND": "VERSION"}, b'{"cniVersion": "0.4.0"}')
    exit_code, *modules = done.stderr.decode().split()
    assert (exit_code, done.stdout) == ("0", version_answer(b'{"cniVersion": "0.4.0"}').stdout)
    assert not {module.partition(".")[0] for module in modules}.intersection(HEAVY)


@pytest.mark.parametrize("name", registry.MODULES)
def test_every_plugin_loads_under_its_name(name: str) -> None:
    assert registry.load(name).name == name


def test_installing_writes_executables_that_everybody_may_run(bin_dir: Path) -> None:
    assert sorted(path.name for path in bin_dir.iterdir()) == ["bridge", "static"]
    for path in bin_dir.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
        assert read_program(str(path)) == Program(path.name, __version__, sys.executable, library_folders())


def test_installing_again_changes_nothing(bin_dir: Path) -> None:
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(bin_dir.iterdir())]
    assert [outcome.words for outcome in install(str(bin_dir), ["static", "bridge"])] == ["up to date"] * 2
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(bin_dir.iterdir())] == before


def test_installing_renews_what_was_edited_or_is_of_another_version(bin_dir: Path) -> None:
    good = (bin_dir / "static").read_bytes()
    (bin_dir / "static").write_bytes(good + b"# edited\n")
    (bin_dir / "bridge").write_bytes((bin_dir / "bridge").read_bytes().replace(b'"0.', b'"0.0.'))
    (bin_dir / "bridge").chmod(0o700)
    assert [outcome.words for outcome in install(str(bin_dir), ["static", "bridge"])] == ["updated"] * 2
    assert (bin_dir / "static").read_bytes() == good
    assert stat.S_IMODE((bin_dir / "bridge").stat().st_mode) == 0o755


def test_a_foreign_file_is_kept_unless_forced(bin_dir: Path) -> None:
    foreign = bin_dir / "loopback"
    foreign.write_bytes(b"\x7fELF")
    outcomes = install(str(bin_dir), ["loopback", "static"])
    assert [outcome.ok for outcome in outcomes] == [False, True]
    assert "--force" in outcomes[0].words
    assert foreign.read_bytes() == b"\x7fELF"
    assert install(str(bin_dir), ["loopback"], force=True)[0].ok
    assert read_program(str(foreign))


def test_a_link_to_a_foreign_file_is_foreign_and_its_target_is_never_written(bin_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("foreign")
    (bin_dir / "loopback").symlink_to(target)
    (bin_dir / "tuning").symlink_to("nowhere")
    assert not any(outcome.ok for outcome in install(str(bin_dir), ["loopback", "tuning"]))
    assert all(outcome.ok for outcome in install(str(bin_dir), ["loopback", "tuning"], force=True))
    assert target.read_text() == "foreign"
    assert not (bin_dir / "loopback").is_symlink()


def test_a_folder_is_kept_even_if_forced(bin_dir: Path) -> None:
    (bin_dir / "loopback").mkdir()
    assert not install(str(bin_dir), ["loopback"], force=True)[0].ok


def test_uninstalling_removes_ours_of_any_version_and_nothing_else(bin_dir: Path) -> None:
    (bin_dir / "loopback").write_bytes(b"\x7fELF")
    (bin_dir / "dhcp").mkdir()
    (bin_dir / "bridge").write_bytes((bin_dir / "bridge").read_bytes().replace(b'"0.', b'"0.0.') + b"# edited\n")
    removed = [os.path.basename(outcome.path) for outcome in uninstall(str(bin_dir))]
    assert removed == ["bridge", "static"]
    assert sorted(path.name for path in bin_dir.iterdir()) == ["dhcp", "loopback"]
    assert uninstall(str(bin_dir)) == []
    assert uninstall("/nowhere") == []


def test_plugins_are_chosen_by_name() -> None:
    assert parse_plugins("") == tuple(registry.MODULES)
    assert parse_plugins("bridge, static,") == ("bridge", "static")
    with pytest.raises(CniError, match="no plugin 'dhcpd'"):
        parse_plugins("bridge,dhcpd")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"#!/bin/sh\n",
        b"#!/bin/sh\n# netloom launcher \n",
        b"#!/bin/sh\n# netloom launcher {}\nx",
        b"#!/bin/sh\n# netloom launcher []\nx",
        b'#!/bin/sh\n# netloom launcher {"plugin": 1, "version": "", "python": "", "folders": ["/"]}\nx',
        b'#!/bin/sh\n# netloom launcher {"plugin": "a", "version": "", "python": "", "folders": []}\nx',
        b"#!/bin/bash\n# netloom launcher {}\nx",
        b"\x7fELF\n# netloom launcher {}\n",
    ],
)
def test_what_is_not_ours_is_not_recognised(content: bytes) -> None:
    assert recognise(content) is None
