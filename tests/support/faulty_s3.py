"""A bad network between us and a server of S3: a proxy that spoils some requests, by a seed."""

import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.s3_server import forget_connections

SLOW_S = 0.5
ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"
ANSWERS: dict[str, tuple[int, str, dict[str, str]]] = {
    "500": (500, "InternalError", {}),
    "503": (503, "ServiceUnavailable", {}),
    "503, later": (503, "SlowDown", {"Retry-After": "1", "x-amz-retry-after": "300"}),
    "403": (403, "AccessDenied", {}),
}
# The server does what the last two were asked for, and the answer does not arrive.
FAULTS = ("500", "503", "503, later", "slow", "lost request", "lost answer", "half an answer")
OF_A_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}


class Proxy:
    """What a proxy does, and has done.

    Attributes:
        requests: how many it was sent.
        faults: what it did to those that it spoiled, in order.
    """

    def __init__(
        self, target: str, seed: int, rate: float, kinds: tuple[str, ...], in_a_row: int | None
    ) -> None:
        """
        Args:
            target: the server's URL.
            rate: share of the requests that are spoiled.
            kinds: of `FAULTS`, `403` and `no answer`.
            in_a_row: how often the same request is spoiled at most before it is let through.
        """
        self.target, self.rate, self.kinds, self.in_a_row = urlsplit(target), rate, kinds, in_a_row
        self.random = random.Random(seed)
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.requests, self.faults = 0, list[str]()
        self.spoiled: dict[str, int] = {}

    def choose(self, request: str) -> str | None:
        """What is done to a request; None to let it through."""
        with self.lock:
            self.requests += 1
            before = self.spoiled.pop(request, 0)
            if before == self.in_a_row or self.random.random() >= self.rate:
                return None
            self.spoiled[request] = before + 1
            self.faults.append(self.random.choice(self.kinds))
            return self.faults[-1]


class Handler(BaseHTTPRequestHandler):
    """Passes one request on, or does not."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def answer(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"] or 0))
        fault = self.proxy.choose(f"{self.command} {self.path}")
        if fault in ANSWERS:
            status, code, headers = ANSWERS[fault]
            body = ERROR.format(code, f"the network is bad: {fault}").encode()
            self.send(status, headers, body, len(body))
            return
        if fault == "slow":
            time.sleep(SLOW_S)
        elif fault == "no answer":
            self.proxy.ended.wait()
        if fault in ("lost request", "no answer"):
            self.cut()
            return
        status, headers, body = self.ask(content)
        length = int(headers.get("Content-Length", len(body)))
        if fault == "half an answer" and body:
            self.send(status, headers, body[: len(body) // 2], length)
        elif fault not in ("lost answer", "half an answer"):
            self.send(status, headers, body, length)
            return
        self.cut()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def ask(self, content: bytes) -> tuple[int, dict[str, str], bytes]:
        """The server's own answer: status, headers and body."""
        server = HTTPConnection(self.proxy.target.netloc, timeout=60)
        # With the name of the host that was signed.
        sent = {name: value for name, value in self.headers.items()
                if name.lower() not in OF_A_CONNECTION}
        server.request(self.command, self.path, content, sent)
        found = server.getresponse()
        body = found.read()
        server.close()
        return found.status, dict(found.getheaders()), body

    def send(self, status: int, headers: dict[str, str], body: bytes, length: int) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in OF_A_CONNECTION:
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def cut(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, OSError):  # a client that was killed
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def faulty(
    seed: int, rate: float = 0.2, kinds: tuple[str, ...] = FAULTS, in_a_row: int | None = 2,
    attempts: int | None = None,
) -> Iterator[Proxy]:
    """A context in which the server that the environment names is reached through a proxy.

    Arguments are those of `Proxy`; `attempts` is what AWS's clients are told, None for nothing.
    """
    proxy = Proxy(os.environ["AWS_ENDPOINT_URL"], seed, rate, kinds, in_a_row)
    handler = type("Passing", (Handler,), {"proxy": proxy})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        patch.delenv("AWS_MAX_ATTEMPTS", raising=False)
        if attempts is not None:
            patch.setenv("AWS_MAX_ATTEMPTS", str(attempts))
        forget_connections()
        try:
            yield proxy
        finally:
            proxy.ended.set()
            server.shutdown()
            server.server_close()
            forget_connections()
