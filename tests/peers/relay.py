"""A TCP relay that delays. relay.py PORT HOST PORT FILE

Listens on loopback. FILE has the delay of each piece in milliseconds, as it is when the piece comes.
"""

import asyncio
import pathlib
import sys

PORT, TO, TO_PORT, DELAY = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), pathlib.Path(sys.argv[4])


async def copy(reader, writer):
    """Every piece comes out in its order, however many are on their way."""
    clock = asyncio.get_running_loop().time
    pieces = asyncio.Queue()

    async def deliver():
        while True:
            due, data = await pieces.get()
            await asyncio.sleep(due - clock())
            if not data:
                return
            writer.write(data)
            await writer.drain()

    delivery = asyncio.create_task(deliver())
    try:
        data = b"-"
        while data:
            data = await reader.read(65536)
            pieces.put_nowait((clock() + int(DELAY.read_text()) / 1000, data))
        await delivery
    except ConnectionError:
        delivery.cancel()
    finally:
        writer.close()


async def relay(reader, writer):
    try:
        far_reader, far_writer = await asyncio.open_connection(TO, TO_PORT)
    except OSError:
        writer.close()
        return
    await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))


async def main():
    async with await asyncio.start_server(relay, "127.0.0.1", PORT) as server:
        await server.serve_forever()


asyncio.run(main())
