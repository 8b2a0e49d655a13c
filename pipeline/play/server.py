"""The page on this machine's own address, with no way out to others."""

import logging
import socket
from asyncio import CancelledError
from pathlib import Path
from typing import Any

from pipeline.play.finding import PlayError
from pipeline.play.layout import build, import_gradio
from pipeline.play.page import Page

HOST = "127.0.0.1"
STYLE = Path(__file__).with_name("page.css")
# A page that Gradio made needs its own scripts and styles in the text, and nothing from elsewhere.
POLICY = ("default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
          "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:")


def take_port(port: int) -> socket.socket:
    """A port of this machine's own address.

    Args:
        port: 0 takes any that is free.

    Raises:
        PlayError: it is taken, or not for everybody.
    """
    taken = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((HOST, port))
        taken.listen()
    except OSError as error:
        taken.close()
        raise PlayError(f"--port: {port} cannot be taken ({error.strerror}); name another one, or "
                        "0 for any that is free") from error
    return taken


def application(page: Page) -> Any:
    """The page as an ASGI application."""
    from fastapi import FastAPI

    gr = import_gradio()
    # Fonts of the system, by their names alone: those of Gradio's themes come from elsewhere.
    fonts = [gr.themes.utils.fonts.Font(name) for name in
             ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")]
    mono = [gr.themes.utils.fonts.Font(name) for name in ("ui-monospace", "Menlo", "monospace")]
    theme = gr.themes.Default(primary_hue="sky", neutral_hue="gray", font=fonts, font_mono=mono)
    return gr.mount_gradio_app(
        FastAPI(openapi_url=None), build(gr, page), path="/", server_name=HOST, ssr_mode=False,
        enable_monitoring=False, pwa=False, mcp_server=False, run_history=False, footer_links=[],
        theme=theme, css=STYLE.read_text(encoding="utf-8"))


def serve(page: Page, taken: socket.socket) -> None:
    """Serve the page until it is stopped."""
    import uvicorn

    # An open page holds a connection, which is cut when the server stops.
    logging.getLogger("uvicorn.error").addFilter(lambda record: not (
        record.exc_info and isinstance(record.exc_info[1], CancelledError)))
    config = uvicorn.Config(application(page), log_level="warning", timeout_graceful_shutdown=1,
                            headers=[("Content-Security-Policy", POLICY)])
    uvicorn.Server(config).run(sockets=[taken])
