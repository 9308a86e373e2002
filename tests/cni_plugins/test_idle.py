"""Plugins with nothing to do: the shell alone answers what Python would, and leaves to Python what is not plain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cni_plugins import registry, skel
from cni_plugins.install import install
from cni_plugins.results import VERSIONS
from namespaces import Namespace
from pytest_netns import skip_without_root
from tests.cni_plugins.test_launcher import SHELLS

CAPABILITY = {"portmap": "portMappings", "bandwidth": "bandwidth"}
LINKS = [
    {"name": "br0", "mac": "02:00:00:00:00:01"},
    {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/a-b_c"},
]
RESULT: dict[str, Any] = {
    "interfaces": LINKS,
    "ips": [{"interface": 1, "address": "10.1.0.5/24", "gateway": "10.1.0.1"}],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "fd00::/8", "gw": "fd01::1"}],
    "dns": {"search": ["a.example"], "options": []},
}


def compact(body: Mapping[str, object]) -> bytes:
    """As Go's encoding/json writes a map; the result in it is a struct of Go, so its version comes first."""
    ordered = {key: body[key] for key in sorted(body)}
    return json.dumps(ordered, separators=(",", ":")).encode()


def result(version: str) -> dict[str, object]:
    """What libcni passes on; before 1.0.0 an address says its family."""
    family = {} if version >= "1.0.0" else {"version": "4"}
    return {"cniVersion": version, **RESULT, "ips": [{**family, **RESULT["ips"][0]}]}


def config(plugin: str, version: str = "1.0.0", /, **keys: object) -> dict[str, object]:
    return {
        "capabilities": {CAPABILITY[plugin]: True},
        "cniVersion": version,
        "name": "net-1.a_b",
        "prevResult": result(version),
        "type": plugin,
        **keys,
    }


class Executables:
    """Installed plugins: `idle` cannot start Python, `whole` can."""

    def __init__(self, folder: Path, pod: str) -> None:
        self.pod = pod
        self.idle, self.whole = folder / "idle", folder / "whole"
        for each in (self.idle, self.whole):
            install(str(each), list(CAPABILITY))
        for name in CAPABILITY:
            path = self.idle / name
            path.write_text(path.read_text().replace(sys.executable, "/no/python"))

    def run(
        self,
        path: Path,
        stdin: bytes,
        verb: str = "ADD",
        *,
        shell: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        variables = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "a-1", "CNI_IFNAME": "eth0", "CNI_NETNS": self.pod}
        done = subprocess.run(
            [*shell, str(path)], env={**variables, **(environ or {})}, input=stdin, capture_output=True, check=False
        )
        return done.returncode, done.stdout

    def by_python(self, plugin: str, stdin: bytes, verb: str = "ADD") -> skel.Answer:
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "a-1", "CNI_IFNAME": "eth0", "CNI_NETNS": self.pod}
        return skel.answer(registry.load(plugin), environ, stdin)


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Executables]:
    skip_without_root(pytestconfig)
    with Namespace.create("host") as host:
        yield Executables(tmp_path_factory.mktemp("idle"), host.add_pod("pod").netns_path)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("plugin", CAPABILITY)
def test_an_idle_add_and_del_start_no_python(plugins: Executables, plugin: str, shell: tuple[str, ...]) -> None:
    if shell and not os.path.exists(shell[0]):
        pytest.skip(f"needs {shell[0]}")
    bare = config(plugin)
    del bare["capabilities"]
    for version in VERSIONS[2:]:  # the first two have results of another form, and no chains
        for body in (
            compact(config(plugin, version)),
            compact({**bare, "cniVersion": version, "prevResult": result(version)}),
        ):
            code, output = plugins.run(plugins.idle / plugin, body, shell=shell)
            assert code == 0
            assert json.loads(output) == json.loads(body)["prevResult"]
        assert plugins.run(plugins.idle / plugin, compact(config(plugin, version)), "DEL", shell=shell) == (0, b"")


