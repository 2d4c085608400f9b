# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The model cache: content-addressed, verified, resumable."""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import logging
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from . import logs
from .exceptions import ManifestDownloadError, NimError
from .ngc_profile import Profile, find, gpus, load
from .settings import Settings

log = logging.getLogger(__name__)
ATTEMPTS = 3
CHUNK = 1 << 18
REFUSALS = {
    401: "Authentication Error: the API key was not accepted: 401 Unauthorized. Check NGC_API_KEY.",
    403: "Permission error: The requested operation requires permissions that the user does not have: 403 Forbidden.",
    404: "Not found: the files of this model version do not exist: 404 Not Found.",
}


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Cache:
    """One model version under NIM_CACHE_PATH."""

    def __init__(self, settings: Settings, profile: Profile) -> None:
        self.settings = settings
        self.profile = profile
        self.repo, self.version = profile.source
        self.root = settings.cache / "ngc" / "hub" / f"models--nim--{self.repo.replace('/', '--')}"
        self.blobs = self.root / "blobs"
        self.snapshot = self.root / "snapshots" / self.version

    def missing(self) -> list[str]:
        """Return the files that are not here, or not what their blob's name says."""
        return [name for name in self.profile.files if not self._sound(name)]

    def _sound(self, name: str) -> bool:
        try:
            blob = (self.snapshot / name).resolve(strict=True)
            return digest(blob) == blob.name
        except OSError:
            return False

    def ensure(self) -> Path:
        """Make the cache complete; ask the server only for what is missing."""
        missing = self.missing()
        if not missing:
            for name in self.profile.files:
                path = self.snapshot / name
                logs.trace("nim_hub_ngc", f'File: {name} found in cache: "{path}"')
            return self.snapshot
        if not self.settings.download:
            raise ManifestDownloadError(
                f"NIM_DISABLE_MODEL_DOWNLOAD is set and the cache at {self.settings.cache} lacks {', '.join(missing)}"
            )
        log.info("Downloading manifest profile: %s", self.profile.id)
        try:
            self._download(missing)
        except OSError as error:
            reason = f"I/O error {error.strerror} (os error {error.errno})" if error.errno else f"I/O error {error}"
            log.error("Download failed. Last exception: %s", reason)
            raise ManifestDownloadError(f"Error downloading manifest: {reason}: {self.settings.cache}") from error
        return self.snapshot

    def _download(self, missing: list[str]) -> None:
        if not self.settings.key:
            raise ManifestDownloadError(
                "Error downloading manifest: Authentication Error: The requested operation requires an API key, "
                "but none was found. Set NGC_API_KEY."
            )
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.snapshot.mkdir(parents=True, exist_ok=True)
        logs.trace("nim_hub_ngc::api::tokio::builder", f"ngc configured with api_loc: {self.settings.api}")
        url = f"{self.settings.api}/v2/models/{self.repo}/{self.version}/files"
        with self._open(url) as answer:
            listing = {entry["name"]: entry for entry in json.load(answer)}
        for name in missing:
            if name not in listing:
                raise ManifestDownloadError(f"Error downloading manifest: {url} has no file {name}")
            entry = listing[name]
            blob = self.blobs / entry["sha256"]
            self._fetch(f"{url}/{name}", name, blob, entry["size"])
            link = self.snapshot / f".{name}.link"
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(blob, self.snapshot))
            link.replace(self.snapshot / name)
            logs.trace("nim_hub_ngc::api::tokio", f'Downloaded filename: {name} to blob: "{blob}"')

    def _fetch(self, url: str, name: str, blob: Path, size: int) -> None:
        """Bring one blob in, going on from where an earlier try was cut off."""
        partial = blob.with_name(blob.name + ".incomplete")
        last: object = None
        for attempt in range(ATTEMPTS):
            if attempt:
                log.warning("Download of %s interrupted (%s), retrying", name, last)
                time.sleep(attempt)
            have = partial.stat().st_size if partial.exists() else 0
            try:
                if have < size:
                    self._append(url, name, partial, have, size)
            except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
                last = error
                continue
            if digest(partial) == blob.name:
                partial.replace(blob)
                return
            last = f"checksum mismatch, {partial.stat().st_size} of {size} bytes"
            if partial.stat().st_size >= size:
                partial.unlink()
        raise ManifestDownloadError(f"Error downloading manifest: {name}: {last} after {ATTEMPTS} attempts")

    def _append(self, url: str, name: str, partial: Path, have: int, size: int) -> None:
        if have:
            logs.trace("nim_hub_ngc::api::tokio", f"Resuming {name} at byte {have} of {size}")
        told = time.monotonic()
        with self._open(url, have) as answer, partial.open("ab" if answer.status == 206 else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                if time.monotonic() - told >= 1:
                    told = time.monotonic()
                    share = 100 * file.tell() // size
                    logs.trace("nim_hub_ngc::api::tokio", f"Downloading {name}: {file.tell()}/{size} bytes ({share}%)")

    def _open(self, url: str, start: int = 0) -> http.client.HTTPResponse:
        headers = {"Authorization": f"Bearer {self.settings.key}", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            answer: http.client.HTTPResponse = urllib.request.urlopen(
                urllib.request.Request(url, headers=headers), timeout=60
            )
            return answer
        except urllib.error.HTTPError as error:
            reason = REFUSALS.get(error.code, f"{error.code} {error.reason}")
            raise ManifestDownloadError(f"Error downloading manifest: {reason} ({url})") from None
        except urllib.error.URLError as error:
            raise ManifestDownloadError(
                f"Error downloading manifest: Connection error: {error.reason} ({url})"
            ) from None


def main() -> int:
    """Run download-to-cache."""
    parser = argparse.ArgumentParser(prog="download-to-cache", description="Download profiles to the cache.")
    parser.add_argument("-p", "--profile", "--profiles", dest="profiles", nargs="+", action="extend", default=[])
    parser.add_argument("--all", action="store_true", help="every profile of the manifest")
    args = parser.parse_args()
    # As process 1 of a container it would else not hear `docker stop`.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    settings = Settings.read()
    logs.setup(settings)
    profiles = load(settings.manifest)
    wanted = args.profiles or ([settings.profile] if settings.profile not in ("", "default") else [])
    try:
        if args.all:
            chosen = profiles
        elif wanted:
            chosen = [find(profiles, name, settings.manifest) for name in wanted]
        else:
            # Staging needs no GPU: without one, the manifest's first profile is meant.
            count = max(1, len(gpus()))
            chosen = [next(profile for profile in profiles if profile.tp <= count)]
        for profile in chosen:
            Cache(settings, profile).ensure()
            print(f"Profile {profile.id} ({profile.name}) is in the cache.", file=sys.stderr)
    except NimError as error:
        log.error("%s", error)
        print(f"nimlib.exceptions.{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
