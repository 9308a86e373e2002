"""Endpoints from a file: what may be in it, and what a change does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from meshproxy.config import EndpointConfig, FileDiscovery, Locality, StaticDiscovery
from meshproxy.discovery.endpoint_file import EndpointFileError, parse_endpoints, parse_steps
from meshproxy.discovery.file import FileSource
from meshproxy.discovery.source import Snapshot
from meshproxy.discovery.sources import source_of


def test_short_and_long_forms() -> None:
    text = """
    endpoints:
      - 10.0.0.1:80
      - "[fd00::1]:81"
      - {address: 10.0.0.2, port: 82, weight: 3, priority: 1, zone: a, region: r, identity: pod-1}
    """
    assert parse_endpoints(text, path="f") == (
        EndpointConfig(address="10.0.0.1", port=80),
        EndpointConfig(address="fd00::1", port=81),
        EndpointConfig(
            address="10.0.0.2",
            port=82,
            weight=3,
            priority=1,
            locality=Locality(region="r", zone="a"),
            identity="pod-1",
        ),
    )


def test_an_empty_list_is_no_endpoints() -> None:
    assert parse_endpoints("[]", path="f") == ()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "f:1: expected a list"),
        ("endpoints:", "f:1: expected a list"),
        ("{}", "f:1: expected a list"),
        ("endpoints: []\nmore: 1", "f:2: expected nothing beside"),
        ("- 10.0.0.1:80\n--- \n- 10.0.0.1:81", "f:2: expected one document"),
        ("- &a 10.0.0.1:80\n- *a", "f:2: expected no alias"),
        ("- 10.0.0.1:80\nendpoints: []", "f:2: expected YAML"),
        ("- {[address]: 10.0.0.2}", "f:1: unknown key"),
        ("- 10.0.0.1:80\n- 10.0.0.1:80", "f:2: 10.0.0.1:80 is there twice"),
        ("- 10.0.0.1", "f:1: expected ADDRESS:PORT"),
        ("- web:80", "f:1: 'web' does not appear to be"),
        ("- fd00::1:80", "f:1: expected [ADDRESS]:PORT"),
        ("- 10.0.0.1:0", "f:1: expected ADDRESS:PORT"),
        ("- 10.0.0.1:80\n- {address: 10.0.0.2}", "f:2: port is missing"),
        ("- {address: 10.0.0.2, port: 80, wieght: 1}", "f:1: unknown key 'wieght'"),
        ("- {address: 10.0.0.2,\n   port: 80,\n   weight: 0}", "f:3: weight: expected 1 to"),
        ("- {address: 10.0.0.2, port: eighty}", "f:1: port: expected 1 to"),
        ("- {address: [1], port: 80}", "f:1: address: expected one value"),
        ("- {address: 10.0.0.2, port: 80, port: 81}", "f:1: port is there twice"),
        ("services: []", "f:1: unknown key 'services'"),
        ("- ]", "f:1: expected YAML"),
        ("- - 10.0.0.1:80", "f:1: expected an endpoint"),
    ],
)
def test_a_fault_is_told_with_its_line(text: str, fault: str) -> None:
    with pytest.raises(EndpointFileError) as raised:
        parse_endpoints(text, path="f")
    assert str(raised.value).startswith(fault)


class Sleep:
    """Each sleep makes the next change; the one after the last ends the source."""

    def __init__(self, changes: list[Callable[[], object]]) -> None:
        self.changes = changes

    async def __call__(self, seconds: float) -> None:
        if not self.changes:
            raise EOFError
        self.changes.pop(0)()


def snapshots(path: Path, *changes: Callable[[], object]) -> list[list[str]]:
    """Return the keys of each snapshot while the changes happen, one in each sleep of the source."""
    source = FileSource(FileDiscovery(path=str(path)), sleep=Sleep(list(changes)))
    found: list[list[str]] = []

    async def story() -> None:
        with contextlib.suppress(EOFError):
            async for snapshot in source.snapshots():
                found.append([one.key for one in snapshot])

    asyncio.run(story())
    return found


def replacing(path: Path, text: str) -> Callable[[], object]:
    def replace() -> None:
        new = path.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.replace(path)

    return replace


def test_each_change_is_a_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.yaml"
    path.write_text("- 10.0.0.1:80", encoding="utf-8")
    assert snapshots(path, replacing(path, "- 10.0.0.2:80"), lambda: None, replacing(path, "[]")) == [
        ["10.0.0.1:80"],
        ["10.0.0.2:80"],
        [],
    ]


def test_a_bad_or_missing_file_keeps_the_old_endpoints(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "endpoints.yaml"
    path.write_text("- 10.0.0.1:80", encoding="utf-8")
    found = snapshots(
        path,
        replacing(path, "- nonsense"),
        path.unlink,
        replacing(path, "- 10.0.0.1:80 # the same\n"),
        replacing(path, "- 10.0.0.3:80"),
    )
    assert found == [["10.0.0.1:80"], ["10.0.0.3:80"]]
    assert "nonsense" in caplog.text


def test_a_file_that_comes_late_is_found(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.yaml"
    assert snapshots(path, lambda: path.write_text("- 10.0.0.1:80", encoding="utf-8")) == [["10.0.0.1:80"]]


def test_a_link_to_another_file_is_a_change(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("- 10.0.0.1:80", encoding="utf-8")
    (tmp_path / "two").write_text("- 10.0.0.2:80", encoding="utf-8")
    path = tmp_path / "endpoints.yaml"
    path.symlink_to("one")

    def relink() -> None:
        (tmp_path / "new").symlink_to("two")
        (tmp_path / "new").replace(path)

    assert snapshots(path, relink) == [["10.0.0.1:80"], ["10.0.0.2:80"]]


def test_a_long_file_is_read_in_steps() -> None:
    text = "".join(f"- {{address: 10.0.{number // 250}.{number % 250}, port: 80}}\n" for number in range(1000))
    assert sum(1 for _ in parse_steps(text, path="f")) == 50
    assert len(parse_endpoints(text, path="f")) == 1000


def test_configured_endpoints_are_one_snapshot() -> None:
    wanted = (EndpointConfig(address="10.0.0.1", port=80),)

    async def story() -> list[Snapshot]:
        return [snapshot async for snapshot in source_of(StaticDiscovery(endpoints=wanted)).snapshots()]

    assert asyncio.run(story()) == [wanted]
