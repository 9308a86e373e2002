"""The frame: one answer on standard output whatever happens, and the pod's namespace opened by the rules."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugins.errors import CniError, Code, check_failed, from_os_error, invalid_config
from cni_plugins.fields import Fields
from cni_plugins.netns import open_netns, own_netns
from cni_plugins.protocol import Call
from cni_plugins.results import LATEST, VERSIONS, Interface, Result
from cni_plugins.skel import Plugin, answer, explain
from namespaces import Namespace
from tests.cni_plugins.stand_in import config_of, environ_of


def nothing(_: Call) -> None:
    return


def refuse(_: Call) -> None:
    raise CniError(Code.NOT_AVAILABLE, "no address is free", "grow the range")


def plugin_of(
    add: Callable[[Call], Result] = lambda _: Result(interfaces=(Interface("eth0"),)),
    verb: Callable[[Call], None] = nothing,
) -> Plugin:
    return Plugin("sample", "a sample", add, verb, verb, verb, verb, lambda call: f"would add {call.ifname}\n")


SAMPLE = plugin_of()
CONFIG = json.dumps(config_of(prevResult={"cniVersion": "1.1.0"})).encode()


def ask(
    command: str, plugin: Plugin = SAMPLE, stdin: bytes = CONFIG, **environ: str
) -> tuple[int, dict[str, object] | None]:
    done = answer(plugin, environ_of(command, **environ), stdin)
    body = json.loads(done.stdout) if done.stdout else None
    assert body is None or isinstance(body, dict)
    return done.exit_code, body


@pytest.fixture
def pod(host: Namespace) -> str:
    return host.add_pod("pod").netns_path


def test_add_answers_the_result_in_the_version_of_the_configuration(pod: str) -> None:
    for version in VERSIONS:
        exit_code, body = ask("ADD", stdin=json.dumps(config_of(cniVersion=version)).encode(), CNI_NETNS=pod)
        assert exit_code == 0
        assert body == Result(interfaces=(Interface("eth0"),)).to_json(version)


@pytest.mark.parametrize("verb", ["DEL", "CHECK", "GC", "STATUS"])
def test_other_verbs_answer_nothing(verb: str, pod: str) -> None:
    assert ask(verb, CNI_NETNS=pod) == (0, None)


@pytest.mark.parametrize("verb", ["DEL", "CHECK", "GC", "STATUS"])
def test_an_error_is_an_object_on_standard_output(verb: str, pod: str) -> None:
    exit_code, body = ask(verb, plugin_of(verb=refuse), CNI_NETNS=pod)
    assert exit_code == 1
    assert body == {"cniVersion": "1.1.0", "code": 50, "msg": "no address is free", "details": "grow the range"}


def test_an_error_is_in_the_version_of_the_configuration(pod: str) -> None:
    stdin = json.dumps(config_of(cniVersion="0.3.1")).encode()
    _, body = ask("DEL", plugin_of(verb=refuse), stdin, CNI_NETNS=pod)
    assert body is not None
    assert body["cniVersion"] == "0.3.1"


def test_an_operating_system_error_names_the_file(pod: str) -> None:
    def read_a_missing_file(_: Call) -> None:
        open("/nowhere/at/all")  # noqa: SIM115 - it cannot be opened

    exit_code, body = ask("DEL", plugin_of(verb=read_a_missing_file), CNI_NETNS=pod)
    assert body is not None
    assert (exit_code, body["code"]) == (1, Code.IO_FAILURE)
    assert "/nowhere/at/all" in str(body["msg"])


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), RecursionError(), KeyError("a"), AssertionError()])
def test_a_defect_is_an_error_object_too(error: Exception, pod: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: Call) -> None:
        raise error

    exit_code, body = ask("DEL", plugin_of(verb=fail), CNI_NETNS=pod)
    assert body is not None
    assert (exit_code, body["code"]) == (1, Code.INTERNAL)
    assert type(error).__name__ in str(body["details"])
    assert "Traceback" in capsys.readouterr().err


def test_a_library_that_is_gone_is_said_so(pod: str) -> None:
    def fail(_: Call) -> None:
        importlib.import_module("gone_library")

    exit_code, body = ask("DEL", plugin_of(verb=fail), CNI_NETNS=pod)
    assert body is not None
    assert (exit_code, body["code"]) == (1, Code.INTERNAL)
    assert "gone_library" in str(body["msg"])
    assert "netloom install" in str(body["details"])


def test_check_without_prev_result_is_refused(pod: str) -> None:
    exit_code, body = ask("CHECK", stdin=json.dumps(config_of()).encode(), CNI_NETNS=pod)
    assert body is not None
    assert (exit_code, body["code"]) == (1, Code.INVALID_CONFIG)


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
@pytest.mark.parametrize(
    "path", ["/run/netns/nobody", "/etc/hostname", "/", "/proc/self/ns/mnt", "/a\x00b", "relative"]
)
def test_a_path_that_is_no_namespace_is_refused(verb: str, path: str) -> None:
    exit_code, body = ask(verb, CNI_NETNS=path)
    assert body is not None
    assert (exit_code, body["code"]) == (1, Code.INVALID_NETNS)


@pytest.mark.parametrize("path", ["", "/run/netns/nobody", "/etc/hostname", "/proc/self/ns/mnt"])
def test_del_goes_on_without_a_namespace(path: str) -> None:
    seen: list[Call] = []
    assert ask("DEL", plugin_of(verb=seen.append), CNI_NETNS=path) == (0, None)
    assert seen[0].netns is None


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL"])
def test_the_own_namespace_is_refused_unless_it_is_meant(verb: str) -> None:
    own = "/proc/self/ns/net"
    exit_code, body = ask(verb, CNI_NETNS=own)
    assert body is not None
    assert (exit_code, body["code"]) == (1, Code.INVALID_NETNS)
    exit_code, _ = ask(verb, CNI_NETNS=own, CNI_NETNS_OVERRIDE="1")
    assert exit_code == 0


def test_the_namespace_is_open_while_the_verb_runs_and_closed_after(pod: str) -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    seen: list[tuple[int, int]] = []
    ask("DEL", plugin_of(verb=lambda call: seen.append(call.pod.identity)), CNI_NETNS=pod)
    with_own = own_netns()
    with_pod = open_netns(pod)
    assert seen == [with_pod.identity]
    assert seen != [with_own.identity]
    with_own.close()
    with_pod.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_a_namespace_that_was_passed_is_used_and_stays_open(pod: str) -> None:
    netns = open_netns(pod)
    seen: list[Call] = []
    done = answer(plugin_of(verb=seen.append), environ_of("DEL", CNI_NETNS="/gone"), CONFIG, netns)
    assert done.exit_code == 0
    assert seen[0].netns == netns
    assert netns.identity  # raises where it was closed
    netns.close()


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b'{"cniVersion": "0.3.1"}', "0.3.1"),
        (b'{"cniVersion": "1.1.0"}', "1.1.0"),
        (b'{"cniVersion": "9.9.9"}', LATEST),
        (b'{"cniVersion": 5}', LATEST),
        (b'{"cniVersion": []}', LATEST),
        (b"{}", LATEST),
        (b"", LATEST),
        (b"nonsense", LATEST),
        (b"[" * 200_000, LATEST),
    ],
)
def test_version_never_fails(stdin: bytes, version: str) -> None:
    assert ask("VERSION", stdin=stdin) == (0, {"cniVersion": version, "supportedVersions": list(VERSIONS)})


def test_explain_needs_nothing_but_a_configuration() -> None:
    done = explain(SAMPLE, {}, json.dumps(config_of()).encode())
    assert (done.stdout, done.exit_code) == (b"would add eth0\n", 0)
    assert explain(SAMPLE, {}, b"{").exit_code == 1


@given(
    st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "", "x"]),
    st.binary(max_size=30)
    | st.dictionaries(
        st.sampled_from(["cniVersion", "name", "type", "prevResult"]), st.none() | st.text(max_size=6) | st.integers()
    ).map(lambda body: json.dumps(body).encode()),
)
def test_any_call_is_answered_by_one_object(command: str, stdin: bytes) -> None:
    exit_code, body = ask(command, plugin_of(verb=refuse), stdin, CNI_NETNS="/nowhere")
    if exit_code:
        assert body is not None
        assert isinstance(body["code"], int)
        assert body["msg"]


def test_errors_say_what_and_what_to_do() -> None:
    assert str(invalid_config("a is wrong", "make it right")) == "a is wrong: make it right"
    assert str(check_failed("no link eth0")) == "CHECK: no link eth0"
    assert CniError(7, "a").to_json("1.1.0") == {"cniVersion": "1.1.0", "code": 7, "msg": "a"}
    assert from_os_error(FileNotFoundError(2, "", "/x"), "reading").msg == "reading: /x No such file or directory"


FIELDS = Fields(
    {"text": "a", "flag": True, "number": 5, "list": ["a"], "objects": [{"k": 1}], "object": {"k": "v"}, "nil": None},
    "ipam.",
)


def test_fields_of_the_right_type_are_read() -> None:
    assert FIELDS.text("text") == "a"
    assert FIELDS.flag("flag")
    assert FIELDS.number("number") == 5
    assert FIELDS.texts("list") == ("a",)
    assert FIELDS.items("objects")[0].number("k") == 1
    assert FIELDS.inner("object").text("k") == "v"
    assert FIELDS.choice("text", ("a", "b"), "b") == "a"


def test_null_and_missing_keys_are_the_default() -> None:
    for key in ("nil", "missing"):
        assert key not in FIELDS
        assert FIELDS.text(key, "d") == "d"
        assert FIELDS.number(key, 7) == 7
        assert FIELDS.flag(key, default=True)
        assert FIELDS.texts(key) == ()
        assert FIELDS.items(key) == []
        assert FIELDS.inner(key).raw() == {}


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda: FIELDS.text("number"), "ipam.number must be a string, not 5"),
        (lambda: FIELDS.flag("number"), "ipam.number must be true or false"),
        (lambda: FIELDS.number("flag"), "ipam.flag must be a whole number"),
        (lambda: FIELDS.number("number", most=4), "ipam.number must be a whole number from 0 to 4"),
        (lambda: FIELDS.texts("objects"), "ipam.objects must be a list of strings"),
        (lambda: FIELDS.items("list"), "ipam.list must be a list of objects"),
        (lambda: FIELDS.inner("list"), "ipam.list must be an object"),
        (lambda: FIELDS.choice("text", ("b",), "b"), "ipam.text must be one of b"),
        (lambda: FIELDS.items("objects")[0].text("k"), r"ipam.objects\[0\].k must be a string"),
    ],
)
def test_a_field_of_a_wrong_type_is_named_with_what_was_expected(read: Callable[[], object], words: str) -> None:
    with pytest.raises(CniError, match=words) as caught:
        read()
    assert caught.value.code == Code.INVALID_CONFIG


def test_a_call_can_be_changed_for_a_delegate() -> None:
    seen: list[Call] = []
    ask("DEL", plugin_of(verb=seen.append), CNI_NETNS="")
    assert replace(seen[0], command="GC").owner == seen[0].owner
