"""The access log: which requests, whole lines, another file when asked, lines lost rather than time."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from meshproxy.access_log import Record, RequestLog, render
from meshproxy.config import AccessLog
from meshproxy.metrics import Statistics

NOW = datetime(2026, 11, 21, 12, 0, 0, 5000, tzinfo=UTC)
RECORD = Record(listener="in", path=b'/\xff\n"', status=200, attempts=1, duration_s=0.0123456)


def test_a_line_is_json_whatever_the_client_sent() -> None:
    line = render(RECORD, NOW)
    assert b"\n" not in line
    assert json.loads(line) == {
        "time": "2026-11-21T12:00:00.005Z",
        "listener": "in",
        "protocol": "HTTP/1.1",
        "path": '/\\xff\n"',
        "status": 200,
        "attempts": 1,
        "duration_ms": 12.346,
    }


@pytest.mark.parametrize(("mode", "expected"), [("off", 0), ("errors", 2), ("sampled", 11), ("all", 100)])
def test_each_mode_takes_its_share(mode: str, expected: int, tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = RequestLog(AccessLog(mode=mode, sample=10, path=str(path)), Statistics())  # type: ignore[arg-type]
    for number in range(100):
        failed = number in (3, 50)
        if log.is_on and log.wants(failed=failed):
            log.write(RECORD, failed=failed)
    log.close()
    lines = path.read_text().splitlines() if path.exists() else []
    assert abs(len(lines) - expected) <= (1 if mode == "sampled" else 0)


def test_a_moved_file_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = RequestLog(AccessLog(mode="all", path=str(path)), Statistics())
    log.write(RECORD, failed=False)
    log.flush()
    path.rename(tmp_path / "log.1")
    log.write(RECORD, failed=False)
    log.reopen()
    log.write(RECORD, failed=False)
    log.close()
    assert len((tmp_path / "log.1").read_text().splitlines()) == 2
    assert len(path.read_text().splitlines()) == 1


def test_a_reader_that_sleeps_costs_lines_and_no_time(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    statistics = Statistics()
    log = RequestLog(AccessLog(mode="all", path=str(path)), statistics)
    try:
        for _ in range(3000):  # a pipe holds 64 KiB
            log.write(RECORD, failed=False)
        log.flush()
        assert statistics.access_log_lost > 0
        assert statistics.access_log_lines + statistics.access_log_lost == 3000
    finally:
        os.close(reader)
        log.close()


def test_a_follower_sees_every_request_also_with_the_log_off() -> None:
    log = RequestLog(AccessLog(mode="off"), Statistics())
    assert not log.is_on
    seen: list[tuple[bytes, bool]] = []
    key = log.follow(lambda line, *, failed: seen.append((line, failed)))
    assert log.is_on
    assert log.wants(failed=False)
    log.write(RECORD, failed=False)
    log.unfollow(key)
    assert not log.is_on
    assert [failed for _, failed in seen] == [False]
