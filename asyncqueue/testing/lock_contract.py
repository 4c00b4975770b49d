"""What is true of every lock: the sentences of ``asyncqueue.locks.base``, as tests."""

from __future__ import annotations

import asyncio

import pytest

from asyncqueue.locks.base import Lock
from asyncqueue.testing.suite import Suite

LONG = 600.0
KEYS = ("a", "A", "a:b", "a b", "{a}", "☃", "x" * 200)


class LockContract(Suite):
    """Subclass it, and say how to make the lock."""

    ttl: float = 0.5
    """A time to live (seconds) in the tests of its end. A real service really waits that long."""

    async def make_lock(self) -> Lock:
        """A lock, not yet open, on the namespace of this test; an instance of its own at each call."""
        raise self.unsaid("make_lock", "a lock, not yet open, on the namespace of this test")

    async def make_unreachable(self) -> Lock:
        """A lock, not yet open, whose service does not answer."""
        pytest.skip("there is no service that could be away")

    async def prepare(self) -> None:
        await super().prepare()
        self.lock = await self.another_lock()

    async def another_lock(self) -> Lock:
        """One more open lock on the namespace: another process."""
        return await self.opened(await self.make_lock())

    async def test_opening_and_closing_twice_is_no_harm(self) -> None:
        await self.lock.open()
        assert await self.lock.acquire("key", LONG)
        await self.lock.close()
        await self.lock.close()

    async def test_closing_what_was_never_opened_is_no_harm(self) -> None:
        await (await self.make_lock()).close()

    async def test_verbs_raise_unavailable_when_the_service_does_not_answer(self) -> None:
        lock = await self.make_unreachable()
        await self.raises_unavailable(
            [
                lock.open,
                lambda: lock.acquire("key", LONG),
                lambda: lock.renew("key", "token", LONG),
                lambda: lock.release("key", "token"),
            ]
        )
        await lock.close()

    async def test_while_somebody_has_a_key_nobody_else_gets_it(self) -> None:
        assert await self.lock.acquire("key", LONG) is not None
        assert await (await self.another_lock()).acquire("key", LONG) is None
        assert await self.lock.acquire("key", LONG) is None

    async def test_of_20_racers_one_gets_the_key(self) -> None:
        locks = [self.lock, *[await self.another_lock() for _ in range(19)]]
        for number in range(5):
            tokens = await asyncio.gather(*(lock.acquire(f"key-{number}", LONG) for lock in locks))
            assert len([token for token in tokens if token]) == 1

    async def test_of_20_racers_none_meets_another_inside(self) -> None:
        locks = [self.lock, *[await self.another_lock() for _ in range(19)]]
        inside: list[Lock] = []
        turns: list[Lock] = []

        async def race(lock: Lock) -> None:
            token = await self._acquire_in_time(lock)
            inside.append(lock)
            assert inside == [lock]
            await asyncio.sleep(0)
            turns.append(lock)
            inside.remove(lock)
            assert await lock.release("key", token)

        await asyncio.gather(*map(race, locks))
        assert len(turns) == 20

    async def test_keys_do_not_concern_each_other(self) -> None:
        tokens = [await self.lock.acquire(key, LONG) for key in KEYS]
        assert None not in tokens
        assert [await self.lock.release(key, token or "") for key, token in zip(KEYS, tokens, strict=True)] == [
            True for _ in KEYS
        ]

    async def test_a_token_is_never_given_out_twice(self) -> None:
        tokens: set[str | None] = set()
        for number in range(50):
            token = await self.lock.acquire("key", LONG)
            assert token
            tokens.add(token)
            tokens.add(await self.lock.acquire(f"key-{number}", LONG))
            assert await self.lock.release("key", token)
        assert len(tokens) == 100

    async def test_a_lock_ends_with_its_time(self) -> None:
        taken = self.clock.monotonic()
        token = await self.lock.acquire("key", self.ttl)
        assert token
        other = await self.another_lock()
        early = await other.acquire("key", LONG)
        assert early is None or self.clock.monotonic() - taken >= self.ttl
        await self.advance(self.ttl)
        assert early or await self._acquire_in_time(other)

    async def test_a_token_whose_time_is_over_holds_nothing(self) -> None:
        token = await self._expired()
        assert not await self.lock.renew("key", token, LONG)
        assert not await self.lock.release("key", token)
        assert await (await self.another_lock()).acquire("key", LONG)

    async def test_an_old_token_does_not_touch_the_next_holder(self) -> None:
        token = await self._expired()
        other = await self.another_lock()
        theirs = await other.acquire("key", LONG)
        assert theirs
        assert not await self.lock.renew("key", token, LONG)
        assert not await self.lock.release("key", token)
        assert await self.lock.acquire("key", LONG) is None
        assert await other.release("key", theirs)

    async def test_of_20_who_race_for_a_key_whose_time_is_over_one_gets_it(self) -> None:
        locks = [self.lock, *[await self.another_lock() for _ in range(19)]]
        keys = [f"key-{number}" for number in range(5)]
        stale = [await self.lock.acquire(key, self.ttl) for key in keys]
        await self.advance(self.ttl * 1.2)
        for key, old in zip(keys, stale, strict=True):
            tokens = await asyncio.gather(*(lock.acquire(key, LONG) for lock in locks))
            ((winner, token),) = [(lock, token) for lock, token in zip(locks, tokens, strict=True) if token]
            assert old
            assert not await self.lock.renew(key, old, LONG)
            assert not await self.lock.release(key, old)
            assert await winner.renew(key, token, LONG)

    async def test_renew_starts_the_time_anew(self) -> None:
        token = await self.lock.acquire("key", self.ttl)
        assert token
        assert await self.lock.renew("key", token, LONG)
        await self.advance(self.ttl * 1.2)
        assert await (await self.another_lock()).acquire("key", LONG) is None
        assert await self.lock.release("key", token)

    async def test_renew_can_shorten_the_time(self) -> None:
        token = await self.lock.acquire("key", LONG)
        assert token
        assert await self.lock.renew("key", token, self.ttl)
        await self.advance(self.ttl)
        assert await self._acquire_in_time(await self.another_lock())

    async def test_a_wrong_token_renews_nothing(self) -> None:
        assert await self.lock.acquire("key", self.ttl)
        assert not await self.lock.renew("key", "wrong", LONG)
        assert not await self.lock.renew("other-key", "wrong", LONG)
        await self.advance(self.ttl)
        assert await self._acquire_in_time(await self.another_lock())
        assert await self.lock.acquire("other-key", LONG)

    async def test_a_wrong_token_releases_nothing(self) -> None:
        token = await self.lock.acquire("key", LONG)
        foreign = await self.lock.acquire("other-key", LONG)
        assert token
        assert foreign
        assert not await self.lock.release("key", "wrong")
        assert not await self.lock.release("key", foreign)
        assert not await self.lock.release("no-such-key", token)
        assert await (await self.another_lock()).acquire("key", LONG) is None

    async def test_what_was_released_can_be_taken_at_once(self) -> None:
        token = await self.lock.acquire("key", LONG)
        assert token
        assert await self.lock.release("key", token)
        assert not await self.lock.release("key", token)
        assert await (await self.another_lock()).acquire("key", LONG)

    async def test_a_lock_outlives_the_instance_that_took_it(self) -> None:
        token = await self.lock.acquire("key", LONG)
        assert token
        other = await self.another_lock()
        await self.lock.close()
        assert await other.acquire("key", LONG) is None
        assert await other.renew("key", token, LONG)
        assert await other.release("key", token)

    async def _expired(self) -> str:
        """A token of ``key`` whose time is over, while nobody has taken the key."""
        token = await self.lock.acquire("key", self.ttl)
        assert token
        await self.advance(self.ttl)
        probe = await self._acquire_in_time(self.lock)  # it is over when another can have it
        assert await self.lock.release("key", probe)
        return token

    async def _acquire_in_time(self, lock: Lock) -> str:
        tokens: list[str] = []

        async def acquire() -> bool:
            token = await lock.acquire("key", LONG)
            tokens.extend([token] if token else [])
            return token is not None

        await self.until(acquire)
        return tokens[0]
