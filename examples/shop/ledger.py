"""A ledger over plain lines, in which the server speaks first, as mail and database servers do."""
import itertools
import socketserver

number = itertools.count(1)


class Ledger(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"ledger at your service\n")
        for line in self.rfile:
            self.wfile.write(f"entry {next(number)}: {line.decode().strip()}\n".encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


Server(("", 7000), Ledger).serve_forever()
