"""Asks the name server of this place for the address of a name. dns_client.py NAME

The answer is JSON: the code, and each record as [name, type, data].
"""

import json
import socket
import struct
import sys

A, CNAME, IN = 1, 5, 1
RECURSION_DESIRED = 0x0100
HEADER = ">6H"


def server():
    with open("/etc/resolv.conf") as lines:
        return next(line.split()[1] for line in lines if line.startswith("nameserver"))


def wire(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def text(message, at):
    """The name at a place, and the place behind it (RFC 1035, section 4.1.4)."""
    labels, end = [], None
    while length := message[at]:
        if length >= 0xC0:
            end = end or at + 2
            at = (length & 0x3F) << 8 | message[at + 1]
            continue
        labels.append(message[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels), end or at + 1


with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(5)
    s.connect((server(), 53))
    s.send(struct.pack(HEADER, 7, RECURSION_DESIRED, 1, 0, 0, 0) + wire(sys.argv[1]) + struct.pack(">HH", A, IN))
    message = s.recv(4096)

_, flags, questions, answers, _, _ = struct.unpack_from(HEADER, message)
at = struct.calcsize(HEADER)
for _ in range(questions):
    at = text(message, at)[1] + 4
records = []
for _ in range(answers):
    name, at = text(message, at)
    kind, _, _, length = struct.unpack_from(">HHIH", message, at)
    at += 10
    data = message[at : at + length]
    shown = {A: lambda: ["A", socket.inet_ntoa(data)], CNAME: lambda: ["CNAME", text(message, at)[0]]}
    records.append([name, *shown.get(kind, lambda: [kind, data.hex()])()])
    at += length
print(json.dumps({"code": flags & 15, "records": records}))
