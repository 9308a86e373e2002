"""Hostile frames get the answer that http2_abuse.py says, however they are cut, and reach nobody."""

from __future__ import annotations

import pytest

from meshproxy.wire import http2_frames as f
from tests.meshproxy.wire.http2_abuse import CASES, Case
from tests.meshproxy.wire.http2_recording import GET, RawPeer, Recorder, parse


def answer_to(case: Case, *, step: int) -> Recorder:
    recorder = Recorder(is_server=not case.from_server, max_head_bytes=8192, holds=True)
    if case.from_server:
        recorder.request(GET, end=True)
    recorder.take()
    sent = RawPeer().start(is_server=case.from_server) + case.sent
    for start in range(0, len(sent), step):
        recorder.connection.receive(sent[start : start + step])
    return recorder


@pytest.mark.parametrize("step", [1 << 30, 13])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_abuse_is_answered_as_the_table_says(case: Case, step: int) -> None:
    recorder = answer_to(case, step=step)
    answers = parse(recorder.take())
    goaways = [int.from_bytes(payload[4:8], "big") for kind, _, _, payload in answers if kind == f.GOAWAY]
    resets = [int.from_bytes(p, "big") for kind, _, stream, p in answers if kind == f.RST_STREAM and stream == 1]
    assert goaways == ([] if case.goaway is None else [case.goaway])
    assert (recorder.connection.fault is None) == (case.goaway is None)
    if case.goaway is None:
        assert resets == ([] if case.reset is None else [case.reset])
    statuses = [payload for kind, _, _, payload in answers if kind == f.HEADERS]
    assert [case.status] == [each[-3:] for each in statuses] if case.status else not statuses


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 100
