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

    def __init__(self, process, addresses):
        self.process, self.address = process, addresses["http"]
        self.grpc = addresses.get("grpc", "")
        self.has_ended = False  # set by a test that ends it

    @property
    def host(self):
        """Host and port, as clients of the protocol want them."""
        return self.address.partition("//")[2]

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
def server(*arguments, code=""):
    """Start a server on free ports and end it with SIGTERM, which it must follow.

    Args:
        arguments: Of `saccade serve`.
        code: Python that serves, in place of the command line; it prints the addresses likewise.
    """
    if code:
        command = [sys.executable, "-c", code, *map(str, arguments)]
    else:
        command = [sys.executable, "-m", "saccade", "serve", *map(str, arguments)]
        command += ["--port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        addresses = {}
        for line in process.stdout:
            name, _, told = line.strip().partition(" ")
            addresses[name] = told
            if name == "grpc" or "--no-grpc" in arguments:
                break
        assert addresses, f"the server ended with {process.wait()}"
        running = Server(process, addresses)
        yield running
        if running.has_ended:
            return
        assert process.poll() is None, "the server died"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
