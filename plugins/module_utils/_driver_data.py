# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What NVIDIA and the distributions call things. Private to the collection; data, no code.

Sources: NVIDIA Driver Installation Guide (releases 590 to 620), NVIDIA's repositories, Debian's and Ubuntu's archives.
"""

from __future__ import annotations

from typing import Any

SOURCES = ("cuda_repo", "distribution", "mirror", "preinstalled")
FLAVOURS = ("open", "proprietary")

#: System (distribution, version) to its folder in NVIDIA's repository and to the naming of the packages there.
SYSTEMS: dict[tuple[str, str], dict[str, Any]] = {
    ("Ubuntu", "22.04"): {"folder": "ubuntu2204", "naming": "ubuntu"},
    ("Ubuntu", "24.04"): {"folder": "ubuntu2404", "naming": "ubuntu"},
    ("Ubuntu", "26.04"): {"folder": "ubuntu2604", "naming": "ubuntu"},
    ("Debian", "12"): {"folder": "debian12", "naming": "debian"},
    ("Debian", "13"): {"folder": "debian13", "naming": "debian"},
    ("EL", "8"): {"folder": "rhel8", "naming": "el"},
    ("EL", "9"): {"folder": "rhel9", "naming": "el"},
    ("EL", "10"): {"folder": "rhel10", "naming": "el"},
}
ENTERPRISE_LINUX = ("RedHat", "Rocky", "AlmaLinux")
#: Machine architecture to NVIDIA's word for it.
ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "sbsa"}

REPOSITORY = "https://developer.download.nvidia.com/compute/cuda/repos/{folder}/{architecture}/"
#: Package manager to the file of the signing key in that repository and to its fingerprint.
KEYS = {
    "apt": ("3bf863cc.pub", "EB693B3035CD5710E231E123A4B469963BF863CC"),
    "dnf": ("D42D0685.pub", "610C7B14E068A878070DA4E99CD0A493D42D0685"),
}
#: The key that NVIDIA withdrew in April 2022.
RETIRED_KEY = "AE09FE4BBD223A84B2CCFCE3F60F4B3D7FA2AF80"
KEY_PATH = "/etc/apt/keyrings/nvidia-driver.asc"
SOURCE_NAME = "nvidia-driver"

#: From this branch on Ubuntu's packages in NVIDIA's repository have no branch in their names.
UNSUFFIXED = 590
#: From this branch on NVIDIA's repository has packages that pin one.
PINNABLE = 580
#: From this branch on the fabric's packages have none.
FABRIC_UNSUFFIXED = 580
#: From this branch on there are no proprietary modules.
OPEN_ONLY = 620
#: Architectures that only the open modules drive (Grace systems besides), and those that they do not.
NEED_OPEN = ("Blackwell",)
NEED_PROPRIETARY = ("Maxwell", "Pascal", "Volta")
#: Last branch that drives them.
LAST_OF_OLD = 580
#: First branch that drives an architecture.
FIRST_BRANCH = {"Blackwell": 570, "Hopper": 515, "Ada Lovelace": 520}

#: Packages by naming and flavour; {branch} is filled in.
COMPUTE: dict[str, dict[str, tuple[str, ...]]] = {
    "debian": {
        "open": ("nvidia-driver-cuda", "nvidia-kernel-open-dkms"),
        "proprietary": ("nvidia-driver-cuda", "nvidia-kernel-dkms"),
    },
    "ubuntu_suffixed": {
        "open": (
            "libnvidia-compute-{branch}",
            "nvidia-compute-utils-{branch}",
            "nvidia-utils-{branch}",
            "nvidia-dkms-{branch}-open",
        ),
        "proprietary": (
            "libnvidia-compute-{branch}",
            "nvidia-compute-utils-{branch}",
            "nvidia-utils-{branch}",
            "nvidia-dkms-{branch}",
        ),
    },
    "ubuntu": {
        "open": ("libnvidia-compute", "nvidia-compute-utils", "nvidia-utils", "nvidia-dkms-open"),
        "proprietary": ("libnvidia-compute", "nvidia-compute-utils", "nvidia-utils", "nvidia-dkms"),
    },
    "el": {
        "open": ("nvidia-driver-cuda", "kmod-nvidia-open-dkms", "nvidia-persistenced"),
        "proprietary": ("nvidia-driver-cuda", "kmod-nvidia-latest-dkms", "nvidia-persistenced"),
    },
    "debian_archive": {
        "open": ("libcuda1", "nvidia-smi", "nvidia-open-kernel-dkms", "nvidia-persistenced"),
        "proprietary": ("libcuda1", "nvidia-smi", "nvidia-kernel-dkms", "nvidia-persistenced"),
    },
    # Modules that Canonical built and signed for a kernel flavour: no DKMS, no key of one's own under Secure Boot.
    "ubuntu_archive": {
        "open": (
            "nvidia-headless-no-dkms-{branch}-server-open",
            "linux-modules-nvidia-{branch}-server-open-{kernel_flavour}",
            "nvidia-utils-{branch}-server",
            "nvidia-compute-utils-{branch}-server",
        ),
        "proprietary": (
            "nvidia-headless-no-dkms-{branch}-server",
            "linux-modules-nvidia-{branch}-server-{kernel_flavour}",
            "nvidia-utils-{branch}-server",
            "nvidia-compute-utils-{branch}-server",
        ),
    },
}
#: With everything for displays.
FULL = {"open": ("nvidia-open",), "proprietary": ("cuda-drivers",)}
#: Fabric packages by package manager; before FABRIC_UNSUFFIXED deb packages carry the branch and the rpm another name.
FABRIC_MANAGER = {"apt": "nvidia-fabricmanager", "dnf": "nvidia-fabricmanager"}
FABRIC_MANAGER_OLD = {"apt": "nvidia-fabricmanager-{branch}", "dnf": "nvidia-fabric-manager"}
FABRIC_LIBRARY = {"apt": "libnvidia-nscq", "dnf": "libnvidia-nscq"}
FABRIC_LIBRARY_OLD = {"apt": "libnvidia-nscq-{branch}", "dnf": "libnvidia-nscq-{branch}"}
IMEX = {"apt": "nvidia-imex", "dnf": "nvidia-imex"}
IMEX_OLD = {"apt": "nvidia-imex-{branch}", "dnf": "nvidia-imex"}
#: These have versions of their own.
NVLINK5 = ("nvlsm", "libnvsdm")

#: The one branch that a release of Debian carries.
DEBIAN_BRANCH = {"12": "535", "13": "550"}
DEBIAN_COMPONENTS = ("contrib", "non-free")

#: Names of packages that carry the driver's version.
FAMILY = (
    r"(lib)?nvidia-(?!container|driver-pinning|cdi-|docker)[\w.+-]+|libcuda1|libnvcuvid1|libnvoptix1|firmware-nvidia-gsp"
    r"|cuda-drivers(-\d+)?|kmod-nvidia[\w.+-]*|xserver-xorg-video-nvidia[\w-]*|linux-modules-nvidia-[\w.+-]+"
)
#: Those of them that only work in one and the same version.
LOCKSTEP = (
    r"nvidia-driver-cuda|nvidia-kernel-(open-)?dkms|nvidia-open(-kernel-dkms)?|libcuda1|libnvidia-ml1|libnvidia-compute.*"
    r"|nvidia(-compute)?-utils.*|nvidia-dkms.*|kmod-nvidia-(open|latest)-dkms|nvidia-fabric-?manager.*|libnvidia-nscq.*|nvidia-imex.*"
    r"|nvidia-headless-.*"
)
#: Names by which the installed version is known, the surest first.
WITNESSES = (
    r"nvidia-driver-cuda",
    r"libnvidia-compute(-\d+)?(-server)?",
    r"libcuda1",
    r"nvidia-smi",
)
#: What tells that a driver came from the distribution, and what that it came from NVIDIA's repository.
ORIGINS = {
    "distribution": r"nvidia-open-kernel-dkms|nvidia-headless-no-dkms-\d+-server(-open)?|linux-modules-nvidia-.*",
    "cuda_repo": r"nvidia-driver-cuda|nvidia-kernel-open-dkms|nvidia-driver-pinning-.*|nvidia-dkms(-open)?|nvidia-dkms-\d+(-open)?",
}

#: Files on the host: path, content, and what must follow a change of it.
NOUVEAU = (
    "/etc/modprobe.d/baremetal-nim-nouveau.conf",
    "# Managed by Ansible (baremetal.nim.nvidia_driver).\nblacklist nouveau\noptions nouveau modeset=0\n",
    "initramfs",
)
UNATTENDED = (
    "/etc/apt/apt.conf.d/52baremetal-nim-driver",
    (
        "// Managed by Ansible (baremetal.nim.nvidia_driver): only the play changes what a running GPU depends on.\n"
        'Unattended-Upgrade::Package-Blacklist {\n    "nvidia-";\n    "libnvidia-";\n    "libcuda1";\n    "cuda-drivers";\n'
        '    "docker";\n    "containerd";\n    "runc";\n};\n'
    ),
    "none",
)
NEEDRESTART = (
    "/etc/needrestart/conf.d/baremetal-nim.conf",
    (
        "# Managed by Ansible (baremetal.nim.nvidia_driver): no restart of what serves models.\n"
        "$nrconf{override_rc}{qr(^(docker|containerd|nim-.*|nvidia-.*)\\.service$)} = 0;\n"
    ),
    "none",
)
PERSISTENCED = (
    "/etc/systemd/system/nvidia-persistenced.service.d/baremetal-nim.conf",
    (
        "# Managed by Ansible (baremetal.nim.nvidia_driver): after the module, and again if it was too early.\n"
        "[Unit]\nAfter=systemd-modules-load.service\n\n"
        "[Service]\nExecStartPre=-+/usr/sbin/modprobe nvidia\nRestart=on-failure\nRestartSec=5\n"
    ),
    "daemon_reload",
)
INFINIBAND = (
    "/etc/modules-load.d/baremetal-nim.conf",
    "# Managed by Ansible (baremetal.nim.nvidia_driver): the fabric manager reaches NVLink5 switches through these.\nib_umad\nmlx5_ib\n",
    "none",
)
#: All of them: what gpu_host_info is asked to checksum.
FILES = tuple(item[0] for item in (NOUVEAU, UNATTENDED, NEEDRESTART, PERSISTENCED, INFINIBAND))
