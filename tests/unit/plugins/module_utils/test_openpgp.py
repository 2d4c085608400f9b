# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fingerprints of key files as gpg writes them."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tempfile

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils._openpgp import dearmor, fingerprints
from ansible_collections.baremetal.nim.tests.unit.openpgp_keys import FINGERPRINT as ED25519_FINGERPRINT
from ansible_collections.baremetal.nim.tests.unit.openpgp_keys import KEY as ED25519

# Made by gpg 2.2 for these tests; nobody has their secret halves.
RSA = b"""\
-----BEGIN PGP PUBLIC KEY BLOCK-----

mQENBGsD+3wBCAC6dkyCgzXrgA/xSD80BqO0NjBeF8i7hqNs6qnUyhUvOcXADuD0
ZqOTu7s2wyd5Y4etVzuQZG36TIykjTIsyHXy2XBRc551JHcrWlRHJ4ySP0CtH+nK
5e23QfwfsSOZnLmUzbQyBtOBoLTAq1nNnFXBBXoPeyrstuVT4g7dvqLlVLgESrW7
YSUGEnAuGkZ/S7jop44N4xaf9TmJCLmHqH2ivfsGgsTnCTM4cFtlXHDPKPSrBqIy
ks8umAmDlJCOxwml+nF7nmafgaN9k6gCmqvhRlPl9FDWH/O0oxbKGb0xJ36Uj9lu
wh1Fcxbx5XggzdyrMzxKetnfdJuKbJLArqk1ABEBAAG0JkV4YW1wbGUgcnNhMjA0
OCA8cGFja2FnZXNAZXhhbXBsZS5jb20+iQFOBBMBCgA4FiEEtMLtHSzeDJGJbjZ0
eB9dSKypmAoFAmsD+3wCGwMFCwkIBwIGFQoJCAsCBBYCAwECHgECF4AACgkQeB9d
SKypmArE/wgAi0J7iyhTwILxZNif2KvsxmbeXYdv/a/C3JwKvw7BqW8zeoBOh126
D0r0StLo+b86igiRE6bX+fz95Bo0FVd0z6Cnnpu9yti4H0farqE042jpBampVSFN
dregcdpfDJ/dLEJccj7XmcQ3rNySRBCZVOmaS/mhQ8GtYtS6aLxvpAHLfVsmSeeN
h9Yw15hDfV1fp3ZmpN2PHxS+OlqkYrvUir0TZUVrLcOkiZ9hANsBymVu47BcijaV
K7Dhj4SHoQBgbxr7OBfXAvBtcWqCYhzQqDQIYJleZbDSIwvuiSwBEu0WCJqwXosh
YAI3T3aLl1ZcjF/l59uXyv4Pqj07wyzwUA==
=eygZ
-----END PGP PUBLIC KEY BLOCK-----
"""
RSA_FINGERPRINT = "B4C2ED1D2CDE0C91896E3674781F5D48ACA9980A"


def packets(armored):
    """The binary form of an armored file, by other means than those under test."""
    lines = armored.decode().splitlines()
    return base64.b64decode("".join(lines[2:-2]))


def new_format(data, five_bytes=False):
    """The key packet of a binary file with its header in the new format, as other programs write it."""
    # In the old format, 0x98 has a length of one byte and 0x99 of two.
    start = {0x98: 2, 0x99: 3}[data[0]]
    length = int.from_bytes(data[1:start], "big")
    if five_bytes:
        header = b"\xff" + length.to_bytes(4, "big")
    elif length < 192:
        header = bytes([length])
    else:
        header = bytes([((length - 192) >> 8) + 192, (length - 192) & 0xFF])
    return b"\xc6" + header + data[start : start + length]


