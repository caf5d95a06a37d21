"""Which groups a server takes (RFC 8446, sections 4.1.4 and 4.2.7). groups.py HOST PORT ALPN GROUP[,GROUP...]...

For each word a ClientHello that offers these groups (numbers of the registry) and no key share: a server that takes one of them asks for its share by a
HelloRetryRequest, and no tool has to know the group to see that. Prints a list, as JSON: the group that was asked for, or null.
"""

import json
import os
import socket
import sys

HOST, PORT, NAME = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
TIMEOUT = 60
RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
KEY_SHARE = 51


def sized(n, content):
    return len(content).to_bytes(n, "big") + content


def numbers(*values):
    return b"".join(value.to_bytes(2, "big") for value in values)


def hello(groups):
    extensions = {
        10: sized(2, numbers(*groups)),
        13: sized(2, numbers(0x0403, 0x0804, 0x0807)),
        16: sized(2, sized(1, NAME)),
        43: sized(1, numbers(0x0304)),
        KEY_SHARE: sized(2, b""),
    }
    listed = b"".join(numbers(kind) + sized(2, value) for kind, value in extensions.items())
    body = numbers(0x0303) + os.urandom(32) + sized(1, b"") + sized(2, numbers(0x1301, 0x1302, 0x1303)) + sized(1, b"\0") + sized(2, listed)
    return b"\x16\3\1" + sized(2, b"\1" + sized(3, body))


def asked_for(groups):
    with socket.create_connection((HOST, PORT), timeout=TIMEOUT) as connection:
        connection.sendall(hello(groups))
        stream = connection.makefile("rb")
        head = stream.read(5)
        if len(head) < 5 or head[0] != 22:
            return None
        message = stream.read(int.from_bytes(head[3:], "big"))
    assert message[0] == 2 and message[6:38] == RETRY, "a ServerHello without a key share"
    at = 39 + message[38] + 3
    rest = message[at + 2:]
    while len(rest) >= 4:
        kind, length = int.from_bytes(rest[:2], "big"), int.from_bytes(rest[2:4], "big")
        if kind == KEY_SHARE:
            return int.from_bytes(rest[4:4 + length], "big")
        rest = rest[4 + length:]
    return None


print(json.dumps([asked_for([int(group) for group in word.split(",")]) for word in sys.argv[4:]]))
