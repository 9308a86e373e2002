"""A file is taken whole or refused whole, and each fault says where it is, what was expected and what was found."""

from pathlib import Path

import pytest

from meshproxy.config import (
    AccessLog,
    DirectAnswer,
    DnsDiscovery,
    EndpointConfig,
    Forward,
    HeaderMatch,
    StaticDiscovery,
    StringMatch,
    WeightedCluster,
)
from meshproxy.config_file import ConfigFault, load, parse

BASE = """\
listeners:
  - name: in
    port: 80
    routes:
      - cluster: web
{route}
{listener}
clusters:
  - name: web
    endpoints: [10.0.0.1:80]
{cluster}
{top}
"""


def text_of(*, route: str = "", listener: str = "", cluster: str = "", top: str = "") -> str:
    route = "\n".join(" " * 8 + line for line in route.splitlines())
    listener = "\n".join(" " * 4 + line for line in listener.splitlines())
    cluster = "\n".join(" " * 4 + line for line in cluster.splitlines())
    return BASE.format(route=route, listener=listener, cluster=cluster, top=top)


def faults_of(text: str) -> list[str]:
    with pytest.raises(ConfigFault) as raised:
        parse(text, path="f")
    return str(raised.value).splitlines()


def test_short_forms_mean_what_they_say() -> None:
    config = parse(
        """
        access_log: all
        admin: off
        listeners:
          - name: in
            port: 8080
            routes:
              - match: {hosts: a.b, path: /x, headers: [x-there, {name: x-is, value: "1"}]}
                clusters: {web: 90, canary: 10}
                timeout: 1m30s
              - answer: {status: 404}
        clusters:
          - {name: web, endpoints: ["10.0.0.1:80", "[::1]:81"]}
          - {name: canary, dns: "canary.example:80"}
        """
    )
    assert config.access_log == AccessLog(mode="all")
    assert config.admin is None
    first, last = config.listeners[0].routes
    assert first.match.hosts == ("a.b",)
    assert first.match.path == StringMatch(prefix="/x")
    assert first.match.headers == (HeaderMatch(name="x-there"), HeaderMatch(name="x-is", value=StringMatch(exact="1")))
    assert isinstance(first.action, Forward)
    assert first.action.clusters == (
        WeightedCluster(cluster="web", weight=90),
        WeightedCluster(cluster="canary", weight=10),
    )
    assert first.action.timeout_s == 90
    assert last.action == DirectAnswer(status=404)
    assert (first.name, last.name) == ("route-0", "route-1")
    assert config.clusters[0].discovery == StaticDiscovery(
        endpoints=(EndpointConfig(address="10.0.0.1", port=80), EndpointConfig(address="::1", port=81))
    )
    assert config.clusters[1].discovery == DnsDiscovery(name="canary.example", port=80)


