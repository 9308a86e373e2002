"""The proxy as operators meet it, as real processes: reloads, restarts and crashes under load fail no request."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.meshproxy.live.processes import ROOT, EndpointProcess, Load, ProxyProcess, get
from waiting import wait_until

CONFIG = """
admin: {{port: 0}}
drain: 10s
{top}
listeners:
  - name: web
    port: 0
    routes:
      - cluster: web
        {route}
clusters:
  - name: web
    endpoints: [{endpoints}]
"""


NEW_LISTENER = """\
  - name: other
    port: 0
    routes:
      - cluster: web
"""


def config_of(*endpoints: EndpointProcess, top: str = "", route: str = "", more: str = "") -> str:
    ports = ", ".join(f"127.0.0.1:{endpoint.port}" for endpoint in endpoints)
    return CONFIG.format(endpoints=ports, top=top, route=route) + more


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def endpoint(stack: ExitStack, mode: str = "ok", *, port: int = 0) -> EndpointProcess:
    return stack.enter_context(EndpointProcess(mode, port=port))


def proxy(stack: ExitStack, folder: Path, config: str, *, hot_restart: bool = False) -> ProxyProcess:
    return stack.enter_context(ProxyProcess(folder, config, hot_restart=hot_restart))


def answered_by(load: Load, one: EndpointProcess) -> int:
    return load.bodies[b"%d" % one.port]


def test_a_reload_under_load_fails_no_request(stack: ExitStack, tmp_path: Path) -> None:
    first, second = endpoint(stack), endpoint(stack)
    running = proxy(stack, tmp_path, config_of(first))
    with Load(running.port) as load:
        for number in range(6):
            running.rewrite(config_of((first, second)[(number + 1) % 2]))
            running.send(signal.SIGHUP)
            wait_until(lambda number=number: running.stats()["reloads"] == number + 1, within=10)  # type: ignore[misc]
            load.more(100)
    assert load.failures == []
    assert set(load.statuses) == {200}
    assert answered_by(load, second) > 0


def test_a_changed_file_is_read_without_being_asked(stack: ExitStack, tmp_path: Path) -> None:
    first, second = endpoint(stack), endpoint(stack)
    running = proxy(stack, tmp_path, config_of(first))
    running.rewrite(config_of(second))
    wait_until(lambda: get(running.port)[1] == str(second.port), within=10)


def test_a_bad_file_leaves_what_runs_and_is_told_everywhere(stack: ExitStack, tmp_path: Path) -> None:
    one = endpoint(stack)
    running = proxy(stack, tmp_path, config_of(one))
    running.rewrite(config_of(one).replace("routes:", "rotues:"))
    assert "unknown key `rotues`: did you mean `routes`?" in running.admin("/reload", method="POST")
    assert get(running.port) == (200, str(one.port))
    assert "reload refused" in running.text()
    assert "meshproxy_config_refused 1" in running.admin("/metrics")
    assert 'meshproxy_config_reloads_total{result="refused"} 1' in running.admin("/metrics")
    running.rewrite(config_of(one))
    assert running.admin("/reload", method="POST") == "taken\n"
    assert "meshproxy_config_refused 0" in running.admin("/metrics")


def test_a_hot_restart_under_load_fails_no_request(stack: ExitStack, tmp_path: Path) -> None:
    one = endpoint(stack)
    config = config_of(one)
    running = proxy(stack, tmp_path, config)
    with Load(running.port) as load:
        for _ in range(3):
            after = proxy(stack, tmp_path, config, hot_restart=True)
            assert running.wait(15) == 0
            assert after.port == running.port
            running = after
            load.more(200)
    assert load.failures == []
    assert set(load.statuses) == {200}


def test_a_successor_that_fails_to_start_changes_nothing(stack: ExitStack, tmp_path: Path) -> None:
    one = endpoint(stack)
    running = proxy(stack, tmp_path, config_of(one))
    running.path.write_text("listeners: 1\n")
    command = [sys.executable, "-m", "meshproxy", "run", "--config", str(running.path), "--hot-restart"]
    bad = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=20, text=True)
    assert bad.returncode == 78
    assert "listeners: expected a list, found `1`" in bad.stderr
    assert get(running.port) == (200, str(one.port))


def test_sigterm_lets_requests_end_then_exits(stack: ExitStack, tmp_path: Path) -> None:
    slow = endpoint(stack, "slow")
    running = proxy(stack, tmp_path, config_of(slow))
    with Load(running.port, clients=3, first=0) as load:
        wait_until(lambda: slow.served() == 3, within=10)
        running.send(signal.SIGTERM)
        assert running.wait(10) == 0
    assert load.statuses == {200: 3}
    # What came afterwards found nobody.
    assert all("refused" in failure.lower() for failure in load.failures)


def test_a_drain_is_told_by_ready_and_ends_the_process(stack: ExitStack, tmp_path: Path) -> None:
    running = proxy(stack, tmp_path, config_of(endpoint(stack)))
    assert running.admin("/ready") == "ready\n"
    assert running.admin("/drain", method="POST") == "draining\n"
    assert running.wait(10) == 0


def test_a_rolling_restart_of_all_endpoints_fails_no_request(stack: ExitStack, tmp_path: Path) -> None:
    ones = [endpoint(stack) for _ in range(3)]
    running = proxy(stack, tmp_path, config_of(*ones))
    with Load(running.port) as load:
        for number, old in enumerate(ones):
            old.send(signal.SIGTERM)
            old.wait(10)
            load.more(50)
            ones[number] = endpoint(stack, port=old.port)
            load.more(50)
    assert load.failures == []
    assert set(load.statuses) == {200}


def test_a_killed_endpoint_fails_no_request_that_may_be_repeated(stack: ExitStack, tmp_path: Path) -> None:
    ones = [endpoint(stack) for _ in range(3)]
    retry = "retry: {retry_on: [reset, connect-failure], num_retries: 2}"
    running = proxy(stack, tmp_path, config_of(*ones, route=retry))
    with Load(running.port) as load:
        ones[0].kill()
        load.more(200)
    assert load.failures == []
    assert set(load.statuses) == {200}


def test_a_frozen_endpoint_is_given_up_after_the_tries_time(stack: ExitStack, tmp_path: Path) -> None:
    ones = [endpoint(stack) for _ in range(3)]
    retry = "retry: {retry_on: [reset, 5xx], per_try_timeout: 200ms, num_retries: 2}"
    running = proxy(stack, tmp_path, config_of(*ones, route=retry))
    with Load(running.port) as load:
        ones[0].send(signal.SIGSTOP)
        try:
            load.more(60)
        finally:
            ones[0].send(signal.SIGCONT)
    assert load.failures == []
    assert set(load.statuses) <= {200, 504}
    assert load.statuses[200] > 0.9 * load.total


@pytest.mark.parametrize("clients", [4, 48])
def test_one_of_three_that_always_fails_is_not_seen_by_clients(clients: int, stack: ExitStack, tmp_path: Path) -> None:
    good, other, bad = endpoint(stack), endpoint(stack), endpoint(stack, "fail")
    route = "retry: {retry_on: [5xx], num_retries: 3}"
    # Until it is ejected, after five failures in a row, more may want a retry than the budget bears at one time.
    more = "    outlier_detection: {}\n"
    running = proxy(stack, tmp_path, config_of(good, other, bad, route=route, more=more))
    with Load(running.port, clients=clients) as load:
        load.more(500)
    assert load.failures == []
    assert set(load.statuses) == {200}
    attempts = sum(one.served() for one in (good, other, bad))
    assert attempts <= 1.2 * load.total + 5


def test_when_all_fail_the_budget_holds_through_three_proxies(stack: ExitStack, tmp_path: Path) -> None:
    bad = endpoint(stack, "fail")
    route = "retry: {retry_on: [5xx], num_retries: 5}"
    top = "access_log: off"
    last = stack.enter_context(ProxyProcess(tmp_path, config_of(bad, route=route, top=top), name="last"))
    text = config_of(bad, route=route, top=top).replace(str(bad.port), "{}")
    middle = stack.enter_context(ProxyProcess(tmp_path, text.replace("{}", str(last.port)), name="middle"))
    first = stack.enter_context(ProxyProcess(tmp_path, text.replace("{}", str(middle.port)), name="first"))
    with Load(first.port, clients=8) as load:
        load.more(800)
    assert set(load.statuses) == {503}
    assert bad.served() <= 1.2 * load.total


def test_a_crashed_worker_is_started_again(stack: ExitStack, tmp_path: Path) -> None:
    one = endpoint(stack)
    running = proxy(stack, tmp_path, config_of(one, top="workers: 2"))
    wait_until(lambda: running.stats()["workers"] == 2, within=10)
    pids = {int(line.rpartition("pid=")[2]) for line in running.text().splitlines() if "worker started" in line}
    os.kill(min(pids), signal.SIGKILL)
    wait_until(lambda: running.text().count("worker started") == 3, within=10)
    wait_until(lambda: running.admin("/ready") == "ready\n", within=10)
    assert get(running.port) == (200, str(one.port))


def test_workers_are_one_proxy_to_the_operator(stack: ExitStack, tmp_path: Path) -> None:
    one = endpoint(stack)
    running = proxy(stack, tmp_path, config_of(one, top="workers: 2"))
    wait_until(lambda: running.stats()["workers"] == 2, within=10)
    with Load(running.port, clients=8) as load:
        load.more(300)
    stats = running.stats()["routes"]["web"]["route-0"]["web"]
    assert stats["answers"]["2xx"] == load.total
    name = 'meshproxy_requests_total{listener="web",route="route-0",cluster="web",code_class="2xx"}'
    assert f"{name} {load.total}\n" in running.admin("/metrics")
    assert json.loads(running.admin("/clusters"))["web"]["endpoints"][f"127.0.0.1:{one.port}"]["requests"] == load.total
    running.send(signal.SIGTERM)
    assert running.wait(15) == 0


def test_workers_reload_and_take_a_new_listener_under_load(stack: ExitStack, tmp_path: Path) -> None:
    first, second = endpoint(stack), endpoint(stack)
    running = proxy(stack, tmp_path, config_of(first, top="workers: 2"))
    more = config_of(second, top="workers: 2").replace("clusters:", NEW_LISTENER + "clusters:")
    with Load(running.port) as load:
        running.rewrite(config_of(second, top="workers: 2"))
        running.send(signal.SIGHUP)
        wait_until(lambda: answered_by(load, second) > 50, within=10)
        running.rewrite(more)
        running.send(signal.SIGHUP)
        wait_until(lambda: "other=0.0.0.0" in running.text(), within=10)
        load.more(200)
    assert load.failures == []
    assert set(load.statuses) == {200}
    port = int(running.text().partition("other=0.0.0.0:")[2].split()[0])
    assert get(port) == (200, str(second.port))


def test_workers_are_handed_over_without_a_lost_request(stack: ExitStack, tmp_path: Path) -> None:
    one = endpoint(stack)
    running = proxy(stack, tmp_path, config_of(one, top="workers: 2"))
    with Load(running.port) as load:
        # Fewer workers than before: the queues of all of them are served.
        running.path.write_text(config_of(one, top="workers: 1"))
        after = proxy(stack, tmp_path, config_of(one, top="workers: 1"), hot_restart=True)
        assert running.wait(20) == 0
        load.more(200)
    assert load.failures == []
    assert set(load.statuses) == {200}
    assert after.stats()["workers"] == 1


def test_endpoints_of_a_watched_file_come_and_go_without_a_reload(stack: ExitStack, tmp_path: Path) -> None:
    first, second = endpoint(stack), endpoint(stack)
    listed = tmp_path / "endpoints.yaml"
    listed.write_text(f"- 127.0.0.1:{first.port}\n")
    config = config_of(first).replace(f"endpoints: [127.0.0.1:{first.port}]", f"file: {listed}")
    running = proxy(stack, tmp_path, config)
    with Load(running.port) as load:
        listed.with_suffix(".new").write_text(f"- 127.0.0.1:{second.port}\n")
        listed.with_suffix(".new").replace(listed)
        wait_until(lambda: answered_by(load, second) > 50, within=10)
    assert load.failures == []
    assert set(load.statuses) == {200}


def test_an_endpoint_that_fails_its_checks_gets_no_request(stack: ExitStack, tmp_path: Path) -> None:
    good, bad = endpoint(stack), endpoint(stack, "fail")
    check = "    health_check: {interval: 50ms, unhealthy_threshold: 1}\n"
    running = proxy(stack, tmp_path, config_of(good, bad, more=check))

    def state(one: EndpointProcess) -> bool:
        shown = json.loads(running.admin("/clusters"))["web"]["endpoints"][f"127.0.0.1:{one.port}"]
        return bool(shown["available"])

    wait_until(lambda: state(good) and not state(bad), within=10)
    with Load(running.port) as load:
        load.more(100)
    assert load.statuses == {200: load.total}
    # A reload takes the checks away, and the endpoint is asked again.
    running.rewrite(config_of(good, bad))
    assert running.admin("/reload", method="POST") == "taken\n"
    wait_until(lambda: state(bad), within=10)


def test_a_reload_changes_the_admin_port_and_keeps_counters(stack: ExitStack, tmp_path: Path) -> None:
    one = endpoint(stack)
    running = proxy(stack, tmp_path, config_of(one))
    assert get(running.port) == (200, str(one.port))
    with EndpointProcess() as free:
        port = free.port
    running.rewrite(config_of(one).replace("admin: {port: 0}", f"admin: {{port: {port}}}"))
    running.send(signal.SIGHUP)

    def moved() -> bool:
        try:
            return get(port, "/ready")[0] == 200
        except OSError:
            return False

    wait_until(moved, within=10)
    stats = json.loads(get(port, "/stats")[1])
    assert stats["routes"]["web"]["route-0"]["web"]["answers"]["2xx"] == 1


def test_the_tail_shows_requests_as_they_end(stack: ExitStack, tmp_path: Path) -> None:
    one = endpoint(stack)
    running = proxy(stack, tmp_path, config_of(one, top="access_log: off\nworkers: 2"))
    wait_until(lambda: running.stats()["workers"] == 2, within=10)
    connection = http.client.HTTPConnection("127.0.0.1", running.admin_port, timeout=10)
    try:
        connection.request("GET", "/tail")
        answer = connection.getresponse()
        assert answer.readline() == b": requests as they end\n"
        seen: set[str] = set()
        while len(seen) < 4:  # of both workers, in whichever order
            get(running.port, f"/{len(seen)}")
            line = answer.readline()
            if line.startswith(b"data: "):
                seen.add(json.loads(line[6:])["path"])
    finally:
        connection.close()
    assert len(seen) == 4


def test_an_endpoint_that_resets_is_not_seen_by_clients_that_may_ask_again(stack: ExitStack, tmp_path: Path) -> None:
    good, bad = endpoint(stack), endpoint(stack, "reset")
    route = "retry: {retry_on: [reset], num_retries: 2}"
    more = "    outlier_detection: {}\n"
    running = proxy(stack, tmp_path, config_of(good, bad, route=route, more=more))
    with Load(running.port) as load:
        load.more(200)
    assert load.failures == []
    assert load.statuses == {200: load.total}


def test_a_post_that_may_have_been_worked_on_is_never_sent_twice(stack: ExitStack, tmp_path: Path) -> None:
    bad = endpoint(stack, "reset")
    running = proxy(stack, tmp_path, config_of(bad, route="retry: {retry_on: [reset, 5xx], num_retries: 3}"))
    with Load(running.port, method="POST") as load:
        load.more(100)
    assert set(load.statuses) <= {502, 503}
    assert bad.served() <= load.total


def test_the_configuration_is_shown_as_it_runs(stack: ExitStack, tmp_path: Path) -> None:
    one = endpoint(stack)
    running = proxy(stack, tmp_path, config_of(one))
    shown = json.loads(running.admin("/config"))
    assert shown["drain_s"] == 10
    assert shown["listeners"][0]["routes"][0]["action"]["clusters"] == [{"cluster": "web", "weight": 1}]
    assert shown["clusters"][0]["discovery"]["endpoints"][0]["port"] == one.port
    assert shown["admin"] == {"address": "127.0.0.1", "port": 0}


def test_more_workers_take_over_from_fewer(stack: ExitStack, tmp_path: Path) -> None:
    one = endpoint(stack)
    running = proxy(stack, tmp_path, config_of(one))
    with Load(running.port) as load:
        after = proxy(stack, tmp_path, config_of(one, top="workers: 3"), hot_restart=True)
        assert running.wait(20) == 0
        load.more(100)
    assert load.failures == []
    wait_until(lambda: after.stats()["workers"] == 3, within=10)


def test_workers_refuse_a_bad_file_and_show_it(stack: ExitStack, tmp_path: Path) -> None:
    one = endpoint(stack)
    running = proxy(stack, tmp_path, config_of(one, top="workers: 2"))
    running.rewrite("listeners: 1\n")
    running.send(signal.SIGHUP)
    wait_until(lambda: "meshproxy_config_refused 2" in running.admin("/metrics"), within=10)
    assert "listeners: expected a list, found `1`" in running.admin("/reload", method="POST")
    assert get(running.port) == (200, str(one.port))
    assert running.admin("/ready") == "ready\n"


def test_the_log_level_is_changed_for_all_workers(stack: ExitStack, tmp_path: Path) -> None:
    running = proxy(stack, tmp_path, config_of(endpoint(stack), top="workers: 2"))
    assert running.admin("/logging") == "info\n"
    assert running.admin("/logging?level=loud", method="POST").startswith("expected ?level= one of debug, info")
    assert running.admin("/logging?level=debug", method="POST") == "debug\n"
    for _ in range(8):  # whichever worker answers
        assert running.admin("/logging") == "debug\n"


def test_workers_whose_parent_is_killed_end_their_requests_and_exit(stack: ExitStack, tmp_path: Path) -> None:
    one = endpoint(stack)
    running = proxy(stack, tmp_path, config_of(one, top="workers: 2"))
    wait_until(lambda: running.stats()["workers"] == 2, within=10)
    port = running.port
    running.kill()

    def is_refused() -> bool:
        try:
            get(port)
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
        return False

    wait_until(is_refused, within=10)
    wait_until(lambda: running.text().count("info ending") == 2, within=10)
