"""A server for probes. probed.py http|https|grpc|tcp PORT

What it does is in /tmp/mode, and can be changed at any time: `up`; `sick`, which answers that it is not well; `slow`, which answers
after five seconds; `hung`, which takes connections and says nothing; `down`, which takes none. Without the file it is up.
"""

import os
import signal
import socket
import ssl
import sys
import threading
import time

import grpc_health

KIND, PORT = sys.argv[1], int(sys.argv[2])
MODE = "/tmp/mode"
SLOW = 5


def mode():
    try:
        with open(MODE) as file:
            return file.read().strip() or "up"
    except FileNotFoundError:
        return "up"


def http(connection):
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(4096)
        if not data:
            return
        head += data
    status = b"500 Sick" if mode() == "sick" else b"200 OK"
    connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def https(connection):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("/tls/tls.crt", "/tls/tls.key")
    with context.wrap_socket(connection, server_side=True) as secured:
        http(secured)


def grpc(connection):
    grpc_health.SERVING = grpc_health.STATUS[mode() != "sick"]
    grpc_health.Handler(connection, None, None)


def serve(connection):
    try:
        with connection:
            while mode() == "hung":
                time.sleep(0.2)
            if mode() == "slow":
                time.sleep(SLOW)
            if KIND != "tcp":
                {"http": http, "https": https, "grpc": grpc}[KIND](connection)
    except OSError:
        pass


signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
listener = None
while True:
    if mode() == "down":
        if listener:
            listener.close()
            listener = None
        time.sleep(0.1)
        continue
    if not listener:
        listener = socket.create_server(("0.0.0.0", PORT), backlog=64)
        listener.settimeout(0.1)
    try:
        accepted, _ = listener.accept()
    except TimeoutError:
        continue
    accepted.settimeout(None)
    threading.Thread(target=serve, args=[accepted], daemon=True).start()
