"""Captures an interface into a pcap file until it is told to end. capture.py INTERFACE FILE

Not tcpdump: that insists on becoming another user, and inside a user namespace there is none.
"""

import socket
import struct
import sys
import time

ETH_P_ALL = 3
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC = 263, 1, 1
LINKTYPE_ETHERNET = 1

name, path = sys.argv[1:]
frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
frames.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 20)
frames.bind((name, 0))
# A bridge shows what it forwards only to whoever asks for everything.
request = struct.pack("iHH8s", socket.if_nametoindex(name), PACKET_MR_PROMISC, 0, b"")
frames.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, request)
with open(path, "wb", buffering=0) as out:
    out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, LINKTYPE_ETHERNET))
    while True:
        frame = frames.recv(1 << 18)
        now = time.time()
        out.write(struct.pack("<IIII", int(now), int(now % 1 * 1e6), len(frame), len(frame)) + frame)
