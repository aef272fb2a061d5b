"""What travels on the wire: who goes away, what is too long, who is not let in."""

from __future__ import annotations

import json
import socket
import time

import pytest

ENDLESS = {"model": "toy", "prompt": "endless", "max_tokens": 110}
JSON = "application/json"


def posted(body: bytes, path="/v1/completions", kind=JSON, host="localhost", more="") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: {kind}\r\n{more}"
    return f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body


def talk(server, request: bytes) -> tuple[int, dict]:
    """Status and body of the answer."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(request)
        found = b""
        while part := connection.recv(1 << 16):
            found += part
    head, _, body = found.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def said(server, request: bytes) -> tuple[int, str]:
    status, body = talk(server, request)
    return status, body["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_frees_the_row_and_the_place_in_the_queue(serve, stream):
    server = serve(rows=1, pause=0.2)
    request = posted(json.dumps({**ENDLESS, "stream": stream}).encode())
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
    for client in clients:
        client.sendall(request)
    end = time.monotonic() + 10
    while server.engine.load != (1, 2):
        assert time.monotonic() < end, server.engine.load
        time.sleep(0.01)
    for client in clients:
        client.close()
    assert server.idle()  # 110 steps would take 22 s


def test_a_client_that_goes_away_in_the_middle_of_its_request(serve, caplog):
    server = serve()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(posted(b"{" + b" " * 1000)[:-500])
    assert talk(server, posted(json.dumps({**ENDLESS, "max_tokens": 2}).encode()))[0] == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_body_that_is_too_long_whatever_it_says_of_its_length(serve):
    server = serve(body=1000)
    text = json.dumps({**ENDLESS, "max_tokens": 2}).encode()
    assert talk(server, posted(text.ljust(1000)))[0] == 200
    assert said(server, posted(text.ljust(1001))) == (
        413, "body: must have at most 1000 bytes; shorten it",
    )  # fmt: skip
    chunked = posted(b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(chunked + b"200\r\n" + b" " * 512 + b"\r\n200\r\n" + b" " * 512 + b"\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"{", "body: is not JSON"),
        (b"[1]", "body: is no object"),
        (b"[" * 900_000, "body: is not JSON"),
        (b'{"model": "toy", "prompt": "\xff"}', "body: is not JSON"),
        (b'{"model": "toy", "prompt": "a", "temperature": NaN}', "temperature: is NaN"),
        (b"{}", "model: is missing"),
    ],
)
def test_bodies_that_are_none(serve, body, match):
    status, message = said(serve(), posted(body))
    assert status == 400 and match in message


@pytest.mark.parametrize(
    ("field", "status"), [(b"model", 404), (b"pr\\udfffompt", 400), (b"seed", 400)]
)
def test_half_a_character_can_be_told_of(serve, field, status):
    body = b'{"model": "toy", "prompt": "a", "%s": "\\ud800"}' % field
    assert said(serve(), posted(body))[0] == status


def test_only_json_and_only_under_our_own_name_without_a_key(serve):
    """So no web page can use a server on the machine where it is shown."""
    server, body = serve(), json.dumps({**ENDLESS, "max_tokens": 1}).encode()
    assert said(server, posted(body, kind="text/plain"))[0] == 415
    assert said(server, posted(body, host="evil.example:80"))[0] == 403
    assert said(server, posted(body, host="localhost.evil.example"))[0] == 403
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "[::1]"):
        assert talk(server, posted(body, host=host))[0] == 200


def test_a_key_is_asked_for_everywhere_but_at_the_health(serve):
    server, body = serve(api_key=b"k"), json.dumps({**ENDLESS, "max_tokens": 1}).encode()
    assert said(server, posted(body))[0] == 401
    assert said(server, posted(body, "/nowhere"))[0] == 401
    for shown in ("", "k", "Basic k", "Bearer", "Bearer kk", "Bearer \xe9"):
        assert said(server, posted(body, more=f"authorization: {shown}\r\n"))[0] == 401
    assert talk(server, posted(body, host="any.name", more="authorization: bearer k\r\n"))[0] == 200
    health = b"GET /health HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"
    assert talk(server, health) == (200, {"status": "ok", "running": 0, "waiting": 0})


def test_paths_and_methods_that_are_not_there(serve):
    server = serve()
    assert said(server, posted(b"{}", "/v1/embeddings"))[0] == 404
    assert said(server, posted(b"{}", "/v1/models"))[0] == 405


def test_no_new_requests_while_draining(serve):
    server, body = serve(), json.dumps({**ENDLESS, "max_tokens": 1}).encode()
    server.engine.drain()
    assert said(server, posted(body)) == (503, "server: is shutting down; try another one")
    health = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    assert talk(server, health)[0] == 503


def test_what_the_engine_could_not_compute(serve, monkeypatch):
    server, body = serve(), json.dumps({**ENDLESS, "max_tokens": 9}).encode()

    def broken(fed, greedy):
        raise RuntimeError("/secret/path")

    with monkeypatch.context() as patch:
        patch.setattr(server.engine.places, "step", broken)
        assert said(server, posted(body)) == (500, "it could not be computed")
    assert talk(server, posted(body))[0] == 200
