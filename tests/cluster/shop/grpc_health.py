"""A server of the gRPC health protocol, without a library: it says SERVING to every call. grpc_health.py PORT

Of a request only its end is looked at, so that neither HPACK (RFC 7541) nor protobuf has to be read.
"""

import socketserver
import struct
import sys

# Frames and flags of HTTP/2 (RFC 9113, section 6).
DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6
END_STREAM, ACK, END_HEADERS = 1, 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name, value):
    """A field without indexing, its name new (RFC 7541, section 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


# Index 8 of the static table is `:status: 200`.
HEAD = b"\x88" + literal(b"content-type", b"application/grpc")
# Field 1, `status`, is 2, NOT_SERVING, or 1, SERVING. Before it, that the message is not compressed, and its length.
STATUS = [b"\0" + struct.pack(">I", 2) + b"\x08" + status for status in (b"\x02", b"\x01")]
SERVING = STATUS[True]
TRAILERS = literal(b"grpc-status", b"0")


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        try:
            if self.rfile.read(len(PREFACE)) == PREFACE:
                self.request.sendall(frame(SETTINGS, 0, 0))
                while head := self.rfile.read(9):
                    payload = self.rfile.read(int.from_bytes(head[:3], "big"))
                    self.answer(head[3], head[4], int.from_bytes(head[5:], "big"), payload)
        except (ConnectionError, IndexError):
            pass

    def answer(self, kind, flags, stream, payload):
        if kind in (SETTINGS, PING) and not flags & ACK:
            self.request.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind in (DATA, HEADERS) and flags & END_STREAM:
            self.request.sendall(
                frame(HEADERS, END_HEADERS, stream, HEAD)
                + frame(DATA, 0, stream, SERVING)
                + frame(HEADERS, END_HEADERS | END_STREAM, stream, TRAILERS)
            )


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    Server(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
