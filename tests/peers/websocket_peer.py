"""A WebSocket echo server and its client. websocket_peer.py serve PORT | call URI"""

import asyncio
import sys

import websockets


async def echo(socket):
    async for message in socket:
        await socket.send(message)


async def serve(port):
    async with websockets.serve(echo, "0.0.0.0", int(port), max_size=8 << 20):
        await asyncio.Future()


async def call(uri):
    async with websockets.connect(uri, max_size=8 << 20, open_timeout=20) as socket:
        for message in ["hello", bytes(range(256)) * 8192, ""]:
            await socket.send(message)
            assert await asyncio.wait_for(socket.recv(), 20) == message, "another message came back"
        await asyncio.wait_for(await socket.ping(), 20)
    assert socket.close_code == 1000, f"closed with {socket.close_code}"
    print("ok")


asyncio.run({"serve": serve, "call": call}[sys.argv[1]](sys.argv[2]))
