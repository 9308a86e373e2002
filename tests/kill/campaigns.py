"""Which campaigns there are, how many of their kills a run makes, and running them all at once, each on its own host.

Kills wait for the kernel more than they work, so a dozen zygotes keep two cores busy. `NETLOOM_KILLS=all` makes every
kill; otherwise each campaign makes every n-th, from an offset that follows from netloom's source: the same tree makes
the same kills, another one others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from namespaces import Namespace
from tests.kill.chain import BRIDGE
from tests.leftovers import leftovers

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "NETLOOM_KILLS"
_ALL = "all"
_VICTIM = "victim"
_AT_ONCE = 8
_TIMEOUT_S = 3600.0  # each kill has its own, shorter one, in the zygote


@dataclass(frozen=True, slots=True)
class Plan:
    """One campaign: who is killed (zygote.WAYS), beside which other pods; in a short run every `every`-th kill. An odd
    number, so that kills before and within calls come in turn."""

    way: str
    neighbours: tuple[str, ...]
    every: int

    @property
    def name(self) -> str:
        return f"{self.way}-{'beside-another-pod' if self.neighbours else 'alone'}"


PLANS = (
    Plan("direct", (), 5),
    Plan("direct", ("neighbour",), 5),
    Plan("agent", (), 9),
    Plan("agent", ("neighbour",), 9),
    Plan("launcher", (), 11),
    Plan("launcher", ("neighbour",), 11),
    Plan("program", (), 31),
)


@dataclass(frozen=True, slots=True)
class Findings:
    """What one campaign did and found; `left` is what leftovers.py sees at the end."""

    kills: dict[str, int] = field(default_factory=dict)
    borders: dict[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """One line for people."""
        verbs = ", ".join(
            f"{verb} {count} at {self.borders[verb] or 'more'} borders" for verb, count in self.kills.items()
        )
        return f"{sum(self.kills.values())} kills ({verbs})"


class Campaigns:
    """The campaigns of this test run, started together. Use as a context manager."""

    def __init__(self, plans: Iterable[Plan], bin_dir: Path) -> None:
        self._pool = ThreadPoolExecutor(_AT_ONCE)
        self.running = {plan: self._pool.submit(_run, plan, bin_dir) for plan in plans}

    def __enter__(self) -> Campaigns:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def findings(self, plan: Plan) -> Findings:
        """Wait for one campaign's end."""
        running: Future[Findings] = self.running[plan]
        return running.result()


def _run(plan: Plan, bin_dir: Path) -> Findings:
    every, offset = (1, 0) if os.environ.get(VARIABLE) == _ALL else (plan.every, _seed() % plan.every)
    with Namespace.create("node") as node:
        for name in (_VICTIM, *plan.neighbours):
            node.add_pod(name)
        zygote = [sys.executable, "-m", "tests.kill.zygote", plan.way, str(bin_dir), str(every), str(offset)]
        done = node.run(*zygote, *plan.neighbours, cwd=ROOT, env=_environment(), check=False, timeout=_TIMEOUT_S)
        if done.returncode != 0:
            raise subprocess.CalledProcessError(done.returncode, zygote, done.stdout, done.stderr)
        report: dict[str, Any] = json.loads(done.stdout)
        return Findings(
            report["kills"], report["borders"], tuple(report["problems"]), tuple(leftovers(node, links=[BRIDGE]))
        )


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}


def _seed() -> int:
    paths = sorted(path for folder in ("cni_plugins", "ipam") for path in (ROOT / folder).glob("*.py"))
    return zlib.crc32(b"".join(path.read_bytes() for path in paths))
