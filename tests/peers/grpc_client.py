"""Every kind of call, and what came of it as JSON. grpc_client.py TARGET ABSENT

ABSENT is an address on which the service has no port.
"""

import json
import sys

import grpc

TIMEOUT = 20
limits = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20), ("grpc.enable_http_proxy", 0)]
found = {}


def failure(call, *args, **options):
    """Code and text of a call that must fail."""
    try:
        call(*args, **options)
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
    return ["OK", ""]


with grpc.insecure_channel(sys.argv[1], options=limits) as channel:
    grpc.channel_ready_future(channel).result(TIMEOUT)
    unary = channel.unary_unary("/lab.Lab/Unary")

    forged = (("weft-client-id", "spiffe://cluster.local/ns/shop/sa/forged"),)
    answer, call = unary.with_call(b"hello", timeout=TIMEOUT, metadata=forged)
    found["unary"] = answer.decode()
    found["trailers"] = {name: value for name, value in call.trailing_metadata() if name.startswith("lab-")}
    found["fail"] = failure(channel.unary_unary("/lab.Lab/Fail"), b"", timeout=TIMEOUT)
    found["unimplemented"] = failure(channel.unary_unary("/lab.Lab/None"), b"", timeout=TIMEOUT)
    found["download"] = [m.decode() for m in channel.unary_stream("/lab.Lab/Download")(b"100", timeout=TIMEOUT)]
    pieces = (b"x" * 10_000 for _ in range(100))
    found["upload"] = channel.stream_unary("/lab.Lab/Upload")(pieces, timeout=TIMEOUT).decode()
    words = [b"one", b"two", b"three"]
    found["bidi"] = [m.decode() for m in channel.stream_stream("/lab.Lab/Bidi")(iter(words), timeout=TIMEOUT)]
    large = b"0123456789abcdef" * (512 << 10)
    found["large"] = unary(large, timeout=TIMEOUT) == large
    many = [unary.future(str(i).encode(), timeout=TIMEOUT) for i in range(100)]
    found["many"] = [f.result().decode() for f in many] == [str(i) for i in range(100)]
    hang = channel.unary_stream("/lab.Lab/Hang")
    found["deadline"] = failure(lambda: list(hang(b"deadline", timeout=0.3)))[0]
    call = hang(b"cancel", timeout=TIMEOUT)
    next(call)
    call.cancel()
    # The server learns that nobody waits any more.
    found["cancelled"] = channel.unary_unary("/lab.Lab/Cancelled")(b"", timeout=TIMEOUT).decode()

with grpc.insecure_channel(sys.argv[2], options=limits) as channel:
    found["absent"] = failure(channel.unary_unary("/lab.Lab/Unary"), b"", timeout=TIMEOUT)

print(json.dumps(found))
