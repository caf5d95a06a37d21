"""A gRPC server without generated code: messages are bytes. grpc_server.py PORT"""

import concurrent.futures
import sys
import threading

import grpc

CANCELLED = threading.Event()


def unary(request, context):
    metadata = dict(context.invocation_metadata())
    context.set_trailing_metadata((("lab-trailer", "told"), ("lab-caller", metadata.get("weft-client-id", "nobody"))))
    return request


def fail(_, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked: ünicode")


def download(request, _):
    for i in range(int(request)):
        yield str(i).encode()


def upload(requests, _):
    return str(sum(len(r) for r in requests)).encode()


def bidi(requests, _):
    for request in requests:
        yield request[::-1]


def hang(request, context):
    ended = threading.Event()
    context.add_callback(ended.set)
    yield b"begun"
    if ended.wait(30) and request == b"cancel":
        CANCELLED.set()


def cancelled(_, __):
    return b"yes" if CANCELLED.wait(5) else b"no"


handlers = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Download": grpc.unary_stream_rpc_method_handler(download),
    "Upload": grpc.stream_unary_rpc_method_handler(upload),
    "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
    "Hang": grpc.unary_stream_rpc_method_handler(hang),
    "Cancelled": grpc.unary_unary_rpc_method_handler(cancelled),
}
limits = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
server = grpc.server(concurrent.futures.ThreadPoolExecutor(64), options=limits)
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("lab.Lab", handlers)])
server.add_insecure_port(f"0.0.0.0:{sys.argv[1]}")
server.start()
server.wait_for_termination()
