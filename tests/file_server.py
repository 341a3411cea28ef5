"""A file server on the loopback address that misbehaves on request."""

import hashlib
import re
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer:
    """A server of `files` (path to bytes) that keeps the path and the headers of each request in `requests`.

    Each request takes the first entry of `statuses` (a status to answer instead of the file; 0 for the file), and each
    answer the first of `cuts` (the number of bytes after which to close the connection).
    """

    def __init__(self):
        self.files, self.redirects, self.requests = {}, {}, []
        self.statuses, self.cuts = [], []
        self.ranges = self.if_range = self.etags = self.lengths = True
        self.dates = self.weak = False

    def headers_of(self, body):
        tag = f'{"W/" if self.weak else ""}"{hashlib.sha256(body).hexdigest()[:16]}"'
        headers = {"ETag": tag} if self.etags else {}
        return {**headers, "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"} if self.dates else headers

    def handle(self, handler):
        self.requests.append((handler.path, handler.headers))
        if self.statuses and (status := self.statuses.pop(0)):
            handler.send_error(status)
        elif handler.path in self.redirects:
            handler.send_response(302)
            handler.send_header("Location", self.redirects[handler.path])
            handler.end_headers()
        elif handler.path not in self.files:
            handler.send_error(404)
        else:
            self.send(handler, self.files[handler.path])

    def send(self, handler, body):
        headers = self.headers_of(body)
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        mark = handler.headers.get("If-Range")
        start = int(wanted[1]) if wanted and self.ranges and (mark in headers.values() or not self.if_range) else None
        if start is not None and start >= len(body):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(body)}")
            handler.end_headers()
            return
        handler.send_response(200 if start is None else 206)
        if start is not None:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        rest = body[start or 0 :]
        if self.lengths:
            headers["Content-Length"] = str(len(rest))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(rest[: self.cuts.pop(0)] if self.cuts else rest)

    @contextmanager
    def running(self):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler):
                with suppress(ConnectionError):
                    self.handle(handler)

            def log_message(handler, *words):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.address = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
