"""What is true of every lock that keeps turns: the sentences of ``TurnLock`` in ``asyncqueue.locks.base``, as tests."""

from __future__ import annotations

import asyncio

import pytest

from asyncqueue.clock import NANOSECONDS
from asyncqueue.locks.base import Claim, LastTurn, Turn, TurnLock
from asyncqueue.testing.clock import START
from asyncqueue.testing.suite import Suite

KEY = "machinery_lock_asyncqueuenightly@every 10s"
PERIOD = 10
TTL = 5.0


def turn(number: int, key: str = KEY) -> Turn:
    """The turns of a schedule, one each ten seconds."""
    due_at = START + number * PERIOD
    return Turn(key, due_at, due_at + PERIOD)


def at(number: int, late: float = 0.0) -> int:
    """Unix nanoseconds, so many seconds after that turn was due."""
    return turn(number).due_at * NANOSECONDS + round(late * NANOSECONDS)


class TurnLockContract(Suite):
    """Subclass it, and say how to make the lock. The moments are the tests' own: no clock has to move."""

    async def make_lock(self) -> TurnLock:
        """A lock, not yet open, on the namespace of this test; an instance of its own at each call."""
        raise self.unsaid("make_lock", "a TurnLock, not yet open, on the namespace of this test")

    async def make_unreachable(self) -> TurnLock:
        """A lock, not yet open, whose service does not answer."""
        pytest.skip("there is no service that could be away")

    async def prepare(self) -> None:
        await super().prepare()
        self.lock = await self.opened(await self.make_lock())
        self.other = await self.opened(await self.make_lock())

    async def test_a_lock_that_keeps_turns_says_so(self) -> None:
        assert isinstance(self.lock, TurnLock)

    async def test_verbs_raise_unavailable_when_the_service_does_not_answer(self) -> None:
        lock = await self.make_unreachable()
        await self.raises_unavailable(
            [
                lambda: lock.claim(turn(0), "a", at(0), TTL),
                lambda: lock.finish(turn(0), sent=True),
                lambda: lock.owed(KEY),
                lambda: lock.last_turn(KEY),
            ]
        )
        await lock.close()

    async def test_a_turn_is_one_owners(self) -> None:
        assert await self.lock.claim(turn(0), "a", at(0), TTL) is Claim.MINE
        assert await self.other.claim(turn(0), "b", at(0, 0.1), TTL) is Claim.TAKEN
        assert await self.lock.claim(turn(0), "a", at(0, 0.2), TTL) is Claim.MINE

    async def test_of_20_racers_one_gets_the_turn(self) -> None:
        locks = [self.lock, self.other] * 10
        for number in range(5):
            claims = await asyncio.gather(
                *(lock.claim(turn(number), f"owner-{index}", at(number), TTL) for index, lock in enumerate(locks))
            )
            assert sorted(claim.value for claim in claims) == ["mine"] + ["taken"] * 19
            await self.lock.finish(turn(number), sent=True)

    async def test_a_finished_turn_is_over_for_everybody(self) -> None:
        await self.lock.claim(turn(0), "a", at(0), TTL)
        for _ in range(2):
            await self.lock.finish(turn(0), sent=True)
            assert await self.lock.claim(turn(0), "a", at(0, 0.1), TTL) is Claim.OVER
            assert await self.other.claim(turn(0), "b", at(0, 9), TTL) is Claim.OVER
            assert await self.other.claim(turn(0), "b", at(3), TTL) is Claim.OVER

    async def test_an_owner_whose_time_is_over_loses_the_turn(self) -> None:
        await self.lock.claim(turn(0), "a", at(0), TTL)
        assert await self.other.claim(turn(0), "b", at(0, TTL + 0.1), TTL) is Claim.MINE
        assert await self.lock.claim(turn(0), "a", at(0, TTL + 0.2), TTL) is Claim.TAKEN

    async def test_a_turn_is_owed_until_it_is_finished(self) -> None:
        assert list(await self.lock.owed(KEY)) == []
        await self.lock.claim(turn(1), "a", at(1), TTL)
        await self.lock.claim(turn(0), "a", at(1), TTL)
        assert list(await self.other.owed(KEY)) == [turn(0).due_at, turn(1).due_at]
        assert list(await self.other.owed(f"{KEY}x")) == []
        await self.other.finish(turn(1), sent=True)
        assert list(await self.other.owed(KEY)) == [turn(0).due_at]

    async def test_a_turn_that_is_owed_is_taken_over_after_later_ones_are_over(self) -> None:
        await self.lock.claim(turn(0), "a", at(0), TTL)
        await self.lock.claim(turn(1), "b", at(1), TTL)
        await self.lock.finish(turn(1), sent=True)
        assert await self.other.claim(turn(0), "b", at(1, 1), TTL) is Claim.MINE
        await self.other.finish(turn(0), sent=True)
        assert await self.lock.claim(turn(0), "a", at(1, 2), TTL) is Claim.OVER

    async def test_a_turn_that_was_passed_over_is_over(self) -> None:
        await self.lock.claim(turn(2), "a", at(2), TTL)
        assert await self.other.claim(turn(1), "b", at(2), TTL) is Claim.MINE
        await self.lock.finish(turn(2), sent=True)
        assert await self.other.claim(turn(0), "b", at(2, 0.1), TTL) is Claim.OVER

    async def test_turns_that_nobody_came_for_can_be_claimed_in_order(self) -> None:
        await self.lock.claim(turn(0), "a", at(0), TTL)
        await self.lock.finish(turn(0), sent=True)
        for number in (1, 2, 3, 4):
            assert await self.lock.claim(turn(number), "a", at(4), TTL) is Claim.MINE
            await self.lock.finish(turn(number), sent=True)

    async def test_the_last_turn_never_goes_back(self) -> None:
        assert await self.lock.last_turn(KEY) is None
        await self.lock.finish(turn(1), sent=False)
        assert await self.other.last_turn(KEY) == LastTurn(turn(1).due_at, None)
        await self.lock.finish(turn(0), sent=True)
        assert await self.other.last_turn(KEY) == LastTurn(turn(1).due_at, turn(0).due_at)
        await self.lock.finish(turn(3), sent=True)
        await self.lock.finish(turn(2), sent=True)
        await self.lock.finish(turn(4), sent=False)
        assert await self.other.last_turn(KEY) == LastTurn(turn(4).due_at, turn(3).due_at)

    async def test_a_last_occurrence_can_be_claimed_too(self) -> None:
        last = Turn(KEY, turn(0).due_at, None)
        assert await self.lock.claim(last, "a", at(0), TTL) is Claim.MINE
        assert await self.other.claim(last, "b", at(0, 1), TTL) is Claim.TAKEN

    async def test_schedules_do_not_concern_each_other(self) -> None:
        keys = ("a", "a:b", "a b", "{a}", "☃", "a:aq")
        for number, key in enumerate(keys):
            assert await self.lock.claim(turn(number, key), "a", at(number), TTL) is Claim.MINE
        for number, key in enumerate(keys):
            assert list(await self.lock.owed(key)) == [turn(number).due_at]
            await self.lock.finish(turn(number, key), sent=True)
            assert await self.lock.last_turn(key) == LastTurn(turn(number).due_at, turn(number).due_at)

    async def test_turns_outlive_the_instance_that_took_them(self) -> None:
        await self.lock.claim(turn(0), "a", at(0), TTL)
        await self.lock.close()
        assert await self.other.claim(turn(0), "b", at(0, 1), TTL) is Claim.TAKEN
        assert list(await self.other.owed(KEY)) == [turn(0).due_at]
