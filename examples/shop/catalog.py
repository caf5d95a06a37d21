"""What things cost, and who asked."""
import json
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PRICES = {"thread": 3, "loom": 400, "shuttle": 25}


class Catalog(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body in one write: an answer that a kill cuts in half cannot be mended by anybody.
    wbufsize = 64 * 1024

    def do_GET(self):
        item = self.path.split("?")[0].rsplit("/", 1)[-1]
        if self.path != "/healthz" and item not in PRICES:
            return self.answer(404, {"error": f"there is no {item}"})
        self.answer(200, {"price": PRICES.get(item), "served_by": socket.gethostname(),
                          "caller": self.headers.get("weft-client-id")})

    def answer(self, status, what):
        body = json.dumps(what).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("", 8080), Catalog).serve_forever()
