"""A server with the interface of S3, on this machine."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import fsspec
import pytest
from moto.server import DomainDispatcherApplication, ThreadedMotoServer

BUCKET = "pairs"
DISPATCH = DomainDispatcherApplication.__call__


class S3:
    """The server.

    Attributes:
        requests: that it was sent, in order.
        broken: whether it answers all with an error.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.broken = False

    def answer(self, app: Any, environ: dict[str, Any], respond: Any) -> Any:
        self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        if self.broken:
            respond("500 Internal Server Error", [])
            return []
        return DISPATCH(app, environ, respond)

    def count(self, work: Callable[[], Any]) -> int:
        """The requests that some work takes."""
        before = len(self.requests)
        work()
        return len(self.requests) - before


@contextmanager
def serving() -> Iterator[S3]:
    """A context in which such a server runs; the environment says where, and how to log in."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    s3, server = S3(), ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DomainDispatcherApplication, "__call__",
                      lambda app, environ, respond: s3.answer(app, environ, respond))
        for name in list(os.environ):
            if name.startswith("AWS_"):
                patch.delenv(name)
        server.start()
        try:
            host, port = server.get_host_and_port()
            for name, value in {
                    "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_MAX_ATTEMPTS": "1",
                    "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
                    "AWS_DEFAULT_REGION": "us-east-1"}.items():
                patch.setenv(name, value)
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            forget_connections()
            yield s3
        finally:
            server.stop()
            forget_connections()


def forget_connections() -> None:
    """fsspec keeps clients, and they keep endpoint and credentials."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
