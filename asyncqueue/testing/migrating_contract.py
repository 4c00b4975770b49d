"""What is true of every store that can make what it needs: each sentence of ``asyncqueue.migrating``, as tests."""

from __future__ import annotations

import asyncio
from typing import Any

from asyncqueue.migrating import Migrating
from asyncqueue.testing.suite import Suite


class MigratingContract(Suite):
    """Subclass it, and say how to make the driver; its service has nothing yet that was made for it."""

    async def make_driver(self) -> Any:
        """A driver that is not open: a broker, backend or lock that is ``Migrating``; each in the same place."""
        raise self.unsaid("make_driver", "a Migrating driver that is not open")

    async def make_unreachable(self) -> Any:
        """A driver whose service does not answer; not open."""
        raise self.unsaid("make_unreachable", "a Migrating driver whose service does not answer")

    async def test_a_driver_that_can_make_what_it_needs_says_so(self) -> None:
        assert isinstance(await self.make_driver(), Migrating)

    async def test_looking_makes_nothing(self) -> None:
        driver = await self.make_driver()
        missing = await driver.missing()
        assert missing
        assert all(line and "\n" not in line for line in missing)
        assert list(await driver.missing()) == list(missing)
        await driver.close()

    async def test_what_is_missing_is_made_and_then_no_longer_missing(self) -> None:
        driver = await self.make_driver()
        missing = await driver.missing()
        assert list(await driver.migrate()) == list(missing)
        assert list(await driver.missing()) == []
        await driver.close()
        opened = await self.opened(await self.make_driver())
        assert list(await opened.missing()) == []

    async def test_migrating_twice_makes_nothing_more(self) -> None:
        driver = await self.make_driver()
        await driver.migrate()
        assert list(await driver.migrate()) == []
        await driver.open()
        assert list(await driver.migrate()) == []
        await driver.close()

    async def test_several_that_migrate_at_once_do_no_harm(self) -> None:
        drivers = [await self.make_driver() for _ in range(4)]
        await asyncio.gather(*(driver.migrate() for driver in drivers))
        assert list(await drivers[0].missing()) == []
        for driver in drivers:
            await driver.close()

    async def test_a_service_that_does_not_answer_is_unavailable(self) -> None:
        driver = await self.make_unreachable()
        await self.raises_unavailable([driver.missing, driver.migrate])
        await driver.close()
