"""Fixtures for the tests of address management."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def memory_dir() -> Iterator[Path]:
    """A directory in memory, where there is one, for tests that make very many files."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as root:
        yield Path(root)
