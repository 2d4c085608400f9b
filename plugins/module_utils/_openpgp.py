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
_SECRET_KEY, _PUBLIC_KEY = 5, 6


def dearmor(data: bytes) -> bytes:
    """Binary packets of an armored or binary key file. Raises ValueError when the armor is broken."""
    blocks = _ARMOR.findall(data.replace(b"\r\n", b"\n"))
    # A binary file is all binary: armor that stands in it must not hide what stands before.
    if not blocks or data[:1] >= b"\x80":
        return data
    if data.count(b"-----BEGIN") != len(blocks):
        raise ValueError("has armor around something else than public keys")
    packets = b""
    for block in blocks:
        body = block.split(b"\n\n", 1)[-1]
        lines = [line.strip() for line in body.splitlines()]
        text = b"".join(line for line in lines if line and not line.startswith(b"="))
        try:
            packets += base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise ValueError(f"has broken armor: {error}") from error
    return packets


def fingerprints(data: bytes) -> list[str]:
    """Fingerprints of the primary keys in a key file, 40 upper-case hexadecimal digits each.

    Raises ValueError when the data is no key file, or when it has a primary key that this cannot name.
    """
    packets = dearmor(data)
    try:
        found = _walk(packets)
    except IndexError as error:
        raise ValueError("is cut off") from error
    if not found:
        raise ValueError("holds no OpenPGP public key")
    return found


def _walk(packets: bytes) -> list[str]:
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
        if at + size + length > len(packets):
            raise ValueError("is cut off")
        body = packets[at + size : at + size + length]
        if tag == _SECRET_KEY:
            raise ValueError("holds a secret key")
        if tag == _PUBLIC_KEY:
            # Programs that read the file may know other versions; a key unseen here would be one that they trust.
            if body[:1] != b"\x04" or length > 0xFFFF:
                raise ValueError("holds a key of another version than 4")
            digest = hashlib.sha1(b"\x99" + length.to_bytes(2, "big") + body)  # noqa: S324 - the format's own hash
            found.append(digest.hexdigest().upper())
        at += size + length
    return found
