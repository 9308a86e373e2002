"""The process inside a test host that kills: `python -m tests.kill.zygote WAY BIN_DIR EVERY OFFSET NEIGHBOURS`.

It has imported every plugin, as a launcher would, and forks children to be killed. For each border in turn it kills an
ADD, a DEL and a GC there; each time one more DEL (or GC) must leave nothing, and the next ADD must work. `EVERY` and
`OFFSET` choose among the kills. Prints one line of JSON: kills, borders, and problems, which are lines for people.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, NoReturn

from cni_plugins import lean

lean.install()  # as the launcher does, before anything imports pyroute2

from cni_plugins import links, registry  # noqa: E402
from cni_plugins.netns import open_netns  # noqa: E402
from tests.kill.asking import ByAgent, ByLauncher, Direct, Programs, Verb, Way  # noqa: E402
from tests.kill.chain import Ask, Chain, Outcome  # noqa: E402
from tests.kill.observing import damage, held_locks, observe  # noqa: E402
from tests.kill.tracing import Border  # noqa: E402

WAYS: dict[str, Callable[[], Way]] = {
    "direct": Direct,
    "agent": ByAgent,
    "launcher": ByLauncher,
    "program": Programs,
}
VERBS = ("ADD", "DEL", "GC")
_STEP_S = 120  # for one kill and what follows; a lock that nobody holds any more would block for ever
_PROBLEMS_MAX = 50
_LINES_MAX = 5  # of one kill
_TRY_AGAIN = 11


@dataclass(slots=True)
class Report:
    """What was done and found. `borders` are those of a verb that was not killed."""

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VERBS, 0))
    borders: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VERBS, 0))
    problems: list[str] = field(default_factory=list)


class Campaign:
    """Kills on one host, one after the other. Between two of them the victim is attached (`_result`), or gone."""

    def __init__(self, way: Way, victim: Chain, neighbours: tuple[Chain, ...]) -> None:
        self._way, self._victim, self._neighbours = way, victim, neighbours
        self._without_netns = replace(victim, netns="")  # a DEL may come when the namespace is gone
        self._host = links.open_route()
        self._pod = links.open_route(open_netns(victim.netns))
        self._result: dict[str, Any] | None = None
        self._gone: list[str] = []
        self._what = "before any kill"
        self.report = Report()

    def run(self, every: int, offset: int) -> None:
        """Kill at all borders of the verbs, or at each `every`-th of them."""
        added = [(neighbour, self._require("ADD of a neighbour", neighbour.add)) for neighbour in self._neighbours]
        self._add()
        self._delete(self._result)
        self._gone = observe(self._host, self._pod)  # what the first pod of a host makes stays: the bridge
        left = list(VERBS)
        turn = offset
        while left and len(self.report.problems) < _PROBLEMS_MAX:
            border = Border(turn // 2 + 1, "within" if turn % 2 else "before")
            left = [verb for verb in left if self._has_killed(verb, border)]
            turn += every
        self._what = "at the end"
        for neighbour, outcome in added:
            self._require("CHECK of a neighbour", partial(neighbour.check, result=outcome.result))
        for chain in (self._victim, *self._neighbours):
            self._require("DEL", partial(chain.delete, result=None))
        self._way.close()

    def _has_killed(self, verb: str, border: Border) -> bool:
        """Kill `verb` at the border, clean up, look. False: it has no such border, and went on to its end."""
        self._what = f"{verb} killed {border}"
        signal.alarm(_STEP_S)
        try:
            return self._kill(verb, border)
        except TimeoutError:
            self._problem(f"no end within {_STEP_S} s")
            return False
        finally:
            signal.alarm(0)

    def _kill(self, verb: str, border: Border) -> bool:
        if verb == "ADD":
            self._delete(self._result)
        elif self._result is None:
            self._add()
        result = self._result
        victim = self._without_netns if verb == "DEL" and border.when == "within" else self._victim
        runs: dict[str, Verb] = {"ADD": victim.add, "DEL": partial(victim.delete, result=result), "GC": self._gc}
        ended = self._way.killed(runs[verb], border)
        self._what += f" ({ended.run.where})"
        if ended.outcome is not None and ended.outcome.code not in (0, _TRY_AGAIN):
            self._problem(ended.outcome.words)
        if not self._way.goes_on:
            self._problems(f"{path} is held by nobody" for path in held_locks())
            self._problems(damage())
        self._clean_up(verb, border)
        if not ended.run.killed:
            self.report.borders[verb] = len(ended.run.calls)
            return False
        self.report.kills[verb] += 1
        return True

    def _clean_up(self, verb: str, border: Border) -> None:
        """What a runtime may do next: the same again, or another verb that must do as well. It has no result of an ADD
        that failed, and may have lost another."""
        match verb, border.when:
            case ("ADD", "within") | ("GC", "before"):
                self._require("GC", self._gc)
                self._result = None
            case ("DEL", "before") | ("GC", "within"):
                self._delete(self._result)
            case ("DEL", "within"):
                self._require("DEL", partial(self._without_netns.delete, result=None))
                self._result = None
            case _:
                self._delete(None)
        now = observe(self._host, self._pod)
        self._problems(f"left: {line}" for line in now if line not in self._gone)
        self._problems(f"gone: {line}" for line in self._gone if line not in now)
        self._problems(damage())
        if verb != "GC":
            self._add(check=verb == "ADD")

    def _add(self, *, check: bool = False) -> None:
        outcome = self._require("ADD", self._victim.add)
        self._result = result = outcome.result if outcome.ok else None
        if result is not None and check:
            self._require("CHECK", partial(self._victim.check, result=result))

    def _delete(self, result: dict[str, Any] | None) -> None:
        self._require("DEL", partial(self._victim.delete, result=result))
        self._result = None

    def _gc(self, ask: Ask) -> Outcome:
        return self._victim.gc(ask, self._neighbours)

    def _require(self, verb: str, run: Callable[[Ask], Outcome]) -> Outcome:
        outcome = self._way.whole(run)
        if not outcome.ok:
            self._problem(f"{verb} fails: {outcome.words}")
        return outcome

    def _problems(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._problem(line)

    def _problem(self, line: str) -> None:
        problems = self.report.problems
        if sum(problem.startswith(self._what) for problem in problems) < _LINES_MAX:
            problems.append(f"{self._what}: {line}")


def _too_long(*_: object) -> NoReturn:
    raise TimeoutError


def main(arguments: list[str]) -> int:
    way, bin_dir, every, offset, *neighbours = arguments
    for name in registry.MODULES:
        registry.load(name)
    signal.signal(signal.SIGALRM, _too_long)
    pods = [Chain(name, f"/run/netns/{name}", bin_dir, number) for number, name in enumerate(("victim", *neighbours))]
    campaign = Campaign(WAYS[way](), pods[0], tuple(pods[1:]))
    campaign.run(int(every), int(offset))
    print(json.dumps(asdict(campaign.report)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
