"""Traffic of every kind at once, until it is told to end. traffic.py HOST

HTTP/1.1 on connections that are kept, gRPC calls on one, and TCP on a new one each time. Every success is a line on standard error,
which begins with its kind; what failed after the first success of its kind is told as JSON in the end.
"""

import http.client
import json
import signal
import sys
import threading
import time

# Before there are threads, so that none of them takes it.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

import grpc  # noqa: E402
from raw import dial  # noqa: E402

TIMEOUT = 10
PAUSE = 0.01
HOST = sys.argv[1]
ended = threading.Event()
failures = []


def keep_going(kind, exchange):
    count = 0
    while not ended.is_set():
        try:
            answer = exchange()
            count += 1
            sys.stderr.write(f"{kind} {answer}\n")
        except Exception as e:
            if count:
                failures.append(f"{kind}: {e!r} after {count}")
        time.sleep(PAUSE)


def over_http():
    connection = http.client.HTTPConnection(HOST, 8090, timeout=TIMEOUT)

    def exchange():
        try:
            connection.request("GET", "/name")
            response = connection.getresponse()
            answer = response.read().decode().strip()
        except Exception:
            connection.close()
            raise
        if response.status != 200:
            raise ValueError(f"{response.status} {response.headers.get('weft-error')}")
        return answer

    return exchange


def over_grpc():
    channel = grpc.insecure_channel(f"dns:///{HOST}:50051", options=[("grpc.enable_http_proxy", 0)])
    unary = channel.unary_unary("/lab.Lab/Unary")
    return lambda: unary(b"word", timeout=TIMEOUT).decode()


def over_tcp():
    def exchange():
        with dial(HOST, 7000) as c:
            c.sendall(b"word")
            answer = c.recv(64).decode()
        if answer != "word":
            raise ValueError(f"{answer!r} came back")
        return answer

    return exchange


kinds = [("http", over_http()), ("http", over_http()), ("grpc", over_grpc()), ("tcp", over_tcp())]
threads = [threading.Thread(target=keep_going, args=kind) for kind in kinds]
for thread in threads:
    thread.start()
signal.sigwait({signal.SIGTERM})
ended.set()
for thread in threads:
    thread.join()
print(json.dumps(failures))
