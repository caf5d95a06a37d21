"""An issuer of tokens, by an implementation that is not weft's (PyJWT).

jwt_issuer.py serve PORT DIR    answers /jwks with DIR/keys.json, and with 503 while DIR/away is there
jwt_issuer.py keys DIR KID=ALG ...   makes the key pairs that are not there yet, and lists these in DIR/keys.json
jwt_issuer.py token DIR KID ALG SECONDS CLAIMS   prints a token that expires so many seconds from now; HS256 is keyed with the public key
"""

import http.server
import json
import os
import sys
import time

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

KINDS = {
    "RS256": (lambda: rsa.generate_private_key(65537, 2048), RSAAlgorithm),
    "PS384": (lambda: rsa.generate_private_key(65537, 2048), RSAAlgorithm),
    "ES256": (lambda: ec.generate_private_key(ec.SECP256R1()), ECAlgorithm),
    "ES384": (lambda: ec.generate_private_key(ec.SECP384R1()), ECAlgorithm),
    "EdDSA": (ed25519.Ed25519PrivateKey.generate, OKPAlgorithm),
}


def replace(path, text):
    with open(path + ".new", "w") as file:
        file.write(text)
    os.rename(path + ".new", path)


def private(directory, kid):
    with open(os.path.join(directory, kid + ".pem"), "rb") as file:
        return serialization.load_pem_private_key(file.read(), None)


def keys(directory, wanted):
    listed = []
    for kid, alg in (each.split("=") for each in wanted):
        make, algorithm = KINDS[alg]
        path = os.path.join(directory, kid + ".pem")
        if not os.path.exists(path):
            pem = make().private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            replace(path, pem.decode())
        listed.append({**json.loads(algorithm.to_jwk(private(directory, kid).public_key())), "kid": kid, "use": "sig"})
    replace(os.path.join(directory, "keys.json"), json.dumps({"keys": listed}))
    return {"keys": len(listed)}


def token(directory, kid, alg, seconds, claims):
    key = private(directory, kid)
    claims = {**json.loads(claims), "exp": int(time.time()) + int(seconds)}
    if alg == "HS256":
        # PyJWT refuses to be misused so: it is done by hand.
        import base64
        import hashlib
        import hmac

        pem = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        encode = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=")
        signed = encode(json.dumps({"alg": "HS256", "kid": kid}).encode()) + b"." + encode(json.dumps(claims).encode())
        made = signed + b"." + encode(hmac.new(pem, signed, hashlib.sha256).digest())
        return {"token": made.decode()}
    if alg == "none":
        return {"token": jwt.encode(claims, None, algorithm="none", headers={"kid": kid})}
    return {"token": jwt.encode(claims, key, algorithm=alg, headers={"kid": kid})}


def serve(port, directory):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def log_message(self, *_):
            pass

        def do_GET(self):
            status, body = 404, b""
            if self.path == "/jwks":
                try:
                    with open(os.path.join(directory, "keys.json"), "rb") as file:
                        status, body = 200, file.read()
                except FileNotFoundError:
                    status = 503
            if os.path.exists(os.path.join(directory, "away")):
                status, body = 503, b""
            self.send_response(status)
            self.send_header("Content-Type", "application/jwk-set+json")
            self.send_header("Cache-Control", "public, max-age=60")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    http.server.ThreadingHTTPServer(("", port), Handler).serve_forever()


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    if command == "serve":
        serve(int(words[0]), words[1])
    elif command == "keys":
        print(json.dumps(keys(words[0], words[1:])))
    else:
        print(json.dumps(token(*words)))
