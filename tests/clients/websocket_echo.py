"""Speaks to an echoing WebSocket through the `websockets` package.

    websocket_echo.py URL

Texts, bytes, a message of a mebibyte, a ping, many in flight at once, and a close that both sides agree on.
"""

import asyncio
import sys

import websockets


async def main(url):
    async with websockets.connect(url, max_size=None, compression=None) as socket:
        for message in ("canoe", "", "späť ☂", b"\x00\xff" * 10, "x" * 2**20):
            await socket.send(message)
            assert await socket.recv() == message
        await asyncio.wait_for(await socket.ping(), 10)
        sent = [f"message {number}" for number in range(200)]
        for message in sent:
            await socket.send(message)
        assert [await socket.recv() for _ in sent] == sent
        await socket.close(1000, "that is all")
    assert socket.close_code == 1000, socket.close_code


if __name__ == "__main__":
    asyncio.run(asyncio.wait_for(main(sys.argv[1]), 15))
    print("websocket: done")
