# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A public key that tests install, read and find on hosts."""

from __future__ import annotations

# Made by gpg 2.2 for these tests; nobody has its secret half.
KEY = b"""\
-----BEGIN PGP PUBLIC KEY BLOCK-----

mDMEawP7fBYJKwYBBAHaRw8BAQdAemnX7S8D6kZF3KWnR06racYtELbAFPXreq+K
MIFNDuy0JkV4YW1wbGUgZWQyNTUxOSA8cGFja2FnZXNAZXhhbXBsZS5jb20+iJAE
ExYIADgWIQQrIcoZTjseKSI2LW2kfsfv85Tg0QUCawP7fAIbAwULCQgHAgYVCgkI
CwIEFgIDAQIeAQIXgAAKCRCkfsfv85Tg0cSvAQCQm/Jp1FQBldFutcd7aES4HOAa
BsLYZS8I6qaDyeAeUwD+KhJEBQ7IntPN5ZuAk2mqOB4k35496ckEqwTmiMoUlgI=
=dD1/
-----END PGP PUBLIC KEY BLOCK-----
"""
FINGERPRINT = "2B21CA194E3B1E2922362D6DA47EC7EFF394E0D1"