def public_key(body, tag=6):
    """A packet in the new format."""
    return bytes([0xC0 | tag, len(body)]) + body


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(ED25519, [ED25519_FINGERPRINT], id="ed25519"),
        pytest.param(RSA, [RSA_FINGERPRINT], id="rsa"),
        pytest.param(packets(ED25519), [ED25519_FINGERPRINT], id="ed25519-binary"),
        pytest.param(packets(RSA), [RSA_FINGERPRINT], id="rsa-binary"),
        pytest.param(ED25519 + RSA, [ED25519_FINGERPRINT, RSA_FINGERPRINT], id="two-blocks"),
        pytest.param(packets(RSA) + packets(ED25519), [RSA_FINGERPRINT, ED25519_FINGERPRINT], id="two-keys-binary"),
        pytest.param(ED25519.replace(b"\n", b"\r\n"), [ED25519_FINGERPRINT], id="windows-lines"),
        pytest.param(b"The key of our packages:\n\n" + ED25519 + b"\nbye\n", [ED25519_FINGERPRINT], id="text-around"),
        pytest.param(
            ED25519.replace(b"BLOCK-----\n\n", b"BLOCK-----\nVersion: GnuPG v2\nComment: x\n\n"),
            [ED25519_FINGERPRINT],
            id="headers",
        ),
        pytest.param(
            b"\n".join(line for line in ED25519.splitlines() if not line.startswith(b"=")),
            [ED25519_FINGERPRINT],
            id="no-checksum",
        ),
        pytest.param(new_format(packets(ED25519)), [ED25519_FINGERPRINT], id="new-format-one-byte"),
        pytest.param(new_format(packets(RSA)), [RSA_FINGERPRINT], id="new-format-two-bytes"),
        pytest.param(new_format(packets(RSA), five_bytes=True), [RSA_FINGERPRINT], id="new-format-five-bytes"),
        pytest.param(
            packets(ED25519) + public_key(b"\x04\x00\x00\x00\x00", tag=14),
            [ED25519_FINGERPRINT],
            id="subkeys-do-not-count",
        ),
    ],
)
def test_fingerprints(data, expected):
    assert fingerprints(data) == expected


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(b"", "holds no OpenPGP public key", id="nothing"),
        pytest.param(b"<html><title>404 Not Found</title></html>", "is not an OpenPGP key", id="web-page"),
        pytest.param(ED25519[:200], "is not an OpenPGP key", id="armor-without-end"),
        pytest.param(ED25519.replace(b"mDMEawP7", b"mDMEa#wP7"), "has broken armor", id="armor-with-another-letter"),
        pytest.param(ED25519.replace(b"mDMEawP7", b"mDMEawP"), "has broken armor", id="armor-with-a-letter-lost"),
        pytest.param(
            b"\n".join(ED25519.splitlines()[:2] + ED25519.splitlines()[4:]),
            "is not an OpenPGP key|is cut off",
            id="armor-without-head",
        ),
        pytest.param(packets(ED25519)[53:], "holds no OpenPGP public key", id="user-id-only"),
        pytest.param(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "is cut off", id="picture"),
        pytest.param(b"\xef\xbb\xbfhello", "is cut off", id="byte-order-mark"),
        pytest.param(b"\xc6\xe5" + bytes(40), "has partial packets", id="partial-packet"),
        pytest.param(b"\x9b" + packets(ED25519)[2:], "has a packet of unknown length", id="unknown-length"),
        # What gpg of today and others read and may trust must not pass beside a wanted key.
        pytest.param(
            packets(ED25519) + public_key(b"\x06" + bytes(40)),
            "another version than 4",
            id="version-6-beside-version-4",
        ),
        pytest.param(
            packets(ED25519) + public_key(b"\x03" + bytes(40)),
            "another version than 4",
            id="version-3-beside-version-4",
        ),
        pytest.param(packets(ED25519) + public_key(b""), "another version than 4", id="empty-key"),
        pytest.param(
            b"\xc6\xff\x00\x01\x00\x01\x04" + bytes(65536), "another version than 4", id="key-of-impossible-length"
        ),
        pytest.param(packets(ED25519) + public_key(b"\x04" + bytes(40), tag=5), "holds a secret key", id="secret-key"),
        pytest.param(packets(RSA) + ED25519, "is not an OpenPGP key", id="armor-behind-a-binary-key"),
        pytest.param(
            ED25519 + ED25519.replace(b"PUBLIC", b"PRIVATE"), "something else than public keys", id="private-block"
        ),
    ],
)
def test_no_key_file(data, said):
    with pytest.raises(ValueError, match=said):
        fingerprints(data)


@pytest.mark.parametrize(
    ("data", "ends"),
    [
        pytest.param(packets(ED25519), [53, 93], id="old-format"),
        pytest.param(new_format(packets(RSA)), [], id="two-bytes"),
        pytest.param(new_format(packets(RSA), five_bytes=True), [], id="five-bytes"),
    ],
)
def test_a_cut_is_noticed_wherever_it_is(data, ends):
    """But for the ENDS of packets, where it leaves a whole, shorter file."""
    whole = fingerprints(data)
    for end in range(1, len(data)):
        if end in ends:
            assert fingerprints(data[:end]) == whole
        else:
            with pytest.raises(ValueError, match="is cut off"):
                fingerprints(data[:end])


@pytest.mark.parametrize("length", [191, 192, 255, 256, 600, 8383], ids=str)
def test_both_formats_of_a_header_give_the_same(length):
    old = b"\x99" + length.to_bytes(2, "big") + b"\x04" + bytes(length - 1)
    expected = [hashlib.sha1(old).hexdigest().upper()]  # noqa: S324 - the format's own hash
    assert (
        fingerprints(old) == fingerprints(new_format(old)) == fingerprints(new_format(old, five_bytes=True)) == expected
    )


def test_dearmor_gives_the_packets_of_all_blocks():
    assert dearmor(ED25519 + RSA) == packets(ED25519) + packets(RSA)
    assert dearmor(packets(RSA)) == packets(RSA)


@pytest.mark.skipif(not shutil.which("gpg"), reason="gpg is not installed")
def test_agrees_with_gpg():
    """A fresh key with a subkey, exported both ways."""
    with tempfile.TemporaryDirectory(prefix="gpg") as home:
        gpg = ["gpg", "--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
        try:
            subprocess.run(
                [*gpg, "--quick-generate-key", "test@example.com", "future-default"], check=True, capture_output=True
            )
            listed = subprocess.run(
                [*gpg, "--with-colons", "--list-keys"], check=True, capture_output=True, text=True
            ).stdout
            binary, armored = (
                subprocess.run([*gpg, *options, "--export"], check=True, capture_output=True).stdout
                for options in ([], ["--armor"])
            )
        finally:
            subprocess.run(["gpgconf", "--homedir", home, "--kill", "gpg-agent"], check=False, capture_output=True)
    rows = [line.split(":") for line in listed.splitlines()]
    assert [row[0] for row in rows if row[0] in ("pub", "sub")] == ["pub", "sub"]
    primary = next(row[9] for row in rows if row[0] == "fpr")
    assert fingerprints(binary) == fingerprints(armored) == [primary]
