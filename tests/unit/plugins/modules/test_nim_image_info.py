# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module run against real HTTP servers that speak as registries do."""

from __future__ import annotations

import base64
import http.server
import json

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.modules import nim_image_info
from ansible_collections.baremetal.nim.tests.unit.serving import serving

KEY = "nvapi-9J3k2LmNoPqRsTuVwXyZ"
BASIC = f"Basic {base64.b64encode(f'$oauthtoken:{KEY}'.encode()).decode()}"
CONFIG, AMD, ARM = (f"sha256:{digit * 64}" for digit in "abc")
LABELS = {"com.nvidia.nim.model_download_protocol": "native-v1", "maintainer": "somebody"}
NIM = "nim/nvidia/embed"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        said = self.headers.get("Authorization", "")
        self.server.requests.append((self.path, said))
        path = self.path.partition("?")[0]
        status, body, headers = self.server.answer(path, said)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format, *args):
        pass


class Registry(http.server.ThreadingHTTPServer):
    """A registry with one image; `login` is none, basic or bearer."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.name = f"127.0.0.1:{self.server_port}"
        self.login = "none"
        self.requests = []
        manifest = {"config": {"digest": CONFIG}, "layers": [{"size": 70}, {"size": 7}]}
        platforms = ((ARM, "arm64"), (AMD, "amd64"))
        index = [{"digest": digest, "platform": {"os": "linux", "architecture": name}} for digest, name in platforms]
        self.pages = {
            f"/v2/{NIM}/manifests/2.2.0": {"manifests": index},
            f"/v2/{NIM}/manifests/1.0.0": manifest,
            f"/v2/{NIM}/manifests/{AMD}": manifest,
            f"/v2/{NIM}/manifests/{ARM}": manifest,
            f"/v2/{NIM}/blobs/{CONFIG}": {"config": {"Labels": LABELS}},
        }

    def answer(self, path, said):
        if path == "/token":
            return (200, {"token": "t0ken"}, {}) if said == BASIC else (403, {}, {})
        wanted = {"none": "", "basic": BASIC, "bearer": "Bearer t0ken"}[self.login]
        if wanted and said != wanted:
            realm = f'Bearer realm="http://{self.name}/token",service="registry"'
            return 401, {}, {"WWW-Authenticate": realm if self.login == "bearer" else 'Basic realm="Registry"'}
        page = self.pages.get(path)
        if isinstance(page, str):
            return 307, b"", {"Location": page}
        return (404, {"errors": [{"code": "MANIFEST_UNKNOWN"}]}, {}) if page is None else (200, page, {})


@pytest.fixture
def registry():
    with serving(Registry()) as running:
        yield running


@pytest.fixture
def ask(registry, tmp_path, capsys, monkeypatch):
    """Runs the module; returns its result."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def run(*images, **options):
        named = [f"{registry.name}/{image}" for image in images or (f"{NIM}:2.2.0",)]
        args = {"images": named, "registry": registry.name, "api_key": KEY, "timeout": 1, **options}
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


def test_registry_that_cannot_be_reached_is_asked_once(ask, registry, monkeypatch):
    asked = []
    real = nim_image_info.fetch_url
    monkeypatch.setattr(nim_image_info, "fetch_url", lambda *args, **more: asked.append(args) or real(*args, **more))
    registry.name = "127.0.0.1:9"
    result = ask("nim/a:1", "nim/b:2", registry="127.0.0.1:9")
    assert len(asked) == 1
    assert len({said["reason"] for said in result["images"].values()}) == 1
