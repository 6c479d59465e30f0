"""A page in a real Chromium, over its DevTools protocol through a pipe: no port, no network."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile

from conftest import skip_or_fail

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--remote-debugging-pipe",
)
KEY_CODES = {"Tab": 9, "Enter": 13, "ArrowUp": 38, "ArrowDown": 40}


class Page:
    """One tab. `events` holds what the browser told besides answers."""

    def __init__(self, send, receive):
        self._send, self._receive = send, receive
        self._number, self._session, self._rest = 0, None, b""
        self.events = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _next(self):
        while b"\0" not in self._rest:
            chunk = os.read(self._receive, 1 << 20)
            assert chunk, "the browser has ended"
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def call(self, method, **params):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, page, *, width=1100, height=900, is_dark=False):
        """Open a file or an address and wait until it is loaded."""
        # Not as a phone: a phone would shrink what is too wide, and nobody would notice.
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self._next())

    def evaluate(self, expression):
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, condition, seconds=20):
        """Wait until an expression of the page is true; its value."""
        return self.evaluate(
            f"""new Promise((done, fail) => {{
                const end = performance.now() + {seconds * 1000};
                const look = () => {{
                    const value = {condition};
                    if (value) done(value);
                    else if (performance.now() > end) fail(new Error({json.dumps(condition)}));
                    else setTimeout(look, 20);
                }};
                look();
            }})"""
        )

    def drop(self, path, selector):
        """Drop a file on an element, as a hand does."""
        x, y = self.evaluate(
            f"""(() => {{ const r = document.querySelector({json.dumps(selector)})
                .getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()"""
        )
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def press(self, key, code=None):
        """Press a key."""
        more = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=code or key,
                windowsVirtualKeyCode=KEY_CODES[key],
                **more,
            )

    def shoot(self, path):
        """A picture of the whole page into a file."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def problems(self):
        """Everything the browser complained of."""
        bad = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [e for e in self.events if e.get("method") in bad]

    def requests(self):
        """Addresses of everything that was fetched."""
        sent = [e for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [e["params"]["request"]["url"] for e in sent]


@contextlib.contextmanager
def chromium(*flags):
    """A page in a new browser; skips the test where none is installed."""
    name = next(filter(None, map(shutil.which, NAMES)), None)
    if name is None:
        skip_or_fail("chromium", "no Chromium is installed; on Debian: apt-get install chromium")
    ours, theirs = os.pipe(), os.pipe()

    def wire():
        # The browser reads commands from 3 and writes answers to 4. First out of the way, so that
        # neither is overwritten.
        read, write = os.dup(ours[0]), os.dup(theirs[1])
        os.dup2(read, 3)
        os.dup2(write, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [name, *FLAGS, *flags, f"--user-data-dir={folder}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=wire,  # nothing else runs between fork and exec
        )
        os.close(ours[0])
        os.close(theirs[1])
        try:
            page = Page(ours[1], theirs[0])
            yield page
            page._session = None
            page.call("Browser.close")
        finally:
            with contextlib.suppress(OSError):
                os.close(ours[1])
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(theirs[0])
