"""Whatever is in the file, it is taken or refused with its faults; nothing else is ever raised."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from meshproxy.config_file import ConfigFault, parse

SAMPLE = (Path(__file__).resolve().parents[2] / "conf" / "meshproxy.yaml").read_text().splitlines()
ODD = st.sampled_from(
    (
        *("", "null", "[]", "{}", "[[]]", "{a: {}}", "-1", "1e9", "yes", "'", "*x", "&x [*x]", "!!binary x"),
        *("\t", "- a", "0x10"),
    )
)


def faults_of(text: str) -> tuple[tuple[int, str], ...] | None:
    """None: it is taken."""
    try:
        parse(text)
    except ConfigFault as fault:
        return fault.faults
    return None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_changed_sample_is_taken_or_refused(data: st.DataObject) -> None:
    lines = list(SAMPLE)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(lines) - 1))
        match data.draw(st.sampled_from(["drop", "double", "value", "indent"])):
            case "drop":
                del lines[at]
            case "double":
                lines.insert(at, lines[at])
            case "value":
                lines[at] = lines[at].partition(":")[0] + ": " + data.draw(ODD)
            case "indent":
                lines[at] = " " * data.draw(st.integers(0, 9)) + lines[at].lstrip()
    faults = faults_of("\n".join(lines))
    assert faults is None or faults
    assert all(0 <= line <= len(lines) + 1 and text for line, text in faults or ())


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_taken_or_refused(text: str) -> None:
    assert faults_of(text) != ()
