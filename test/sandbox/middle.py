#!/usr/bin/env python3
"""What stands between a client and the sandbox API: a proxy.

    middle.py [--answer FILE] [--user U --password P]

It listens on loopback, writes its port to --port-file, connects to nothing but
loopback, and ends with --parent-pid or after --max-lifetime seconds.

The proxy takes CONNECT and plain requests.  While FILE exists, its bytes are the
answer to whatever comes, SOCKS included, and the connection is closed behind
them; FILE.log has the head of each request.  With credentials, a request without
them gets 407.
"""

import argparse
import asyncio
import base64
import os
import re
import sys
import time

from sandbox_api import is_alive, listen

CONNECT = re.compile(rb"CONNECT (127\.0\.0\.1|\[::1\]|localhost):([0-9]+) HTTP/1\.1\r\n")
PLAIN = re.compile(rb"([A-Z]+) http://(127\.0\.0\.1|\[::1\]|localhost):([0-9]+)(/\S*) HTTP/1\.1\r\n")
REQUIRED = (b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\n"
            b"Content-Length: 0\r\nConnection: close\r\n\r\n")


async def pump(reader, writer):
    """Move bytes until one side ends, and pass that on."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()


async def join(reader, writer, host, port, opening=b""):
    try:
        up_reader, up_writer = await asyncio.open_connection(host, port)
    except OSError:
        writer.transport.abort()
        return
    up_writer.write(opening)
    await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))


class Proxy:
    def __init__(self, options):
        self.answer = options.answer
        self.wanted = None
        if options.user is not None:
            token = base64.b64encode(f"{options.user}:{options.password}".encode())
            self.wanted = b"\r\nProxy-Authorization: Basic " + token + b"\r\n"

    async def serve(self, reader, writer):
        try:
            head = await reader.readexactly(1)
            if head in b"\x04\x05":
                await self._socks(reader, writer)
                return
            head += await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, OSError):
            writer.close()
            return
        self._note(head)
        refusal = self._refusal(head)
        connect, plain = CONNECT.match(head), PLAIN.match(head)
        if refusal is None and not connect and not plain:
            refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        if refusal is not None:
            writer.write(refusal)
            writer.close()
        elif connect:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await join(reader, writer, connect[1].strip(b"[]").decode(), int(connect[2]))
        else:
            # One request a connection: the next could be for another server.
            await join(reader, writer, plain[2].strip(b"[]").decode(), int(plain[3]),
                       plain[1] + b" " + plain[4] + b" HTTP/1.1\r\nConnection: close\r\n" + head[plain.end():])

    async def _socks(self, reader, writer):
        """Each of our answers is short, and read as far as it is wanted."""
        writer.write(self._refusal(b"") or b"")
        writer.write_eof()
        while await reader.read(65536):
            pass
        writer.close()

    def _note(self, head):
        if self.answer:
            with open(self.answer + ".log", "ab") as f:
                f.write(head)

    def _refusal(self, head):
        try:
            with open(self.answer or "", "rb") as f:
                return f.read()
        except OSError:
            return REQUIRED if self.wanted and self.wanted not in head else None


async def run(options):
    listener = listen("127.0.0.1", options.port)
    await asyncio.start_server(Proxy(options).serve, sock=listener)
    port = f"{listener.getsockname()[1]}\n"
    if options.port_file:
        partial = f"{options.port_file}.{os.getpid()}"
        with open(partial, "w") as f:
            f.write(port)
        os.replace(partial, options.port_file)
    else:
        sys.stdout.write(port)
        sys.stdout.flush()
    deadline = time.monotonic() + options.max_lifetime
    while time.monotonic() < deadline and (options.parent_pid is None or is_alive(options.parent_pid)):
        await asyncio.sleep(min(1.0, max(0.0, deadline - time.monotonic())))
    os._exit(0)


def main():
    p = argparse.ArgumentParser(description="A proxy on loopback.")
    p.add_argument("--port", type=int, default=0)
    p.add_argument("--port-file")
    p.add_argument("--answer", metavar="FILE")
    p.add_argument("--user")
    p.add_argument("--password", default="")
    p.add_argument("--parent-pid", type=int)
    p.add_argument("--max-lifetime", type=float, default=3600.0)
    options = p.parse_args()
    asyncio.run(run(options))


if __name__ == "__main__":
    main()
