"""The proxy passes bytes on until it is told not to."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.fault_proxy import FaultProxy
from tests.support.wait import wait_until


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        connection: socket.socket = self.request
        try:
            while data := connection.recv(65536):
                connection.sendall(data)
        except ConnectionError:
            pass


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with FaultProxy(server.server_address[1]) as proxy:
            yield proxy
        server.shutdown()
        thread.join()


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
        yield client


def ask(client: socket.socket, data: bytes) -> bytes:
    """What comes back, up to as many bytes or the end."""
    client.sendall(data)
    got = b""
    while len(got) < len(data) and (piece := client.recv(len(data) - len(got))):
        got += piece
    return got


def test_bytes_pass_both_ways(client: socket.socket) -> None:
    assert ask(client, b"hello") == b"hello"


def test_single_bytes_are_the_same_bytes(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.one_byte = True
    assert ask(client, b"hello") == b"hello"


def test_a_delay_counts_each_way(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.delay = 0.05
    began = time.monotonic()
    assert ask(client, b"hello") == b"hello"
    assert time.monotonic() - began >= 0.1


def test_frozen_bytes_come_after_the_thaw(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.freeze()
    client.settimeout(0.05)
    with pytest.raises(TimeoutError):
        ask(client, b"hello")
    client.settimeout(5)
    proxy.thaw()
    assert client.recv(5) == b"hello"


def test_a_new_connection_ends_after_its_bytes(proxy: FaultProxy) -> None:
    proxy.cut_after = 3
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
        assert ask(client, b"hello") == b"hel"


def test_a_dropped_reply_ends_the_connection_once(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.drop_next_reply()
    assert ask(client, b"lost") == b""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as again:
        assert ask(again, b"hello") == b"hello"
    assert proxy.accepted == 2


def test_swallowed_bytes_are_gone(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.swallow = True
    client.settimeout(0.05)
    with pytest.raises(TimeoutError):
        ask(client, b"gone")
    proxy.swallow = False
    client.settimeout(5)
    assert ask(client, b"hello") == b"hello"


def test_all_connections_are_reset(proxy: FaultProxy, client: socket.socket) -> None:
    assert ask(client, b"hello") == b"hello"
    proxy.close_all()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    wait_until(lambda: proxy.open == 0)
