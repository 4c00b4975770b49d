"""Locks on MongoDB, which Machinery has none of: one document per lock, and one per schedule."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from bson import Int64

from asyncqueue.clock import NANOSECONDS
from asyncqueue.connections.mongo import REPLY_TIMEOUT, Document
from asyncqueue.connections.mongo_indexes import Index, Indexes, OnMongo
from asyncqueue.locks.base import OWED_FOR, Claim, LastTurn, Turn


class MongoLock(OnMongo):
    """Named leases in the collection ``collection``; the server's clock ends them.

    ``url``, ``database``, ``client`` and ``reply_timeout`` as for the backend.
    """

    def __init__(
        self,
        url: str,
        *,
        database: str = "",
        collection: str = "aq_locks",
        client: Any = None,
        reply_timeout: float = REPLY_TIMEOUT,
    ) -> None:
        indexes = Indexes((Index(collection, ("ends_at",), ends=True),))
        super().__init__(url, database, client=client, reply_timeout=reply_timeout, indexes=indexes)
        self._collection = collection
        self._is_ready = False

    async def open(self) -> None:
        if self._is_ready:
            return
        await self._reach()
        self._is_ready = True

    async def close(self) -> None:
        self._is_ready = False
        await self._link.close()

    async def acquire(self, key: str, ttl: float) -> str | None:
        token = secrets.token_hex(16)
        taken = {"_id": "$_id", "token": token, "ends_at": _from_now(ttl)}
        stages = [{"$replaceWith": {"$cond": [_IS_HELD, "$$ROOT", taken]}}]
        found = await self._change(_lock(key), stages)
        return token if found.get("token") == token else None

    async def renew(self, key: str, token: str, ttl: float) -> bool:
        return await self._hold(key, token, [{"$set": {"ends_at": _from_now(ttl)}}])

    async def release(self, key: str, token: str) -> bool:
        # it is the server that deletes it, so that racers do not make and delete it in turns
        return await self._hold(key, token, [{"$set": {"ends_at": "$$NOW"}}, {"$unset": ["token"]}])

    async def claim(self, turn: Turn, owner: str, now_ns: int, ttl: float) -> Claim:
        now, due_at = now_ns // _MILLISECOND, Int64(turn.due_at)
        is_anothers = {"$and": [{"$ne": ["$$each.owner", {"$literal": owner}]}, {"$gt": ["$$each.until", Int64(now)]}]}
        is_owed_still = {"$gt": ["$$each.until", Int64(now - _milliseconds(OWED_FOR))]}
        claimed = {"due_at": due_at, "owner": owner, "until": Int64(now + _milliseconds(ttl))}
        others = _claims({"$and": [{"$ne": ["$$each.due_at", due_at]}, is_owed_still]})
        is_its = {"$eq": ["$$each.due_at", due_at]}
        is_over = {
            "$and": [
                {"$eq": [{"$size": _claims(is_its)}, 0]},
                {"$gte": [{"$ifNull": ["$last_due_at", _LONG_AGO]}, due_at]},
            ]
        }
        is_taken = {"$ne": [{"$size": _claims({"$and": [is_its, is_anothers]})}, 0]}
        taken = {"$concatArrays": [others, [{"$literal": claimed}]]}
        stages = [{"$set": {"claims": {"$cond": [{"$or": [is_over, is_taken]}, _CLAIMS, taken]}}}]
        found = await self._change(_turns(turn.key), stages)
        owners = [each["owner"] for each in found["claims"] if each["due_at"] == turn.due_at]
        if not owners:
            return Claim.OVER
        return Claim.MINE if owners == [owner] else Claim.TAKEN

    async def finish(self, turn: Turn, *, sent: bool) -> None:
        due_at = Int64(turn.due_at)
        changes: dict[str, Any] = {
            "claims": _claims({"$ne": ["$$each.due_at", due_at]}),
            "last_due_at": {"$max": ["$last_due_at", due_at]},
        }
        if sent:
            changes["last_sent_at"] = {"$max": ["$last_sent_at", due_at]}
        await self._change(_turns(turn.key), [{"$set": changes}])

    async def owed(self, key: str) -> Sequence[int]:
        found = await self._turns_of(key)
        return sorted(int(each["due_at"]) for each in found.get("claims", ()))

    async def last_turn(self, key: str) -> LastTurn | None:
        found = await self._turns_of(key)
        due_at, sent_at = found.get("last_due_at"), found.get("last_sent_at")
        return None if due_at is None else LastTurn(int(due_at), None if sent_at is None else int(sent_at))

    async def _hold(self, key: str, token: str, stages: Sequence[Mapping[str, Any]]) -> bool:
        """Change a lock that the token holds; whether it does."""
        held = {"_id": _lock(key), "token": token, "$expr": _IS_HELD}
        done = await self._link.run(self._collection, lambda locks: locks.update_one(held, stages))
        return bool(done.matched_count)

    async def _change(self, name: str, stages: Sequence[Mapping[str, Any]]) -> Document:
        """Change a document, which is made where it is missing, in one step; what it is then."""
        return await self._link.change(self._collection, name, stages)

    async def _turns_of(self, key: str) -> Document:
        found = await self._link.find(self._collection, {"_id": _turns(key)})
        return found[0] if found else {}


def _lock(key: str) -> str:
    return f"lock {key}"


def _turns(key: str) -> str:
    return f"turns {key}"


def _milliseconds(seconds: float) -> int:
    return max(1, ceil(seconds * 1000))


def _from_now(seconds: float) -> dict[str, Any]:
    return {"$toDate": {"$add": [_NOW, Int64(_milliseconds(seconds))]}}


def _claims(condition: Mapping[str, Any]) -> dict[str, Any]:
    """Those claims of turns for which this holds."""
    return {"$filter": {"input": _CLAIMS, "as": "each", "cond": condition}}


_MILLISECOND = NANOSECONDS // 1000
_NOW = {"$toLong": "$$NOW"}
_IS_HELD = {"$gt": [{"$toLong": "$ends_at"}, _NOW]}  # false where there is no such lock
_CLAIMS = {"$ifNull": ["$claims", []]}
_LONG_AGO = Int64(-(2**62))
