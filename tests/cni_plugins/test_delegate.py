"""Delegation: which program CNI_PATH means, what becomes of its answers, and when no program is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cni_plugins import __version__
from cni_plugins.delegate import delegate_add, delegate_check, delegate_del, delegate_gc, delegate_status, preview
from cni_plugins.errors import CniError, Code
from cni_plugins.execute import execute, find_plugin, supported_versions
from cni_plugins.install import install, library_folders
from cni_plugins.netns import Netns, open_netns
from cni_plugins.protocol import Call
from cni_plugins.registry import SOURCE
from cni_plugins.results import Result, parse_result
from cni_plugins.script import Program, is_this_program, render
from namespaces import Namespace
from tests.cni_plugins.stand_in import REFERENCE, StandIns, call_of, config_of, environ_of, error_text, result_text

ATTACHMENTS = {"cni.dev/valid-attachments": [{"containerID": "pod-1", "ifname": "eth0"}]}
STATIC = {"type": "static", "addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}]}


@pytest.fixture
def stand_ins(tmp_path: Path) -> StandIns:
    return StandIns(tmp_path)


@pytest.fixture
def pod(host: Namespace) -> Iterator[Netns]:
    netns = open_netns(host.add_pod("pod").netns_path)
    yield netns
    netns.close()


def call_in(pod: Netns, folder: str | Path, command: str, **keys: object) -> Call:
    """A call as skel.py makes it, with the pod's namespace."""
    call = call_of(command, config_of(**keys), CNI_PATH=str(folder), CNI_NETNS=pod.path)
    return replace(call, netns=pod)


def call_at(stand_ins: StandIns, command: str = "ADD", **keys: object) -> Call:
    return call_of(command, config_of(**keys), CNI_PATH=str(stand_ins.bin))


def refusal_of_add(call: Call, kind: str = "ipam") -> CniError:
    with pytest.raises(CniError) as caught:
        delegate_add(call, kind)
    return caught.value


def test_a_delegate_is_given_our_configuration_and_environment(stand_ins: StandIns) -> None:
    stand_ins.write("ipam", {"ADD": (result_text(), 0)})
    config = config_of(ipam={"type": "ipam"}, unknown={"deep": [1, None, "ä"]})
    call = call_of("CHECK", config, CNI_PATH=str(stand_ins.bin), CNI_ARGS="A=1", TRACEPARENT="00-1-2-3")
    assert delegate_add(call, "ipam") == parse_result(json.loads(result_text()))
    assert stand_ins.stdin("ipam", "ADD") == config
    environ = stand_ins.environ("ipam", "ADD")
    assert environ.items() >= {**call.environ, "CNI_COMMAND": "ADD"}.items()


def test_each_verb_reaches_the_delegate(stand_ins: StandIns) -> None:
    stand_ins.write("ipam", {"ADD": (result_text(), 0)})
    delegate_add(call_at(stand_ins), "ipam")
    delegate_check(call_at(stand_ins, "CHECK"), "ipam")
    delegate_del(call_at(stand_ins, "DEL"), "ipam")
    delegate_gc(call_at(stand_ins, "GC", **ATTACHMENTS), "ipam")
    delegate_status(call_at(stand_ins, "STATUS"), "ipam")
    assert stand_ins.log == ["ADD ipam", "CHECK ipam", "DEL ipam", "GC ipam", "STATUS ipam"]
    assert stand_ins.stdin("ipam", "GC").items() >= ATTACHMENTS.items()


def test_an_undoing_del_may_come_from_an_add(stand_ins: StandIns) -> None:
    stand_ins.write("ipam")
    delegate_del(call_at(stand_ins, "ADD"), "ipam")
    assert stand_ins.environ("ipam", "DEL")["CNI_COMMAND"] == "DEL"


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.1", "0.4.0", "1.0.0"])
def test_a_result_of_any_version_is_read(stand_ins: StandIns, version: str) -> None:
    result = parse_result(json.loads(result_text()))
    stand_ins.write("ipam", {"ADD": (json.dumps(result.to_json(version)), 0)})
    assert delegate_add(call_at(stand_ins, cniVersion=version), "ipam") == result


