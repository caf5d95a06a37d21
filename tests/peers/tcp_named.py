"""A server that says its host's name and closes, in plaintext and in TLS, and its clients.

tcp_named.py PORT DIRECTORY serves PORT, and 7443 with DIRECTORY's cert.pem and key.pem; a client that sends "hold" is kept.
tcp_named.py ask HOST PORT COUNT [SNI] counts who answered COUNT connections, "" for nobody.
tcp_named.py hold HOST PORT COUNT keeps so many connections open.
"""

import collections
import json
import os
import socket
import socketserver
import ssl
import sys
import threading


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        try:
            self.request.settimeout(60)
            said = self.request.recv(16)
            self.request.sendall(socket.gethostname().encode())
            if said == b"hold":
                self.request.recv(1)
        except OSError:
            pass


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = allow_reuse_address = True
    request_queue_size = 64


class Secured(Server):
    def finish_request(self, request, client_address):
        try:
            super().finish_request(self.context.wrap_socket(request, server_side=True), client_address)
        except OSError:
            pass


def serve(port, directory):
    secured = Secured(("0.0.0.0", 7443), Handler)
    secured.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secured.context.load_cert_chain(os.path.join(directory, "cert.pem"), os.path.join(directory, "key.pem"))
    threading.Thread(target=secured.serve_forever, daemon=True).start()
    Server(("0.0.0.0", int(port)), Handler).serve_forever()


def dial(host, port, word, name=None):
    connection = socket.create_connection((host, int(port)), timeout=20)
    if name:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = context.wrap_socket(connection, server_hostname=name)
    connection.sendall(word)
    return connection, connection.recv(100).decode()


def ask(host, port, count, name=None):
    counts = collections.Counter()
    for _ in range(int(count)):
        try:
            connection, said = dial(host, port, b"name", name)
            connection.close()
        except OSError:
            said = ""
        counts[said] += 1
    print(json.dumps(counts))


def hold(host, port, count):
    held = [dial(host, port, b"hold") for _ in range(int(count))]
    print(len(held), flush=True)
    held[0][0].settimeout(None)
    held[0][0].recv(1)


if sys.argv[1] in ("ask", "hold"):
    {"ask": ask, "hold": hold}[sys.argv[1]](*sys.argv[2:])
else:
    serve(*sys.argv[1:])
