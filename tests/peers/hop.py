"""A program in the middle of a call. hop.py PORT [URL]

It asks URL, if it has one, with the trace headers that it was sent, as an instrumented program would, and answers with what the next one said below the
trace headers that it was sent itself.
"""

import http.server
import json
import sys
import urllib.request

NAMES = ("traceparent", "tracestate", "baggage", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 64 * 1024
    timeout = 60

    def log_message(self, *_):
        pass

    def do_GET(self):
        sent = {name: self.headers[name] for name in NAMES if self.headers[name] is not None}
        said = [sent]
        if len(sys.argv) > 2:
            request = urllib.request.Request(sys.argv[2], headers=sent)
            with urllib.request.urlopen(request, timeout=10) as answer:
                said += json.load(answer)
        data = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


http.server.ThreadingHTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
