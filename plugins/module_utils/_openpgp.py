# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fingerprints of OpenPGP public keys (RFC 4880 §4.2, §6.2, §12.2), so that a host needs no gpg. Private; pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

_ARMOR = re.compile(rb"-----BEGIN PGP PUBLIC KEY BLOCK-----(.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL)
_PUBLIC_KEY = 6


def dearmor(data: bytes) -> bytes:
    """Binary packets of an armored or binary key file. Raises ValueError when the armor is broken."""
    blocks = _ARMOR.findall(data.replace(b"\r\n", b"\n"))
    if not blocks:
        return data
    packets = b""
    for block in blocks:
        body = block.split(b"\n\n", 1)[-1]
        lines = [line.strip() for line in body.splitlines()]
        text = b"".join(line for line in lines if line and not line.startswith(b"="))
        try:
            packets += base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise ValueError(f"armor is broken: {error}") from error
    return packets


def fingerprints(data: bytes) -> list[str]:
    """Fingerprints of the primary keys in a key file, 40 upper-case hexadecimal digits each.

    Raises ValueError when the data is no key file.
    """
    packets = dearmor(data)
    found, at = [], 0
    while at < len(packets):
        tag_byte = packets[at]
        if not tag_byte & 0x80:
            raise ValueError("is not an OpenPGP key")
        at += 1
        if tag_byte & 0x40:
            tag, first = tag_byte & 0x3F, packets[at]
            if first < 192:
                length, size = first, 1
            elif first < 224:
                length, size = ((first - 192) << 8) + packets[at + 1] + 192, 2
            elif first == 255:
                length, size = int.from_bytes(packets[at + 1 : at + 5], "big"), 5
            else:
                raise ValueError("has partial packets, which keys never have")
        else:
            tag, kind = (tag_byte & 0x3C) >> 2, tag_byte & 3
            if kind == 3:
                raise ValueError("has a packet of unknown length")
            size = 1 << kind
            length = int.from_bytes(packets[at : at + size], "big")
        body = packets[at + size : at + size + length]
        if len(body) != length:
            raise ValueError("is cut off")
        if tag == _PUBLIC_KEY and body[:1] == b"\x04":
            digest = hashlib.sha1(b"\x99" + length.to_bytes(2, "big") + body)  # noqa: S324 - the format's own hash
            found.append(digest.hexdigest().upper())
        at += size + length
    if not found:
        raise ValueError("holds no OpenPGP public key")
    return found