def test_the_error_of_a_delegate_is_ours(stand_ins: StandIns) -> None:
    stand_ins.write("ipam", {"ADD": (error_text(103, "all taken", "grow it"), 1)})
    error = refusal_of_add(call_at(stand_ins))
    assert (error.code, error.msg, error.details) == (103, "all taken", "grow it")


@pytest.mark.parametrize(
    ("stdout", "exit_code", "words"),
    [
        ("", 0, "printed nothing"),
        ("garbage", 0, "garbage"),
        ("[1]", 0, "[1]"),
        ('{"ips": [{"address": "x"}]}', 0, "does not appear to be an IPv4 or IPv6"),
        ("[" * 100_000, 0, "[[["),
        ("", 1, "see its standard error"),
        ("garbage", 1, "garbage"),
        ("{}", 3, "exit code 3"),
    ],
)
def test_a_delegate_without_an_answer_is_a_delegate_error(
    stand_ins: StandIns, stdout: str, exit_code: int, words: str
) -> None:
    stand_ins.write("ipam", {"ADD": (stdout, exit_code)})
    error = refusal_of_add(call_at(stand_ins))
    assert error.code == Code.DELEGATE
    assert "ipam" in error.msg
    assert words in str(error)
    assert len(str(error)) < 1000


def test_an_error_object_with_wrong_types_is_still_an_error(stand_ins: StandIns) -> None:
    stand_ins.write("ipam", {"ADD": ('{"code": "x", "msg": 5, "details": []}', 1)})
    assert refusal_of_add(call_at(stand_ins)).code == Code.DELEGATE


def test_a_delegate_that_is_killed_is_named_with_the_signal(stand_ins: StandIns) -> None:
    stand_ins.write_text("ipam", "#!/bin/sh\nkill -9 $$\n")
    error = refusal_of_add(call_at(stand_ins))
    assert error.code == Code.DELEGATE
    assert "SIGKILL" in error.msg


def test_a_delegate_need_not_read_its_input(stand_ins: StandIns) -> None:
    stand_ins.write_text("ipam", f"#!/bin/sh\nprintf '%s' '{result_text()}'\n")
    assert delegate_add(call_at(stand_ins, filler="x" * (1 << 20)), "ipam").ips


def test_a_delegate_may_print_more_than_a_pipe_holds_before_it_reads(stand_ins: StandIns) -> None:
    addresses = ", ".join(['{"address": "10.1.0.5/24"}'] * 10_000)
    answer = stand_ins.bin / "answer"
    answer.write_text('{"ips": [' + addresses + "]}")
    stand_ins.write_text("ipam", f"#!/bin/sh\n/bin/cat {answer}\n/bin/cat > /dev/null\n")
    assert len(delegate_add(call_at(stand_ins, filler="x" * (1 << 20)), "ipam").ips) == 10_000


def test_a_delegate_starts_with_default_signals_and_no_descriptor_of_ours(stand_ins: StandIns) -> None:
    stand_ins.write_text("ipam", "#!/bin/sh\n/bin/grep SigIgn /proc/self/status\nexec /bin/ls -l /proc/self/fd\n")
    with stand_ins.write_text("mine", "").open():
        lines = execute(str(stand_ins.bin / "ipam"), {}, b"input").decode().splitlines()
    assert int(lines[0].split()[1], 16) & (1 << 12) == 0  # SIGPIPE
    opened = [line for line in lines if str(stand_ins.bin) in line or "netloom-stdin" in line]
    assert [line.split()[8] for line in opened] == ["0"]


def test_a_missing_delegate_is_an_error_with_the_folders_searched(tmp_path: Path) -> None:
    call = call_of("ADD", config_of(), CNI_PATH=f"{tmp_path}:/nowhere")
    error = refusal_of_add(call)
    assert error.code == Code.DELEGATE
    assert f"{tmp_path}, /nowhere" in error.details
    assert "CNI_PATH is empty" in refusal_of_add(call_of("ADD", config_of(), CNI_PATH="")).details


@pytest.mark.parametrize("kind", ["", ".", "..", "../ipam", "/bin/true", "a\x00b"])
def test_a_type_with_a_path_in_it_is_never_searched(kind: str) -> None:
    with pytest.raises(CniError) as caught:
        find_plugin(kind, ("/", "/bin"))
    assert caught.value.code == Code.INVALID_CONFIG


