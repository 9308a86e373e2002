"""Request ids, traces and X-Forwarded-For."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.identity import Randomness, forwarded_for, forwarded_proto, is_traceparent

CAME = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_trace_goes_on_with_a_span_of_ours() -> None:
    sent = Randomness().traceparent(CAME, sampled=False)
    assert is_traceparent(sent)
    assert (sent[:36], sent[52:]) == (CAME[:36], CAME[52:])
    assert sent[36:52] != CAME[36:52]


def test_a_trace_starts_where_none_came() -> None:
    sent = Randomness().traceparent(None, sampled=True)
    assert is_traceparent(sent)
    assert sent.endswith(b"-01")
    assert Randomness().traceparent(b"nonsense", sampled=False).endswith(b"-00")


@pytest.mark.parametrize(
    ("value", "is_sound"),
    [
        (CAME, True),
        (b"01" + CAME[2:], True),
        (b"01" + CAME[2:] + b"-more", True),
        (CAME + b"-more", False),
        (b"01" + CAME[2:] + b"more", False),
        (b"ff" + CAME[2:], False),
        (CAME.upper(), False),
        (b"00-" + b"0" * 32 + CAME[35:], False),
        (CAME[:36] + b"0" * 16 + b"-01", False),
        (CAME[:-1], False),
        (CAME + b"\n", False),
        (b"", False),
    ],
)
def test_only_a_sound_traceparent_is_passed_on(value: bytes, is_sound: bool) -> None:
    assert is_traceparent(value) is is_sound


@given(st.binary(max_size=70))
def test_whatever_came_a_sound_traceparent_is_sent(value: bytes) -> None:
    assert is_traceparent(Randomness().traceparent(value, sampled=False))


def test_ids_are_drawn_anew_each_time() -> None:
    randomness = Randomness()
    drawn = {randomness.token() for _ in range(1000)}
    assert len(drawn) == 1000
    assert {len(token) for token in drawn} == {32}


def test_forwarded_for_is_appended_replaced_or_kept() -> None:
    assert forwarded_for(b"1.1.1.1", b"2.2.2.2", mode="append") == b"1.1.1.1, 2.2.2.2"
    assert forwarded_for(None, b"2.2.2.2", mode="append") == b"2.2.2.2"
    assert forwarded_for(b"1.1.1.1", b"2.2.2.2", mode="replace") == b"2.2.2.2"
    assert forwarded_for(b"1.1.1.1", b"2.2.2.2", mode="keep") == b"1.1.1.1"
    assert forwarded_for(None, b"2.2.2.2", mode="keep") is None
    assert forwarded_proto(b"https", b"http", mode="append") == b"https"
    assert forwarded_proto(b"https", b"http", mode="replace") == b"http"
