"""A chain: one task after the other, each with the results of the one before it. A failure names its link.

Prints:

    Dear Ada, your 3 apples cost 1.50.
    link 1 failed: price_of: KeyError: 'pear'
    the letter was never written: FAILURE
"""

import asyncio

from asyncqueue import Server, TaskFailed, Worker, chain

PRICES = {"apple": 0.5, "melon": 2.25}

server = Server("sqlite:///chain.db")


@server.task
async def order(article: str, count: int) -> tuple[str, int]:  # two results: two arguments for the next one
    return article, count


@server.task
async def price_of(article: str, count: int) -> tuple[str, float]:
    return f"{count} {article}s", PRICES[article] * count


@server.task
async def letter(customer: str, what: str, price: float) -> str:  # its own argument first, then the results
    return f"Dear {customer}, your {what} cost {price:.2f}."


async def main() -> None:
    async with server, Worker(server):
        result = await chain(order.s("apple", 3), price_of, letter.s("Ada")).send()
        print(await result.get(timeout=30))

        result = await (order.s("pear", 1) | price_of | letter.s("Bob")).send()
        try:
            await result.get(timeout=30)
        except TaskFailed as exc:
            place = [link.id for link in result.links].index(exc.task_id)
            print(f"link {place} failed: {exc.task_name}: {exc.error}")
        print(f"the letter was never written: {(await server.result(result.id).wait(timeout=30)).state.name}")


if __name__ == "__main__":
    asyncio.run(main())
