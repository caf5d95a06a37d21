"""An HTTP/1.1 server that answers with this host's name. laggard.py PORT FILE

FILE, where it is there, holds HOST MILLISECONDS: on that host, each answer waits so long.
"""

import http.server
import os
import socket
import sys
import time


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 64 * 1024
    timeout = 60

    def log_message(self, *_):
        pass

    def do_GET(self):
        try:
            with open(sys.argv[2], encoding="ascii") as file:
                host, millis = file.read().split()
        except (OSError, ValueError):
            host, millis = "", "0"
        name = os.environ.get("POD_NAME", socket.gethostname())
        if host == name:
            time.sleep(int(millis) / 1000)
        data = (name + "\n").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


http.server.ThreadingHTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