def test_the_first_executable_regular_file_counts(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("missing", "folder", "plain", "first", "second")]
    for folder in folders[1:]:
        folder.mkdir()
    (folders[1] / "ipam").mkdir()
    (folders[2] / "ipam").write_text("not executable")
    for folder in folders[3:]:
        (folder / "ipam").symlink_to("/bin/true")
    assert find_plugin("ipam", [str(folder) for folder in folders]) == str(folders[3] / "ipam")


def test_a_file_that_is_no_program_is_a_delegate_error(stand_ins: StandIns) -> None:
    stand_ins.write_text("ipam", "no program\n")
    error = refusal_of_add(call_at(stand_ins))
    assert error.code == Code.DELEGATE
    assert "Exec format error" in error.msg


def test_a_program_that_is_being_written_is_to_be_tried_again(stand_ins: StandIns) -> None:
    path = stand_ins.write_text("ipam", "")
    path.write_bytes(Path("/bin/true").read_bytes())
    with path.open("ab"):
        assert refusal_of_add(call_at(stand_ins)).code == Code.TRY_AGAIN


@pytest.mark.parametrize("verb", ["GC", "STATUS"])
@pytest.mark.parametrize(
    ("version_answer", "verb_answer"),
    [
        (('{"supportedVersions": ["0.4.0", "1.0.0"]}', 0), ("never asked", 1)),
        ((error_text(4, "unknown CNI_COMMAND: VERSION"), 1), ("never asked", 1)),
        (("garbage", 0), ("never asked", 1)),
        (('{"supportedVersions": 5}', 0), ("never asked", 1)),
        (('{"supportedVersions": ["1.1.0"]}', 0), (error_text(4, "unknown CNI_COMMAND: GC"), 1)),
        (('{"supportedVersions": ["1.1.0"]}', 0), (error_text(1, "plugin version does not allow it"), 1)),
    ],
)
def test_a_delegate_that_does_not_know_a_newer_verb_is_passed_over(
    stand_ins: StandIns, verb: str, version_answer: tuple[str, int], verb_answer: tuple[str, int]
) -> None:
    stand_ins.write("ipam", {"VERSION": version_answer, verb: verb_answer})
    call = call_at(stand_ins, verb, **ATTACHMENTS)
    (delegate_gc if verb == "GC" else delegate_status)(call, "ipam")


def test_a_status_that_a_delegate_refuses_is_ours(stand_ins: StandIns) -> None:
    stand_ins.write("ipam", {"STATUS": (error_text(50, "full"), 1)})
    with pytest.raises(CniError, match="full") as caught:
        delegate_status(call_at(stand_ins, "STATUS"), "ipam")
    assert caught.value.code == Code.NOT_AVAILABLE


def test_a_delegate_is_not_asked_for_verbs_that_the_configuration_does_not_have(stand_ins: StandIns) -> None:
    stand_ins.write("ipam", {"GC": ("", 1), "STATUS": ("", 1)})
    call = call_at(stand_ins, "DEL", cniVersion="1.0.0")
    delegate_gc(call, "ipam")
    delegate_status(call, "ipam")
    assert stand_ins.log == []


def test_the_reference_host_local_serves_as_a_delegate(tmp_path: Path) -> None:
    if not REFERENCE.exists():
        pytest.skip("needs the package containernetworking-plugins")
    ipam = {"type": "host-local", "subnet": "10.1.0.0/24", "dataDir": str(tmp_path)}

    def call(command: str, **keys: object) -> Call:
        config = {"cniVersion": "1.0.0", "name": "net", "type": "bridge", "ipam": ipam, **keys}
        return call_of(command, config, CNI_PATH=str(REFERENCE))

    result = delegate_add(call("ADD"), "host-local")
    assert [str(ip.address) for ip in result.ips] == ["10.1.0.2/24"]
    delegate_check(call("CHECK", prevResult=result.to_json("1.0.0")), "host-local")
    delegate_del(call("DEL"), "host-local")
    with pytest.raises(CniError):
        delegate_check(call("CHECK", prevResult=result.to_json("1.0.0")), "host-local")


def test_versions_of_the_reference_are_read() -> None:
    if not REFERENCE.exists():
        pytest.skip("needs the package containernetworking-plugins")
    assert "0.4.0" in supported_versions(str(REFERENCE / "bridge"), environ_of("ADD"))


