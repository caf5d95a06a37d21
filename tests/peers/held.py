"""Exchanges of every kind that are under way until the server lets them go. held.py ADDRESS

Two HTTP requests wait at /hold. A gRPC stream and an echoed TCP connection have had one exchange, and have their second once the HTTP
requests are answered. What came of them is told as JSON.
"""

import http.client
import json
import queue
import socket
import sys
import threading

import grpc
from raw import dial, read_all

TIMEOUT = 30
ADDRESS = sys.argv[1]
found = {}


def request(method, body):
    connection = http.client.HTTPConnection(ADDRESS, 8090, timeout=TIMEOUT)
    try:
        connection.request(method, "/hold", body)
        response = connection.getresponse()
        found[method] = [response.status, response.read().decode()]
    except (OSError, http.client.HTTPException) as e:
        found[method] = repr(e)
    finally:
        connection.close()


channel = grpc.insecure_channel(f"{ADDRESS}:50051", options=[("grpc.enable_http_proxy", 0)])
words = queue.SimpleQueue()
stream = channel.stream_stream("/lab.Lab/Bidi")(iter(words.get, None), timeout=TIMEOUT)
words.put(b"one")
found["grpc"] = [next(stream).decode()]
tcp = dial(ADDRESS, 7000)
tcp.sendall(b"one")
found["tcp"] = [tcp.recv(64).decode()]
requests = [threading.Thread(target=request, args=args) for args in (("GET", None), ("POST", b"body"))]
for r in requests:
    r.start()
print("held", file=sys.stderr, flush=True)

for r in requests:
    r.join()
try:
    words.put(b"two")
    words.put(None)
    found["grpc"] += [word.decode() for word in stream] + [stream.code().name]
except grpc.RpcError as e:
    found["grpc"].append(e.code().name)
try:
    tcp.sendall(b"two")
    tcp.shutdown(socket.SHUT_WR)
    found["tcp"].append(read_all(tcp).decode())
except OSError as e:
    found["tcp"].append(repr(e))
print(json.dumps(found))
