"""The command `netloom`, as people and scripts see it: outputs, exit codes, questions."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from cni_plugins import registry
from cni_plugins.attachments import Attachment, ResultCache
from cni_plugins.cli import container_id_of, netns_path
from namespaces import Namespace
from tests.cni_plugins.stand_in import StandIns, error_text, result_text

NETLOOM = (sys.executable, "-m", "cni_plugins.cli")
BOTH = ["gone", "live"]
COMMANDS = ["install", "uninstall", "add", "del", "check", "gc", "status", "version"]
RESULT = json.loads(result_text())


class Desk:
    """A user's folders, and the command in them."""

    def __init__(self, folder: Path, pod: str) -> None:
        self.folder = folder
        self.pod = pod
        self.stand_ins = StandIns(folder)
        self.stand_ins.write("first", {"ADD": (result_text(), 0)})
        self.cache = ResultCache(str(folder / "cache"))
        self.conf_dir = folder / "conf"
        self.conf_dir.mkdir()
        self.configure()

    def configure(self, **keys: object) -> None:
        plugin = {"type": "first", "capabilities": {"mac": True}}
        body = {"cniVersion": "1.1.0", "name": "net", "plugins": [plugin], **keys}
        (self.conf_dir / "10-net.conflist").write_text(json.dumps(body))

    def run(self, *words: str, stdin: int = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
        environ = {
            "PYTHONPATH": registry.SOURCE,
            "NETCONFPATH": str(self.conf_dir),
            "CNI_PATH": str(self.stand_ins.bin),
            "COLUMNS": "100",
        }
        return subprocess.run([*NETLOOM, *words], env=environ, stdin=stdin, capture_output=True, text=True, check=False)

    def ask(self, command: str, *words: str, stdin: int = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
        return self.run(command, "net", *words, "--cache-dir", str(self.folder / "cache"), stdin=stdin)


@pytest.fixture
def desk(tmp_path: Path, host: Namespace) -> Desk:
    return Desk(tmp_path, host.add_pod("pod").netns_path)


def test_an_attachment_lives_from_add_to_del(desk: Desk) -> None:
    done = desk.ask("add", desk.pod)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == RESULT
    for command in ("check", "del", "del"):
        done = desk.ask(command, desk.pod)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert desk.stand_ins.log == ["ADD first", "CHECK first", "DEL first", "DEL first"]
    assert desk.cache.all("net") == []


def test_options_reach_the_plugin(desk: Desk) -> None:
    options = ("--ifname", "net1", "--container-id", "c1", "--args", "A=1;B=2", "--cap-args", '{"mac": "x", "ips": []}')
    assert desk.ask("add", desk.pod, *options).returncode == 0
    environ = desk.stand_ins.environ("first", "ADD")
    assert (environ["CNI_IFNAME"], environ["CNI_CONTAINERID"], environ["CNI_ARGS"]) == ("net1", "c1", "A=1;B=2")
    assert (environ["CNI_NETNS"], environ["CNI_PATH"]) == (desk.pod, str(desk.stand_ins.bin))
    assert desk.stand_ins.stdin("first", "ADD")["runtimeConfig"] == {"mac": "x"}


def test_del_remembers_what_add_was_given(desk: Desk) -> None:
    desk.ask("add", desk.pod, "--container-id", "c1", "--args", "A=1", "--cap-args", '{"mac": "x"}')
    (desk.conf_dir / "10-net.conflist").unlink()
    assert desk.ask("del", "--container-id", "c1").returncode == 0
    environ = desk.stand_ins.environ("first", "DEL")
    assert (environ["CNI_ARGS"], environ["CNI_NETNS"]) == ("A=1", "")
    body = desk.stand_ins.stdin("first", "DEL")
    assert (body["runtimeConfig"], body["prevResult"]) == ({"mac": "x"}, RESULT)


def test_a_name_is_a_namespace_in_run_netns() -> None:
    assert netns_path("blue") == "/run/netns/blue"
    assert netns_path("/proc/1/ns/net") == "/proc/1/ns/net"
    assert netns_path("./blue") == os.path.abspath("blue")


def test_a_container_id_belongs_to_a_path(tmp_path: Path) -> None:
    assert container_id_of("/run/netns/blue") == container_id_of("/run/netns/blue")
    assert container_id_of("/run/netns/blue") != container_id_of("/run/netns/red")
    assert container_id_of("/run/netns/blue").startswith("netloom-")
    (tmp_path / "link").symlink_to("/run/netns")
    assert container_id_of(f"{tmp_path}/link/blue") == container_id_of("/run/netns/blue")
    assert container_id_of("/proc/self/ns/net") != container_id_of(f"/proc/{os.getppid()}/ns/net")


def test_an_error_is_readable_text(desk: Desk) -> None:
    desk.stand_ins.write("first", {"ADD": (error_text(103, "all taken", "grow the range"), 1)})
    done = desk.ask("add", desk.pod)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "netloom add: plugin first failed (ADD): all taken\n  grow the range\n"


def test_an_error_is_an_object_on_demand(desk: Desk) -> None:
    desk.stand_ins.write("first", {"ADD": (error_text(103, "all taken", "grow the range"), 1)})
    done = desk.ask("add", desk.pod, "--json")
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout)["code"] == 103


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("add", "net", "pod", "--ifname", "a/b"), "invalid CNI_IFNAME"),
        (("add", "net", "pod", "--container-id", "-x"), "expected one argument"),
        (("add", "net", "pod", "--container-id", "a/b"), "invalid --container-id"),
        (("add", "net", "pod", "--args", "A"), "is not KEY=VALUE"),
        (("add", "net", "pod", "--cap-args", "x"), "--cap-args is not JSON"),
        (("add", "net", "pod", "--cap-args", "[]"), "--cap-args must be a JSON object"),
        (("add", "wrong", "pod"), "no network 'wrong'"),
        (("add", "net", "pod", "--conf-dir", "/nowhere"), "/nowhere"),
        (("add", "net", "pod", "--bin-dir", "/nowhere"), "could not find the plugin 'first'"),
        (("del", "net"), "give NETNS or --container-id"),
        (("check", "net", "pod"), "knows no attachment"),
        (("install", "--plugins", "nothing"), "no plugin 'nothing'"),
        (("add", "net"), "required: NETNS"),
        ((), "required: COMMAND"),
        (("fly",), "invalid choice"),
    ],
)
def test_wrong_use_is_told(desk: Desk, words: tuple[str, ...], told: str) -> None:
    done = desk.run(*words)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert desk.stand_ins.log == []


