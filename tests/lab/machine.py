# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host of the lab that is a virtual machine: what containers cannot show, a reboot above all."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

CORES, MEMORY_GB = 2, 2


class Machine:
    """One virtual machine. FOLDER keeps its console, its files and the number of its process."""

    def __init__(self, name: str, folder: pathlib.Path) -> None:
        self.name = name
        self.folder = folder
        self.console = folder / f"{name}.console"
        self._pid = folder / f"{name}.pid"

    def pid(self) -> int | None:
        """The process of the running machine, None when it does not run."""
        try:
            number = int(self._pid.read_text())
            command = pathlib.Path(f"/proc/{number}/cmdline").read_text()
        except (OSError, ValueError):
            return None
        return number if "qemu" in command and str(self.folder) in command else None

    def start(self, disk: pathlib.Path, files: bytes, ports: dict[str, int]) -> None:
        """Boots from a folder with disk, kernel and initramfs.

        FILES is a tar archive that is laid over the root once; PORTS are those of the machine that are reached on loopback.
        What the machine writes lives as long as the machine: the disk is not changed.
        """
        qemu = shutil.which("qemu-system-x86_64")
        if qemu is None:
            sys.exit("lab: qemu-system-x86_64 is missing: install qemu-system-x86 and try again")
        self.folder.mkdir(parents=True, exist_ok=True)
        archive = self.folder / f"{self.name}.tar"
        archive.write_bytes(files)
        archive.chmod(0o600)
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:{port}-:{inside}" for inside, port in ports.items())
        argv: list[str | pathlib.Path] = [qemu, "-name", self.name, "-machine", "q35", "-smp", str(CORES)]
        # Emulated everywhere: nested virtualization works on some machines only, and breaks late on others.
        argv += ["-m", f"{MEMORY_GB}G", "-accel", "tcg,thread=multi", "-cpu", "max"]
        argv += ["-kernel", disk / "kernel", "-initrd", disk / "initramfs"]
        argv += ["-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet", "-no-user-config", "-display", "none"]
        argv += ["-drive", f"file={_quoted(disk / 'disk')},format=raw,if=virtio,snapshot=on"]
        argv += ["-drive", f"file={_quoted(archive)},format=raw,if=virtio,readonly=on"]
        argv += ["-nic", f"user,model=virtio-net-pci{forwards}", "-device", "virtio-rng-pci"]
        argv += ["-serial", f"file:{_quoted(self.console)}", "-daemonize", "-pidfile", self._pid]
        # Copied blocks go to the temporary folder, which may be memory.
        environment = {**os.environ, "TMPDIR": str(self.folder)}
        done = subprocess.run(
            [str(word) for word in argv], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"lab: {self.name} does not start: {done.stderr.strip()}")

    def stop(self) -> None:
        """Switches the machine off."""
        number = self.pid()
        if number is not None:
            os.kill(number, signal.SIGTERM)
            while self.pid() is not None:
                time.sleep(0.1)
        self._pid.unlink(missing_ok=True)


def _quoted(path: pathlib.Path) -> str:
    """As an option of qemu, where a comma ends a value."""
    return str(path).replace(",", ",,")
