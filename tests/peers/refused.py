"""Whether somebody is let in, asked again and again until it is told to end. refused.py HTTP_HOST PORT BYTES_HOST PORT

Each answer is a line: `http` with the status, or `bytes` with `data` where any came; `none` is no answer.
"""

import signal
import socket
import sys
import time

HTTP, BYTES = (sys.argv[1], int(sys.argv[2])), (sys.argv[3], int(sys.argv[4]))
running = True


def end(*_):
    global running
    running = False


def say(place, text):
    try:
        with socket.create_connection(place, timeout=2) as connection:
            connection.settimeout(2)
            connection.sendall(text)
            return connection.recv(4096)
    except OSError:
        return b""


signal.signal(signal.SIGTERM, end)
while running:
    answer = say(HTTP, b"GET /name HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n")
    words = answer.split(b" ", 2)
    print("http", words[1].decode() if len(words) > 1 else "none", flush=True)
    print("bytes", "data" if say(BYTES, b"ping\n") else "none", flush=True)
    time.sleep(0.02)
