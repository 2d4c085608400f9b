# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small registry of container images: its manifests and configurations, as real ones serve them."""

from __future__ import annotations

import base64
import http.server
import json
import ssl

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

    def __init__(self, address="127.0.0.1", certificate=None):
        super().__init__((address, 0), Handler)
        self.name = f"{address}:{self.server_port}"
        self.url = f"{'https' if certificate else 'http'}://{self.name}"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
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
            realm = f'Bearer realm="{self.url}/token",service="registry"'
            return 401, {}, {"WWW-Authenticate": realm if self.login == "bearer" else 'Basic realm="Registry"'}
        page = self.pages.get(path)
        if isinstance(page, str):
            return 307, b"", {"Location": page}
        if callable(page):
            page = page()
        return (404, {"errors": [{"code": "MANIFEST_UNKNOWN"}]}, {}) if page is None else (200, page, {})
