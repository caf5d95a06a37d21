"""hook.py ADDRESS PORT CERTIFICATE KEY IMAGE: an admission webhook that adds a container to every pod."""
import base64
import http.server
import json
import ssl
import sys

ADDRESS, PORT, CERTIFICATE, KEY, IMAGE = sys.argv[1:]
ADDED = {'name': 'added', 'image': IMAGE, 'imagePullPolicy': 'Never', 'command': ['sleep', '100000']}


class Hook(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_POST(self):
        review = json.loads(self.rfile.read(int(self.headers['content-length'])))
        patch = json.dumps([{'op': 'add', 'path': '/spec/containers/-', 'value': ADDED}]).encode()
        response = {'uid': review['request']['uid'], 'allowed': True, 'patchType': 'JSONPatch', 'patch': base64.b64encode(patch).decode()}
        body = json.dumps({'apiVersion': review['apiVersion'], 'kind': 'AdmissionReview', 'response': response}).encode()
        self.send_response(200)
        self.send_header('content-type', 'application/json')
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer((ADDRESS, int(PORT)), Hook)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(CERTIFICATE, KEY)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
