# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the NIM stand-in and its weights; the lab's command line imports this."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import docker

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "vllm-requirements.txt"
# What the context holds; anything else in this folder does not reach the image.
CONTEXT = ("Dockerfile", "bin", "nimlib")
# The release that each generation's image claims to be.
VERSIONS = {"classic": "1.8.6", "llm": "2.0.5", "native": "2.2.2", "reranker": "2.2.2", "speech": "1.7.0"}


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name.replace("/", "."), HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    """Add one file; owner and time are fixed, so equal content gives equal archives and the builder's cache holds."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))


def context() -> bytes:
    """Return the build context."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(path for top in CONTEXT for path in [HERE / top, *(HERE / top).rglob("*")]):
            if path.is_file() and "__pycache__" not in path.parts:
                mode = 0o755 if path.parent.name == "bin" else 0o644
                _add(tar, str(path.relative_to(HERE)), path.read_bytes(), mode)
    return buffer.getvalue()


def fingerprint(flavour: str, engine: str) -> str:
    """Return a short hash that changes when the image would."""
    extra = REQUIREMENTS.read_bytes() if engine == "vllm" else b""
    return hashlib.sha256(b"\0".join((flavour.encode(), engine.encode(), context(), extra))).hexdigest()[:12]


def weights_fingerprint() -> str:
    """Return a short hash that changes when the weights may."""
    makers = ("nimlib/manifest.py", "make_reference_weights.py", "make_model.py", "phrases.json", "build.py")
    return hashlib.sha256(b"\0".join((HERE / name).read_bytes() for name in makers)).hexdigest()[:12]


def weights() -> Iterator[tuple[str, bytes]]:
    """Yield path and content of every file that the weights server serves."""
    manifest, reference, model = (_module(name) for name in ("nimlib/manifest", "make_reference_weights", "make_model"))
    versions = {manifest.VERSIONS["reference"].format(kind): reference.files(kind) for kind in ("bf16", "fp8")}
    versions[manifest.VERSIONS["vllm"].format("bf16")] = model.files()
    for version, files in versions.items():
        for name, data in files.items():
            yield f"{manifest.MODEL}/{version}/{name}", data
    for name in (*manifest.FAMILY_MODELS.values(), manifest.RERANKER):
        for file in manifest.FAMILY_FILES:
            yield f"{name}/{manifest.FAMILY_VERSION}/{file}", f"{name} {file}\n".encode() * 1000


def weights_archive() -> bytes:
    """Return the weights as a tar archive, to be unpacked in the root of the weights server."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in weights():
            _add(tar, name, data)
    return buffer.getvalue()


def build(
    client: docker.DockerClient,
    base: str,
    flavour: str,
    engine: str,
    tag: str,
    site_dir: Path | None = None,
    cache: Path | None = None,
    version: str | None = None,
) -> str:
    """Build one image as TAG and return its id.

    For the vLLM engine BASE has to be Debian 12 (Python 3.11); its packages come from SITE_DIR (by default a folder of
    CACHE), which is filled first if need be.
    """
    if engine == "vllm":
        # Gigabytes go in and nothing is said meanwhile.
        client.api.timeout = max(client.api.timeout or 0, 1800)
        folder = site_dir or (cache or HERE) / "vllm-site"
        install_site(folder)
        base = site_image(client, base, folder)
    image, _log = client.images.build(
        fileobj=io.BytesIO(context()),
        custom_context=True,
        tag=tag,
        target=flavour,
        # The other families have no engine of their own; their stages come after those that have one.
        buildargs={
            "BASE": base,
            "ENGINE": "reference" if engine == "families" else engine,
            "VERSION": version or VERSIONS[flavour],
        },
        rm=True,
        forcerm=True,
    )
    return str(image.id)


def install_site(folder: Path) -> None:
    """Install vLLM's pinned packages for Python 3.11 into FOLDER, with whatever Python runs this."""
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    stamp = folder / ".complete"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    tags = [f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 17, 12, 5)] + ["manylinux2014_x86_64"]
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-compile", "--only-binary=:all:"]
    pip += ["--target", str(folder), "--python-version", "3.11", *(f"--platform={tag}" for tag in tags)]
    subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
    if not cpu_torch(folder):
        pin = next(line for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if line.startswith("torch=="))
        index = ["--index-url", "https://download.pytorch.org/whl/cpu"]
        subprocess.run([*pip, "--upgrade", *index, pin], check=True)
        if not cpu_torch(folder):
            raise RuntimeError(f"torch in {folder} is not the CPU build")
    for path in [*folder.rglob("__pycache__"), *folder.rglob("tests"), *folder.glob("torch/include")]:
        if path.is_dir() and not path.is_relative_to(folder / "torch" / "testing"):
            shutil.rmtree(path, ignore_errors=True)
    stamp.write_text(wanted, encoding="utf-8")


def cpu_torch(folder: Path) -> bool:
    """Whether the torch in FOLDER is the CPU build."""
    text = (folder / "torch" / "version.py").read_text(encoding="utf-8")
    return bool(re.search(r"^cuda\b.*= None$", text, re.MULTILINE))


def site_image(client: docker.DockerClient, base: str, folder: Path) -> str:
    """Return an image that is BASE with FOLDER as /opt/nim/site: one big layer that all flavours and versions share."""
    ident = f"{client.images.get(base).id} {(folder / '.complete').read_text(encoding='utf-8')}"
    tag = f"nimlab/vllm-site:{hashlib.sha256(ident.encode()).hexdigest()[:12]}"
    if client.images.list(name=tag):
        return tag
    container = client.containers.create(base, ["true"])
    try:
        # Streamed: gigabytes neither fit in memory nor need a copy in a build context.
        read, write = os.pipe()
        packer = threading.Thread(target=_pack, args=(folder, write))
        packer.start()
        with os.fdopen(read, "rb") as stream:
            container.put_archive("/", stream)
        packer.join()
        container.commit(*tag.split(":"))
    finally:
        container.remove(force=True)
    return tag


def _pack(folder: Path, write: int) -> None:
    def owned_by_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = "root"
        return info

    with os.fdopen(write, "wb") as sink, tarfile.open(fileobj=sink, mode="w|") as tar:
        tar.add(folder, "opt/nim/site", filter=owned_by_root)


if __name__ == "__main__":
    flavour, engine, base, tag = sys.argv[1:5]
    print(build(docker.from_env(timeout=1800), base, flavour, engine, tag, cache=HERE.parents[3] / ".lab" / "build"))
