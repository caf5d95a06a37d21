"""Clients that no program offers, on plain sockets. raw.py COMMAND HOST PORT [...]; the answer is JSON."""

import hashlib
import json
import socket
import ssl
import struct
import sys

TIMEOUT = 20


def dial(host, port):
    connection = socket.create_connection((host, int(port)), timeout=TIMEOUT)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def read_all(connection):
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


def outcome(connection):
    """What comes next: data, the end, a reset, or nothing in time."""
    try:
        data = connection.recv(65536)
        return {"outcome": "data" if data else "closed", "data": data.decode("latin-1")}
    except ConnectionError:
        return {"outcome": "reset", "data": ""}
    except TimeoutError:
        return {"outcome": "silent", "data": ""}


def same_port(rounds, *targets):
    """Connections of one port to each target in turn, the next as soon as the one before has ended: how many packets were sent again."""
    targets = [(socket.gethostbyname(host), int(port)) for host, port in zip(targets[::2], targets[1::2])]
    source, repeated = 0, 0
    for target in targets * int(rounds):
        with socket.socket() as c:
            c.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            c.settimeout(TIMEOUT)
            c.bind(("0.0.0.0", source))
            source = c.getsockname()[1]
            c.connect(target)
            assert read_all(c) == b"%d" % target[1]
            # tcpi_total_retrans of tcp(7)'s struct tcp_info.
            repeated += struct.unpack_from("=I", c.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 100)[0]
    return repeated


def pipeline(host, port):
    """Three requests in one write; the answers as they come, in order."""
    with dial(host, port) as c:
        c.sendall(
            b"GET /name HTTP/1.1\r\nHost: a\r\n\r\n"
            b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
            b"GET /trailers HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
        return read_all(c).decode()


def trailers(host, port):
    """A chunked request with trailers, honest and forged; what the server saw of it."""
    with dial(host, port) as c:
        c.sendall(
            b"POST /seen HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: x-kept\r\nTransfer-Encoding: chunked\r\n"
            b"Connection: close, te\r\n\r\n"
            b"3;ext=1\r\nabc\r\n4\r\ndefg\r\n0\r\nx-kept: yes\r\nweft-client-id: forged\r\ncontent-length: 9\r\n\r\n"
        )
        return json.loads(read_all(c).partition(b"\r\n\r\n")[2].decode())


def connect(host, port):
    """CONNECT, and bytes through the tunnel both ways until one half ends."""
    with dial(host, port) as c:
        c.sendall(b"CONNECT somewhere:1 HTTP/1.1\r\nHost: somewhere:1\r\n\r\n")
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (byte := c.recv(1)):
                break
            head += byte
        c.sendall(b"through the tunnel")
        c.shutdown(socket.SHUT_WR)
        return {"status": head.split(b"\r\n")[0].decode(), "echo": read_all(c).decode()}


def half_close(host, port):
    """Ends its own half, and only then is answered."""
    data = bytes(range(256)) * 16384
    with dial(host, port) as c:
        c.sendall(data)
        c.shutdown(socket.SHUT_WR)
        return read_all(c).decode() == f"{len(data)} {hashlib.sha256(data).hexdigest()}"


def banner(host, port):
    """Says nothing until the server has spoken."""
    with dial(host, port) as c:
        greeting = c.recv(65536).decode()
        c.sendall(b"and then the client\r\n")
        return [greeting, c.recv(65536).decode()]


def talk(host, port, text):
    """Sends a text."""
    try:
        with dial(host, port) as c:
            c.sendall(text.encode())
            return outcome(c)
    except ConnectionRefusedError:
        return {"outcome": "refused", "data": ""}
    except ConnectionError:
        return {"outcome": "reset", "data": ""}


def wait(host, port, text):
    """Sends a text and, once it has come back, waits for what becomes of the connection."""
    with dial(host, port) as c:
        c.sendall(text.encode())
        print(c.recv(65536).decode(), file=sys.stderr, flush=True)
        return outcome(c)


def tls(host, port):
    """A TLS handshake of the application's own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with dial(host, port) as c:
        try:
            with context.wrap_socket(c) as s:
                return {"outcome": "data", "data": s.version()}
        except ConnectionError:
            return {"outcome": "reset", "data": ""}
        except (ssl.SSLError, OSError) as e:
            return {"outcome": "closed", "data": repr(e)}


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    print(json.dumps(globals()[command](*rest)))
