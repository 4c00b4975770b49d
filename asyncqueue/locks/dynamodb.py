"""Locks in a table of DynamoDB: one holder among all who see it.

DynamoDB knows no time in its conditions, so a lock ends by the clocks of those who ask for it: whose clock is ahead
takes it so much too early. The old holder's token holds nothing from then on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from secrets import token_hex
from typing import Any

from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK, Clock
from asyncqueue.connections.aws import CONNECT_TIMEOUT, REPLY_TIMEOUT
from asyncqueue.connections.dynamodb import TRIES, Table, as_seen, change, too_many_tries
from asyncqueue.connections.dynamodb_items import EXPIRY, Item, Value, number, number_in, text, text_in
from asyncqueue.connections.dynamodb_tables import OnTables
from asyncqueue.errors import Unavailable
from asyncqueue.locks.base import OWED_FOR, Claim, LastTurn, Turn

KEY = "Name"
"""The key of the table. A lock's is ``lock:`` and its own, a schedule's is ``turns:`` and that of its lock."""

SWEPT_AFTER = 3600.0
"""How long (seconds) after its end DynamoDB may delete a lock that nobody let go of: by a clock that is not ours."""

_HOLDS = "#Token = :token AND #EndsAt > :now"


class DynamoLock(OnTables):
    """Locks in a table of DynamoDB; see ``Lock``.

    ``url`` and ``client`` as for the backend. ``clock`` must agree with those of others, by less than the time to live
    of a lock. Where the reply to ``acquire`` is lost the lock may be held by a token that nobody knows, until its time
    is over. ``open`` raises ``Refused`` where the table is missing; ``migrate`` makes it.
    """

    def __init__(
        self,
        url: str,
        *,
        table: str = "aq_locks",
        connect_timeout: float = CONNECT_TIMEOUT,
        reply_timeout: float = REPLY_TIMEOUT,
        client: Any = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._table = Table(table, KEY)
        super().__init__(url, self._table, connect_timeout=connect_timeout, reply_timeout=reply_timeout, client=client)
        self._clock = clock
        self._is_open = False

    async def open(self) -> None:
        await self._dynamo.open([self._table])
        self._is_open = True

    async def close(self) -> None:
        self._is_open = False
        await self._dynamo.close()

    async def acquire(self, key: str, ttl: float) -> str | None:
        now, token = self._now(), token_hex(16)
        item = {KEY: text(_lock_name(key)), **_held(token, now + ttl)}
        condition = f"attribute_not_exists(#{KEY}) OR #EndsAt <= :now"
        return token if await self._dynamo.put(self._table, item, condition, {":now": number(now)}) else None

    async def renew(self, key: str, token: str, ttl: float) -> bool:
        now = self._now()
        values = {":token": text(token), ":now": number(now)}
        sets = _held(token, now + ttl)
        return await self._dynamo.alter(
            change(self._table, _lock_name(key), sets=sets, condition=_HOLDS, values=values)
        )

    async def release(self, key: str, token: str) -> bool:
        values = {":token": text(token), ":now": number(self._now())}
        return await self._dynamo.delete(self._table, _lock_name(key), _HOLDS, values)

    async def claim(self, turn: Turn, owner: str, now_ns: int, ttl: float) -> Claim:
        now = now_ns / NANOSECONDS
        for _ in range(TRIES):
            turns = await self._turns(turn.key)
            claimed = turns.claims.get(turn.due_at)
            if claimed is None and turns.last is not None and turn.due_at <= turns.last.due_at:
                return Claim.OVER
            if claimed is not None and claimed.owner != owner and claimed.until > now:
                return Claim.TAKEN
            owed = {due: each for due, each in turns.claims.items() if each.until + OWED_FOR > now}
            if await self._write(turns, {**owed, turn.due_at: _Claimed(owner, now + ttl)}, turns.last):
                return Claim.MINE
        raise too_many_tries(f"the turns of {turn.key}")

    async def finish(self, turn: Turn, *, sent: bool) -> None:
        for _ in range(TRIES):
            turns = await self._turns(turn.key)
            owed = {due: each for due, each in turns.claims.items() if due != turn.due_at}
            if await self._write(turns, owed, LastTurn.after(turns.last, turn, sent=sent)):
                return
        raise too_many_tries(f"the turns of {turn.key}")

    async def owed(self, key: str) -> Sequence[int]:
        return sorted((await self._turns(key)).claims)

    async def last_turn(self, key: str) -> LastTurn | None:
        return (await self._turns(key)).last

    async def _turns(self, key: str) -> _Turns:
        self._now()
        return _turns_in(key, await self._dynamo.look(self._table, _turns_name(key)) or {})

    async def _write(self, seen: _Turns, claims: Mapping[int, _Claimed], last: LastTurn | None) -> bool:
        """False: somebody else has written since then."""
        new = replace(seen, claims=claims, last=last, version=seen.version + 1)
        condition, values = as_seen({"Version": number(seen.version)} if seen.version else {}, "Version")
        return await self._dynamo.put(self._table, _item_of(new), condition, values)

    def _now(self) -> float:
        if not self._is_open:
            raise Unavailable(f"the locks in DynamoDB at {self.address} are not open")
        return self._clock.now_ns() / NANOSECONDS


@dataclass(frozen=True, slots=True)
class _Claimed:
    """Whose a turn is, and until when (unix seconds)."""

    owner: str
    until: float


@dataclass(frozen=True, slots=True)
class _Turns:
    """The turns of one schedule. ``version`` counts the writes."""

    key: str
    claims: Mapping[int, _Claimed]
    last: LastTurn | None
    version: int


def _lock_name(key: str) -> str:
    return f"lock:{key}"


def _turns_name(key: str) -> str:
    return f"turns:{key}"


def _held(token: str, ends_at: float) -> dict[str, Value]:
    return {
        "Token": text(token),
        "EndsAt": number(ends_at),
        EXPIRY: number(math.ceil(ends_at + SWEPT_AFTER)),
    }


def _item_of(turns: _Turns) -> Item:
    claims = {
        str(due): {"M": {"Owner": text(each.owner), "Until": number(each.until)}} for due, each in turns.claims.items()
    }
    item: dict[str, Value] = {
        KEY: text(_turns_name(turns.key)),
        "Claims": {"M": claims},
        "Version": number(turns.version),
    }
    if turns.last is not None:
        item["LastDueAt"] = number(turns.last.due_at)
        if turns.last.sent_at is not None:
            item["LastSentAt"] = number(turns.last.sent_at)
    return item


def _turns_in(key: str, item: Item) -> _Turns:
    claims = {
        int(due): _Claimed(text_in(each["M"], "Owner"), float(number_in(each["M"], "Until")))
        for due, each in item.get("Claims", {"M": {}})["M"].items()
    }
    last = None
    if "LastDueAt" in item:
        sent_at = int(number_in(item, "LastSentAt")) if "LastSentAt" in item else None
        last = LastTurn(int(number_in(item, "LastDueAt")), sent_at)
    return _Turns(key, claims, last, int(number_in(item, "Version")))
