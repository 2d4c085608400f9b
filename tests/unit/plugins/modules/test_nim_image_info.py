# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module run against real HTTP servers that speak as registries do."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import socket
import socketserver
import threading

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.modules import nim_image_info
from ansible_collections.baremetal.nim.tests.unit.image_registry import BASIC, CONFIG, KEY, NIM, Registry
from ansible_collections.baremetal.nim.tests.unit.serving import PATIENCE, serving
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


@pytest.fixture
def registry():
    with serving(Registry()) as running:
        yield running


@pytest.fixture
def ask(registry, tmp_path, capsys, monkeypatch):
    """Runs the module; returns its result."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def run(*images, of=registry, **options):
        named = [f"{of.name}/{image}" for image in images or (f"{NIM}:2.2.0",)]
        args = {"images": named, "registry": of.name, "api_key": KEY, "timeout": 1, **options}
        with patch_module_args({**args, "_ansible_tmpdir": str(tmp_path)}), pytest.raises(SystemExit) as caught:
            nim_image_info.main()
        text = capsys.readouterr().out
        assert caught.value.code == 0 and KEY not in text
        result = json.loads(text)
        assert result["changed"] is False
        return result

    return run


@pytest.mark.parametrize("tag", ["2.2.0", "1.0.0"], ids=["index", "manifest"])
@pytest.mark.parametrize("login", ["none", "basic", "bearer"])
def test_labels_of_an_image(ask, registry, login, tag):
    registry.login = login
    result = ask(f"{NIM}:{tag}")
    image = f"{registry.name}/{NIM}:{tag}"
    labels = {"com.nvidia.nim.model_download_protocol": "native-v1"}
    assert result["images"] == {image: {"found": True, "labels": labels, "bytes": 77}}
    assert result["native"] == [image]
    # One login for all that is asked of an image.
    assert len([path for path, _said in registry.requests if path.startswith("/token")]) == (login == "bearer")
    assert all(said in ("", BASIC, "Bearer t0ken") for _path, said in registry.requests)


def test_image_of_the_usual_kind(ask, registry):
    registry.pages[f"/v2/{NIM}/blobs/{CONFIG}"] = {"config": {}}
    result = ask()
    assert result["images"][f"{registry.name}/{NIM}:2.2.0"]["labels"] == {} and result["native"] == []


def test_key_is_for_its_own_registry(ask, registry):
    registry.login = "basic"
    result = ask(registry="nvcr.io")
    assert result["images"][f"{registry.name}/{NIM}:2.2.0"] == {"found": False, "reason": "the registry wants a login"}
    assert {said for _path, said in registry.requests} == {""}


def test_where_a_redirect_leads_is_not_told_the_login(ask, registry):
    registry.login = "basic"
    with serving(Registry()) as storage:
        storage.pages["/blob"] = registry.pages[f"/v2/{NIM}/blobs/{CONFIG}"]
        registry.pages[f"/v2/{NIM}/blobs/{CONFIG}"] = f"http://{storage.name}/blob"
        assert len(ask()["native"]) == 1
        assert storage.requests == [("/blob", "")]


@pytest.mark.parametrize(
    ("image", "pages", "told"),
    [
        (f"{NIM}:9.9.9", {}, "404"),
        (f"{NIM}:2.2.0", {f"/v2/{NIM}/manifests/2.2.0": b"<html>"}, "no JSON"),
        (f"{NIM}:2.2.0", {f"/v2/{NIM}/manifests/2.2.0": b" " * 5_000_000}, "longer than"),
        (f"{NIM}:2.2.0", {f"/v2/{NIM}/manifests/2.2.0": {"manifests": []}}, "not made for linux/"),
        (NIM, {}, "neither tag nor digest"),
    ],
    ids=["not there", "no JSON", "huge", "another machine", "no tag"],
)
def test_what_cannot_be_learned_is_no_failure(ask, registry, image, pages, told):
    registry.pages.update(pages)
    result = ask(image)
    said = result["images"][f"{registry.name}/{image}"]
    assert said["found"] is False and told in said["reason"] and result["native"] == []


def test_refused_key_is_no_failure(ask, registry):
    registry.login = "bearer"
    result = ask(api_key="nvapi-wrong")
    assert "refuses the login" in result["images"][f"{registry.name}/{NIM}:2.2.0"]["reason"]


def test_login_of_a_file_of_the_user_is_not_sent(ask, registry, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert len(ask(api_key="")["native"]) == 1
    assert {said for _path, said in registry.requests} == {""}


def test_proxy_of_the_environment(ask, registry, monkeypatch):
    with serving(Registry()) as proxy:
        proxy.pages = {f"http://{registry.name}{path}": page for path, page in registry.pages.items()}
        monkeypatch.setenv("http_proxy", f"http://{proxy.name}")
        assert len(ask()["native"]) == 1
        assert len(proxy.requests) == 3 and registry.requests == []


def test_index_that_is_none(ask, registry):
    registry.pages[f"/v2/{NIM}/manifests/2.2.0"] = {"manifests": [{"platform": ["linux"]}, 7]}
    assert "not made for" in ask()["images"][f"{registry.name}/{NIM}:2.2.0"]["reason"]


# -- TLS ---------------------------------------------------------------------------------------------------------------

#: Of this machine, and no name that may go without TLS.
ADDRESS = "127.0.0.2"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """By the address that they are for, self-signed certificates with their keys, as files."""
    folder = tmp_path_factory.mktemp("tls")
    now = datetime.datetime.now(datetime.timezone.utc)
    files = {}
    for address in (ADDRESS, "127.0.0.3"):
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, address)])
        built = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
            .sign(key, hashes.SHA256())
        )
        private = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        files[address] = folder / f"{address}.pem"
        files[address].write_bytes(
            built.public_bytes(serialization.Encoding.PEM) + key.private_bytes(serialization.Encoding.PEM, *private)
        )
    return files


@pytest.mark.parametrize("login", ["none", "basic", "bearer"])
def test_registry_with_a_certificate_that_is_trusted(ask, certificates, monkeypatch, login):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates[ADDRESS]))
    with serving(Registry(ADDRESS, certificates[ADDRESS])) as secure:
        secure.login = login
        assert ask(of=secure)["native"] == [f"{secure.name}/{NIM}:2.2.0"]


def test_certificate_that_nobody_trusts_is_no_failure(ask, certificates):
    with serving(Registry(ADDRESS, certificates[ADDRESS])) as secure:
        result = ask(of=secure)
        assert secure.requests == []
    said = result["images"][f"{secure.name}/{NIM}:2.2.0"]
    assert said["found"] is False and "certificate verify failed" in said["reason"], said


def test_certificate_for_another_name_is_no_failure(ask, certificates, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates["127.0.0.3"]))
    with serving(Registry(ADDRESS, certificates["127.0.0.3"])) as secure:
        result = ask(of=secure)
        assert secure.requests == []
    said = result["images"][f"{secure.name}/{NIM}:2.2.0"]
    assert said["found"] is False and "not valid for" in said["reason"], said


def test_registry_without_tls_is_not_asked_in_the_clear(ask):
    with serving(Registry(ADDRESS)) as plain:
        result = ask(of=plain)
        assert plain.requests == []
    said = result["images"][f"{plain.name}/{NIM}:2.2.0"]
    assert said["found"] is False and said["reason"].startswith(f"{plain.name} cannot be asked: "), said


# -- addresses and answers that are none -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("[::1", "Invalid IPv6 URL"),
        ("127.0.0.2:http", "nonnumeric port"),
        ("127.0.0.2:99999", "cannot be asked"),
        ("nvcr..io", "cannot be asked"),
        ("nv cr.io", "control characters"),
        ("\N{SNOWMAN}.io", "cannot be asked"),
    ],
    ids=["brackets", "port that is no number", "port that is too high", "empty part", "space", "no name of a host"],
)
def test_address_that_is_none_is_no_failure(ask, registry, name, reason):
    image = f"{name}/nim/a:1"
    result = ask(images=[image, f"{registry.name}/{NIM}:2.2.0"])
    assert result["images"][image]["found"] is False and reason in result["images"][image]["reason"]
    # Another registry tells what it knows.
    assert len(result["native"]) == 1


@pytest.mark.parametrize("place", ["http://[::1/blob", "http://127.0.0.1:x/blob", "file:///etc/passwd", "LOOP"])
def test_redirect_to_nowhere_is_no_failure(ask, registry, place):
    path = f"/v2/{NIM}/blobs/{CONFIG}"
    registry.pages[path] = f"http://{registry.name}{path}" if place == "LOOP" else place
    said = ask()["images"][f"{registry.name}/{NIM}:2.2.0"]
    assert said["found"] is False and said["reason"]


@pytest.mark.parametrize(
    "realm", ["https://[::1/token", "https://somebody:else@127.0.0.1/token", "ftp://127.0.0.1/token"]
)
def test_login_that_is_nowhere_is_no_failure(ask, registry, realm):
    registry.answer = lambda path, said: (401, {}, {"WWW-Authenticate": f'Bearer realm="{realm}"'})
    said = ask()["images"][f"{registry.name}/{NIM}:2.2.0"]
    assert said["found"] is False and "for a token" in said["reason"]


class Silent(socketserver.ThreadingTCPServer):
    """Says its words to everybody, and counts them."""

    daemon_threads = True

    def __init__(self, words):
        server = self

        class Talk(socketserver.BaseRequestHandler):
            def handle(self):
                server.calls += 1
                self.request.recv(4096)
                self.request.sendall(words)

        super().__init__(("127.0.0.1", 0), Talk)
        self.calls = 0
        self.name = f"127.0.0.1:{self.server_address[1]}"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (b"", "closed connection"),
        (b"SSH-2.0-OpenSSH_10.0\r\n", "SSH-2.0"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "no JSON"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "broke off"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "status 204"),
    ],
    ids=["nothing", "no HTTP", "short", "no chunk", "no content"],
)
def test_answer_that_is_none_is_no_failure(ask, words, reason):
    with serving(Silent(words)) as other:
        said = ask(of=other)["images"][f"{other.name}/{NIM}:2.2.0"]
    assert said["found"] is False and reason in said["reason"], said


# -- several images and registries -------------------------------------------------------------------------------------


def test_registry_that_does_not_answer_is_asked_once(ask):
    with serving(Silent(b"")) as other:
        result = ask("nim/a:1", "nim/b:2", "nim/c:3", of=other)
        assert other.calls == 1
    assert len({said["reason"] for said in result["images"].values()}) == 1


def test_images_are_told_in_their_order_and_once(ask, registry):
    images = [f"{registry.name}/{NIM}:{tag}" for tag in ("9.9.9", "2.2.0", "1.0.0", "2.2.0")]
    result = ask(images=["no-registry:1", *images])
    assert list(result["images"]) == ["no-registry:1", *images[:3]]
    assert [said["found"] for said in result["images"].values()] == [False, False, True, True]


def test_images_of_a_registry_are_asked_side_by_side(ask, registry):
    """The first one finds out whether the registry answers; of the others, each waits until all are asked for."""
    meeting = threading.Barrier(4, timeout=30)
    manifest = registry.pages[f"/v2/{NIM}/manifests/1.0.0"]

    def met():
        meeting.wait()
        return manifest

    registry.pages.update({f"/v2/{NIM}/manifests/{number}": met for number in range(4)})
    result = ask(*(f"{NIM}:{tag}" for tag in ("2.2.0", 0, 1, 2, 3)), timeout=30)
    assert len(result["native"]) == 5


def test_registries_are_asked_side_by_side(ask):
    """None says anything until all have been asked; then they hang up."""
    meeting = threading.Barrier(6, timeout=PATIENCE)

    class HangUp(socketserver.BaseRequestHandler):
        def handle(self):
            meeting.wait()

    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), HangUp)))
            for _number in range(6)
        ]
        names = [f"127.0.0.1:{server.server_address[1]}" for server in servers]
        result = ask(images=[f"{name}/nim/{image}" for name in names for image in ("a:1", "b:2")], timeout=PATIENCE)
    assert len(result["images"]) == 12 and not meeting.broken
    assert not any(said["found"] for said in result["images"].values())


def test_registry_that_never_says_anything_is_not_asked_twice(ask):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        name = f"127.0.0.1:{silent.getsockname()[1]}"
        result = ask(images=[f"{name}/nim/{image}" for image in ("a:1", "b:2")], timeout=1)
        silent.settimeout(0)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()
    assert {said["reason"].partition(" ")[2] for said in result["images"].values()} == {"cannot be asked: timed out"}
