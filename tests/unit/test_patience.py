"""Trying again while a service is away."""

from __future__ import annotations

import pytest

from asyncqueue.clock import SYSTEM_CLOCK
from asyncqueue.engine import patience
from asyncqueue.engine.events import Event, Events, StoreAway, StoreBack
from asyncqueue.engine.patience import Patience
from asyncqueue.errors import Refused, Unavailable
from asyncqueue.testing import ManualClock


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "delays", lambda: iter([0.0] * 1_000))


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
def events(told: list[Event]) -> Events:
    events = Events()
    events.listen(told.append)
    return events


class Store:
    """Is away for so many calls."""

    def __init__(self, away: int, error: Exception | None = None) -> None:
        self.calls = 0
        self.away = away
        self.error = error or Unavailable("away")

    async def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.away:
            raise self.error
        return "here"


async def test_a_call_that_works_is_made_once_and_nothing_is_told(events: Events, told: list[Event]) -> None:
    store = Store(0)
    assert await Patience(events, SYSTEM_CLOCK).insist("look", store) == "here"
    assert (store.calls, told) == (1, [])


async def test_a_store_that_is_away_is_asked_again_and_told_once_and_at_the_end(
    events: Events, told: list[Event]
) -> None:
    store = Store(5)
    assert await Patience(events, ManualClock()).insist("look", store) == "here"
    assert store.calls == 6
    assert told == [StoreAway("look", "away", 0.0), StoreBack("look", 0.0)]
    assert told[0].text() == "cannot look, trying again: away"


async def test_a_refusal_is_raised_at_once_also_after_an_outage(events: Events) -> None:
    store = Store(1, Refused("no"))
    with pytest.raises(Refused):
        await Patience(events, SYSTEM_CLOCK).insist("look", store)
    assert store.calls == 1


async def test_a_budget_ends_the_patience_with_the_last_error(events: Events) -> None:
    clock = ManualClock()
    store = Store(1_000)

    async def slow() -> str:
        clock.advance(1.0)
        return await store()

    with pytest.raises(Unavailable):
        await Patience(events, clock).insist("look", slow, budget=3.0)
    assert 3 <= store.calls <= 5
