"""HTTP servers on this machine, one of them like a hub of models."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubHandler(BaseHTTPRequestHandler):
    """What huggingface_hub asks of a hub for the repository `someone/model`."""

    files: dict[str, bytes]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/someone/model/tree/"):
            tree = [{"type": "file", "path": name, "size": len(content),
                     "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in self.files.items()]
            return self.send(200, json.dumps(tree).encode(), {})
        if path.startswith("/api/models/someone/model"):
            return self.send(200, json.dumps({"id": "someone/model", "sha": COMMIT}).encode(), {})
        for revision in ("main", "v2", COMMIT):
            prefix = f"/someone/model/resolve/{revision}/"
            if path.startswith(prefix) and (name := path.removeprefix(prefix)) in self.files:
                content = self.files[name]
                return self.send(200, content if body else b"", {
                    "X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                    "Content-Length": str(len(content))})
        code = "EntryNotFound" if path.startswith("/someone/model/") else "RepoNotFound"
        return self.send(404, b"", {"X-Error-Code": code})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler],
            wrap: Callable[[ThreadingHTTPServer], None] = lambda server: None) -> Iterator[str]:
    """Serve on a free port of 127.0.0.1; yields host:port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    wrap(server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
