"""What is outside of the mesh, for docs/egress.md: a server at 203.0.113.10 that says what it was asked, at port 80, and at port 443 over TLS.

Run on the mesh's own network: weft exec --lab -- python3 outside.py
"""

import ssl
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ADDRESS = "203.0.113.10"


class Outside(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        way = "over TLS" if isinstance(self.connection, ssl.SSLSocket) else "in the clear"
        self.say(f"{self.command} {self.path} of {self.headers['host']}, {way}\n")

    do_POST = do_GET

    def say(self, text):
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


def over_tls(server):
    """With a certificate that nobody vouches for."""
    with tempfile.TemporaryDirectory() as directory:
        key, certificate = Path(directory, "key.pem"), Path(directory, "certificate.pem")
        new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        subprocess.run([*new, "-subj", "/CN=outside", "-keyout", key, "-out", certificate], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server


if __name__ == "__main__":
    subprocess.run(["ip", "address", "replace", f"{ADDRESS}/32", "dev", "weft0"], check=True)
    plain, tls = (ThreadingHTTPServer((ADDRESS, port), Outside) for port in (80, 443))
    threading.Thread(target=over_tls(tls).serve_forever, daemon=True).start()
    print("ready", flush=True)
    plain.serve_forever()
