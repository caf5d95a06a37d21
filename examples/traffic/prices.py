"""What things cost. prices.py PORT VERSION

/price answers with the version; /flaky too, but fails every third time; /break and /mend have /price fail, and answer again.
"""
import itertools
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, VERSION = int(sys.argv[1]), sys.argv[2]
COUNT = itertools.count(1)
BROKEN = [False]


class Prices(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # The head and the body in one write.
    wbufsize = 64 * 1024

    def do_GET(self):
        path = self.path.split("?")[0]
        if path in ("/break", "/mend"):
            BROKEN[0] = path == "/break"
        failed = path == "/flaky" and next(COUNT) % 3 == 0 or path == "/price" and BROKEN[0]
        body = b"not now\n" if failed else f"{VERSION} from {socket.gethostname()}\n".encode()
        self.send_response(503 if failed else 200)
        self.send_header("content-type", "text/plain")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("", PORT), Prices).serve_forever()