@pytest.mark.parametrize(
    ("where", "text", "expected"),
    [
        ("route", "tiemout: 5s", "unknown key `tiemout`: did you mean `timeout`?"),
        ("route", "timeout_s: 5s", "unknown key `timeout_s`: did you mean `timeout`?"),
        ("route", "timeout: 5", "timeout: expected a duration such as 250ms, 15s or 1h30m, found `5`"),
        ("route", "timeout: 5 s", "timeout: expected a duration"),
        ("route", "timeout: -5s", "timeout: expected a duration"),
        ("route", "timeout: [5s]", "timeout: expected a duration such as 250ms, 15s or 1h30m, found a list"),
        ("route", "redirect: {host: a}", "expected exactly one of `cluster`, `clusters`, `redirect`, `answer`, found"),
        ("route", "match: {path: x}", "match.path: expected a path that starts with `/`, found `x`"),
        ("route", "match: {path: {regex: '('}}", "match.path.regex: expected a regular expression ("),
        ("route", "match: {path: {exact: /a, prefix: /b}}", "match.path: expected exactly one of `exact`, `prefix`"),
        ("route", "match: {hosts: 'a.b:80'}", "match.hosts: expected hosts such as a.b, *.b or *, without a port"),
        ("route", "match: {hosts: 'a.*'}", "match.hosts: expected hosts"),
        ("route", "match: {methods: get}", "match.methods: expected methods in capitals, such as GET, found `get`"),
        ("route", "retry: {retry_on: 5xxx}", "or unavailable, found `5xxx` (did you mean 5xx?)"),
        ("route", "retry: {num_retries: 1.5}", "retry.num_retries: expected a whole number, found `1.5`"),
        ("route", "retry: {back_off_base: 1s}", "retry: expected a `back_off_base` that is not above `back_off_max`"),
        ("route", "retry: {hedge_on_per_try_timeout: true}", "retry: expected `per_try_timeout` with"),
        ("route", "retry: {hedge_on_per_try_timeout: yes}", "expected true or false, found `yes`"),
        ("route", "mirrors: nobody", "mirrors: expected a cluster of this file (`web`), found `nobody`"),
        ("route", "mirrors: {cluster: web, percent: 101}", "expected a percentage from 0 to 100, found `101`"),
        ("route", "hash: [{header: a, query: b}]", "hash[0]: expected exactly one of `header`, `cookie`"),
        ("route", "hash: [{source_address: false}]", "hash[0]: expected exactly one of"),
        ("route", "rewrite: {regex: (a), substitution: '\\2'}", "rewrite: expected a substitution that fits"),
        ("route", "rewrite: {regex: a}", "rewrite: expected `regex` and `substitution` together"),
        ("route", "match: {path: {exact: /a}}\nrewrite: {prefix: /b}", "expected a path matched by prefix"),
        ("route", "request_headers: {set: {host: a}}", "expected a header that may be edited, found `host`"),
        ("route", "request_headers: {set: {'a b': a}}", "expected header names, found `a b`"),
        ("route", "request_headers: {add: {a: {}}}", "request_headers.add.a: expected text, found a mapping"),
        ("route", 'request_headers: {add: {a: "x\\ny"}}', "expected header values without control characters"),
        ("listener", "port: 81", "listeners[0].port: expected each key once, found it again (first in line 3)"),
        ("listener", "max_head: 64kb", "listeners[0].max_head: expected a size such as 64KiB, found `64kb`"),
        ("listener", "protocol: tcp", "listeners[0]: expected `cluster`, and no `routes`, with `protocol: tcp`"),
        ("listener", "address: localhost", "listeners[0].address: expected an IP address, found `localhost`"),
        ("listener", "cluster: nobody", "listeners[0].cluster: expected a cluster of this file (`web`), found"),
        ("cluster", "file: /x", "clusters[0]: expected exactly one of `endpoints`, `file`, `dns`, found `endpoints`"),
        ("cluster", "balancing: {policy: maglew}", "found `maglew` (did you mean maglev?)"),
        ("cluster", "balancing: {maglev_table_size: 65536}", "expected a prime number up to 5000011, found `65536`"),
        ("cluster", "balancing: {hash_balance_factor: 50}", "expected 0, or at least 100 (percent), found `50`"),
        ("cluster", "health_check: {expected_statuses: [99]}", "expected a status from 100 to 599"),
        ("cluster", "outlier_detection: on", "outlier_detection: expected a mapping with `consecutive_5xx`"),
        ("top", "workers: 0", "workers: expected a number from 1 to 256, found `0`"),
        ("top", "admin: {port: 65536}", "admin.port: expected a port from 0 to 65_535, found `65536`"),
        ("top", "log_level: INFO", "log_level: expected debug, info, warning or error, found `INFO` (did you mean"),
        ("top", "access_log: some", "access_log: expected off, errors, sampled or all, found `some`"),
        ("top", "1: 2", "unknown key `1`: expected `listeners`, `clusters`"),
    ],
)
def test_a_fault_says_what_was_expected(where: str, text: str, expected: str) -> None:
    whole = text_of(**{where: text})
    first = next(number for number, line in enumerate(whole.splitlines(), 1) if line.strip() == text.split("\n")[0])
    assert [fault for fault in faults_of(whole) if expected in fault], faults_of(whole)
    lines = {int(fault.split(":")[1]) for fault in faults_of(whole)}
    # The line of the key, or of the mapping that it does not fit in.
    assert lines & {first, 2, 5, 8, 9, 10}


@pytest.mark.parametrize(
    ("endpoint", "is_sound"),
    [
        ("10.0.0.1:80", True),
        ("'[::1]:80'", True),
        ("10.0.0.1", False),
        ("10.0.0.1:0", False),
        ("10.0.0.1:65536", False),
        ("web:80", False),
        ("'::1:80'", False),
        ("'[10.0.0.1]:80'", False),
        ("{address: 10.0.0.1}", False),
        ("{address: 10.0.0.1, port: 80, weight: 0}", False),
    ],
)
def test_an_endpoint_is_an_address_with_a_port(endpoint: str, is_sound: bool) -> None:
    text = text_of().replace("[10.0.0.1:80]", f"[{endpoint}]")
    if is_sound:
        parse(text)
    else:
        assert "clusters[0].endpoints[0]" in faults_of(text)[0]


