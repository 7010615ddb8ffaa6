"""uvicorn with an application that writes down by its own clock when it read and wrote, for the probes to be compared with.

    asgi.py FLAVOUR ADDRESS    FLAVOUR is uvloop (with httptools) or asyncio (with h11)

It listens on any free port of ADDRESS and says which. Times are nanoseconds of CLOCK_MONOTONIC, the clock of the kernel's
programs. A read is noted when the loop hands over what it read. A write is noted when the system call has returned: in
asyncio that is when `write` does; uvloop writes at the end of the loop's round, and the note is made in the next one.
"""

import asyncio
import json
import os
import select
import socket
import sys
import time
from urllib.parse import parse_qsl

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

FLAVOUR, ADDRESS = sys.argv[1:]

# How long /block does not let the loop go on when something has come that it could read.
BLOCKED = 0.025

now = time.monotonic_ns
CLOCKS = {}
SEEN = []
BLOCKS = []


class Clocks:
    """What was noted of one connection since its last answer."""

    def __init__(self, transport):
        self.transport = transport
        self.fd = transport.get_extra_info("socket").fileno()
        self.read = self.called = self.recalled = self.first = self.last = None

    def has_read(self):
        self.read = self.read or now()

    def has_written(self):
        self.last = now()
        self.first = self.first or self.last


class Pen:
    """A transport that notes when it has written."""

    def __init__(self, transport, clocks):
        self._transport, self._clocks = transport, clocks

    def __getattr__(self, name):
        return getattr(self._transport, name)

    def write(self, data):
        self._clocks.recalled = now()
        self._clocks.called = self._clocks.called or self._clocks.recalled
        self._transport.write(data)
        if FLAVOUR == "uvloop":
            asyncio.get_running_loop().call_soon(self._clocks.has_written)
        else:
            self._clocks.has_written()


def noting(protocol):
    class Noting(protocol):
        def connection_made(self, transport):
            self.clocks = Clocks(transport)
            CLOCKS[transport.get_extra_info("peername")[1]] = self.clocks
            super().connection_made(Pen(transport, self.clocks))

        def data_received(self, data):
            self.clocks.has_read()
            super().data_received(data)

        def connection_lost(self, error):
            CLOCKS.pop(self.clocks.transport.get_extra_info("peername")[1], None)
            super().connection_lost(error)

    return Noting


class Answer:
    def __init__(self, send):
        self.send = send

    async def head(self, length=None):
        headers = [] if length is None else [(b"content-length", str(length).encode())]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})

    async def part(self, data, more=True):
        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def whole(self, data):
        await self.head(len(data))
        await self.part(data, False)


async def work(answer, wants):
    """An answer in parts: takes `first` ms to the first, `gap` ms between them (0: a round of the loop)."""
    await asyncio.sleep(float(wants.get("first", 0)) / 1000)
    parts = int(wants.get("parts", 1))
    await answer.head()
    for part in range(parts):
        if part > 0:
            await asyncio.sleep(float(wants.get("gap", 0)) / 1000)
        await answer.part(b"data: token\n\n", part + 1 < parts)


UPLOAD = {"bytes": 0, "moved": asyncio.Condition()}


async def read_all(receive):
    """Reads a body, and lets /until know how far."""
    more = True
    UPLOAD["bytes"] = 0
    while more:
        event = await receive()
        more = event.get("more_body", False)
        async with UPLOAD["moved"]:
            UPLOAD["bytes"] += len(event.get("body", b""))
            UPLOAD["moved"].notify_all()
    return UPLOAD["bytes"]


async def until(wants):
    async with UPLOAD["moved"]:
        await UPLOAD["moved"].wait_for(lambda: UPLOAD["bytes"] >= int(wants["bytes"]))


PAIR = asyncio.Barrier(2)
# With the protocol named, as asyncio names it when it makes the socket: without, it does not turn Nagle's algorithm off.
FAMILY = socket.AF_INET6 if ":" in ADDRESS else socket.AF_INET
LISTENER = socket.socket(FAMILY, socket.SOCK_STREAM, socket.IPPROTO_TCP)
LISTENER.bind((ADDRESS, 0))
LISTENER.listen(128)


def block(own):
    """Holds the loop up until something else has come, and for 25 ms after that."""
    poll = select.poll()
    poll.register(LISTENER, select.POLLIN)
    for clocks in CLOCKS.values():
        if clocks is not own:
            poll.register(clocks.fd, select.POLLIN)
    print("BLOCKING", flush=True)
    poll.poll()
    came = now()
    time.sleep(BLOCKED)
    BLOCKS.append(came)


async def respond(path, wants, clocks, receive, send):
    answer = Answer(send)
    match path.split("/")[1]:
        case "work":
            await work(answer, wants)
        case "upload":
            await answer.whole(b"%d" % await read_all(receive))
        case "early":
            # Answers before it has read everything, and goes on answering while it reads.
            await answer.head()
            await answer.part(b"early\n")
            await answer.part(b"%d" % await read_all(receive), False)
        case "until":
            await until(wants)
            await answer.whole(b"ok")
        case "pair":
            await PAIR.wait()
            await answer.whole(b"ok")
        case "block":
            block(clocks)
            await answer.whole(b"ok")
        case "die":
            if "parts" in wants:
                await answer.head()
                await answer.part(b"data: token\n\n")
                # What is written is written in the next round of the loop at the latest.
                await asyncio.sleep(0.001)
            os._exit(1)
        case "hang":
            await answer.head()
            await answer.part(b"data: token\n\n")
            while (await receive())["type"] != "http.disconnect":
                pass
            print("DISCONNECTED", flush=True)
        case "seen":
            await answer.whole(json.dumps({"seen": SEEN, "blocks": BLOCKS}).encode())


async def app(scope, receive, send):
    clocks = CLOCKS[scope["client"][1]]
    # A body that comes later is read again; what was read first counts.
    read = clocks.read
    clocks.called = clocks.first = clocks.last = None

    async def noted(event):
        if event["type"] == "http.response.body" and not event.get("more_body"):
            # The next read is of the next request.
            clocks.read = None
        await send(event)

    await respond(scope["path"], dict(parse_qsl(scope["query_string"].decode())), clocks, receive, noted)
    called, recalled, first, last = clocks.called, clocks.recalled, clocks.first, clocks.last
    if FLAVOUR == "uvloop":
        # The note of the last write is made in the next round.
        await asyncio.sleep(0)
        first, last = clocks.first, clocks.last
    record = {"path": scope["path"], "read": read, "called": called, "recalled": recalled}
    SEEN.append({**record, "first": first, "last": last})


async def main():
    protocol, loop = (HttpToolsProtocol, "uvloop") if FLAVOUR == "uvloop" else (H11Protocol, "asyncio")
    config = uvicorn.Config(
        app,
        http=noting(protocol),
        loop=loop,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        # The client is whoever has the connection.
        proxy_headers=False,
    )
    assert type(asyncio.get_running_loop()).__module__.startswith(FLAVOUR)
    print(f"LISTENING {LISTENER.getsockname()[1]}", flush=True)
    await uvicorn.Server(config).serve(sockets=[LISTENER])


if FLAVOUR == "uvloop":
    import uvloop

    uvloop.run(main())
else:
    asyncio.run(main())
