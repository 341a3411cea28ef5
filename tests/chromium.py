"""A page in headless Chromium, seen through its debugging pipe: no port, no further package."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time

import pytest

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_CHROMIUM = pytest.mark.skipif(
    PROGRAM is None, reason="no chromium on the PATH; on Debian: apt-get install chromium"
)
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-sync",
    "--remote-debugging-pipe",
)  # fmt: skip


class Chromium:
    """A browser process; a context manager."""

    def __enter__(self):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        # Chromium reads commands from descriptor 3 and writes to 4; ours are moved above, so that none is overwritten.
        (its_read, our_write), (our_read, its_write) = os.pipe(), os.pipe()
        high = [fcntl.fcntl(pipe, fcntl.F_DUPFD_CLOEXEC, 20) for pipe in (its_read, its_write, our_read, our_write)]
        for pipe in (its_read, its_write, our_read, our_write):
            os.close(pipe)

        def place():
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.process = subprocess.Popen(
            [PROGRAM, *OPTIONS, f"--user-data-dir={self.profile.name}"],
            preexec_fn=place,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(high[0])
        os.close(high[1])
        self.read, self.write = high[2:]
        self.number, self.events, self.rest = 0, [], b""
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.read)
        os.close(self.write)
        self.profile.cleanup()

    def send(self, method, session=None, **parameters):
        """Send a command and return its result; events that come meanwhile are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        content = json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0"
        os.write(self.write, content)
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def wait(self, method, seconds=60):
        """Read on until an event of this kind has come."""
        end = time.monotonic() + seconds
        while not any(event["method"] == method for event in self.events):
            assert time.monotonic() < end, f"no {method} in {seconds} s"
            self._next()

    def _next(self):
        while b"\0" not in self.rest:
            part = os.read(self.read, 1 << 20)
            assert part, "chromium ended"
            self.rest += part
        content, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(content)
        if "id" not in message:
            self.events.append(message)
        return message


class Page:
    """A page that was opened with a width in CSS pixels.

    Attributes:
        requests: Addresses of all requests; those for `data:` are left out.
        errors: What the console and the log of the browser said.
    """

    def __init__(self, browser, path, width, *, dark=False):
        self.browser = browser
        target = browser.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        browser.events.clear()
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.send(f"{domain}.enable")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=path.as_uri())
        browser.wait("Page.loadEventFired")
        # Pictures that wait until they are scrolled to.
        self.evaluate(
            "Promise.all([...document.images].map(i => { i.loading = 'eager'; return i.decode() })).then(() => 0)"
        )
        events = browser.events
        sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        self.requests = [url for url in sent if not url.startswith("data:")]
        entries = [e["params"]["entry"]["text"] for e in events if e["method"] == "Log.entryAdded"]
        said = [e["params"] for e in events if e["method"] in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown")]
        self.errors = entries + said

    def send(self, method, **parameters):
        return self.browser.send(method, self.session, **parameters)

    def evaluate(self, expression):
        """The value of a JavaScript expression, or what its promise gives."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path, most_height=None):
        """Write the whole page, or its upper part, as a PNG file."""
        width, height = self.evaluate("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, most_height or height), "scale": 1}
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))
