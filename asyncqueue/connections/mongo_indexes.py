"""The indexes that the collections need: looked at first, made where they are missing, and mended only when asked to.

That an entry ends is up to indexes, which drop it when its moment is over.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pymongo import ASCENDING, IndexModel

from asyncqueue.connections.mongo import Document, MongoLink, parse_url
from asyncqueue.connections.sending import all_of


@dataclass(frozen=True, slots=True)
class Index:
    """An index of a collection over fields; ``ends`` entries whose one field is a moment that is over."""

    collection: str
    fields: tuple[str, ...]
    ends: bool = False

    def __str__(self) -> str:
        what = ", which ends entries" if self.ends else ""
        return f"index {self.name} of collection {self.collection}{what}"

    @property
    def name(self) -> str:
        """The name that MongoDB itself, and Machinery 2, would give it."""
        return "_".join(f"{each}_1" for each in self.fields)

    @property
    def model(self) -> IndexModel:
        """The index as the library makes it."""
        # with the same words as Machinery 2, which comes again with its own and must find it
        options: dict[str, Any] = {"background": True} | ({"expireAfterSeconds": 0} if self.ends else {})
        return IndexModel([(each, ASCENDING) for each in self.fields], name=self.name, **options)

    def is_like(self, found: Document) -> bool:
        """Whether that one has the same fields, whatever else it does."""
        return tuple(found["key"]) == self.fields

    def is_kept_by(self, found: Document) -> bool:
        """Whether that one does all that this one is to do."""
        ends_after = found.get("expireAfterSeconds")
        has_all = not found.get("sparse") and "partialFilterExpression" not in found
        return self.is_like(found) and has_all and (ends_after == 0 if self.ends else ends_after is None)


@dataclass(frozen=True, slots=True)
class Useless:
    """An index that Machinery 1 makes to end entries, and that ends none: its field is no moment."""

    collection: str
    field: str

    def __str__(self) -> str:
        return f"no index on {self.field} of collection {self.collection}: Machinery 1 made one, which ends nothing"

    def is_found_in(self, found: Document) -> bool:
        """Whether it is that one."""
        return tuple(found["key"]) == (self.field,) and "expireAfterSeconds" in found


@dataclass(frozen=True, slots=True)
class Indexes:
    """What collections need, and what they may be rid of."""

    wanted: Sequence[Index]
    useless: Sequence[Useless] = ()

    async def ensure(self, link: MongoLink) -> None:
        """Make those that are not there in any form; nothing is sent where all are."""
        found = await self._found(link)
        missing = [each for each in self.wanted if not any(map(each.is_like, found[each.collection]))]
        await _make(link, missing)

    async def missing(self, link: MongoLink) -> Sequence[str]:
        """``Migrating.missing``."""
        async with _opened(link) as reached:
            return self._lines(await self._found(reached))

    async def migrate(self, link: MongoLink) -> Sequence[str]:
        """``Migrating.migrate``: also mends what is there with other options, and drops what is useless."""
        async with _opened(link) as reached:
            found = await self._found(reached)
            wrong = self._wrong(found)
            for each in wrong:
                for other in filter(each.is_like, found[each.collection]):
                    await _drop(reached, each.collection, other)
            await _make(reached, wrong)
            for useless, other in self._dropped(found):
                await _drop(reached, useless.collection, other)
        return self._lines(found)

    async def _found(self, link: MongoLink) -> dict[str, list[Document]]:
        collections = list(dict.fromkeys(each.collection for each in self.wanted))
        return dict(zip(collections, await all_of(map(link.indexes, collections)), strict=True))

    def _lines(self, found: dict[str, list[Document]]) -> list[str]:
        return [str(each) for each in (*self._wrong(found), *(useless for useless, _ in self._dropped(found)))]

    def _wrong(self, found: dict[str, list[Document]]) -> list[Index]:
        return [each for each in self.wanted if not any(map(each.is_kept_by, found[each.collection]))]

    def _dropped(self, found: dict[str, list[Document]]) -> list[tuple[Useless, Document]]:
        return [(each, other) for each in self.useless for other in found[each.collection] if each.is_found_in(other)]


class OnMongo:
    """A backend or lock on MongoDB: ``Migrating``, and somewhere; ``indexes`` are those that it needs."""

    def __init__(self, url: str, database: str, *, client: Any, reply_timeout: float, indexes: Indexes) -> None:
        self._link = MongoLink(parse_url(url, database), client=client, reply_timeout=reply_timeout)
        self._indexes = indexes

    @property
    def address(self) -> str:
        return str(self._link.address)

    async def missing(self) -> Sequence[str]:
        return await self._indexes.missing(self._link)

    async def migrate(self) -> Sequence[str]:
        return await self._indexes.migrate(self._link)

    async def _reach(self) -> None:
        """Open the link, and have the indexes."""
        await self._link.open()
        try:
            await self._indexes.ensure(self._link)
        except BaseException:
            await self._link.close()
            raise


@asynccontextmanager
async def _opened(link: MongoLink) -> AsyncIterator[MongoLink]:
    """The link itself where it is open, or another one to the same place."""
    if link.is_open:
        yield link
        return
    twin = link.twin()
    await twin.open()
    try:
        yield twin
    finally:
        await twin.close()


async def _make(link: MongoLink, indexes: Sequence[Index]) -> None:
    for collection in dict.fromkeys(each.collection for each in indexes):
        models = [each.model for each in indexes if each.collection == collection]
        await link.index(collection, models)


async def _drop(link: MongoLink, collection: str, index: Document) -> None:
    await link.run(collection, lambda these: these.drop_index(index["name"]))
