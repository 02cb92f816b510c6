"""HTTP over loopback sockets, with connections cut on order; knows nothing of what requests mean."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer
from typing import Any

from testkit.local_hub.faults import Fault, FaultBoard
from testkit.local_hub.messages import Request, RequestRecord, Response

_POLL_SECONDS = 0.05


class HubServer(TCPServer):
    """One origin: a listening socket on 127.0.0.1, and a thread for each connection.

    Args:
        port: 0 for any that is free.
        answer: makes the answer to a request; called by many threads.
        log: gets one record for each request before its answer is sent.
    """

    allow_reuse_address = True
    request_queue_size = 64

    def __init__(
        self, port: int, *, answer: Callable[[Request], Response], faults: FaultBoard, log: list[RequestRecord]
    ) -> None:
        super().__init__(("127.0.0.1", port), _Connection)
        self.answer, self.faults, self.log = answer, faults, log
        self._lock = threading.Lock()
        self._connections: dict[threading.Thread, socket.socket] = {}
        # daemon threads: a process that forgets to stop its hub must still be able to end
        self._accepting = threading.Thread(target=self.serve_forever, args=(_POLL_SECONDS,), daemon=True)
        self._accepting.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a new connection in a thread of its own."""
        thread = threading.Thread(target=self._serve_connection, args=(request, client_address), daemon=True)
        with self._lock:
            self._connections[thread] = request
        thread.start()

    def _serve_connection(self, request: socket.socket, client_address: Any) -> None:
        try:
            # the client hung up, or `stop` did: nobody is left to tell
            with contextlib.suppress(OSError):
                self.finish_request(request, client_address)
        finally:
            self.shutdown_request(request)
            with self._lock:
                del self._connections[threading.current_thread()]

    def stop(self) -> None:
        """Hang up on every client, and wait until all threads have ended and all sockets are closed."""
        self.shutdown()
        self._accepting.join()
        with self._lock:
            connections = dict(self._connections)
        for connection in connections.values():
            with contextlib.suppress(OSError):  # it has closed meanwhile
                connection.shutdown(socket.SHUT_RDWR)
        for thread in connections:
            thread.join()
        self.server_close()


class _Connection(BaseHTTPRequestHandler):
    """Reads requests from one connection, and writes their answers."""

    server: HubServer
    connection: socket.socket
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def _serve(self) -> None:
        fault = self.server.faults.take_for_request(self.command, self.path, has_body=self._has_body())
        if fault is not None and fault.cut_upload is not None:
            self._read_body(fault.cut_upload)
            self._record(0)
            self._hang_up()
            return
        request = Request(self.command, self.path, self.headers, self._read_body())
        response = self.server.answer(request) if fault is None else _injected(fault)
        self._send(response.select(self.headers.get("Range")))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing to stderr: `HubServer.log` has it."""

    def _is_chunked(self) -> bool:
        return str(self.headers.get("Transfer-Encoding", "")).lower() == "chunked"

    def _has_body(self) -> bool:
        return self._is_chunked() or self.headers.get("Content-Length", "0") != "0"

    def _read_body(self, limit: int | None = None) -> bytes:
        """The request's body, or about the first `limit` bytes of it."""
        if self._is_chunked():
            return self._read_chunks(limit)
        length = int(self.headers.get("Content-Length", 0))
        return self._read_exactly(length if limit is None else min(limit, length))

    def _read_chunks(self, limit: int | None) -> bytes:
        body = bytearray()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self._read_exactly(size)
            self.rfile.readline()
            if limit is not None and len(body) >= limit:
                return bytes(body[:limit])
        self.rfile.readline()
        return bytes(body)

    def _read_exactly(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionResetError(f"the client hung up after {len(data)} of {size} bytes")
        return data

    def _record(self, status: int) -> None:
        self.server.log.append(RequestRecord(self.command, self.path, status, self.headers))

    def _send(self, response: Response) -> None:
        self._record(response.status)
        self.send_response(response.status)
        counted = {"Content-Length": response.length, "X-Request-Id": len(self.server.log)}
        for name, value in {**counted, **response.headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(response)

    def _send_body(self, response: Response) -> None:
        cut = self.server.faults.take_cut(self.command, self.path, length=response.length)
        left = response.length if cut is None else cut
        for block in response.blocks():
            self.wfile.write(block[:left])
            left -= min(left, len(block))
        self.wfile.flush()
        if cut is not None:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def _injected(fault: Fault) -> Response:
    """The error that a fault orders."""
    return Response.json({"error": "injected fault"}, status=fault.status or 500, headers=fault.headers)
