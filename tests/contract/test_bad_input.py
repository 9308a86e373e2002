"""Bad input, through the executables: each gets an error of the specification, in under a second of processor time,
and nothing is left: no file, no link, no rule.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from namespaces import Namespace, Pod
from tests.calls import Answer
from tests.leftovers import leftovers

ENVIRONMENT, DECODING, CONFIG, NETNS, EXISTS, EXHAUSTED, DELEGATE = 4, 6, 7, 8, 101, 103, 106
POOL: dict[str, Any] = {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}]]}
PREVIOUS = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "eth0", "sandbox": "/run/netns/pod"}],
    "ips": [{"address": "10.1.0.9/24", "interface": 0}],
}
# A configuration that works, for each plugin.
CONFIGS: dict[str, dict[str, Any]] = {
    "bridge": {"bridge": "br0", "ipam": POOL},
    "host-local": {"ipam": POOL},
    "static": {"ipam": {"type": "static", "addresses": [{"address": "10.1.0.9/24"}]}},
    "portmap": {"prevResult": PREVIOUS, "runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80}]}},
    "firewall": {"prevResult": PREVIOUS},
    "bandwidth": {"prevResult": PREVIOUS},
    "tuning": {"prevResult": PREVIOUS},
    "loopback": {},
}


@dataclass(frozen=True, slots=True)
class Case:
    """One call of one plugin, and the codes that may come back."""

    plugin: str
    codes: tuple[int, ...]
    keys: Mapping[str, Any] = field(default_factory=dict)
    verb: str = "ADD"
    environ: Mapping[str, str | None] = field(default_factory=dict)
    stdin: bytes | None = None
    words: str = ""

    @property
    def name(self) -> str:
        said = self.words or json.dumps(self.keys or dict(self.environ))
        return f"{self.plugin} {self.verb} {said[:90]}"

    def body(self) -> bytes:
        if self.stdin is not None:
            return self.stdin
        config = {"cniVersion": "1.1.0", "name": "net", "type": self.plugin, **CONFIGS[self.plugin], **self.keys}
        return json.dumps({key: value for key, value in config.items() if value is not None}).encode()


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    with Namespace.create("host") as host:
        yield host.add_pod("pod")


def ask(pod: Pod, bin_dir: Path, case: Case, number: int = 0) -> Answer:
    """Execute a case for attachment `number`: those that run at once must not be in each other's way."""
    environ: dict[str, str | None] = {
        "CNI_COMMAND": case.verb,
        "CNI_CONTAINERID": f"pod-{number}",
        "CNI_IFNAME": f"eth{number}",
        "CNI_NETNS": pod.path,
        "CNI_PATH": str(bin_dir),
        **case.environ,
    }
    given = {key: value for key, value in environ.items() if value is not None}
    # SIGXCPU after a second: the claim, and no matter how busy the machine is.
    command = ("prlimit", "--cpu=1:2", "--core=0", str(bin_dir / case.plugin))
    done = pod.host.run(*command, input=case.body(), env=given, check=False, text=True)
    return Answer(done.returncode, done.stdout, done.stderr)


def judge(pod: Pod, bin_dir: Path, cases: list[Case]) -> None:
    """All cases, two at a time; then look once whether anything was left."""
    host = pod.host
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda number, case: ask(pod, bin_dir, case, number), range(len(cases)), cases))
    wrong = []
    for case, answer in zip(cases, answers, strict=True):
        try:
            code: object = answer.code
        except (ValueError, KeyError):
            code = None
        if code not in case.codes or "Traceback" in answer.stderr or not answer.words.strip(": "):
            wrong.append(f"{case.name}: {code}, not {case.codes}: {answer.stdout[:300]} {answer.stderr[-300:]}")
    assert wrong == [], "\n".join(wrong)
    links = {"br0"} if "br0" in host.run("ip", "link").stdout else set()
    assert leftovers(host, links=links) == []
    shown = pod.run("ip", "-brief", "link").stdout.split("\n")
    assert [line.split()[0] for line in shown if line] == ["lo"]


