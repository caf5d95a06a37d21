"""The shop's front: asks the catalog for a price and writes the sale into the ledger."""
import http.client
import json
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def price(item, trace):
    catalog = http.client.HTTPConnection("catalog", timeout=5)
    catalog.request("GET", "/items/" + item, headers=trace)
    answer = catalog.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"the catalog answered {answer.status}")
    return json.load(answer)


def write_down(line):
    with socket.create_connection(("ledger", 7000), timeout=5) as ledger:
        lines = ledger.makefile("rw", newline="\n")
        greeting = lines.readline().strip()
        lines.write(line + "\n")
        lines.flush()
        return greeting, lines.readline().strip()


class Web(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body in one write: an answer that a kill cuts in half cannot be mended by anybody.
    wbufsize = 64 * 1024

    def do_GET(self):
        if self.path == "/healthz":
            return self.answer(200, {"well": True})
        item = self.path.split("?")[0].rsplit("/", 1)[-1]
        trace = {name: self.headers[name] for name in ("traceparent", "tracestate") if self.headers[name]}
        try:
            offer = price(item, trace)
            greeting, entry = write_down(f"sold {item} for {offer['price']}")
        except Exception as e:
            return self.answer(502, {"error": str(e)})
        self.answer(200, {"item": item, "offer": offer, "ledger": greeting, "entry": entry,
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


ThreadingHTTPServer(("", 8080), Web).serve_forever()
