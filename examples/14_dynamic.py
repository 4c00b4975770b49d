"""Work that grows while it runs: a task goes on as a workflow, and a member of a group adds members to it.

Prints:

    9 pages below 'home', by tasks that go on as chords
    9 pages below 'home', by members that add members
"""

import asyncio

from asyncqueue import Server, TaskContext, Worker, chord

LINKS = {"home": ["docs", "blog", "about"], "docs": ["tutorial", "reference"], "blog": ["one", "two", "three"]}

server = Server("sqlite:///dynamic.db")


@server.task
async def add(*counts: int) -> int:
    return sum(counts)


@server.task
async def count(ctx: TaskContext, page: str) -> int:
    below = LINKS.get(page, [])
    if below:
        # this run ends here; its result will be that of the chord, for whoever waits for it
        ctx.replace(chord([count.s(each) for each in below], add.s(1)))
    return 1


@server.task
async def visit(ctx: TaskContext, page: str) -> int:
    below = LINKS.get(page, [])
    if below:
        await ctx.add_to_group(*[visit.s(each) for each in below])  # the callback waits for them too
    return 1


async def main() -> None:
    async with server, Worker(server):
        counted = await count.send("home")
        print(f"{await counted.get(timeout=30)} pages below 'home', by tasks that go on as chords")

        visited = await chord([visit.s("home")], add).send()
        print(f"{await visited.get(timeout=30)} pages below 'home', by members that add members")


if __name__ == "__main__":
    asyncio.run(main())
