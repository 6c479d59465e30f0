"""A client that sends exactly the bytes it is told to."""

from __future__ import annotations

import socket

LIMIT_S = 30


class Raw:
    """A TCP connection."""

    def __init__(self, host_port):
        host, _, port = host_port.partition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=LIMIT_S)
        self.held = b""

    def send(self, data):
        self.socket.sendall(data)

    def answer(self):
        """Status, headers and body of the next answer; None at the end."""
        while b"\r\n\r\n" not in self.held:
            if not self._more():
                return None
        head, _, self.held = self.held.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        status = int(first.split()[1])
        headers = dict(line.split(": ", 1) for line in lines)
        if status == 100:
            return status, headers, b""
        length = int(headers["content-length"])
        while len(self.held) < length:
            assert self._more(), "the answer breaks off"
        body, self.held = self.held[:length], self.held[length:]
        return status, headers, body

    def is_closed(self):
        """Wait for the other end to close."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _more(self):
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            return False
        self.held += data
        return bool(data)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.socket.close()