def unrunnable(stand_ins: StandIns, kind: str = "static") -> None:
    """Our executable, of this version and code, that would fail if it were executed."""
    stand_ins.write_text(kind, render(Program(kind, __version__, "/no/python", library_folders())).decode())


def test_an_executable_of_ours_is_not_executed(stand_ins: StandIns, pod: Netns) -> None:
    unrunnable(stand_ins)
    result = delegate_add(call_in(pod, stand_ins.bin, "ADD", ipam=STATIC), "static")
    assert [str(ip.address) for ip in result.ips] == ["10.1.0.5/24"]
    delegate_del(call_in(pod, stand_ins.bin, "DEL", ipam=STATIC), "static")
    delegate_status(call_in(pod, stand_ins.bin, "STATUS", ipam=STATIC), "static")
    delegate_gc(call_in(pod, stand_ins.bin, "GC", ipam=STATIC, **ATTACHMENTS), "static")


@pytest.mark.parametrize(
    "change",
    [
        ("# Written", "export X=1 # Written"),
        ('"version": "', '"version": "9.'),
        (f'"folders": ["{SOURCE}', '"folders": ["/elsewhere'),
        ('"plugin": "static"', '"plugin": "host-local"'),
    ],
)
def test_an_executable_that_is_not_exactly_ours_is_executed(stand_ins: StandIns, change: tuple[str, str]) -> None:
    unrunnable(stand_ins)
    path = stand_ins.bin / "static"
    assert is_this_program(str(path), "static", __version__, SOURCE)
    path.write_text(path.read_text().replace(*change))
    assert not is_this_program(str(path), "static", __version__, SOURCE)
    assert "/no/python" in refusal_of_add(call_at(stand_ins, ipam=STATIC), "static").msg


def test_an_executable_of_ours_under_another_name_is_executed(stand_ins: StandIns) -> None:
    unrunnable(stand_ins)
    (stand_ins.bin / "static").rename(stand_ins.bin / "host-local")
    assert "/no/python" in refusal_of_add(call_at(stand_ins, ipam=STATIC), "host-local").msg


def install_twice(folder: Path, kind: str) -> tuple[str, str]:
    """Two folders with our executable: one as installed, one edited, which is executed."""
    for name in ("here", "executed"):
        install(str(folder / name), [kind])
    with (folder / "executed" / kind).open("a") as file:
        file.write("# edited\n")
    return str(folder / "here"), str(folder / "executed")


@pytest.mark.parametrize("version", ["0.2.0", "0.4.0", "1.0.0", "1.1.0"])
def test_both_ways_give_the_same_result(tmp_path: Path, pod: Netns, version: str) -> None:
    keys = {"cniVersion": version, "ipam": {**STATIC, "routes": [{"dst": "0.0.0.0/0"}]}}
    here, executed = (
        delegate_add(call_in(pod, folder, "ADD", **keys), "static") for folder in install_twice(tmp_path, "static")
    )
    assert here == executed


@pytest.mark.parametrize("addresses", [5, [{"address": "x"}], [{"address": "10.1.0.5"}]])
def test_both_ways_give_the_same_error(tmp_path: Path, pod: Netns, addresses: object) -> None:
    ipam = {"type": "static", "addresses": addresses}
    here, executed = (
        refusal_of_add(call_in(pod, folder, "ADD", ipam=ipam), "static").to_json("1.1.0")
        for folder in install_twice(tmp_path, "static")
    )
    assert here == executed


@pytest.mark.parametrize("path", ["", "/run/netns/gone", "/proc/self/ns/mnt"])
def test_both_ways_give_the_same_del_where_the_namespace_is_gone(tmp_path: Path, path: str) -> None:
    for folder in install_twice(tmp_path, "static"):
        delegate_del(call_of("DEL", config_of(ipam=STATIC), CNI_PATH=folder, CNI_NETNS=path), "static")


def test_a_foreign_plugin_has_no_preview_and_is_not_run(stand_ins: StandIns) -> None:
    stand_ins.write("ipam", {"ADD": (result_text(), 0)})
    assert preview(call_at(stand_ins), "ipam") == Result()
    assert stand_ins.log == []
