"""Picking by key over a table (Maglev, ring): the same endpoint for the same key while it is there and has room.

A change of endpoints asks for a new table; the old one serves until that is swapped in, and keys whose endpoint has
gone meanwhile go where a repeated attempt would. The first key of all waits for its table (15 ms of work, if the slices
have not done it yet): better late than elsewhere.

Bounded load (`balance_factor`) looks at a few places in the key's own order, so it costs the same for 3 endpoints as
for 3,000; Envoy's shuffles all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import ceil

from meshproxy.balance.builds import Steps, Table, TableBuilds
from meshproxy.endpoint import Endpoint

# Looks at stand-ins before all endpoints are searched: with a factor of 125 % at most four of five are full, so 97 % of
# the keys of full endpoints need no search.
MAX_ATTEMPTS = 16
KEY_BITS = 64

Recipe = Callable[[Sequence[str], Sequence[int]], Steps]


class Hashed:
    """The picker of one priority. `members` is what the table should hold; `owners` what it does hold."""

    __slots__ = (
        "_asked",
        "_builds",
        "_content",
        "_name",
        "_random",
        "_recipe",
        "_wanted",
        "balance_factor",
        "load",
        "members",
        "owners",
        "table",
        "total_weight",
    )

    def __init__(
        self,
        name: Hashable,
        recipe: Recipe,
        *,
        builds: TableBuilds,
        random: Callable[[], float],
        load: Callable[[], int],
        balance_factor: int = 0,
    ) -> None:
        """`name` tells recipes apart that make different tables of the same endpoints; `load` is of all endpoints."""
        self._name = name
        self._recipe = recipe
        self._builds = builds
        self._random = random
        self._content: Hashable = None
        self._wanted: Hashable = None
        self._asked: Hashable = None  # what is being built for us; None: nothing
        self.load = load
        self.balance_factor = balance_factor
        self.members: Sequence[Endpoint] = ()
        self.owners: Sequence[Endpoint] = ()
        self.total_weight = 0
        self.table: Table | None = None

    def __repr__(self) -> str:
        state = "current" if self._content == self._wanted else "to come"
        return f"<Hashed {self._name} {len(self.members)} members, table {state}>"

    def pick(self, key: int | None, avoid: Endpoint | None, /) -> Endpoint | None:
        if key is None:
            key = int(self._random() * (1 << KEY_BITS))
        if self.table is None:
            if not self.members:
                return None
            self._build_now()
            assert self.table is not None
        endpoint = self.owners[self.table.find(key)]
        if endpoint.is_available and endpoint is not avoid and (not self.balance_factor or self._has_room(endpoint)):
            return endpoint
        return self._pick_other(key, avoid)

    def set_members(self, members: Sequence[Endpoint]) -> None:
        """Pick among these from now on. The table follows; until then, keys of those that left go elsewhere."""
        self.members = members
        self.total_weight = sum(member.weight for member in members)
        self._wanted = self._name, tuple([(member.key, member.weight) for member in members])
        # The same address may be another endpoint now: no waiting for a table with that.
        self._set_owners(self.owners)
        # Of many clusters most are never asked for anything: those get their tables with their first key.
        if self._asked is None and (self.table is not None or self._builds.may_build_ahead):
            self._ask()

    def _build_now(self) -> None:
        if self._asked != self._wanted:
            self._ask()
        self._builds.finish(self._wanted)

    def _ask(self) -> None:
        if not self.members or self._wanted == self._content:
            return
        members = self.members
        wanted = self._wanted

        def steps() -> Steps:
            return self._recipe([member.key for member in members], [member.weight for member in members])

        def take(table: Table) -> None:
            if self._asked != wanted:
                return  # somebody could not wait, and has a newer one
            self._asked = None
            self.table = table
            self._content = wanted
            self._set_owners(members)
            # Changes while it was built wait for its end, or a busy cluster would never get a new table.
            self._ask()

        self._asked = wanted
        self._builds.request(wanted, steps, take)

    def _set_owners(self, owners: Sequence[Endpoint]) -> None:
        current = {member.key: member for member in self.members}
        self.owners = [current.get(owner.key, owner) for owner in owners]

    def _has_room(self, endpoint: Endpoint) -> bool:
        """Return whether one more request keeps it within its share of the load, times the factor."""
        share = endpoint.weight * self.balance_factor / (100 * self.total_weight)
        return endpoint.active < ceil((self.load() + 1) * share)

    def _pick_other(self, key: int, avoid: Endpoint | None) -> Endpoint | None:
        table = self.table
        assert table is not None
        is_bounded = self.balance_factor > 0
        for attempt in range(1, MAX_ATTEMPTS + 1):
            endpoint = self.owners[table.find_other(key, attempt)]
            if endpoint.is_available and endpoint is not avoid and (not is_bounded or self._has_room(endpoint)):
                return endpoint
        members = [member for member in self.members if member.is_available]
        start = key % len(members) if members else 0
        others = [member for member in members[start:] + members[:start] if member is not avoid]
        if not others:
            return members[0] if members else None
        if not is_bounded:
            return others[0]
        return next(filter(self._has_room, others), min(others, key=lambda one: one.active / one.weight))
