"""Workflows in workflows: chains in a group, a group after a group, chords in a chord.

Prints:

    17 words in all texts
    lines with 6, 4 and 7 words: together 17, the longest has 7
    the longest of both books has 7
"""

import asyncio

from asyncqueue import Server, Worker, chain, chord, group

BOOKS = {
    "Hamlet": ["to be or not to be", "that is the question"],
    "As You Like It": ["and all the men and women merely", "players"],
}
LINES = ["to be or not to be", "that is the question", "and all the men and women merely"]

server = Server("sqlite:///nested.db")


@server.task
async def split(line: str) -> list[str]:
    return line.split()


@server.task
async def count(words: list[str]) -> int:
    return len(words)


@server.task
async def add(*counts: int) -> int:
    return sum(counts)


@server.task
async def longest(*counts: int) -> int:
    return max(counts)


async def main() -> None:
    async with server, Worker(server):
        # chains in a group: each one is one member
        words = await chord([chain(split.s(line), count) for line in LINES], add).send()
        print(f"{await words.get(timeout=30)} words in all texts")

        # a group after a group: each member of the second is given the results of all in the first
        counts = group(*[chain(split.s(line), count) for line in LINES])
        both = await chain(counts, group(add, longest)).send()
        together, most = await both.get(timeout=30)
        each = await both.links[0].get(timeout=30)
        print(f"lines with {each[0]}, {each[1]} and {each[2]} words: together {together}, the longest has {most}")

        # chords in a chord: a member is a callback here
        of_books = [chord([chain(split.s(line), count) for line in lines], longest) for lines in BOOKS.values()]
        print(f"the longest of both books has {await (await chord(of_books, longest).send()).get(timeout=30)}")


if __name__ == "__main__":
    asyncio.run(main())
