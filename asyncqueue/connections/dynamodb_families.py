"""Keeping entries of DynamoDB that belong together: tasks, groups and plans, and what these stand for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from asyncqueue.connections.dynamodb import Dynamo, Table
from asyncqueue.connections.dynamodb_groups import is_group, members_of
from asyncqueue.connections.dynamodb_items import EXPIRY, Item, expires_at, is_live, number_in
from asyncqueue.connections.dynamodb_plans import Plans
from asyncqueue.connections.dynamodb_tallies import Tallies
from asyncqueue.connections.keeping import LEAST_GAIN
from asyncqueue.connections.sending import all_of


class Families:
    """Entries of both tables."""

    def __init__(self, dynamo: Dynamo, tasks: Table, groups: Table, tallies: Tallies, plans: Plans) -> None:
        self._dynamo = dynamo
        self._tasks = tasks
        self._groups = groups
        self._tallies = tallies
        self._plans = plans

    async def touch(self, families: Sequence[Sequence[str]], keep: float, now: float, not_before: float | None) -> None:
        """See ``Backend.touch``."""
        some = [family for family in families if family]
        until = expires_at(keep, now, not_before)
        kept = await self._kept(family[0] for family in some)
        worth_it = [family for family in some if until - kept.get(family[0], 0) >= LEAST_GAIN * keep]
        todo = {each for family in worth_it for each in family}
        known: set[str] = set()
        while todo:
            known |= todo
            found = await self._dynamo.read(self._groups, todo)
            live = {key: item for key, item in found.items() if is_live(item, now)}
            groups = {key: item for key, item in live.items() if is_group(item)}
            plans = {key: item for key, item in live.items() if not is_group(item)}
            members = {member for item in groups.values() for member in members_of(item)}
            await self._tallies.prolong(groups, until, now)
            await self._plans.prolong(plans.values(), until)
            await self._prolong(self._groups, live, until, now)
            await self._prolong(self._tasks, await self._dynamo.read(self._tasks, todo | members, EXPIRY), until, now)
            todo = await self._plans.ids(plans) - known

    async def _kept(self, ids: Iterable[str]) -> dict[str, float]:
        """Until when the entries of these are kept."""
        wanted = list(ids)
        tasks, groups = await all_of(self._dynamo.read(table, wanted, EXPIRY) for table in (self._tasks, self._groups))
        return {key: number_in(item, EXPIRY) for key, item in {**groups, **tasks}.items()}

    async def _prolong(self, table: Table, items: dict[str, Item], until: int, now: float) -> None:
        shorter = [key for key, item in items.items() if is_live(item, now) and 0 < number_in(item, EXPIRY) < until]
        await all_of(self._dynamo.prolong(table, key, until) for key in shorter)