GARBAGE: dict[str, bytes] = {
    "nothing": b"",
    "words": b"hello",
    "truncated": b'{"cniVersion": "1.1.0", "name": "n',
    "not utf-8": b'{"cniVersion": "1.1.0", "name": "\xff\xfe"}',
    "a list": b"[1, 2]",
    "a number": b"5",
    "null": b"null",
    "a NUL": b"\0",
    "two objects": b"{} {}",
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "deep in a key": b'{"cniVersion": "1.1.0", "name": "net", "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "an endless number": b'{"cniVersion": "1.1.0", "name": "net", "mtu": ' + b"9" * 100_000 + b"}",
}


@pytest.mark.parametrize("plugin", CONFIGS)
def test_garbage_on_standard_input_is_a_decoding_failure(plugin: str, pod: Pod, bin_dir: Path) -> None:
    chosen = GARBAGE if plugin == "bridge" else dict(list(GARBAGE.items())[2::4])
    judge(pod, bin_dir, [Case(plugin, (DECODING,), stdin=stdin, words=words) for words, stdin in chosen.items()])


def test_garbage_is_refused_by_every_verb(pod: Pod, bin_dir: Path) -> None:
    verbs = ("DEL", "CHECK", "GC", "STATUS")
    judge(pod, bin_dir, [Case("bridge", (DECODING,), verb=verb, stdin=b"{", words="{") for verb in verbs])


def test_nesting_that_can_just_be_read_is_no_defect(pod: Pod, bin_dir: Path) -> None:
    """Deep enough for the decoder, too deep for who writes it again, for a delegate."""
    depths = (300, 900, 960, 990, 995)
    cases = []
    for depth in depths:
        text = json.dumps({"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "lo", "ipam": POOL})
        stdin = text[:-1].encode() + b', "x": ' + b"[" * depth + b"]" * depth + b"}"
        cases.append(Case("bridge", (DECODING, CONFIG), stdin=stdin, words=f"{depth} levels"))
        cases.append(Case("bridge", (DECODING, CONFIG), verb="STATUS", stdin=stdin.replace(b"10.1", b"x"), words="."))
    judge(pod, bin_dir, cases)


# Each key of each plugin, with values of a wrong kind or out of bounds; test_parse_fuzz.py tries many more.
TEXT_IS_WRONG: tuple[Any, ...] = (5, ["x"])
FLAG_IS_WRONG: tuple[Any, ...] = ("true",)
NUMBER_IS_WRONG: tuple[Any, ...] = ("5", -1, True)
LIST_IS_WRONG: tuple[Any, ...] = ("x", [5])

WRONG_MAPPINGS: tuple[Any, ...] = (
    5, [5], [{}], [{"hostPort": "80", "containerPort": 80}], [{"hostPort": 65536, "containerPort": 80}],
    [{"hostPort": -1, "containerPort": 80}], [{"hostPort": 80, "containerPort": 0}],
    [{"hostPort": 80, "containerPort": 80, "protocol": "icmp"}],
    [{"hostPort": 80, "containerPort": 80, "hostIP": "x"}],
    [{"hostPort": 80, "containerPort": 80, "hostIP": 5}],
)  # fmt: skip
WRONG: dict[str, dict[str, tuple[Any, ...]]] = {
    "bridge": {
        "name": (*TEXT_IS_WRONG, "", "/", "../x", "a/b", "-a", "a b", "ä", "a\0b", "x" * 2000),
        "type": (5, "../x", "/bin/sh", "..", "a\0b"),
        "bridge": (*TEXT_IS_WRONG, "..", ".", "a/b", "a b", "a:b", "a%d", "x" * 16, "a\0b", "\ud800", "lo"),
        "isGateway": FLAG_IS_WRONG,
        "isDefaultGateway": FLAG_IS_WRONG,
        "forceAddress": FLAG_IS_WRONG,
        "ipMasq": FLAG_IS_WRONG,
        "ipMasqBackend": (5, "ebtables"),
        "mtu": (*NUMBER_IS_WRONG, 65536, 10**30),
        "hairpinMode": FLAG_IS_WRONG,
        "promiscMode": FLAG_IS_WRONG,
        "vlan": (*NUMBER_IS_WRONG, 4095),
        "vlanTrunk": (*LIST_IS_WRONG, [{"id": "5"}], [{"id": 5000}]),
        "preserveDefaultVlan": FLAG_IS_WRONG,
        "macspoofchk": FLAG_IS_WRONG,
        "enabledad": FLAG_IS_WRONG,
        "disableContainerInterface": (*FLAG_IS_WRONG, True),
        "portIsolation": FLAG_IS_WRONG,
        "args": (5, {"cni": 5}, {"cni": {"mac": 5}}, {"cni": {"mac": "x"}}),
        "runtimeConfig": (5, {"mac": 5}, {"mac": "01:00:5e:00:00:01"}, {"mac": "00:00:00:00:00:00"}, {"ipRanges": 5}),
        "dns": (5, [1], {"nameservers": 5}, {"search": [5]}),
        "ipam": (
            5, "host-local", {"type": 5}, {"type": "../host-local"}, {"type": "/usr/lib/cni/host-local"},
            {"type": ".."}, {"type": "a\0b"},
        ),
    },
    "host-local": {
        "ipam": (
            5, {"ranges": 5}, {"ranges": [5]}, {"ranges": [[5]]}, {"ranges": [[]]}, {"ranges": []},
            {**POOL, "routes": 5}, {**POOL, "routes": [5]}, {**POOL, "routes": [{"dst": "x"}]},
            {**POOL, "routes": [{"dst": "0.0.0.0/0", "gw": "x"}]}, {**POOL, "resolvConf": 5}, {**POOL, "dataDir": 5},
            *({"ranges": [[{"subnet": subnet}]]} for subnet in (
                5, "", "x", "10.1.0.0", "10.1.0.5/24", "10.1.0.0/33", "10.1.0.0/31", "10.1.0.0/-1", "300.1.0.0/24",
                "fd01::/127", "fd01::1/64", "::ffff:10.1.0.0/120", "fd01::%eth0/64", "10.1.0.0/24/24", "\ud800/24",
            )),
            *({"ranges": [[{"subnet": "10.1.0.0/24", **keys}]]} for keys in (
                {"rangeStart": 5}, {"rangeStart": "x"}, {"rangeStart": "10.2.0.1"}, {"rangeEnd": "10.2.0.1"},
                {"rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.3"}, {"gateway": "x"}, {"gateway": "10.1.0.1/24"},
            )),
            {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/16"}]]},
            {"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd01::/64"}]]},
        ),
        "runtimeConfig": ({"ips": 5}, {"ips": ["x"]}, {"ips": ["10.9.0.1"]}, {"ipRanges": [[{"subnet": "x"}]]}),
        "args": ({"cni": {"ips": "10.1.0.5"}},),
    },
    "static": {
        "ipam": (
            5, {"addresses": 5}, {"addresses": [5]}, {"addresses": [{"address": 5}]}, {"addresses": [{"address": "x"}]},
            {"addresses": [{"address": "10.1.0.9"}]}, {"addresses": [{"address": "10.1.0.9/33"}]},
            {"addresses": [{"address": "10.1.0.9/24", "gateway": "x"}]},
            {"addresses": [{"address": "10.1.0.9/24"}], "dns": 5},
        ),
        "runtimeConfig": ({"ips": ["10.1.0.9"]}, {"ips": [5]}),
    },
    "portmap": {
        "backend": (5, "ipvs"),
        "snat": FLAG_IS_WRONG,
        "masqAll": FLAG_IS_WRONG,
        "markMasqBit": ("5", 64),
        "conditionsV4": (5, [5]),
        "runtimeConfig": tuple({"portMappings": mappings} for mappings in WRONG_MAPPINGS),
        "prevResult": (None,),
    },
    "firewall": {
        "backend": (5, "ipfw"),
        "ingressPolicy": (5, "closed"),
        "iptablesAdminChainName": (5,),
        "firewalldZone": (5,),
        "prevResult": (None,),
    },
    "bandwidth": {
        "ingressRate": ("5", -1, 2**64),
        "egressRate": NUMBER_IS_WRONG,
        "runtimeConfig": ({"bandwidth": 5}, {"bandwidth": {"ingressRate": "5"}}),
    },
    "tuning": {
        "sysctl": (5, {"net.core.somaxconn": 5}, {"../../x": "1"}, {"kernel.panic": "1"}, {"net/../kernel/panic": "1"}),
        "mac": (5, "x", "01:00:5e:00:00:01"),
        "promisc": FLAG_IS_WRONG,
        "mtu": NUMBER_IS_WRONG,
        "txQLen": NUMBER_IS_WRONG,
        "allmulti": FLAG_IS_WRONG,
    },
}  # fmt: skip
BAD_RESULTS: tuple[Any, ...] = (
    5, [1], {"interfaces": 5}, {"interfaces": [5]}, {"interfaces": [{"name": 5}]}, {"ips": 5},
    {"ips": [{"address": "x"}]}, {"ips": [{"address": 5}]}, {"routes": [{}]}, {"dns": 5}, {"ip4": {"ip": "x"}},
    {"ip4": 5},
)  # fmt: skip


@pytest.mark.parametrize("plugin", WRONG)
def test_each_key_with_a_wrong_value_is_an_invalid_configuration(plugin: str, pod: Pod, bin_dir: Path) -> None:
    cases = [Case(plugin, (CONFIG,), {key: value}) for key, values in WRONG[plugin].items() for value in values]
    judge(pod, bin_dir, cases)


def test_a_previous_result_that_is_none_is_a_decoding_failure(pod: Pod, bin_dir: Path) -> None:
    judge(pod, bin_dir, [Case("portmap", (DECODING,), {"prevResult": value}) for value in BAD_RESULTS])


def test_a_version_that_nobody_knows_is_incompatible(pod: Pod, bin_dir: Path) -> None:
    versions = (5, "2.0.0", "1.1", "latest", ["1.1.0"], True)
    judge(pod, bin_dir, [Case("bridge", (1,), {"cniVersion": version}) for version in versions])


def test_an_environment_that_is_wrong_is_told(pod: Pod, bin_dir: Path) -> None:
    names = ("", "/", "../x", "a/b", "-a", ".a", "a b", "ä", "x" * 2000)
    ifnames = ("", ".", "..", "a/b", "a b", "a:b", "eth%d", "x" * 16, "\u2003")
    cases = [Case("bridge", (ENVIRONMENT,), environ={"CNI_CONTAINERID": name}) for name in names]
    cases += [Case("bridge", (ENVIRONMENT,), environ={"CNI_IFNAME": name}) for name in ifnames]
    cases += [Case("bridge", (ENVIRONMENT,), verb=verb) for verb in ("add", "NOTHING", "../ADD")]
    for verb, variables in (
        ("ADD", ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")),
        ("CHECK", ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")),
        ("DEL", ("CNI_CONTAINERID", "CNI_IFNAME")),
        ("GC", ("CNI_PATH",)),
    ):
        cases += [Case("bridge", (ENVIRONMENT,), verb=verb, environ={name: None}) for name in variables]
    cases += [Case("bridge", (ENVIRONMENT,), environ={"CNI_ARGS": words}) for words in ("x", "=x", "A=1;b")]
    cases += [Case("host-local", (ENVIRONMENT,), environ={"CNI_ARGS": f"IP={ip}"}) for ip in ("x", "10.1.0.5/99")]
    cases.append(Case("bridge", (CONFIG,), environ={"CNI_ARGS": "MAC=x"}))
    judge(pod, bin_dir, cases)


def test_a_netns_that_is_none_is_refused(pod: Pod, bin_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "fifo")
    paths = [str(tmp_path / name) for name in ("file", "dangling", "loop", "fifo", "missing", "file/x")]
    paths += [str(tmp_path), "/dev/null", "/dev/zero", "/proc/self/ns/pid", "/proc/self/ns/net"]
    paths += ["relative", "/run/netns/../netns/nobody", "x" * 5000]
    cases = [Case("bridge", (NETNS,), environ={"CNI_NETNS": path}, words=path) for path in paths]
    for plugin, keys in (("loopback", {}), ("tuning", {"mtu": 1400}), ("bandwidth", {"ingressRate": 8000})):
        cases += [Case(plugin, (NETNS,), keys, environ={"CNI_NETNS": path}, words=path) for path in paths[:2]]
    judge(pod, bin_dir, cases)


def test_del_with_a_netns_that_is_none_succeeds(pod: Pod, bin_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for path in (tmp_path / "file", tmp_path / "dangling", tmp_path / "missing", Path("/proc/self/ns/pid")):
        answer = ask(pod, bin_dir, Case("bridge", (0,), verb="DEL", environ={"CNI_NETNS": str(path)}))
        assert (answer.exit_code, answer.stdout) == (0, ""), answer


def test_data_directories_that_cannot_be_are_io_errors_and_stay_inside(pod: Pod, bin_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folders = (
        str(tmp_path / "file"),
        "/dev/null",
        "/proc/1/x",
        "/proc/self/net/x",
        "x" * 300,
        "/sys/x",
        "a\0b",
        "\ud800",
    )
    cases = [
        Case(plugin, (5, CONFIG), {"ipam": {**POOL, "dataDir": folder}}, words=folder[:20])
        for plugin in ("host-local", "bridge")
        for folder in folders
    ]
    judge(pod, bin_dir, cases)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_an_exhausted_pool_and_a_delegate_that_is_missing_are_told(pod: Pod, bin_dir: Path, tmp_path: Path) -> None:
    one = {"type": "host-local", "dataDir": str(tmp_path), "subnet": "10.1.0.0/30"}
    assert ask(pod, bin_dir, Case("host-local", (0,), {"ipam": one})).code == 0
    others = {"CNI_CONTAINERID": "another"}
    cases = [Case(plugin, (EXHAUSTED,), {"ipam": one}, environ=others) for plugin in ("host-local", "bridge")]
    cases.append(Case("bridge", (50,), {"ipam": one}, verb="STATUS"))
    cases.append(Case("bridge", (DELEGATE,), {"ipam": {"type": "no-such"}}))
    cases.append(Case("bridge", (DELEGATE,), environ={"CNI_PATH": str(tmp_path)}))
    first = {"CNI_CONTAINERID": "pod-0", "CNI_IFNAME": "eth0"}
    cases.append(Case("host-local", (EXISTS,), {"ipam": one}, environ=first))
    judge(pod, bin_dir, cases)
