"""Plain functions run in threads and block nobody; a coroutine over its time limit is cancelled.

Prints:

    digest: e4cfa39a3d37be31
    it ran beside the event loop: True
    wait failed: TimeoutError: ran over its time limit of 0.2 s
    wait had the time to clean up
"""

import asyncio
import hashlib
import threading

from asyncqueue import Server, TaskFailed, Worker

server = Server("memory://")
main_thread = threading.current_thread()


@server.task
def digest(text: str) -> tuple[str, bool]:
    return hashlib.blake2b(text.encode()).hexdigest()[:16], threading.current_thread() is not main_thread


@server.task(timeout=0.2)
async def wait(seconds: float) -> None:
    try:
        await asyncio.sleep(seconds)
    finally:
        cleaned_up.set()


cleaned_up = asyncio.Event()


async def main() -> None:
    async with server, Worker(server):
        text, beside = await (await digest.send("hello")).get(timeout=30)
        print(f"digest: {text}")
        print(f"it ran beside the event loop: {beside}")

        try:
            await (await wait.send(3600)).get(timeout=30)
        except TaskFailed as exc:
            print(f"wait failed: {exc.error}")
        await cleaned_up.wait()
        print("wait had the time to clean up")


if __name__ == "__main__":
    asyncio.run(main())
