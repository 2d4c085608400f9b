# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module run against a real HTTP server that serves real keys."""

from __future__ import annotations

import base64
import http.server
import json
import socket
import stat

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.modules import signing_key
from ansible_collections.baremetal.nim.tests.unit.openpgp_keys import FINGERPRINT, KEY
from ansible_collections.baremetal.nim.tests.unit.serving import serving

# The same with the last byte of its public point changed, as another key would have it.
OTHER = KEY.replace(b"MIFNDuy0JkV4", b"MIFNDu20JkV4")
BINARY = base64.b64decode(b"".join(KEY.splitlines()[2:-2]))

pytestmark = pytest.mark.usefixtures("strict_umask")


class Server(http.server.ThreadingHTTPServer):
    """Serves `pages` (path to status and body) and counts requests."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages = {"/gpgkey": (200, KEY)}
        self.requests = []
        self.promised = 0

    def url(self, path="/gpgkey"):
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        status, body = self.server.pages.get(self.path, (404, b"not here"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + self.server.promised))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server():
    with serving(Server()) as running:
        yield running


@pytest.fixture
def dest(tmp_path):
    """Where the key is installed; its directory is not there yet."""
    return tmp_path / "etc" / "apt" / "keyrings" / "example.asc"


@pytest.fixture
def call(dest, server, tmp_path, capsys, monkeypatch):
    """Run the module; return its result."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def run(fingerprint=FINGERPRINT, url=None, check_mode=False):
        args = {"url": url or server.url(), "dest": str(dest), "fingerprint": fingerprint, "timeout": 5}
        args.update(_ansible_check_mode=check_mode, _ansible_tmpdir=str(tmp_path))
        with patch_module_args(args), pytest.raises(SystemExit) as caught:
            signing_key.main()
        result = json.loads(capsys.readouterr().out)
        # Only older releases return it.
        result.pop("invocation", None)
        assert caught.value.code == (1 if result.get("failed") else 0)
        return result

    return run


def put(dest, data):
    """Write the file as it was left there."""
    dest.parent.mkdir(parents=True)
    dest.write_bytes(data)


@pytest.mark.parametrize(
    "fingerprint",
    [FINGERPRINT, FINGERPRINT.lower(), "2B21 CA19 4E3B 1E29 2236  2D6D A47E C7EF F394 E0D1", [FINGERPRINT]],
    ids=["bare", "lower-case", "as-gpg-prints-it", "list"],
)
def test_the_wanted_key_is_installed(call, dest, fingerprint):
    assert call(fingerprint) == {"changed": True, "fingerprints": [FINGERPRINT]}
    assert dest.read_bytes() == KEY
    assert stat.S_IMODE(dest.stat().st_mode) == 0o644
    assert stat.S_IMODE(dest.parent.stat().st_mode) == 0o755


def test_second_run_makes_no_request(call, dest, server):
    call()
    before = dest.stat()
    assert call() == {"changed": False, "fingerprints": [FINGERPRINT]}
    assert server.requests == ["/gpgkey"]
    assert dest.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("present", [KEY, BINARY, b"our key:\n" + KEY], ids=["armored", "binary", "with-text"])
def test_a_file_that_holds_the_key_already_is_left_alone(call, dest, server, present):
    put(dest, present)
    assert call()["changed"] is False
    assert dest.read_bytes() == present
    assert server.requests == []


@pytest.mark.parametrize(
    "present",
    [OTHER, KEY + OTHER, b"", b"<html>proxy login</html>", KEY[:200]],
    ids=["another-key", "one-key-too-many", "empty", "web-page", "cut-off"],
)
def test_any_other_file_is_replaced(call, dest, present):
    put(dest, present)
    assert stat.S_IMODE(dest.stat().st_mode) == 0o600
    assert call()["changed"] is True
    assert dest.read_bytes() == KEY
    assert stat.S_IMODE(dest.stat().st_mode) == 0o644


@pytest.mark.parametrize("present", [None, OTHER], ids=["bare-host", "another-key"])
def test_check_mode_makes_no_request_and_writes_nothing(call, dest, server, present):
    if present is not None:
        put(dest, present)
    assert call(check_mode=True) == {"changed": True, "fingerprints": [FINGERPRINT]}
    assert server.requests == []
    assert (dest.read_bytes() if dest.exists() else None) == present
    assert dest.parent.exists() is (present is not None)


def test_check_mode_with_the_key_there(call, dest):
    put(dest, KEY)
    assert call(check_mode=True) == {"changed": False, "fingerprints": [FINGERPRINT]}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        pytest.param(OTHER, "the key has the fingerprint ", id="another-key"),
        pytest.param(KEY + OTHER, f"the key has the fingerprint {FINGERPRINT}, ", id="another-key-beside"),
        pytest.param(b"<html>proxy login</html>", "what came is not an OpenPGP key", id="web-page"),
        pytest.param(b"", "what came holds no OpenPGP public key", id="nothing"),
        pytest.param(BINARY[:100], "what came is cut off", id="cut-off"),
        pytest.param(b"\xc6", "what came is cut off", id="one-byte"),
        pytest.param(KEY.replace(b"mDME", b"mDM"), "what came has broken armor", id="broken-armor"),
        pytest.param(BINARY + b"\xc6\x2a\x06" + bytes(41), "another version than 4", id="version-6-key-beside"),
    ],
)
@pytest.mark.parametrize("present", [None, OTHER], ids=["bare-host", "existing-file"])
def test_what_is_not_the_wanted_key_is_not_installed(call, dest, server, body, said, present):
    if present is not None:
        put(dest, present)
    server.pages["/gpgkey"] = (200, body)
    result = call()
    assert result["failed"] is True
    assert result["msg"].startswith(f"{server.url()}: ")
    assert said in result["msg"]
    assert f"{dest} was not changed." in result["msg"]
    assert (dest.read_bytes() if dest.exists() else None) == present


def test_wrong_fingerprint_names_both_and_the_cure(call, dest):
    wanted = "C95B 321B 61E8 8C18 09C4  F759 DDCA E044 F796 ECB0"
    message = call(wanted)["msg"]
    assert f"fingerprint {FINGERPRINT}, wanted {wanted.replace(' ', '')};" in message
    assert "announced a new key, set its fingerprint" in message
    assert not dest.exists()


@pytest.mark.parametrize(("status", "said"), [(404, "(status 404)"), (403, "(status 403)"), (500, "(status 500)")])
def test_server_says_no(call, dest, server, status, said):
    server.pages["/gpgkey"] = (status, KEY)
    result = call()
    assert result["failed"] is True
    assert said in result["msg"]
    assert "wanted the signing key; set the URL" in result["msg"]
    assert not dest.exists()


def test_nobody_answers(call, dest):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/gpgkey"
        message = call(url=url)["msg"]
    assert message.startswith(f"{url}: ")
    assert "Connection refused" in message
    assert not dest.exists()


def test_download_that_breaks_off(call, dest, server):
    put(dest, OTHER)
    server.promised = 1000
    result = call()
    assert result["failed"] is True
    assert result["msg"].startswith(f"{server.url()}: the download broke off")
    assert f"{dest} was not changed." in result["msg"]
    assert dest.read_bytes() == OTHER
