"""A chord: a group, and a callback with all its results. What a failed member means to the callback can be chosen.

Prints:

    all is well: 3 temperatures, 14.0 on average
    skip: 2 temperatures, 11.5 on average
    pass: 2 temperatures, 11.5 on average; ConnectionError: no answer from Oslo
    fail: member 1 (temperature): ConnectionError: no answer from Oslo
    told: member 'temperature' (…) of group … failed: ConnectionError: no answer from Oslo
    in time: group … was not complete within 0.5 s
"""

import asyncio
import re

from asyncqueue import MemberFailed, MemberFailure, Server, TaskFailed, Worker, chord

server = Server("sqlite:///chord.db")
told: asyncio.Queue[str] = asyncio.Queue()


@server.task
async def temperature(city: str) -> float:
    if city == "Oslo":
        raise ConnectionError("no answer from Oslo")
    return {"Paris": 13.0, "Rome": 19.0, "York": 10.0}[city]


@server.task
async def report(*given: float | MemberFailure) -> str:
    good = [each for each in given if isinstance(each, float)]
    failures = "".join(f"; {each.error}" for each in given if isinstance(each, MemberFailure))
    return f"{len(good)} temperatures, {sum(good) / len(good):.1f} on average{failures}"


@server.task
async def tell(error: str) -> None:
    told.put_nowait(error)


async def main() -> None:
    good = [temperature.s(city) for city in ("Paris", "Rome", "York")]
    mixed = [temperature.s("Paris"), temperature.s("Oslo"), temperature.s("York")]
    async with server, Worker(server):
        print("all is well:", await (await chord(good, report).send()).get(timeout=30))
        print("skip:", await (await chord(mixed, report, on_failure="skip").send()).get(timeout=30))
        print("pass:", await (await chord(mixed, report, on_failure="pass").send()).get(timeout=30))

        try:
            await (await chord(mixed, report.with_(on_error=tell.s()).s()).send()).get(timeout=30)
        except MemberFailed as exc:
            print(f"fail: member {exc.index} ({exc.task_name}): {exc.error}")
        print("told:", without_ids(await told.get()))

        try:
            never = temperature.with_(queue="nobodys").s("Rome")
            await (await chord([temperature.s("Paris"), never], report, group_timeout=0.5).send()).get(timeout=30)
        except TaskFailed as exc:
            print("in time:", without_ids(exc.error))


def without_ids(text: str) -> str:
    return re.sub(r"(task|group)_[0-9a-f-]{36}", "…", text)


if __name__ == "__main__":
    asyncio.run(main())
