"""A file server on 127.0.0.1 that can break connections, for the tests of downloads."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Server:
    """What is served and how.

    Args:
        files: Path without the leading slash -> content.
        status: Of any other path.
        cut: Break the connection after so many bytes of the body.
        requests: Path of each request that came.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 404
    cut: int | None = None
    requests: list[str] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Server

    def do_GET(self) -> None:
        self.close_connection = True
        state = self.server_state
        state.requests.append(self.path.lstrip("/"))
        body = state.files.get(self.path.lstrip("/"))
        if body is None:
            self.send_error(state.status)
            return
        self.send_response(200)
        self.send_header("Connection", "close")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: state.cut])

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


@contextmanager
def running() -> Iterator[Server]:
    state = Server()
    handler = type("BoundHandler", (Handler,), {"server_state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield state
        server.shutdown()
        thread.join()
