"""What a hostile client does, each as a command. hostile.py COMMAND HOST PORT [...]; the answer is JSON on one line."""

import concurrent.futures
import json
import pathlib
import random
import signal
import socket
import ssl
import struct
import sys
import time

from raw import dial, outcome, read_all

GET = b"GET /name HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def status(host, port, request):
    """The status and weft's own reason that a request is answered with."""
    with dial(host, port) as c:
        try:
            c.sendall(request)
            answer = read_all(c)
        except ConnectionError:
            return ["reset", ""]
        except TimeoutError:
            return ["silent", ""]
    head = answer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    reasons = [line.split(": ", 1)[1] for line in head if line.lower().startswith("weft-error: ")]
    return [head[0][9:12], reasons[0] if reasons else ""]


def drip(host, port):
    """One byte a segment."""
    with dial(host, port) as c:
        for byte in GET:
            c.sendall(bytes([byte]))
        return read_all(c).split(b"\r\n")[0].decode()


def garbage(host, port):
    """Bytes of no protocol, from several seeds. How each connection ends does not matter, but that it does."""
    found = []
    for seed in range(5):
        with dial(host, port) as c:
            try:
                c.sendall(random.Random(seed).randbytes(20_000))
                c.shutdown(socket.SHUT_WR)
                read_all(c)
                found.append("closed")
            except TimeoutError:
                found.append("silent")
            except OSError:
                found.append("reset")
    return found


def client_hello(protocols):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(protocols)
    out = ssl.MemoryBIO()
    try:
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="p8090.app.open.weft").do_handshake()
    except ssl.SSLWantReadError:
        pass
    return out.read()


def hello_truncated(host, port):
    """The first part of a ClientHello and the end."""
    with dial(host, port) as c:
        c.sendall(client_hello(["weft/h1"])[:100])
        c.shutdown(socket.SHUT_WR)
        return outcome(c)["outcome"]


def hello_split(host, port):
    """A whole ClientHello, one byte a segment: the type of the record that answers."""
    with dial(host, port) as c:
        for byte in client_hello(["weft/h1"]):
            c.sendall(bytes([byte]))
        return ord(outcome(c)["data"][:1] or "\0")


def hello_long(host, port):
    """A ClientHello of more than 16 KiB, over several records: the type of the record that answers."""
    hello = client_hello(["weft/h1"] + [f"{i:03}".ljust(200, "x") for i in range(90)])
    assert len(hello) > 16 << 10, len(hello)
    with dial(host, port) as c:
        c.sendall(hello)
        return ord(outcome(c)["data"][:1] or "\0")


def smuggle(host, port):
    """Requests about whose end two readers could disagree. None may reach the application."""
    behind = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    fields = {
        "both": b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        "two-codings": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "coding-list": b"Transfer-Encoding: identity, chunked",
        "coding-space": b"Transfer-Encoding : chunked",
        "coding-tab": b"Transfer-Encoding: \x0bchunked",
        "two-lengths": b"Content-Length: 5\r\nContent-Length: 6",
        "length-list": b"Content-Length: 5, 5",
        "length-plus": b"Content-Length: +5",
        "length-minus": b"Content-Length: -1",
        "length-empty": b"Content-Length:",
        "length-huge": b"Content-Length: 99999999999999999999",
        "fold": b"X-Folded: a\r\n Content-Length: 5",
        "nul": b"X-Nul: a\0b",
        "cr": b"X-Cr: a\rb",
        "two-hosts": b"Host: b",
        "bare-lf": b"X-Lf: a\nContent-Length: 5",
    }
    found = {}
    for name, field in fields.items():
        found[name] = status(host, port, b"POST /smuggle-%s HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n" % (name.encode(), field) + behind)
    found["no-host"] = status(host, port, b"GET /smuggle-no-host HTTP/1.1\r\n\r\n")
    coded = b"POST /smuggle-http10 HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    found["http10"] = status(host, port, coded + behind)
    return found


def chunks(host, port):
    """Chunk lines that are not quite right."""
    head = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    lines = {"hex": b"0x5\r\nhello", "minus": b"-5\r\nhello", "lf": b"5\nhello", "long": b"5;" + b"x" * 1000, "huge": b"f" * 17 + b"\r\n"}
    lines["unended"] = b"5\r\nhelloX\r\n0\r\n\r\n"
    return {name: status(host, port, head + line) for name, line in lines.items()}


def limits(host, port):
    """A target, a field and a number of fields that are too much."""
    head = b"GET /name HTTP/1.1\r\nHost: a\r\n"
    return {
        "target": status(host, port, b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 20_000)),
        "field": status(host, port, head + b"X: %s\r\n\r\n" % (b"x" * 100_000)),
        "fields": status(host, port, head + b"".join(b"X-%d: x\r\n" % i for i in range(2_000)) + b"\r\n"),
    }


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0)
# :method GET, :scheme http, :path /, :authority a (RFC 7541, appendix A)
REQUEST = b"\x82\x86\x84\x41\x01a"


