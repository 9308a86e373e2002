"""A small HTTP/1.1 server as a process of its own, to be killed, frozen, restarted: `endpoint_process.py PORT MODE`.

MODE: ok, fail (503), reset (the connection breaks on each request), slow (an answer after a second). Port 0 is chosen
by the kernel; the port is printed. `/count` answers the number of other requests. SIGTERM ends it as servers do: no new
connections, idle ones closed at once, what is being answered is answered.
"""

import asyncio
import signal
import sys


class Endpoint(asyncio.Protocol):
    """One connection. `served` is shared by all."""

    served = 0
    mode = "ok"
    name = b""
    is_ending = False
    open: "set[Endpoint]" = set()  # noqa: RUF012 - one server in one process

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.buffer = b""
        self.waiting = 0
        Endpoint.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        Endpoint.open.discard(self)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, rest = self.buffer.partition(b"\r\n\r\n")
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line[15:])
            if len(rest) < length:
                return
            self.buffer = rest[length:]
            self.take(head)

    def take(self, head: bytes) -> None:
        if head.split(b" ")[1] == b"/count":
            self.answer(200, b"%d" % Endpoint.served)
            return
        Endpoint.served += 1
        if Endpoint.mode == "reset":
            self.transport.abort()
        elif Endpoint.mode == "fail":
            self.answer(503, b"failing")
        elif Endpoint.mode == "slow":
            self.waiting += 1
            asyncio.get_running_loop().call_later(1, self.answer_late)
        else:
            self.answer(200, Endpoint.name)

    def answer_late(self) -> None:
        self.waiting -= 1
        self.answer(200, Endpoint.name)

    def answer(self, status: int, body: bytes) -> None:
        closing = b"connection: close\r\n" if Endpoint.is_ending else b""
        self.transport.write(b"HTTP/1.1 %d x\r\n%bcontent-length: %d\r\n\r\n%b" % (status, closing, len(body), body))
        if Endpoint.is_ending:
            self.transport.close()


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    server = await loop.create_server(Endpoint, "127.0.0.1", port)
    port = server.sockets[0].getsockname()[1]
    Endpoint.name = b"%d" % port
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    print(port, flush=True)
    await ended.wait()
    server.close()
    Endpoint.is_ending = True
    for connection in tuple(Endpoint.open):
        if not connection.waiting:
            connection.transport.close()
    while Endpoint.open:
        await asyncio.sleep(0.01)


if __name__ == "__main__":
    Endpoint.mode = sys.argv[2]
    asyncio.run(serve(int(sys.argv[1])))
