"""Drives a headless Chromium over the DevTools protocol: takes steps as JSON, and prints what came of them.

A step is {"go": URL}, {"until": EXPRESSION} (until it is true), {"eval": EXPRESSION}, {"key": NAME} with "times" and "modifiers", {"type": TEXT}, {"media": {FEATURE: VALUE}},
{"size": [WIDTH, HEIGHT]} or {"picture": FILE}. Chromium runs without its own sandbox: as root it refuses to have one, and inside of a user namespace, as in a
container, it can make none. It is shown our own page alone.
"""

import base64
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from websockets.sync.client import connect

PATIENCE = 30
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-default-apps", "--disable-sync", "--no-proxy-server", "--remote-debugging-port=0", "--window-size=1400,1000",
]  # fmt: skip
KEYS = {
    "Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "+": 187, "-": 189, "0": 48,
}  # fmt: skip


class Page:
    """One page of the browser."""

    def __init__(self, socket):
        self.socket = socket
        self.last = 0
        self.requests, self.complaints, self.trouble = [], [], None

    def call(self, method, **parameters):
        self.last += 1
        self.socket.send(json.dumps({"id": self.last, "method": method, "params": parameters}))
        while True:
            message = self.take(PATIENCE)
            if message.get("id") == self.last:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]

    def take(self, patience):
        message = json.loads(self.socket.recv(timeout=patience))
        method, told = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(a.get("value", a.get("description"))) for a in told["args"]))
        elif method == "Runtime.exceptionThrown":
            detail = told["exceptionDetails"]
            self.complaints.append(f"{detail['text']} {detail.get('exception', {}).get('description', '')}")
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        return message

    def evaluate(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def until(self, expression):
        end = time.monotonic() + PATIENCE
        while True:
            # There is no document for a moment while another one comes.
            try:
                value = self.evaluate(expression)
            except RuntimeError as error:
                value = None
                self.trouble = error
            if value:
                return value
            if time.monotonic() > end:
                shown = self.evaluate("document.body?.innerText")
                raise RuntimeError(f"it did not become true: {expression}\n{shown}\n{self.complaints}\n{self.trouble}")
            time.sleep(0.05)

    def key(self, name, modifiers=0):
        text = {"Enter": "\r", " ": " "}.get(name, name if len(name) == 1 else "")
        told = {"key": name, "code": name, "windowsVirtualKeyCode": KEYS.get(name, 0), "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **told)
        self.call("Input.dispatchKeyEvent", type="keyUp", **told)

    def step(self, step):
        if "go" in step:
            return self.call("Page.navigate", url=step["go"]).get("errorText")
        if "until" in step:
            return self.until(step["until"])
        if "eval" in step:
            return self.evaluate(step["eval"])
        if "key" in step:
            for _ in range(step.get("times", 1)):
                self.key(step["key"], step.get("modifiers", 0))
        elif "type" in step:
            self.call("Input.insertText", text=step["type"])
        elif "media" in step:
            features = [{"name": name, "value": value} for name, value in step["media"].items()]
            self.call("Emulation.setEmulatedMedia", features=features)
        elif "size" in step:
            width, height = step["size"]
            self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        elif "picture" in step:
            picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
            Path(step["picture"]).write_bytes(base64.b64decode(picture["data"]))
        else:
            raise ValueError(f"no step: {step}")
        return None


def opened(directory, browser):
    """The address of the first page, once the browser says where it listens."""
    told, end = Path(directory, "DevToolsActivePort"), time.monotonic() + PATIENCE
    while not (told.exists() and len(told.read_text().split()) == 2):
        if browser.poll() is not None or time.monotonic() > end:
            raise RuntimeError("chromium did not begin to listen")
        time.sleep(0.05)
    port, path = told.read_text().split()
    with connect(f"ws://127.0.0.1:{port}{path}", max_size=None) as control:
        control.send(json.dumps({"id": 1, "method": "Target.createTarget", "params": {"url": "about:blank"}}))
        while True:
            message = json.loads(control.recv(timeout=PATIENCE))
            if message.get("id") == 1:
                return f"ws://127.0.0.1:{port}/devtools/page/{message['result']['targetId']}"


def main():
    steps = json.loads(sys.argv[1])
    directory = tempfile.mkdtemp(prefix="weft-browser-")
    command = ["chromium", *FLAGS, f"--user-data-dir={directory}", "about:blank"]
    browser = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with connect(opened(directory, browser), max_size=None) as socket:
            page = Page(socket)
            for domain in ("Page", "Network", "Runtime", "Log"):
                page.call(f"{domain}.enable")
            results = [page.step(step) for step in steps]
            print(json.dumps({"results": results, "requests": page.requests, "complaints": page.complaints}))
    finally:
        browser.terminate()
        try:
            browser.wait(10)
        except subprocess.TimeoutExpired:
            browser.kill()
            browser.wait()
        shutil.rmtree(directory, ignore_errors=True)


main()
