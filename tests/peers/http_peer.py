"""An HTTP/1.1 server that tells what it was sent. http_peer.py PORT [ADDRESS]

/seen answers with the request as JSON; /echo with its body; /name with this host's name; /big?n=BYTES with that many bytes;
/trailers with a chunked body and a trailer; /paths with every path since the start; /hold, once /release was asked for, with this
host's name and the body; /holding with how many wait there; /exit ends the process at once. CONNECT is granted and echoes.
/flaky?key=K&fail=N answers the first N requests of each K with 503 (or code=C, and retry-after=SECONDS) and later ones with the attempt that
their header tells; /broken?code=C has /name answer C from then on, until C is 200; /bodies tells how many bytes each body had, and its SHA-256.
"""

import collections
import hashlib
import http.server
import json
import os
import socket
import sys
import threading
import urllib.parse

PATHS = []
BODIES = []
SEEN = collections.Counter()
BROKEN = [200]
LOCK = threading.Lock()
HELD = []
GATE = threading.Condition()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One write for each answer: an answer that is cut in half by /exit cannot be mended by anybody.
    wbufsize = 64 * 1024
    # A peer that stalls keeps its thread, not the process.
    timeout = 60

    def log_message(self, *_):
        pass

    def body(self):
        """The whole body, and the trailers behind it."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            trailers = []
            while (line := self.rfile.readline().strip()) != b"":
                name, _, value = line.decode().partition(":")
                trailers.append([name, value.strip()])
            return data, trailers
        return self.rfile.read(int(self.headers.get("Content-Length", 0))), []

    def answer(self, data, kind="text/plain", status=200, fields=()):
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        with LOCK:
            PATHS.append(self.path)
        data, trailers = self.body()
        query = dict(urllib.parse.parse_qsl(url.query))
        if data:
            with LOCK:
                BODIES.append([len(data), hashlib.sha256(data).hexdigest()])
        if url.path == "/seen":
            seen = {
                "method": self.command,
                "path": self.path,
                "version": self.request_version,
                "headers": [[name.lower(), value] for name, value in self.headers.items()],
                "peer": self.client_address[0],
                "body": len(data),
                "trailers": trailers,
                "host": socket.gethostname(),
            }
            self.answer(json.dumps(seen).encode(), "application/json")
        elif url.path == "/echo":
            self.answer(data, "application/octet-stream")
        elif url.path == "/name":
            self.answer(socket.gethostname().encode() + b"\n", status=BROKEN[0])
        elif url.path == "/broken":
            BROKEN[0] = int(query["code"])
            self.answer(b"")
        elif url.path == "/flaky":
            with LOCK:
                SEEN[query["key"]] += 1
                failed = SEEN[query["key"]] <= int(query["fail"])
            after = [("Retry-After", query["retry-after"])] if "retry-after" in query else []
            if failed:
                self.answer(b"not yet\n", status=int(query.get("code", 503)), fields=after)
            else:
                self.answer(self.headers.get("weft-attempt", "1").encode() + b"\n")
        elif url.path == "/bodies":
            with LOCK:
                known = list(BODIES)
            self.answer(json.dumps(known).encode(), "application/json")
        elif url.path == "/big":
            left = int(urllib.parse.parse_qs(url.query)["n"][0])
            self.send_response(200)
            self.send_header("Content-Length", str(left))
            self.end_headers()
            piece = b"x" * 65536
            while left > 0:
                self.wfile.write(piece[: min(left, len(piece))])
                left -= len(piece)
        elif url.path == "/trailers":
            self.send_response(200)
            self.send_header("Trailer", "x-trailer")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"5\r\nhello\r\n0\r\nx-trailer: told\r\nweft-error: forged\r\n\r\n")
        elif url.path == "/paths":
            with LOCK:
                known = list(PATHS)
            self.answer(json.dumps(known).encode(), "application/json")
        elif url.path == "/hold":
            with GATE:
                HELD.append(self.command)
                GATE.wait(60)
            self.answer(socket.gethostname().encode() + b" " + data)
        elif url.path == "/holding":
            with GATE:
                count = len(HELD)
            self.answer(str(count).encode())
        elif url.path == "/release":
            with GATE:
                HELD.clear()
                GATE.notify_all()
            self.answer(b"")
        elif url.path == "/exit":
            os._exit(0)
        else:
            self.send_error(404)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_GET

    def do_CONNECT(self):
        with LOCK:
            PATHS.append("CONNECT " + self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.flush()
        self.close_connection = True
        while data := self.connection.recv(65536):
            self.connection.sendall(data)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, request, client_address):
        kind, error, _ = sys.exc_info()
        if not issubclass(kind, (ConnectionError, TimeoutError, ValueError)):
            print(f"{client_address}: {error!r}", file=sys.stderr)


Server((sys.argv[2] if len(sys.argv) > 2 else "0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
