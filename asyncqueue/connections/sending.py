"""Several requests for one verb: the first error waits for the others, and what has left is not sent again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

REMEMBERED = 10_000
"""The most tokens that are remembered of verbs that nobody repeated."""


class Sent:
    """The tokens of what the service has of verbs that did not come to their end: a repetition sends only the rest."""

    def __init__(self) -> None:
        self._tokens: dict[str, None] = {}

    def __contains__(self, token: str) -> bool:
        return token in self._tokens

    def add(self, tokens: Iterable[str]) -> None:
        """The service has these."""
        self._tokens.update(dict.fromkeys(tokens))
        while len(self._tokens) > REMEMBERED:
            del self._tokens[next(iter(self._tokens))]

    def forget(self, tokens: Iterable[str]) -> None:
        """The verb of these has come to its end."""
        for token in tokens:
            self._tokens.pop(token, None)


async def all_of(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Make all of these calls at once; raises the first error when all have ended."""
    results: list[T] = []
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
        results.append(result)
    return results


def portions(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """So many at a time, in order."""
    return (items[start : start + size] for start in range(0, len(items), size))
