"""A TCP relay for tools that cannot say weft's ALPN names. weft_alpn.py PORT HOST PORT

Listens on loopback. A ClientHello that offers no weft/... name leaves with weft/h1 for its only one; all else goes through as it came. What a tool then
sees of the answer in the clear is the server's own; it cannot finish the handshake, since the two ends have seen two ClientHellos. One that offers such a name
by itself goes through untouched.
"""

import asyncio
import sys

PORT, TO, TO_PORT = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
ALPN = 16
NAME = b"weft/h1"


def sized(n, content):
    return len(content).to_bytes(n, "big") + content


def with_name(record):
    """A record (RFC 8446, section 5.1) that holds a whole ClientHello, with the name; any other as it is."""
    body = record[9:]
    if len(record) < 44 or record[0] != 22 or record[5] != 1 or int.from_bytes(record[6:9], "big") != len(body):
        return record
    at = 34
    at += 1 + body[at]
    at += 2 + int.from_bytes(body[at:at + 2], "big")
    at += 1 + body[at]
    kept, rest = [], body[at + 2:]
    while len(rest) >= 4:
        kind, length = int.from_bytes(rest[:2], "big"), int.from_bytes(rest[2:4], "big")
        value, rest = rest[4:4 + length], rest[4 + length:]
        if kind != ALPN:
            kept.append((kind, value))
        elif b"weft/" in value:
            return record
    # The pre-shared key stands last (RFC 8446, section 4.2.11), and nobody here has one.
    kept.append((ALPN, sized(2, sized(1, NAME))))
    extensions = b"".join(kind.to_bytes(2, "big") + sized(2, value) for kind, value in kept)
    return record[:3] + sized(2, b"\1" + sized(3, body[:at] + sized(2, extensions)))


async def copy(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def relay(reader, writer):
    try:
        far_reader, far_writer = await asyncio.open_connection(TO, TO_PORT)
    except OSError:
        writer.close()
        return
    try:
        head = await reader.readexactly(5)
        if head[0] == 22:
            head = with_name(head + await reader.readexactly(int.from_bytes(head[3:], "big")))
        far_writer.write(head)
    except asyncio.IncompleteReadError as end:
        far_writer.write(end.partial)
    await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))


async def main():
    async with await asyncio.start_server(relay, "127.0.0.1", PORT) as server:
        print("listening", flush=True)
        await server.serve_forever()


asyncio.run(main())
