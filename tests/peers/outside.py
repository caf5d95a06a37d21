"""What is outside of the mesh: a name server, and a server that says hello; and a client that asks over TCP.

outside.py serve ADDRESS NAME=ADDRESS...   answers over UDP and TCP at port 53; a name *.NAME stands for those below it
outside.py greet ADDRESS PORT              says its address to whoever connects, then what it hears
outside.py ask NAME                        asks the name server of this place over TCP; prints the addresses as JSON
"""

import json
import socket
import socketserver
import struct
import sys
import threading

A, IN = 1, 1
HEADER = ">6H"
RESPONSE, NO_SUCH_NAME = 0x8180, 3


def question(message):
    """The name, the type, and the bytes of both with the class."""
    labels, at = [], 12
    while length := message[at]:
        labels.append(message[at + 1 : at + 1 + length].decode("latin-1").lower())
        at += 1 + length
    kind = struct.unpack_from(">H", message, at + 1)[0]
    return ".".join(labels), kind, message[12 : at + 5]


def answer(message, known):
    name, kind, asked = question(message)
    below = [address for known_name, address in known.items() if known_name[:2] == "*." and name.endswith(known_name[1:])]
    address = known.get(name) or next(iter(below), None)
    records = b""
    if address and kind == A:
        records = b"\xc0\x0c" + struct.pack(">HHIH", A, IN, 30, 4) + socket.inet_aton(address)
    flags = RESPONSE if address else RESPONSE | NO_SUCH_NAME
    header = struct.pack(HEADER, struct.unpack_from(">H", message)[0], flags, 1, 1 if records else 0, 0, 0)
    return header + asked + records


def serve(own, *pairs):
    known = dict(pair.split("=") for pair in pairs)

    class OverUdp(socketserver.BaseRequestHandler):
        def handle(self):
            message, reply = self.request
            reply.sendto(answer(message, known), self.client_address)

    class OverTcp(socketserver.StreamRequestHandler):
        def handle(self):
            while head := self.rfile.read(2):
                reply = answer(self.rfile.read(struct.unpack(">H", head)[0]), known)
                self.wfile.write(struct.pack(">H", len(reply)) + reply)

    socketserver.ThreadingTCPServer.allow_reuse_address = True
    udp = socketserver.ThreadingUDPServer((own, 53), OverUdp)
    tcp = socketserver.ThreadingTCPServer((own, 53), OverTcp)
    threading.Thread(target=udp.serve_forever, daemon=True).start()
    print("ready", flush=True)
    tcp.serve_forever()


def greet(own, port):
    class Greeter(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(f"hello from {own}\n".encode())
            while data := self.request.recv(4096):
                self.request.sendall(data)

    socketserver.ThreadingTCPServer.allow_reuse_address = True
    server = socketserver.ThreadingTCPServer((own, int(port)), Greeter)
    print("ready", flush=True)
    server.serve_forever()


def ask(name):
    with open("/etc/resolv.conf") as lines:
        server = next(line.split()[1] for line in lines if line.startswith("nameserver"))
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = struct.pack(HEADER, 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", A, IN)
    with socket.create_connection((server, 53), timeout=10) as connection:
        connection.sendall(struct.pack(">H", len(query)) + query)
        with connection.makefile("rb") as stream:
            message = stream.read(struct.unpack(">H", stream.read(2))[0])
    count = struct.unpack_from(">H", message, 6)[0]
    found = [socket.inet_ntoa(message[len(message) - 4 :])] if count else []
    print(json.dumps({"id": struct.unpack_from(">H", message)[0], "addresses": found}))


if __name__ == "__main__":
    {"serve": serve, "greet": greet, "ask": ask}[sys.argv[1]](*sys.argv[2:])
