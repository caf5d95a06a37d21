"""A TCP server. tcp_peer.py echo|banner|brief|sum|mute PORT [FILE]

echo sends back what comes. banner speaks first, then echoes. brief says its port, and ends. sum reads to the end, and answers how much and what it was. mute puts what
comes into a file, and never says anything.
"""

import hashlib
import socketserver
import sys

KIND, PORT = sys.argv[1], int(sys.argv[2])


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        try:
            getattr(self, KIND)()
        except ConnectionError:
            pass

    def echo(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)

    def banner(self):
        self.request.sendall(b"220 the server speaks first\r\n")
        self.echo()

    def brief(self):
        self.request.sendall(b"%d" % PORT)

    def sum(self):
        count, digest = 0, hashlib.sha256()
        while data := self.request.recv(65536):
            count += len(data)
            digest.update(data)
        self.request.sendall(f"{count} {digest.hexdigest()}".encode())

    def mute(self):
        with open(sys.argv[3], "ab", buffering=0) as record:
            while data := self.request.recv(65536):
                record.write(data)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024


Server(("0.0.0.0", PORT), Handler).serve_forever()