def test_all_faults_are_told_at_once_in_the_order_of_lines() -> None:
    text = text_of(route="timeout: 5", listener="port: x", cluster="protocol: http3", top="drain: never\nworkers: 0")
    numbers = [int(fault.split(":")[1]) for fault in faults_of(text)]
    assert len(numbers) >= 5
    assert numbers == sorted(numbers)


@pytest.mark.parametrize(
    ("first", "later", "is_reached"),
    [
        ("cluster: web", "cluster: web", False),
        ("cluster: web", "{cluster: web, match: {hosts: a.b, path: /x, headers: [h]}}", False),
        ("{cluster: web, match: {path: /x}}", "{cluster: web, match: {path: /x/y}}", False),
        ("{cluster: web, match: {path: /x}}", "{cluster: web, match: {path: /xy}}", True),
        ("{cluster: web, match: {path: /x}}", "{cluster: web, match: {path: {exact: /x}}}", False),
        ("{cluster: web, match: {hosts: '*.b'}}", "{cluster: web, match: {hosts: x.a.b}}", False),
        ("{cluster: web, match: {hosts: '*.b'}}", "{cluster: web, match: {hosts: b}}", True),
        ("{cluster: web, match: {hosts: '*.b'}}", "{cluster: web, match: {hosts: [a.b, c]}}", True),
        ("{cluster: web, match: {methods: GET}}", "cluster: web", True),
        ("{cluster: web, match: {methods: [GET, PUT]}}", "{cluster: web, match: {methods: PUT}}", False),
        ("{cluster: web, match: {headers: [h]}}", "{cluster: web, match: {headers: [h, i]}}", False),
        ("{cluster: web, match: {headers: [h]}}", "cluster: web", True),
        ("{cluster: web, match: {path: {regex: '/.*'}}}", "{cluster: web, match: {path: {regex: '/.*'}}}", False),
    ],
)
def test_a_route_that_no_request_can_reach_is_refused(first: str, later: str, is_reached: bool) -> None:
    text = text_of().replace("- cluster: web", f"- {first}\n      - {later}")
    if is_reached:
        parse(text)
    else:
        assert faults_of(text) == [
            "f:6: listeners[0].routes[1]: no request can reach it: `route-0` before it takes all that it would take"
        ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected a mapping with `listeners`, found nothing"),
        ("[]", "expected a mapping with"),
        ("a: [", "no YAML: "),
        ("a: b: c", "no YAML: "),
        ("listeners: &a [*a]", "expected"),
        ("? [a]\n: b", "expected a key of plain text, found a list"),
        ("listeners: []\n---\nlisteners: []", "no YAML"),
        ("listeners: !!python/object:os.system []", "expected the key"),
    ],
)
def test_what_is_no_config_is_refused(text: str, expected: str) -> None:
    if expected == "expected the key":  # a tag makes nothing: the node is read as what it is
        assert parse(text).listeners == ()
        return
    assert expected in faults_of(text)[0]


def test_names_are_unique() -> None:
    text = "clusters: [{name: a, endpoints: []}, {name: a, endpoints: []}]\nlisteners: []"
    assert faults_of(text) == ["f:1: clusters[1].name: `a` is there twice"]


def test_two_cannot_listen_in_one_place() -> None:
    listener = "{{name: {}, address: 127.0.0.1, port: {}, routes: {{answer: {{status: 200}}}}}}"
    text = "listeners:\n" + "".join(
        f"  - {listener.format(name, port)}\n"
        for name, port in (("a", 80), ("b", 80), ("c", 15000), ("d", 0), ("e", 0))
    )
    assert faults_of(text) == [
        "f:3: listeners[1].port: 127.0.0.1:80 is `a`'s already",
        "f:4: listeners[2].port: 127.0.0.1:15000 is `admin`'s already",
    ]


def test_a_cluster_with_faults_of_its_own_is_still_known() -> None:
    assert len(faults_of(text_of(cluster="protocol: http3"))) == 1


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigFault, match="cannot be read: No such file"):
        load(str(tmp_path / "none.yaml"))
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe4\n")
    with pytest.raises(ConfigFault, match=r"latin.yaml:2: expected UTF-8 text"):
        load(str(tmp_path / "latin.yaml"))
