"""Orders, for docs/policy.md: says which order was asked for, and by whom."""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Orders(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.say(f"{self.path} for {self.headers['weft-client-id']}\n")

    def do_DELETE(self):
        self.say(f"{self.path} is gone, as {self.headers['weft-client-id']} wished\n")

    def say(self, text):
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Orders).serve_forever()