def flood(host, port, frames):
    """Sends frames until the server has had enough: goaway, closed, reset, stalled, or open if it bears them all."""
    with dial(host, port) as c:
        try:
            c.sendall(PREFACE)
            for f in frames:
                c.sendall(f)
            c.settimeout(5)
            data = b""
            while piece := c.recv(65536):
                data += piece
                if kinds(data).count(GOAWAY):
                    return "goaway"
            return "closed"
        except ConnectionError:
            return "reset"
        except TimeoutError:
            return "open"


def kinds(data):
    """The types of all whole frames."""
    found, at = [], 0
    while at + 9 <= len(data):
        found.append(data[at + 3])
        at += 9 + int.from_bytes(data[at : at + 3], "big")
    return found


def rapid_reset(host, port):
    """Requests that are taken back in the same breath (CVE-2023-44487)."""
    pairs = (
        frame(HEADERS, END_STREAM | END_HEADERS, 2 * i + 1, REQUEST) + frame(RST_STREAM, 0, 2 * i + 1, struct.pack(">I", 8))
        for i in range(20_000)
    )
    return flood(host, port, pairs)


def continuations(host, port):
    """A header section without an end (CVE-2024-27316)."""
    more = (frame(CONTINUATION, 0, 1, b"\x40\x01x\x7f\x80\x7f" + b"v" * 16_000) for _ in range(2_000))
    return flood(host, port, (f for part in ([frame(HEADERS, END_STREAM, 1, REQUEST)], more) for f in part))


def window(host, port):
    """A window that grows beyond its limit (RFC 9113, section 6.9.1)."""
    return flood(host, port, [frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 0x7FFF_FFFF))] * 2)


def settings(host, port):
    """A hundred thousand settings, each to be acknowledged to a peer that does not read (CVE-2019-9515)."""
    return flood(host, port, (frame(SETTINGS, 0, 0) * 100 for _ in range(1_000)))


def hold(connections, word):
    """Keeps connections until it is killed."""
    print(json.dumps([word, len(connections)]), flush=True)
    signal.pause()


def idle(host, port, count):
    """Connections that say nothing."""
    hold([dial(host, port) for _ in range(int(count))], "open")


def slow_read(host, port, count):
    """Asks for 50 MiB on each of several connections, and reads a little."""
    held = []
    for _ in range(int(count)):
        c = dial(host, port)
        c.sendall(b"GET /big?n=52428800 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert c.recv(4096), "no answer"
        held.append(c)
    hold(held, "stalled")


def slow(host, port, count):
    """Mesh peers that are slow in the handshake, so many of each kind: how each connection ends, and after how many seconds."""
    hello = client_hello(["weft/h1"])

    def drip(c):
        """A byte of the ClientHello each tenth of a second."""
        c.settimeout(0.1)
        for byte in hello:
            c.sendall(bytes([byte]))
            try:
                return "data" if c.recv(1024) else "closed"
            except TimeoutError:
                pass
        return "open"

    def half(c):
        """Half a ClientHello, and no more."""
        c.sendall(hello[: len(hello) // 2])
        return outcome(c)["outcome"]

    def whole(c):
        """A whole ClientHello, and nothing after the server's answer."""
        c.sendall(hello)
        try:
            read_all(c)
            return "closed"
        except TimeoutError:
            return "silent"

    def attempt(kind):
        begun = time.monotonic()
        with dial(host, port) as c:
            try:
                end = kind(c)
            except ConnectionError:
                end = "reset"
        return [kind.__name__, end, time.monotonic() - begun]

    kinds = [drip, half, whole] * int(count)
    with concurrent.futures.ThreadPoolExecutor(len(kinds)) as pool:
        return list(pool.map(attempt, kinds))


def certificates(host, port, directory):
    """A handshake and a request with each certificate of a directory, with none, and with TLS 1.2."""

    def attempt(name, prepare):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["weft/h1"])
        prepare(context)
        with dial(host, port) as c:
            try:
                with context.wrap_socket(c, server_hostname="p8090.app.open.weft") as s:
                    s.sendall(b"GET /certificate-%s HTTP/1.1\r\nHost: a\r\n\r\n" % name.encode())
                    return "answered" if s.recv(1024) else "closed"
            except ssl.SSLError as e:
                return e.reason or "TLS error"
            except ConnectionError:
                return "reset"

    def tls12(context):
        context.maximum_version = ssl.TLSVersion.TLSv1_2

    found = {"none": attempt("none", lambda _: None), "tls12": attempt("tls12", tls12)}
    for chain in sorted(pathlib.Path(directory).glob("*.pem")):
        key = chain.with_suffix(".key")
        found[chain.stem] = attempt(chain.stem, lambda context: context.load_cert_chain(chain, key))
    return found


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    print(json.dumps(globals()[command](*rest)))
