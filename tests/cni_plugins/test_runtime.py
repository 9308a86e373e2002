"""Chains as libcni runs them: what each plugin is given, in which order, and what is remembered."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from cni_plugins.attachments import Attachment, Cached, ResultCache
from cni_plugins.conflist import NetworkList, parse_list
from cni_plugins.errors import CniError, Code
from cni_plugins.install import install
from cni_plugins.runtime import Runtime, as_added
from cni_plugins.sweep import plan_sweep
from namespaces import Namespace
from tests.cni_plugins.stand_in import REFERENCE, StandIns, error_text, result_text

POD = Attachment("net", "pod-1", "eth0", "/run/netns/pod-1", (("A", "1"), ("B", "x=y")), {"mac": "02::1", "dns": {}})
FIRST = {"type": "first", "capabilities": {"mac": True, "ips": True}, "key": "value"}
SECOND = {"type": "second", "capabilities": {"dns": False}, "name": "wrong", "runtimeConfig": {"kept": 1}}
FIRST_RESULT = json.loads(result_text("10.1.0.1/24"))
SECOND_RESULT = json.loads(result_text("10.1.0.2/24"))


def network_of(*plugins: object, version: str = "1.1.0", **keys: object) -> NetworkList:
    body = {"cniVersion": version, "name": "net", "plugins": list(plugins or (FIRST, SECOND)), **keys}
    return parse_list(json.dumps(body).encode(), "FILE")


@pytest.fixture
def stand_ins(tmp_path: Path) -> StandIns:
    made = StandIns(tmp_path)
    made.write("first", {"ADD": (result_text("10.1.0.1/24"), 0)})
    made.write("second", {"ADD": (result_text("10.1.0.2/24"), 0)})
    return made


@pytest.fixture
def runtime(stand_ins: StandIns, tmp_path: Path) -> Runtime:
    return Runtime(
        (str(stand_ins.bin),), ResultCache(str(tmp_path / "cache")), {"TRACEPARENT": "00-1", "CNI_ARGS": "old"}
    )


def refusal(action: object, *arguments: object) -> CniError:
    assert callable(action)
    with pytest.raises(CniError) as caught:
        action(*arguments)
    return caught.value


def test_add_runs_the_plugins_in_order_and_returns_the_last_result(runtime: Runtime, stand_ins: StandIns) -> None:
    assert runtime.add(network_of(), POD) == SECOND_RESULT
    assert stand_ins.log == ["ADD first", "ADD second"]


def test_each_plugin_is_given_name_version_and_its_predecessor_s_result(runtime: Runtime, stand_ins: StandIns) -> None:
    runtime.add(network_of(), POD)
    common = {"name": "net", "cniVersion": "1.1.0"}
    assert stand_ins.stdin("first", "ADD") == {**FIRST, **common, "runtimeConfig": {"mac": "02::1"}}
    assert stand_ins.stdin("second", "ADD") == {**SECOND, **common, "prevResult": FIRST_RESULT}


def test_a_plugin_is_given_the_environment_of_the_specification(runtime: Runtime, stand_ins: StandIns) -> None:
    runtime.add(network_of(), POD)
    expected = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "pod-1",
        "CNI_NETNS": "/run/netns/pod-1",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "A=1;B=x=y",
        "CNI_PATH": str(stand_ins.bin),
        "TRACEPARENT": "00-1",
    }
    assert stand_ins.environ("first", "ADD").items() >= expected.items()


def test_the_cache_is_libcni_s(runtime: Runtime, tmp_path: Path) -> None:
    runtime.add(network_of(), POD)
    path = tmp_path / "cache" / "results" / "net-pod-1-eth0"
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.stat(path.parent).st_mode & 0o777 == 0o700
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["results"]
    body = json.loads(path.read_bytes())
    config = json.loads(base64.b64decode(body.pop("config")))
    assert body == {
        "kind": "cniCacheV1",
        "containerId": "pod-1",
        "ifName": "eth0",
        "networkName": "net",
        "netns": "/run/netns/pod-1",
        "cniArgs": [["A", "1"], ["B", "x=y"]],
        "capabilityArgs": {"mac": "02::1", "dns": {}},
        "result": SECOND_RESULT,
    }
    assert config["plugins"] == [FIRST, SECOND]


def test_del_runs_in_reverse_with_the_cached_result_and_forgets(runtime: Runtime, stand_ins: StandIns) -> None:
    runtime.add(network_of(), POD)
    runtime.delete(network_of(), POD)
    assert stand_ins.log[2:] == ["DEL second", "DEL first"]
    for name in ("first", "second"):
        assert stand_ins.stdin(name, "DEL")["prevResult"] == SECOND_RESULT
    assert stand_ins.stdin("first", "DEL")["runtimeConfig"] == {"mac": "02::1"}
    assert runtime.cache.read(POD) is None


def test_del_is_repeatable_and_needs_no_cache(runtime: Runtime, stand_ins: StandIns) -> None:
    for _ in range(2):
        runtime.delete(network_of(), replace(POD, netns=""))
    assert "prevResult" not in stand_ins.stdin("first", "DEL")
    assert stand_ins.environ("first", "DEL")["CNI_NETNS"] == ""


def test_del_before_0_4_0_has_no_result(runtime: Runtime, stand_ins: StandIns) -> None:
    runtime.add(network_of(version="0.3.1"), POD)
    runtime.delete(network_of(version="0.3.1"), POD)
    assert "prevResult" not in stand_ins.stdin("first", "DEL")
    assert runtime.cache.read(POD) is None


def test_a_del_that_fails_stops_and_can_be_repeated(runtime: Runtime, stand_ins: StandIns) -> None:
    runtime.add(network_of(), POD)
    stand_ins.write("second", {"DEL": (error_text(11, "busy"), 1)})
    error = refusal(runtime.delete, network_of(), POD)
    assert (error.code, error.msg) == (11, "plugin second failed (DEL): busy")
    assert stand_ins.log[2:] == ["DEL second"]
    stand_ins.write("second")
    runtime.delete(network_of(), POD)
    assert stand_ins.log[3:] == ["DEL second", "DEL first"]


def test_a_result_is_passed_on_with_keys_nobody_knows(runtime: Runtime, stand_ins: StandIns) -> None:
    odd = {**FIRST_RESULT, "x": {"y": [1]}}
    stand_ins.write("first", {"ADD": (json.dumps(odd), 0)})
    runtime.add(network_of(), POD)
    assert stand_ins.stdin("second", "ADD")["prevResult"] == odd


def test_a_result_of_another_version_is_translated(runtime: Runtime, stand_ins: StandIns) -> None:
    stand_ins.write("first", {"ADD": ('{"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.1/24"}}', 0)})
    runtime.add(network_of(), POD)
    assert stand_ins.stdin("second", "ADD")["prevResult"] == FIRST_RESULT


def test_an_add_whose_later_plugin_fails_is_undone(runtime: Runtime, stand_ins: StandIns) -> None:
    stand_ins.write("second", {"ADD": (error_text(104, "port taken", "by pod-2"), 1)})
    error = refusal(runtime.add, network_of(), POD)
    assert (error.code, error.msg, error.details) == (104, "plugin second failed (ADD): port taken", "by pod-2")
    assert stand_ins.log == ["ADD first", "ADD second", "DEL second", "DEL first"]
    assert stand_ins.stdin("first", "DEL")["prevResult"] == FIRST_RESULT
    assert runtime.cache.read(POD) is None


def test_an_add_whose_first_plugin_fails_is_not_undone(runtime: Runtime, stand_ins: StandIns) -> None:
    # The attachment may exist already, made by somebody else
    stand_ins.write("first", {"ADD": (error_text(101, "eth0 exists"), 1)})
    assert refusal(runtime.add, network_of(), POD).code == 101
    assert stand_ins.log == ["ADD first"]


def test_a_failed_undo_is_told(runtime: Runtime, stand_ins: StandIns) -> None:
    stand_ins.write("second", {"ADD": (error_text(104, "port taken"), 1)})
    stand_ins.write("first", {"ADD": (result_text(), 0), "DEL": (error_text(5, "no luck"), 1)})
    error = refusal(runtime.add, network_of(), POD)
    assert error.code == 104
    assert "undo first failed, too: no luck" in error.details


def test_an_add_that_cannot_be_remembered_is_undone(runtime: Runtime, stand_ins: StandIns, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert refusal(runtime.add, network_of(), POD).code == Code.IO_FAILURE
    assert stand_ins.log == ["ADD first", "ADD second", "DEL second", "DEL first"]


def test_a_second_add_is_refused_and_harms_nothing(runtime: Runtime, stand_ins: StandIns) -> None:
    runtime.add(network_of(), POD)
    assert refusal(runtime.add, network_of(), POD).code == Code.ALREADY_EXISTS
    assert stand_ins.log == ["ADD first", "ADD second"]


def test_a_plugin_without_a_result_is_an_error(runtime: Runtime, stand_ins: StandIns) -> None:
    for stdout in ("", "garbage", "[]", '{"ips": 5}'):
        stand_ins.write("first", {"ADD": (stdout, 0)})
        assert refusal(runtime.add, network_of(), POD).code == Code.DELEGATE


def test_a_missing_plugin_is_named_with_the_folders(runtime: Runtime, stand_ins: StandIns) -> None:
    error = refusal(runtime.add, network_of({"type": "third"}), POD)
    assert "'third'" in error.msg
    assert str(stand_ins.bin) in error.details


def test_check_asks_each_plugin_with_the_cached_result(runtime: Runtime, stand_ins: StandIns) -> None:
    runtime.add(network_of(), POD)
    assert runtime.check(network_of(), POD)
    assert stand_ins.log[2:] == ["CHECK first", "CHECK second"]
    assert stand_ins.stdin("first", "CHECK")["prevResult"] == SECOND_RESULT


def test_check_is_not_asked_where_it_cannot_be(runtime: Runtime, stand_ins: StandIns) -> None:
    assert not runtime.check(network_of(disableCheck=True), POD)
    assert refusal(runtime.check, network_of(version="0.3.1"), POD).code == Code.INCOMPATIBLE_VERSION
    assert refusal(runtime.check, network_of(), POD).code == Code.UNKNOWN_CONTAINER
    assert stand_ins.log == []


def test_status_ends_at_the_first_plugin_that_cannot_serve(runtime: Runtime, stand_ins: StandIns) -> None:
    assert runtime.status(network_of())
    stand_ins.write("first", {"STATUS": (error_text(50, "full"), 1)})
    assert refusal(runtime.status, network_of()).code == Code.NOT_AVAILABLE
    assert stand_ins.log == ["STATUS first", "STATUS second", "STATUS first"]
    assert not runtime.status(network_of(version="1.0.0"))


def test_gc_deletes_stale_attachments_then_asks_the_plugins(runtime: Runtime, stand_ins: StandIns) -> None:
    pods = [replace(POD, container_id=f"pod-{i}", netns="") for i in (1, 2)]
    other = replace(POD, network="other")
    for pod in pods:
        runtime.add(network_of(), pod)
    runtime.cache.write(other, b"{}", FIRST_RESULT)
    before = len(stand_ins.log)
    assert runtime.gc(network_of(), pods[:1])
    assert stand_ins.log[before:] == ["DEL second", "DEL first", "GC first", "GC second"]
    assert stand_ins.environ("first", "DEL")["CNI_CONTAINERID"] == "pod-2"
    listed = [{"containerID": "pod-1", "ifname": "eth0"}]
    body = stand_ins.stdin("second", "GC")
    assert body["cni.dev/valid-attachments"] == body["cni.dev/attachments"] == listed
    assert runtime.cache.read(pods[0])
    assert runtime.cache.read(pods[1]) is None
    assert runtime.cache.read(other)


def test_gc_goes_on_after_errors_and_reports_them_all(runtime: Runtime, stand_ins: StandIns) -> None:
    runtime.add(network_of(), POD)
    stand_ins.write("second", {"DEL": (error_text(5, "broken del"), 1)})
    stand_ins.write("first", {"GC": (error_text(107, "broken gc"), 1)})
    error = refusal(runtime.gc, network_of(), [])
    assert error.code == Code.SWEEP_FAILED
    assert "broken del" in error.details
    assert "broken gc" in error.details
    assert stand_ins.log[2:] == ["DEL second", "GC first", "GC second"]


def test_gc_before_1_1_0_only_deletes(runtime: Runtime, stand_ins: StandIns) -> None:
    runtime.add(network_of(version="1.0.0"), POD)
    assert runtime.gc(network_of(version="1.0.0"), [])
    assert stand_ins.log[2:] == ["DEL second", "DEL first"]


def test_gc_is_off_where_the_list_says_so(runtime: Runtime, stand_ins: StandIns) -> None:
    runtime.add(network_of(), POD)
    assert not runtime.gc(network_of(disableGC=True), [])
    assert len(stand_ins.log) == 2


def test_gc_deletes_with_the_configuration_that_add_had(runtime: Runtime, stand_ins: StandIns) -> None:
    runtime.add(network_of(), POD)
    runtime.gc(network_of(SECOND), [])
    assert stand_ins.log[2:] == ["DEL second", "DEL first", "GC second"]


def test_a_cached_list_without_its_folder_counts_only_where_it_is_the_longer(runtime: Runtime) -> None:
    now = network_of()
    short = Cached(POD, b'{"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": "first"}]}', {})
    assert as_added(now, short) == now
    assert as_added(None, short) is not None
    assert as_added(now, replace(short, config=b"broken")) == now
    assert as_added(None, None) is None


def cache_file(**keys: object) -> dict[str, object]:
    """What libcni of 2021 writes: no netns."""
    return {
        "kind": "cniCacheV1",
        "containerId": "pod-1",
        "config": base64.b64encode(b"{}").decode(),
        "ifName": "eth0",
        "networkName": "net",
        "result": {"cniVersion": "0.4.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/old"}], "dns": {}},
        **keys,
    }


def written(cache_dir: Path, body: object, name: str = "net-pod-1-eth0") -> ResultCache:
    (cache_dir / "results").mkdir(exist_ok=True)
    (cache_dir / "results" / name).write_text(json.dumps(body))
    return ResultCache(str(cache_dir))


def test_files_of_older_runtimes_are_read(tmp_path: Path) -> None:
    cache = written(tmp_path, cache_file())
    (cached,) = cache.all("net")
    assert cached.attachment == Attachment("net", "pod-1", "eth0")
    assert cached.sandboxes() == {"/run/netns/old"}
    assert cached.is_gone()


def test_a_file_with_the_result_alone_is_found_by_name_only(tmp_path: Path) -> None:
    cache = written(tmp_path, FIRST_RESULT)
    found = cache.read(POD)
    assert found is not None
    assert found.result == FIRST_RESULT
    assert cache.all("net") == []


@pytest.mark.parametrize(
    "body",
    [
        [],
        5,
        {},
        {"kind": "cniCacheV2"},
        cache_file(containerId=5),
        cache_file(config="!"),
        cache_file(config=None),
        cache_file(cniArgs=[["a"]]),
        cache_file(cniArgs="a"),
        cache_file(result=[1]),
        cache_file(capabilityArgs=[1]),
        cache_file(containerId="pod-2"),
        cache_file(containerId="../../etc/x"),
    ],
)
def test_a_file_that_makes_no_sense_is_passed_over(tmp_path: Path, body: object) -> None:
    cache = written(tmp_path, body)
    assert cache.read(POD) is None
    assert cache.all("net") == []


def test_a_namespace_that_cannot_be_told_is_kept(tmp_path: Path) -> None:
    cache = written(tmp_path, cache_file(result={"cniVersion": "0.2.0", "dns": {}}))
    sweep = plan_sweep(network_of(), cache.all("net"))
    assert (len(sweep.keep), len(sweep.remove)) == (1, 0)
    assert "namespace unknown" in sweep.describe()


def test_a_sweep_keeps_what_has_a_namespace(tmp_path: Path, host: Namespace) -> None:
    cache = ResultCache(str(tmp_path))
    live = replace(POD, container_id="live", netns=host.add_pod("live").netns_path)
    cache.write(live, b"{}", FIRST_RESULT)
    cache.write(replace(POD, container_id="file", netns="/etc/hostname"), b"{}", FIRST_RESULT)
    cache.write(replace(POD, container_id="gone", netns="/run/netns/gone"), b"{}", FIRST_RESULT)
    sweep = plan_sweep(network_of(), cache.all("net"))
    assert sweep.keep == (live,)
    assert [attachment.container_id for attachment in sweep.remove] == ["file", "gone"]
    assert "/run/netns/gone is gone" in sweep.describe()


def test_explain_asks_ours_and_never_runs_a_foreign_plugin(runtime: Runtime, stand_ins: StandIns) -> None:
    install(str(stand_ins.bin), ["static"])
    static = {"type": "static", "ipam": {"type": "static", "addresses": [{"address": "10.1.0.5/24"}]}}
    text = runtime.explain(network_of(static, FIRST), POD)
    assert "10.1.0.5/24" in text
    assert f"# first ({stand_ins.bin}/first)\n(not netloom's" in text
    assert stand_ins.log == []


def test_a_chain_of_reference_plugins_works(tmp_path: Path, host: Namespace) -> None:
    if not REFERENCE.exists():
        pytest.skip("needs the package containernetworking-plugins")
    ipam = {"type": "host-local", "subnet": "10.1.0.0/24", "dataDir": str(tmp_path / "addresses")}
    network = network_of(
        {"type": "ptp", "ipam": ipam}, {"type": "tuning", "dataDir": str(tmp_path), "mtu": 1400}, version="1.0.0"
    )
    runtime = Runtime((str(REFERENCE),), ResultCache(str(tmp_path / "cache")), {"PATH": os.environ["PATH"]})
    pod = host.add_pod("pod")
    attachment = Attachment("net", "pod-1", "eth0", pod.netns_path)
    with host.inside():
        result = runtime.add(network, attachment)
        assert "10.1.0.2/24" in json.dumps(result)
        assert runtime.check(network, attachment)
        assert "10.1.0.2/24" in pod.run("ip", "address", "show", "eth0").stdout
        runtime.delete(network, attachment)
        runtime.delete(network, attachment)
    assert not (tmp_path / "addresses" / "net" / "10.1.0.2").exists()
    assert runtime.cache.all("net") == []
