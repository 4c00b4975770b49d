"""What a Redis server answers to a client that knows nothing of us, in types."""

from __future__ import annotations

from redis.asyncio import Redis


def raw(reply: object) -> bytes:
    """A reply, or a part of one, as the bytes that it is: the client was not told to decode anything."""
    assert isinstance(reply, bytes), reply
    return reply


async def execute(redis: Redis, *words: str | bytes | float) -> object:
    """Any command, word by word."""
    reply: object = await redis.execute_command(*words)  # type: ignore[no-untyped-call]  # the client does not say
    return reply
