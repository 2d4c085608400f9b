# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors that end a start, named as the real launcher names them."""

from __future__ import annotations


class NimError(Exception):
    """A start that cannot go on."""


class ManifestDownloadError(NimError):
    """The files of a profile could not be put into the cache."""


class ProfileError(NimError):
    """No profile of the manifest can run here."""