@pytest.mark.parametrize("plugin", CAPABILITY)
def test_the_shell_answers_what_python_would(plugins: Executables, plugin: str) -> None:
    for version in VERSIONS[2:]:
        body = compact(config(plugin, version))
        answer = plugins.by_python(plugin, body)
        code, output = plugins.run(plugins.idle / plugin, body)
        theirs = json.loads(answer.stdout)
        ours = json.loads(output)
        ours["dns"] = {key: value for key, value in ours["dns"].items() if value}  # Python leaves out what is empty
        assert (code, ours) == (answer.exit_code, theirs)


@pytest.mark.parametrize(
    "change",
    [
        {"runtimeConfig": {}},
        {"runtimeConfig": {"portMappings": [], "bandwidth": {}}},
        {"snat": False},
        {"Snat": 5},
        {"name": ""},
        {"name": "a b"},
        {"name": 'a"b'},
        {"name": "\\"},
        {"cniVersion": "9.9.9"},
        {"cniVersion": 5},
        {"prevResult": None},
        {"prevResult": []},
        {"prevResult": {"cniVersion": "0.4.0", **RESULT}},
        {"prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "a\\b{"}]}},
        {"type": "other"},
        {"ipam": {"type": "host-local"}},
        {"zone": {}},
    ],
)
@pytest.mark.parametrize("plugin", CAPABILITY)
def test_anything_else_is_for_python(plugins: Executables, plugin: str, change: dict[str, object]) -> None:
    body = compact(config(plugin, **change))
    code, output = plugins.run(plugins.idle / plugin, body)
    assert (code, json.loads(output)["code"]) == (1, 5)  # it would have started Python
    answer = plugins.by_python(plugin, body)
    assert plugins.run(plugins.whole / plugin, body) == (answer.exit_code, answer.stdout)


@pytest.mark.parametrize(
    "environ",
    [
        {"CNI_CONTAINERID": ""},
        {"CNI_CONTAINERID": "a/b"},
        {"CNI_IFNAME": "a" * 16},
        {"CNI_IFNAME": "."},
        {"CNI_ARGS": "nonsense"},
        {"CNI_NETNS": ""},
        {"CNI_NETNS": "/nowhere"},
        {"CNI_NETNS": "/proc/self/ns/net"},
    ],
)
def test_an_environment_that_is_wrong_is_refused_by_python(plugins: Executables, environ: dict[str, str]) -> None:
    code, output = plugins.run(plugins.whole / "portmap", compact(config("portmap")), environ=environ)
    assert (code, json.loads(output)["code"]) in [(1, 4), (1, 8)]


@pytest.mark.parametrize(
    "text", [b"", b"{", b"nonsense", b'{"cniVersion":"1.0.0"', b"\xff\xfe", b'"""""""""""""""""""""']
)
def test_what_is_no_json_is_an_error(plugins: Executables, text: bytes) -> None:
    code, output = plugins.run(plugins.whole / "portmap", text)
    assert (code, json.loads(output)["code"]) == (1, 6)


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_truncated_configuration_is_an_error(plugins: Executables, cut: int) -> None:
    body = compact(config("portmap"))
    code, output = plugins.run(plugins.idle / "portmap", body[: -len(body) * cut // 40 or None])
    assert (code, json.loads(output)["code"]) == (1, 5)


@pytest.mark.parametrize("shell", SHELLS)
def test_python_gets_what_the_shell_has_read(plugins: Executables, shell: tuple[str, ...]) -> None:
    """Lines, white space, quotes, and more than a pipe holds."""
    if shell and not os.path.exists(shell[0]):
        pytest.skip(f"needs {shell[0]}")
    body = config("portmap", filler="x $(no) `no` 'no' \\ \t  é" * 6_000)
    for text in (json.dumps(body, indent=1).encode(), compact(body), compact(body) + b"\n\n"):
        code, output = plugins.run(plugins.whole / "portmap", text, shell=shell)
        assert code == 0
        assert json.loads(output)["ips"] == RESULT["ips"]


def test_an_ifb_in_the_result_is_for_python_to_remove(plugins: Executables) -> None:
    for name in ("ifb0123456789", "bwp0123456789"):
        limited = {**result("1.0.0"), "interfaces": [*LINKS, {"name": name}]}
        code, output = plugins.run(plugins.idle / "bandwidth", compact(config("bandwidth", prevResult=limited)), "DEL")
        assert (code, json.loads(output)["code"]) == (1, 5)
