"""The border: what environments and configurations are refused, with which code, and what they become."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugins.errors import CniError, Code
from cni_plugins.owner import Owner, is_stale, link_prefix, network_prefix
from cni_plugins.protocol import Call, decode_json, is_ifname, is_plugin_type, parse_args, parse_call, parse_config
from tests.cni_plugins.stand_in import call_of, config_of, environ_of

CONFIG = json.dumps(config_of()).encode()
VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


def refusal(environ: dict[str, str], stdin: bytes = CONFIG) -> CniError:
    with pytest.raises(CniError) as caught:
        parse_call(environ, stdin, "bridge")
    return caught.value


@pytest.mark.parametrize("verb", VERBS)
def test_a_well_formed_call_is_read(verb: str) -> None:
    call = parse_call(environ_of(verb, CNI_ARGS="K=V;L=", CNI_PATH="/a::/b"), CONFIG, "bridge")
    assert (call.command, call.container_id, call.ifname, call.netns_path) == (
        verb,
        "pod-1",
        "eth0",
        "/run/netns/nobody",
    )
    assert call.args == {"K": "V", "L": ""}
    assert call.path == ("/a", "/b")
    assert call.owner == Owner("net", "pod-1", "eth0")


@pytest.mark.parametrize(
    ("verb", "variable"),
    [
        ("ADD", "CNI_CONTAINERID"),
        ("ADD", "CNI_NETNS"),
        ("ADD", "CNI_IFNAME"),
        ("CHECK", "CNI_CONTAINERID"),
        ("CHECK", "CNI_NETNS"),
        ("CHECK", "CNI_IFNAME"),
        ("DEL", "CNI_CONTAINERID"),
        ("DEL", "CNI_IFNAME"),
        ("GC", "CNI_PATH"),
    ],
)
def test_a_verb_without_a_required_variable_is_refused_by_name(verb: str, variable: str) -> None:
    environ = environ_of(verb)
    for lacking in ({**environ, variable: ""}, {key: value for key, value in environ.items() if key != variable}):
        error = refusal(lacking)
        assert error.code == Code.INVALID_ENVIRONMENT
        assert variable in error.msg


@pytest.mark.parametrize(
    ("verb", "optional"),
    [
        ("ADD", ("CNI_PATH", "CNI_ARGS")),
        ("DEL", ("CNI_NETNS", "CNI_PATH")),
        ("GC", ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")),
        ("STATUS", ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH")),
    ],
)
def test_a_verb_goes_without_what_it_does_not_need(verb: str, optional: tuple[str, ...]) -> None:
    environ = {key: value for key, value in environ_of(verb).items() if key not in optional}
    assert parse_call(environ, CONFIG, "bridge").command == verb


@pytest.mark.parametrize("verb", ["", "add", "ADD ", "UPDATE", "VERSION\n", "\x00"])
def test_an_unknown_verb_is_refused_with_the_known_ones(verb: str) -> None:
    error = refusal(environ_of(verb))
    assert error.code == Code.INVALID_ENVIRONMENT
    assert "STATUS" in error.details


@pytest.mark.parametrize(
    "container_id",
    ["-a", ".a", "_a", "a/b", "../a", "a b", "a\n", "ä", "a\x00", "a;b", "$(a)", "a" * 1025, "\u0663"],
)
def test_a_tricky_container_id_is_refused(container_id: str) -> None:
    assert refusal(environ_of("ADD", CNI_CONTAINERID=container_id)).code == Code.INVALID_ENVIRONMENT


@pytest.mark.parametrize("container_id", ["a", "0", "A-b_c.d", "a" * 64, "a" * 1024])
def test_a_plain_container_id_is_taken(container_id: str) -> None:
    assert call_of("ADD", config_of(), CNI_CONTAINERID=container_id).container_id == container_id


@pytest.mark.parametrize(
    "ifname",
    [".", "..", "a/b", "a:b", "a b", "a\tb", "a\n", "a" * 16, "é" * 8, "a\x00", "a\u00a0b"],
)
def test_a_tricky_interface_name_is_refused(ifname: str) -> None:
    assert refusal(environ_of("ADD", CNI_IFNAME=ifname)).code == Code.INVALID_ENVIRONMENT


@pytest.mark.parametrize("ifname", ["a", "eth0", "a" * 15, "-", "a.b", "é" * 7, "$x"])
def test_an_interface_name_that_the_kernel_takes_is_taken(ifname: str) -> None:
    assert is_ifname(ifname)


@pytest.mark.parametrize("name", ["", "-a", "a/b", "..", "a\n", "ä", "a" * 1025, 5, None, True, ["a"], {"a": 1}])
def test_a_network_name_that_is_none_is_a_configuration_error(name: object) -> None:
    assert refusal(environ_of("ADD"), json.dumps(config_of(name=name)).encode()).code == Code.INVALID_CONFIG


@pytest.mark.parametrize("kind", ["../bridge", "/bin/sh", "a/b", ".", "..", "a\x00", "a" * 256, 5, ["bridge"]])
def test_a_type_that_is_no_file_name_is_a_configuration_error(kind: object) -> None:
    assert refusal(environ_of("ADD"), json.dumps(config_of(type=kind)).encode()).code == Code.INVALID_CONFIG


@pytest.mark.parametrize("args", ["K", "=V", "K=V;L", ";;K"])
def test_cni_args_that_are_no_pairs_are_refused(args: str) -> None:
    assert refusal(environ_of("ADD", CNI_ARGS=args)).code == Code.INVALID_ENVIRONMENT


def test_cni_args_may_hold_anything_behind_the_first_equals_sign() -> None:
    assert parse_args("A=b=c;;IgnoreUnknown=1; ;K8S_POD_NAME=") == {
        "A": "b=c",
        "IgnoreUnknown": "1",
        "K8S_POD_NAME": "",
    }


@pytest.mark.parametrize(
    "stdin",
    [
        b"",
        b" ",
        b"{",
        b"nonsense",
        b'{"cniVersion": "1.1.0", "name": "net"',
        b"[]",
        b"null",
        b"5",
        b'"text"',
        b"\xff\xfe",
        b"\xff",
        b"\x00",
        b'{"a": 1} {"b": 2}',
        b"[" * 200_000,
        b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    ],
)
def test_input_that_is_no_json_object_is_a_decoding_error(stdin: bytes) -> None:
    started = time.process_time()
    assert refusal(environ_of("ADD"), stdin).code == Code.DECODING_FAILURE
    assert time.process_time() - started < 1


def test_input_of_64_mib_is_read_within_a_second() -> None:
    stdin = json.dumps(config_of(filler="x" * (64 << 20))).encode()
    started = time.process_time()
    assert parse_call(environ_of("ADD"), stdin, "bridge").config.name == "net"
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "version", ["9.9.9", "1.2.0", "1.0", "1.1.0 ", "v1.1.0", "\u0660.\u0663.\u0660", 1, 0, 1.1, True, False, [], {}]
)
def test_a_version_that_we_do_not_speak_is_refused_with_those_we_do(version: object) -> None:
    error = refusal(environ_of("ADD"), json.dumps(config_of(cniVersion=version)).encode())
    assert error.code == Code.INCOMPATIBLE_VERSION
    assert "1.1.0" in error.details


@pytest.mark.parametrize("config", [{}, {"cniVersion": ""}, {"cniVersion": None}])
def test_a_configuration_without_a_version_is_of_the_first(config: dict[str, object]) -> None:
    config = {"name": "net", "type": "bridge", **config}
    assert parse_config(json.dumps(config).encode(), "bridge", "ADD").cni_version == "0.1.0"


@pytest.mark.parametrize(("verb", "before", "since"), [("CHECK", "0.3.1", "0.4.0"), ("GC", "1.0.0", "1.1.0")])
def test_a_verb_exists_from_its_version_on(verb: str, before: str, since: str) -> None:
    assert call_of(verb, config_of(cniVersion=since)).command == verb
    error = refusal(environ_of(verb), json.dumps(config_of(cniVersion=before)).encode())
    assert error.code == Code.INCOMPATIBLE_VERSION
    assert since in error.details


def test_status_exists_from_1_1_0_on_and_add_and_del_ever_since() -> None:
    assert refusal(environ_of("STATUS"), json.dumps(config_of(cniVersion="1.0.0")).encode()).code == 1
    for verb in ("ADD", "DEL"):
        assert call_of(verb, config_of(cniVersion="0.1.0")).command == verb


@pytest.mark.parametrize("prev", [[], "x", 5, {"ips": 5}, {"ips": [{}]}, {"interfaces": [{"name": 5}]}, {"dns": [1]}])
def test_a_prev_result_that_is_none_is_a_decoding_error(prev: object) -> None:
    error = refusal(environ_of("ADD"), json.dumps(config_of(prevResult=prev)).encode())
    assert error.code == Code.DECODING_FAILURE


def test_valid_attachments_are_owners_of_this_network() -> None:
    call = call_of("GC", config_of(**{"cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}]}))
    assert call.config.valid_attachments() == {Owner("net", "a", "eth0")}
    assert call.valid_tags() == {"net/a/eth0"}


def test_an_empty_list_of_attachments_means_that_nothing_is_valid() -> None:
    assert call_of("GC", config_of(**{"cni.dev/valid-attachments": []})).config.valid_attachments() == frozenset()


@pytest.mark.parametrize(
    "attachments",
    [
        None,
        "all",
        5,
        {},
        ["a"],
        [{}],
        [{"containerID": "a"}],
        [{"ifname": "eth0"}],
        [{"containerID": "", "ifname": ""}],
    ],
)
def test_a_list_of_attachments_that_is_none_never_means_that_nothing_is_valid(attachments: object) -> None:
    call = call_of("GC", config_of(**{"cni.dev/valid-attachments": attachments}))
    with pytest.raises(CniError) as caught:
        call.config.valid_attachments()
    assert caught.value.code == Code.INVALID_CONFIG


def test_args_cni_and_runtime_config_are_objects() -> None:
    config = call_of("ADD", config_of(args={"cni": {"ips": ["10.0.0.1"]}}, runtimeConfig={"mac": "x"})).config
    assert config.cni_args.texts("ips") == ("10.0.0.1",)
    assert config.runtime.text("mac") == "x"
    broken = call_of("ADD", config_of(runtimeConfig=[1])).config
    with pytest.raises(CniError, match="runtimeConfig must be an object"):
        _ = broken.runtime


@given(st.dictionaries(st.sampled_from([*environ_of("ADD"), "CNI_ARGS"]), st.text(max_size=30)), st.binary(max_size=40))
def test_any_environment_and_input_is_read_or_refused(environ: dict[str, str], stdin: bytes) -> None:
    try:
        parse_call({**environ_of("ADD"), **environ}, stdin, "bridge")
    except CniError:
        return


@given(st.dictionaries(st.sampled_from(["cniVersion", "name", "type", "prevResult", "args"]), json_values))
def test_any_configuration_is_read_or_refused(config: dict[str, object]) -> None:
    try:
        call: Call = call_of("ADD", config_of(**config))
    except CniError:
        return
    assert call.config.name


@given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_input_is_an_object_or_a_decoding_error(stdin: bytes) -> None:
    codes = []
    try:
        decode_json(stdin)
    except CniError as error:
        codes.append(error.code)
    assert codes in ([], [Code.DECODING_FAILURE])


@given(st.text())
def test_a_plugin_type_is_one_path_component(kind: str) -> None:
    if is_plugin_type(kind):
        assert "/" not in kind
        assert kind not in ("", ".", "..")


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,90}", fullmatch=True)
ifnames = st.from_regex(r"[a-z0-9.@-]{1,15}", fullmatch=True).filter(is_ifname)


@given(names, names, ifnames)
def test_a_tag_fits_a_comment_and_belongs_to_its_network_alone(network: str, container_id: str, ifname: str) -> None:
    owner = Owner(network, container_id, ifname)
    assert len(owner.tag.encode()) <= 123
    assert is_stale(owner.tag, network, frozenset())
    assert not is_stale(owner.tag, network, frozenset((owner.tag,)))
    assert not is_stale(owner.tag, network + "x", frozenset())
    assert owner.tag.startswith(network_prefix(network))


@given(names, names, ifnames)
def test_a_link_name_fits_the_kernel_and_starts_as_its_network(network: str, container_id: str, ifname: str) -> None:
    name = Owner(network, container_id, ifname).link_name("veth")
    assert len(name) == 15
    assert is_ifname(name)
    assert name.startswith(link_prefix("veth", network))
    assert name != Owner(network, container_id + "x", ifname).link_name("veth")
