# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients that ask servers which never end. A limit of PATIENCE is far above what each may take, and below what it took."""

from __future__ import annotations

import asyncio
import importlib.machinery
import importlib.util
import pathlib
import resource
import socket
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _bounded, _client, _endpoint, _info
from ansible_collections.baremetal.nim.plugins.module_utils._chat import chat_payload
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault
from ansible_collections.baremetal.nim.plugins.modules import nim_image_info, nim_requirements
from dripping import KINDS, dripping

SCRIPT = pathlib.Path(__file__).parents[4] / "roles/nim_service/files/nim-watchdog"
PATIENCE = 60.0
TIMEOUT = 1.0
OPTIONS = {
    "request_timeout": TIMEOUT,
    "api_key": None,
    "client_cert": None,
    "client_key": None,
    "ca_path": None,
    "validate_certs": True,
}
MODEL = "meta/llama"


@pytest.fixture
def bounded():
    """What a test takes of time and memory, whatever the server sends."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.monotonic() - start < PATIENCE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("ask", ["models", "metadata", "complete", "stream", "ready", "look"])
def test_an_answer_that_never_ends_is_left(bounded, kind, ask):
    payload = chat_payload(MODEL, [{"role": "user", "content": "x"}], 1, 0.0, ask == "stream")
    with dripping(kind) as base:
        endpoint = _endpoint.connect(base, OPTIONS)
        if ask == "ready":
            status, words = endpoint.ready("/v1/health/ready", TIMEOUT)
            assert status in (None, 200) and words
        elif ask == "look":
            status, body, problem = endpoint.look("/v1/metrics")
            assert problem and not body, (status, problem)
        else:
            asked = {"models": endpoint.models, "metadata": endpoint.metadata}
            with pytest.raises((Fault, _endpoint.Broken)):
                asked[ask]() if ask in asked else getattr(endpoint, ask)(payload)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_benchmark_leaves_it_too(bounded, kind):
    async def ask(base):
        client = _client.Client(OPTIONS, base)
        record = await client.stream({"model": MODEL, "stream": True})
        with pytest.raises(Fault):
            await client.models()
        client.close()
        return record

    with dripping(kind) as base:
        record = asyncio.run(ask(base))
    assert record.error


@pytest.mark.parametrize("size", [b"-6", b"-4", b"-1", b"+2", b"0x2", b"1_0", b" 2", b"", b"F" * 40, b"zz"])
def test_a_chunk_of_a_size_that_is_none_is_no_http(bounded, size):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _address = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(head + size + b"\r\nab\r\n0\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        base = f"http://127.0.0.1:{server.getsockname()[1]}"
        record = asyncio.run(_client.Client(OPTIONS, base).stream({}))
    assert record.error in ("bad_response", "incomplete", "dead_engine", "slow")


def test_one_answer_that_never_ends_hides_no_other(bounded):
    class Mixed(_endpoint.Endpoint):
        """Of one that answers, the metrics never end."""

        def ready(self, path, timeout):
            return 200, "HTTP 200"

        def look(self, path):
            return (
                super().look(path)
                if path == "/v1/metrics"
                else (200, '{"data": [{"id": "m"}], "version": "1", "release": "1"}', None)
            )

    with dripping("length") as base:
        result = _info.ask(Mixed(base, TIMEOUT), "/v1/health/ready")
    assert result["model"] == "m" and result["responses"]["metrics"]["problem"].startswith(
        "no answer to GET /v1/metrics within 1 s"
    )


def test_a_good_answer_is_whole_and_its_connection_is_used_again():
    asked = []

    def serve(server):
        connection, _address = server.accept()
        with connection:
            for _number in range(2):
                asked.append(connection.recv(65536).split(b"\r\n")[0])
                body = b'{"version": "1"}'
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        endpoint = _endpoint.connect(
            f"http://127.0.0.1:{server.getsockname()[1]}", {**OPTIONS, "request_timeout": PATIENCE}
        )
        assert [endpoint.metadata(), endpoint.metadata()] == [{"version": "1"}] * 2
    assert asked == [b"GET /v1/metadata HTTP/1.1"] * 2


def test_what_a_thread_of_its_own_returns_or_raises_comes_back():
    assert _bounded.apart(PATIENCE, lambda: 7, (OSError,)) == 7
    with pytest.raises(OSError, match="gone"):
        _bounded.apart(PATIENCE, lambda: (_ for _ in ()).throw(OSError("gone")), (OSError,))
    with pytest.raises(socket.timeout):
        _bounded.apart(0.01, lambda: threading.Event().wait(5), (OSError,))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_registry_and_a_catalogue_are_left_too(bounded, kind, tmp_path):
    params = {"timeout": 1, "registry": "", "username": "", "api_key": "", "images": []}
    with dripping(kind) as base:
        place = base.partition("://")[2]
        told = nim_image_info.ask({**params, "images": [f"{place}/a/b:1", f"{place}/a/c:1", "no-registry"]})
        assert [said["found"] for said in told.values()] == [False] * 3
        module = SimpleNamespace(params={"timeout": 1, "client_cert": None, "client_key": None}, tmpdir=str(tmp_path))
        profiles, note, _answered = nim_requirements.Catalogue(module).fetch(base)
    assert profiles is None and note and "attribute" not in note


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_watchdog_leaves_it_too(bounded, kind):
    loader = importlib.machinery.SourceFileLoader("nim_watchdog_that_waits", str(SCRIPT))
    script = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    sys.modules[loader.name] = script
    loader.exec_module(script)
    with dripping(kind) as base:
        answer = script.ask(base, "GET", "/v1/metrics", TIMEOUT)
    assert answer.status is None and answer.text.isprintable()
