"""The Prefect server: whom it lets in, and what it is asked to try again."""

import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import prefect
import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from pipeline.flow.flow import run_stage, worth_retrying
from pipeline.flow.server import ServerError, require_server

LOGIN = "user:hunter2"


@pytest.fixture
def url() -> Iterator[str]:
    """A server that says its version to those who may know it."""

    class Guarded(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = f"Basic {b64encode(LOGIN.encode()).decode()}"
            body = f'"{prefect.__version__}"'.encode()
            self.send_response(200 if self.headers["Authorization"] == known else 401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Guarded) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/api"
        finally:
            server.shutdown()
            thread.join()


def test_who_is_not_let_in_is_told_where_logins_are_given(url: str) -> None:
    with temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: LOGIN}):
        require_server()
    for login in (None, f"{LOGIN}3"):
        with (temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: login}),
              pytest.raises(ServerError, match=r"answers 401.*PREFECT_API_AUTH_STRING") as caught):
            require_server()
        assert "hunter2" not in str(caught.value)


def test_a_stage_is_tried_three_times_where_that_may_help() -> None:
    assert run_stage.retries == 2
    assert run_stage.retry_condition_fn is worth_retrying
