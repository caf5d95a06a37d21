"""A program with a SPIFFE library of its own: it knows weft by the Workload API alone.

spiffe_peer.py serve PORT           answers over mutual TLS: who calls, and, of a token in the request, whose it is
spiffe_peer.py call HOST:PORT       calls it once, and tells what came of it
spiffe_peer.py raw SOCKET [header]  asks for bundles without the library, with or without the standard's metadata
"""

import json
import os
import socket
import ssl
import sys
import threading

AUDIENCE = "bank"


def source():
    from spiffe import X509Source

    return X509Source(timeout_in_seconds=20)


def context(x509, side):
    """TLS with the certificate that is current, which weft is not asked about."""
    from cryptography.hazmat.primitives.serialization import Encoding

    svid = x509.get_x509_context().default_svid
    made = ssl.SSLContext(side)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    bundle = x509.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    for anchor in bundle.x509_authorities:
        made.load_verify_locations(cadata=anchor.public_bytes(Encoding.DER))
    with os.fdopen(os.memfd_create("svid"), "wb") as file:
        from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

        key = svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        file.write(b"".join(c.public_bytes(Encoding.PEM) for c in svid.cert_chain) + key)
        file.flush()
        made.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return made, svid


def identity(tls):
    return [value for kind, value in tls.getpeercert()["subjectAltName"] if kind == "URI"]


def subject(token):
    """Whose token it is: checked by the library, and by the Workload API."""
    from spiffe import JwtSource, JwtSvid, WorkloadApiClient

    with JwtSource(timeout_in_seconds=20) as jwt:
        domain = JwtSvid.parse_insecure(token, {AUDIENCE}).spiffe_id.trust_domain
        bundle = jwt.get_bundle_for_trust_domain(domain)
    here = JwtSvid.parse_and_validate(token, bundle, {AUDIENCE}).spiffe_id
    with WorkloadApiClient() as api:
        there = api.validate_jwt_svid(token, AUDIENCE).spiffe_id
    return [str(here), str(there)]


def serve(port):
    x509 = source()
    listener = socket.create_server(("", port))
    while True:
        raw, _ = listener.accept()
        threading.Thread(target=answer, args=(x509, raw), daemon=True).start()


def answer(x509, raw):
    raw.settimeout(20)
    try:
        made, svid = context(x509, ssl.PROTOCOL_TLS_SERVER)
        with made.wrap_socket(raw, server_side=True) as tls:
            token = tls.recv(8192).decode().strip()
            told = {"caller": identity(tls), "serial": format(svid.leaf.serial_number, "x"), "subject": subject(token)}
            tls.sendall(json.dumps(told).encode())
    except Exception as e:
        print(f"a call failed: {e!r}", file=sys.stderr, flush=True)
        raw.close()


def call(host, port):
    from spiffe import WorkloadApiClient

    with source() as x509, WorkloadApiClient() as api:
        token = api.fetch_jwt_svid({AUDIENCE}).token
        made, svid = context(x509, ssl.PROTOCOL_TLS_CLIENT)
        with socket.create_connection((host, port), 20) as raw, made.wrap_socket(raw) as tls:
            server = identity(tls)
            tls.sendall(token.encode() + b"\n")
            told = b""
            while piece := tls.recv(8192):
                told += piece
        for_others = api.fetch_jwt_svid({"others"}).token
        try:
            api.validate_jwt_svid(for_others, AUDIENCE)
            others = "believed"
        except Exception as e:
            others = str(e)
        anchors = len(x509.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain).x509_authorities)
    serial = format(svid.leaf.serial_number, "x")
    print(json.dumps({"id": str(svid.spiffe_id), "serial": serial, "server": server, "anchors": anchors, "others": others,
                      "told": json.loads(told)}))


def bare(path, metadata):
    import grpc

    with grpc.insecure_channel(f"unix:{path}", options=[("grpc.default_authority", "localhost")]) as channel:
        method = channel.unary_stream("/SpiffeWorkloadAPI/FetchX509Bundles")
        try:
            answer = next(iter(method(b"", metadata=metadata, timeout=20)))
            print(json.dumps({"code": "OK", "bytes": len(answer)}))
        except grpc.RpcError as e:
            print(json.dumps({"code": e.code().name, "details": e.details()}))


match sys.argv[1:]:
    case ["serve", port]:
        serve(int(port))
    case ["call", place]:
        call(place.rpartition(":")[0], int(place.rpartition(":")[2]))
    case ["raw", path]:
        bare(path, None)
    case ["raw", path, "header"]:
        bare(path, [("workload.spiffe.io", "true")])
