"""A gRPC server whose calls say where they came to, and its client. grpc_routed.py serve PORT | call TARGET

The client prints, as JSON, who answered which call and with what.
"""

import collections
import concurrent.futures
import json
import socket
import sys
import threading

import grpc

TIMEOUT = 20
LOCK = threading.Lock()
CALLS = collections.Counter()


def told(context, name):
    return dict(context.invocation_metadata()).get(name, "")


def name(_, context):
    return json.dumps([socket.gethostname(), told(context, "x-routed")]).encode()


def flaky(request, context):
    """UNAVAILABLE twice for each key, without any other answer."""
    with LOCK:
        CALLS[request] += 1
        count = CALLS[request]
    if count <= 2:
        context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
    return told(context, "weft-attempt").encode()


def failing(_, context):
    context.abort(grpc.StatusCode.INTERNAL, "as asked")


def left(_, context):
    return str(context.time_remaining()).encode()


def hang(_, context):
    ended = threading.Event()
    context.add_callback(ended.set)
    ended.wait(30)
    return b""


def serve(port):
    methods = {"First": name, "Second": name, "Flaky": flaky, "Failing": failing, "Left": left, "Hang": hang}
    handlers = {n: grpc.unary_unary_rpc_method_handler(f) for n, f in methods.items()}
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("lab.Lab", handlers)])
    server.add_insecure_port(f"0.0.0.0:{port}")
    server.start()
    server.wait_for_termination()


def outcome(call, request=b"", timeout=TIMEOUT, metadata=()):
    try:
        return "OK", call(request, timeout=timeout, metadata=metadata).decode()
    except grpc.RpcError as error:
        return error.code().name, error.details()


def call(target):
    found = {}
    # What is repeated here, the mesh repeats.
    options = [("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(target, options=options) as channel:
        method = lambda path: channel.unary_unary(path)
        grpc.channel_ready_future(channel).result(TIMEOUT)
        found["first"] = json.loads(outcome(method("/lab.Lab/First"))[1])
        second = outcome(method("/lab.Lab/Second"))
        found["second"] = json.loads(second[1]) if second[0] == "OK" else second
        by_header = outcome(method("/lab.Lab/First"), metadata=(("x-version", "2"),))
        found["by_header"] = json.loads(by_header[1]) if by_header[0] == "OK" else by_header
        found["other_service"] = outcome(method("/lab.Other/First"))
        found["flaky"] = outcome(method("/lab.Lab/Flaky"), str(socket.gethostname()).encode() + str(id(channel)).encode())
        found["failing"] = outcome(method("/lab.Lab/Failing"))[0]
        seconds = outcome(method("/lab.Lab/Left"), timeout=5)
        found["left"] = float(seconds[1]) if seconds[0] == "OK" else seconds
        found["late"] = outcome(method("/lab.Lab/Hang"), timeout=0.3)[0]
    print(json.dumps(found))


{"serve": serve, "call": call}[sys.argv[1]](sys.argv[2])