def test_explain_runs_no_verb(desk: Desk) -> None:
    assert desk.run("install", "--bin-dir", str(desk.stand_ins.bin), "--plugins", "static").returncode == 0
    static = {"type": "static", "ipam": {"type": "static", "addresses": [{"address": "10.1.0.5/24"}]}}
    desk.configure(plugins=[static, {"type": "first"}])
    done = desk.ask("add", "--explain", desk.pod)
    assert (done.returncode, done.stderr) == (0, "")
    assert "10.1.0.5/24" in done.stdout
    assert "not netloom's" in done.stdout
    assert desk.stand_ins.log == []
    assert not (desk.folder / "cache").exists()


def test_status_says_ready_or_why_not(desk: Desk) -> None:
    assert desk.ask("status").stdout == "net: ready\n"
    desk.stand_ins.write("first", {"STATUS": (error_text(50, "all taken"), 1)})
    done = desk.ask("status")
    assert (done.returncode, done.stdout) == (1, "")
    assert "all taken" in done.stderr


def test_what_is_not_asked_is_told(desk: Desk) -> None:
    desk.configure(cniVersion="0.4.0", disableCheck=True, disableGC=True)
    for command, words in (("status", "has no STATUS"), ("gc", "disableGC")):
        done = desk.ask(command)
        assert (done.returncode, done.stdout) == (0, "")
        assert words in done.stderr
    assert "disableCheck" in desk.ask("check", desk.pod).stderr
    assert desk.stand_ins.log == []


@pytest.fixture
def two_pods(desk: Desk) -> Desk:
    """One attachment whose namespace lives, one whose is gone."""
    for name, path in (("live", desk.pod), ("gone", "/run/netns/gone")):
        desk.cache.write(Attachment("net", name, "eth0", path), b"", RESULT)
    return desk


def attached(desk: Desk) -> list[str]:
    return [cached.attachment.container_id for cached in desk.cache.all("net")]


def test_gc_shows_what_stays_and_goes_and_does_it(two_pods: Desk) -> None:
    done = two_pods.ask("gc", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"keep    live eth0  {two_pods.pod}\n" in done.stdout
    assert "remove  gone eth0  /run/netns/gone is gone\n" in done.stdout
    assert attached(two_pods) == ["live"]
    assert two_pods.stand_ins.log == ["DEL first", "GC first"]
    listed = [{"containerID": "live", "ifname": "eth0"}]
    assert two_pods.stand_ins.stdin("first", "GC")["cni.dev/valid-attachments"] == listed


def test_gc_refuses_where_nobody_can_be_asked(two_pods: Desk) -> None:
    done = two_pods.ask("gc")
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert "remove  gone" in done.stdout
    assert two_pods.stand_ins.log == []


@pytest.mark.parametrize(("said", "left"), [("y", ["live"]), ("YES", ["live"]), ("n", BOTH), ("", BOTH), ("x", BOTH)])
def test_gc_asks_on_a_terminal(two_pods: Desk, said: str, left: list[str]) -> None:
    master, slave = pty.openpty()
    try:
        os.write(master, f"{said}\n".encode())
        done = two_pods.ask("gc", stdin=slave)
    finally:
        os.close(master)
        os.close(slave)
    assert "[y/N]" in done.stdout
    assert done.returncode == (0 if left == ["live"] else 1)
    assert attached(two_pods) == left


def test_gc_says_that_all_goes_where_nothing_is_known(desk: Desk) -> None:
    assert "anything: no attachment is known to be live" in desk.ask("gc", "--yes").stdout


def test_install_and_uninstall_say_what_they_did(tmp_path: Path, desk: Desk) -> None:
    folder = tmp_path / "plugins"
    (folder / "bridge").mkdir(parents=True)
    done = desk.run("install", "--bin-dir", str(folder), "--plugins", "static,bridge")
    assert done.returncode == 1
    assert done.stdout == f"{folder}/static: installed\n"
    assert done.stderr == f"{folder}/bridge: kept: it is a folder\n"
    done = desk.run("uninstall", "--bin-dir", str(folder))
    assert (done.returncode, done.stdout) == (0, f"{folder}/static: removed\n")


def test_help_has_examples_for_each_command(desk: Desk) -> None:
    for command in ([], *([name] for name in COMMANDS)):
        done = desk.run(*command, "--help")
        assert done.returncode == 0
        assert "\nexample" in done.stdout
        assert " ".join(["netloom", *command]) in done.stdout


def test_versions_are_told(desk: Desk) -> None:
    for word in ("version", "--version"):
        assert "netloom 0." in desk.run(word).stdout
        assert "1.1.0" in desk.run(word).stdout
