"""Network configuration lists: which file counts, what it says, and errors that name file and key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugins.conflist import load, parse_list, parse_single
from cni_plugins.errors import CniError, Code

PLUGIN = {"type": "bridge", "capabilities": {"portMappings": True, "mac": False}, "bridge": "cni9"}


def list_of(*plugins: object, **keys: object) -> bytes:
    return json.dumps({"cniVersion": "1.0.0", "name": "net", "plugins": list(plugins), **keys}).encode()


def write(folder: Path, name: str, content: bytes | Mapping[str, object]) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def refusal(content: bytes) -> CniError:
    with pytest.raises(CniError) as caught:
        parse_list(content, "FILE")
    return caught.value


def test_a_list_is_read() -> None:
    network = parse_list(list_of(PLUGIN, {"type": "portmap"}, disableCheck=True, disableGC=True), "FILE")
    assert (network.name, network.cni_version, network.source) == ("net", "1.0.0", "FILE")
    assert (network.disable_check, network.disable_gc) == (True, True)
    assert [plugin.type for plugin in network.plugins] == ["bridge", "portmap"]
    assert network.plugins[0].capabilities == {"portMappings"}
    assert network.plugins[0].body == PLUGIN


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"", Code.DECODING_FAILURE, "FILE: not JSON"),
        (b"[]", Code.DECODING_FAILURE, "FILE: must be a JSON object"),
        (b"[" * 200_000, Code.DECODING_FAILURE, "nested too deeply"),
        (list_of(PLUGIN, name=""), Code.INVALID_CONFIG, "FILE: name must be letters"),
        (list_of(PLUGIN, name="../x"), Code.INVALID_CONFIG, "FILE: name must be letters"),
        (list_of(PLUGIN, name=5), Code.INVALID_CONFIG, "FILE: name must be a string, not 5"),
        (list_of(), Code.INVALID_CONFIG, "FILE: no plugins"),
        (list_of(5), Code.INVALID_CONFIG, "FILE: plugins must be a list of objects"),
        (list_of(plugins={}), Code.INVALID_CONFIG, "FILE: plugins must be a list of objects"),
        (list_of(PLUGIN, {}), Code.INVALID_CONFIG, r"FILE: plugins[1].type must be the file name of a plugin"),
        (list_of({"type": "/bin/sh"}), Code.INVALID_CONFIG, r"FILE: plugins[0].type must be the file name"),
        (list_of({"type": 5}), Code.INVALID_CONFIG, r"FILE: plugins[0].type must be a string"),
        (
            list_of({**PLUGIN, "capabilities": ["mac"]}),
            Code.INVALID_CONFIG,
            "plugins[0].capabilities must be an object",
        ),
        (
            list_of({**PLUGIN, "capabilities": {"mac": 1}}),
            Code.INVALID_CONFIG,
            "plugins[0].capabilities.mac must be true or false",
        ),
        (list_of(PLUGIN, disableCheck="maybe"), Code.INVALID_CONFIG, "FILE: disableCheck must be true or false"),
        (list_of(PLUGIN, disableGC=1), Code.INVALID_CONFIG, "FILE: disableGC must be true or false"),
        (list_of(PLUGIN, cniVersion="9.9"), Code.INCOMPATIBLE_VERSION, "FILE: cniVersion 9.9 is not supported"),
        (list_of(PLUGIN, cniVersion=1), Code.INVALID_CONFIG, "FILE: cniVersion must be a string"),
        (list_of(PLUGIN, cniVersions="1.1.0"), Code.INVALID_CONFIG, "FILE: cniVersions must be a list of strings"),
        (b'{"name": "net", "loadOnlyInlinedPlugins": true}', Code.INVALID_CONFIG, "there are no plugins"),
    ],
)
def test_an_error_names_the_file_and_the_key(content: bytes, code: int, words: str) -> None:
    error = refusal(content)
    assert error.code == code
    assert words in error.msg


@pytest.mark.parametrize(
    ("keys", "version"),
    [
        ({}, "1.0.0"),
        ({"cniVersions": ["0.4.0", "1.1.0"]}, "1.1.0"),
        ({"cniVersions": ["0.4.0"]}, "1.0.0"),
        ({"cniVersions": ["2.0.0", "1.1.0"], "cniVersion": "0.3.1"}, "1.1.0"),
        ({"cniVersions": ["2.0.0"]}, "1.0.0"),
        ({"cniVersions": []}, "1.0.0"),
        ({"cniVersion": "2.0.0", "cniVersions": ["1.1.0"]}, "1.1.0"),
        ({"cniVersion": None}, "0.1.0"),
        ({"cniVersion": ""}, "0.1.0"),
    ],
)
def test_the_newest_version_that_we_know_counts(keys: dict[str, object], version: str) -> None:
    assert parse_list(list_of(PLUGIN, **keys), "FILE").cni_version == version


@pytest.mark.parametrize("word", ["true", "TRUE", True])
def test_words_stand_for_flags_as_in_libcni(word: object) -> None:
    assert parse_list(list_of(PLUGIN, disableCheck=word, disableGC="false"), "FILE").disable_check


def test_plugins_of_the_folder_follow_the_inlined_ones(tmp_path: Path) -> None:
    write(tmp_path, "10-net.conflist", list_of(PLUGIN))
    write(tmp_path / "net", "20.conf", {"type": "tuning"})
    write(tmp_path / "net", "10.conf", {"type": "portmap"})
    write(tmp_path / "net", "30.json", {"type": "ignored"})
    (tmp_path / "net" / "40.conf").mkdir()
    assert [plugin.type for plugin in load(str(tmp_path), "net").plugins] == ["bridge", "portmap", "tuning"]


def test_the_folder_may_hold_all_plugins(tmp_path: Path) -> None:
    write(tmp_path, "10-net.conflist", {"cniVersion": "1.1.0", "name": "net"})
    write(tmp_path / "net", "10.conf", PLUGIN)
    network = load(str(tmp_path), "net")
    assert [plugin.type for plugin in network.plugins] == ["bridge"]
    again = parse_list(json.dumps(network.to_json()).encode(), network.source, [("other", b'{"type": "never"}')])
    assert again == network


def test_the_folder_is_not_read_where_the_list_says_so(tmp_path: Path) -> None:
    write(tmp_path, "10-net.conflist", list_of(PLUGIN, loadOnlyInlinedPlugins=True))
    write(tmp_path / "net", "10.conf", b"broken")
    assert len(load(str(tmp_path), "net").plugins) == 1


def test_a_broken_file_of_the_folder_is_named(tmp_path: Path) -> None:
    write(tmp_path, "10-net.conflist", list_of(PLUGIN))
    write(tmp_path / "net", "10.conf", {"capabilities": {}})
    with pytest.raises(CniError, match=r"net/10\.conf: type must be"):
        load(str(tmp_path), "net")


@pytest.mark.parametrize("ending", [".conf", ".json"])
def test_a_single_plugin_is_a_list_of_one(tmp_path: Path, ending: str) -> None:
    single = {**PLUGIN, "cniVersion": "0.4.0", "name": "net"}
    write(tmp_path, "10-net" + ending, single)
    network = load(str(tmp_path), "net")
    assert (network.name, network.cni_version) == ("net", "0.4.0")
    assert [plugin.body for plugin in network.plugins] == [single]


def test_a_list_in_a_single_file_says_how_to_name_it() -> None:
    with pytest.raises(CniError, match="FILE: this is a list") as caught:
        parse_single(list_of(PLUGIN), "FILE")
    assert ".conflist" in caught.value.details


def test_files_count_in_order_of_their_names_and_lists_before_singles(tmp_path: Path) -> None:
    write(tmp_path, "20.conflist", list_of({"type": "second"}))
    write(tmp_path, "10.conflist", list_of({"type": "first"}))
    write(tmp_path, "00.conf", {"cniVersion": "1.0.0", "name": "net", "type": "single"})
    write(tmp_path, "00.conflist~", b"an editor's leftover")
    assert load(str(tmp_path), "net").plugins[0].type == "first"


def test_a_broken_file_of_another_network_does_not_stand_in_the_way(tmp_path: Path) -> None:
    write(tmp_path, "00.conflist", b"{")
    write(tmp_path, "10.conflist", list_of({"type": 5}, name="other"))
    write(tmp_path, "20.conflist", list_of(PLUGIN))
    assert load(str(tmp_path), "net").source.endswith("20.conflist")
    with pytest.raises(CniError, match="no network 'wrong'") as caught:
        load(str(tmp_path), "wrong")
    for part in ("there are net", "00.conflist", "plugins[0].type"):
        assert part in caught.value.details
    with pytest.raises(CniError, match=r"10.conflist: plugins\[0\].type must be a string"):
        load(str(tmp_path), "other")


def test_a_missing_folder_says_how_to_name_another() -> None:
    with pytest.raises(CniError, match="/nowhere") as caught:
        load("/nowhere", "net")
    assert caught.value.code == Code.IO_FAILURE
    assert "NETCONFPATH" in caught.value.details


def test_an_empty_folder_has_no_network(tmp_path: Path) -> None:
    with pytest.raises(CniError, match="no network 'net'"):
        load(str(tmp_path), "net")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "capabilities"]), inner),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(["cniVersion", "cniVersions", "name", "plugins", "disableCheck", "loadOnlyInlinedPlugins"]),
        values,
    )
)
def test_any_list_is_read_or_refused(keys: dict[str, object]) -> None:
    try:
        network = parse_list(list_of(PLUGIN, **keys), "FILE")
    except CniError as error:
        words = error.msg
    else:
        words = f"FILE: {len(network.plugins)}"
    assert words.startswith("FILE: ")
