"""For docs/jwt.md: notes PORT and issuer PORT serve; token [SECONDS [ROLE]] prints a token for Anna. Signs with openssl."""

import base64
import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "key.pem")


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def openssl(*words, given=None):
    return subprocess.run(["openssl", *words], input=given, check=True, capture_output=True).stdout


def keys():
    """The public key of the pair, which is made if there is none."""
    if not os.path.exists(KEY):
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", KEY)
    point = openssl("ec", "-in", KEY, "-pubout", "-outform", "DER")[-64:]
    return {"keys": [{"kty": "EC", "crv": "P-256", "kid": "1", "x": encode(point[:32]), "y": encode(point[32:])}]}


def number(der):
    """The first number of a DER signature in 32 bytes, and what comes behind it."""
    length = der[1]
    return der[2 : 2 + length].lstrip(b"\0").rjust(32, b"\0"), der[2 + length :]


def token(seconds=300, role="reader"):
    claims = {"iss": "https://id.example.com", "aud": "notes", "sub": "anna", "roles": [role], "exp": int(time.time()) + int(seconds)}
    signed = ".".join(encode(json.dumps(part).encode()) for part in ({"alg": "ES256", "kid": "1"}, claims))
    r, rest = number(openssl("dgst", "-sha256", "-sign", KEY, given=signed.encode())[2:])
    s, _ = number(rest)
    return f"{signed}.{encode(r + s)}"


class Notes(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        text = "a note\n"
        if isinstance(self, Issuer):
            text = json.dumps(keys())
        elif "authorization" in self.headers:
            text = "a note, and somebody's token\n"
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


class Issuer(Notes):
    pass


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    if command == "token":
        print(token(*words))
    else:
        if command == "issuer":
            keys()
        ThreadingHTTPServer(("0.0.0.0", int(words[0])), Issuer if command == "issuer" else Notes).serve_forever()
