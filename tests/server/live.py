"""A real server in a process of its own."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request


class Server:
    """A running server."""

    def __init__(self, process, address):
        self.process, self.address = process, address

    def get(self, path, **headers):
        return self.ask("GET", path, **headers)

    def ask(self, method, path, body=None, **headers):
        """Status, headers and body."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(
            self.address + path, data=body, headers=headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, exc.headers, exc.read()

    def json(self, path):
        status, _, body = self.get(path)
        assert status == 200, body
        return json.loads(body)

    def detect(self, model, picture):
        status, _, body = self.ask("POST", f"/v2/models/{model}/detect", picture)
        assert status == 200, body
        return json.loads(body)


@contextlib.contextmanager
def server(*arguments):
    """Start `saccade serve` on free ports and end it with SIGTERM, which it must follow."""
    command = [sys.executable, "-m", "saccade", "serve", *map(str, arguments)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--grpc-port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        address = ""
        for line in process.stdout:
            name, _, told = line.strip().partition(" ")
            if name == "http":
                address = told if "//" in told else f"http://{told}"
                break
        assert address, f"the server ended with {process.wait()}"
        yield Server(process, address)
        assert process.poll() is None, "the server died"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
