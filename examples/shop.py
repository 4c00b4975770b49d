"""Tasks of a shop, for workers that are processes of their own.

In this folder:

    asyncqueue worker shop:server --queue orders --queue letters --concurrency 20

runs them until SIGTERM or SIGINT; several such processes share the work. Then, from anywhere else in this folder:

    asyncqueue send shop:server price_of --args '["apple", 3]' --wait 30
    python shop.py apple 3

which sends one task and waits for what a worker made of it.
"""

import asyncio
import sys

from asyncqueue import Server, TaskContext

PRICES = {"apple": 0.5, "melon": 2.25}

server = Server("sqlite:///shop.db")


@server.task(queue="orders")
async def price_of(article: str, count: int) -> float:
    return PRICES[article] * count


@server.task(queue="letters", retries=5)
async def confirm(ctx: TaskContext, customer: str) -> str:
    ctx.log.info("a letter for %s", customer)
    return f"Dear {customer}, your order is on its way."


async def main(article: str, count: int) -> None:
    async with server:
        price = await price_of.send(article, count)
        letter = await confirm.send("Ada")
        print(f"{count} {article}s: {await price.get(timeout=30):.2f}")
        print(await letter.get(timeout=30))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
