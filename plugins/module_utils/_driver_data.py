# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What NVIDIA and the distributions call things. Private to the collection; data, no code.

Sources: NVIDIA Driver Installation Guide (releases 590 to 620), NVIDIA's repositories and what NVIDIA says of their keys
(github.com/NVIDIA/cuda-repo-management), Debian's and Ubuntu's archives, Red Hat's documentation of its own driver.
"""

from __future__ import annotations

from typing import Any

SOURCES = ("cuda_repo", "distribution", "mirror", "preinstalled")
FLAVOURS = ("open", "proprietary")

#: Keys of 2022, by package manager: file in the repository, fingerprint. Repositories that are younger have keys of their own.
CUDATOOLS_DEB = ("3bf863cc.pub", "EB693B3035CD5710E231E123A4B469963BF863CC")
CUDATOOLS_RPM = ("D42D0685.pub", "610C7B14E068A878070DA4E99CD0A493D42D0685")
#: System (distribution, version) to its folder in NVIDIA's repository, the naming of the packages and the signing key there.
#: An empty fingerprint is one that nobody could tell for certain: the operator has to.
SYSTEMS: dict[tuple[str, str], dict[str, Any]] = {
    ("Ubuntu", "22.04"): {"folder": "ubuntu2204", "naming": "ubuntu", "key": CUDATOOLS_DEB},
    ("Ubuntu", "24.04"): {"folder": "ubuntu2404", "naming": "ubuntu", "key": CUDATOOLS_DEB},
    ("Ubuntu", "26.04"): {
        "folder": "ubuntu2604",
        "naming": "ubuntu",
        "key": ("60DF8A40.pub", "14BAFBC7562AD710CA04E69905FBB6DA60DF8A40"),
    },
    ("Debian", "12"): {"folder": "debian12", "naming": "debian", "key": CUDATOOLS_DEB},
    ("Debian", "13"): {
        "folder": "debian13",
        "naming": "debian",
        "key": ("8793F200.pub", "02182E60104FCDC26EAE1B8597A5D4CB8793F200"),
    },
    ("EL", "8"): {"folder": "rhel8", "naming": "el", "key": CUDATOOLS_RPM},
    ("EL", "9"): {"folder": "rhel9", "naming": "el", "key": CUDATOOLS_RPM},
    ("EL", "10"): {"folder": "rhel10", "naming": "el", "key": ("CDF6BA43.pub", "")},
}
ENTERPRISE_LINUX = ("RedHat", "Rocky", "AlmaLinux")
#: Machine architecture to NVIDIA's word for it.
ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "sbsa"}

REPOSITORY = "https://developer.download.nvidia.com/compute/cuda/repos/{folder}/{architecture}/"
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
#: Branches that a system's folder in NVIDIA's repository surely never had are those below; a mirror may have them.
FIRST_OF_SYSTEM = {("Ubuntu", "22.04"): 515, ("Ubuntu", "26.04"): 595, ("Debian", "13"): 580}

#: Packages by naming and flavour; {branch} and {kernel} are filled in. The role installs no recommended packages, so the
#: persistence daemon is named wherever it is a package of its own.
COMPUTE: dict[str, dict[str, tuple[str, ...]]] = {
    "debian": {
        "open": ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-persistenced"),
        "proprietary": ("nvidia-driver-cuda", "nvidia-kernel-dkms", "nvidia-persistenced"),
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
    # These took in what was in nvidia-utils and nvidia-compute-utils.
    "ubuntu": {
        "open": ("libnvidia-compute", "nvidia-dkms-open", "nvidia-persistenced"),
        "proprietary": ("libnvidia-compute", "nvidia-dkms", "nvidia-persistenced"),
    },
    "el": {
        "open": ("nvidia-driver-cuda", "kmod-nvidia-open-dkms", "nvidia-persistenced"),
        "proprietary": ("nvidia-driver-cuda", "kmod-nvidia-latest-dkms", "nvidia-persistenced"),
    },
    "debian_archive": {
        "open": ("libcuda1", "nvidia-smi", "nvidia-open-kernel-dkms", "nvidia-persistenced"),
        "proprietary": ("libcuda1", "nvidia-smi", "nvidia-kernel-dkms", "nvidia-persistenced"),
    },
    # Modules that Canonical built and signed: no DKMS, no key of one's own under Secure Boot. The package of a kernel's
    # flavour (-generic) only has those of the newest kernel, and brings that kernel along.
    "ubuntu_archive": {
        "open": (
            "nvidia-headless-no-dkms-{branch}-server-open",
            "linux-modules-nvidia-{branch}-server-open-{kernel}",
            "nvidia-utils-{branch}-server",
            "nvidia-compute-utils-{branch}-server",
        ),
        "proprietary": (
            "nvidia-headless-no-dkms-{branch}-server",
            "linux-modules-nvidia-{branch}-server-{kernel}",
            "nvidia-utils-{branch}-server",
            "nvidia-compute-utils-{branch}-server",
        ),
    },
    # Red Hat's tool brings all of the driver; this package tells that it did. There are no proprietary modules.
    "el_archive": {"open": ("kmod-nvidia-open",), "proprietary": ()},
}
#: With everything for displays.
FULL = {"open": ("nvidia-open",), "proprietary": ("cuda-drivers",)}
#: Fabric packages by package manager, all in the version of the driver. Before FABRIC_UNSUFFIXED, and in Ubuntu's archive
#: always, they carry the branch in their names, and the fabric manager of rpm another name.
FABRIC_MANAGER = {"apt": "nvidia-fabricmanager", "dnf": "nvidia-fabricmanager"}
FABRIC_MANAGER_OLD = {"apt": "nvidia-fabricmanager-{branch}", "dnf": "nvidia-fabric-manager"}
FABRIC_LIBRARY = {"apt": "libnvidia-nscq", "dnf": "libnvidia-nscq"}
FABRIC_LIBRARY_OLD = {"apt": "libnvidia-nscq-{branch}", "dnf": "libnvidia-nscq-{branch}"}
IMEX = {"apt": "nvidia-imex", "dnf": "nvidia-imex"}
IMEX_OLD = {"apt": "nvidia-imex-{branch}", "dnf": "nvidia-imex-{branch}"}
#: For NVLink5: the subnet manager, which has a version of its own, and the library, which has the driver's.
NVLINK5 = ("nvlsm", "libnvsdm")
NVLINK5_OLD = ("nvlsm", "libnvsdm-{branch}")
#: What the archives of these distributions do not have, as patterns.
ARCHIVE_LACKS = {
    "Debian": r"nvidia-fabricmanager.*|libnvidia-nscq.*|nvidia-imex.*|nvlsm|libnvsdm.*",
    "Ubuntu": r"nvlsm|libnvsdm.*",
    "EL": r"nvidia-fabric-?manager.*|libnvidia-nscq.*|nvidia-imex.*|nvlsm|libnvsdm.*",
}
#: Distributions whose archives have modules that are built and signed: no DKMS, no headers, no key of one's own.
SIGNED = ("Ubuntu", "RedHat")
#: Packages whose versions are not the driver's: those of Ubuntu's modules are their kernel's.
OWN_VERSION = r"nvlsm|linux-modules-nvidia-.*"
#: And in the distribution's archive, where some are built apart.
OWN_VERSION_ARCHIVE = r"nvidia-persistenced"

#: The one branch that a release of Debian carries.
DEBIAN_BRANCH = {"12": "535", "13": "550"}
#: The driver, what builds its modules, and the firmware that these need.
DEBIAN_COMPONENTS = ("contrib", "non-free", "non-free-firmware")

#: Red Hat's own driver: the release that has it first, the package of the tool that installs it, and what this is told.
RHEL_FIRST = "10.1"
RHEL_TOOL = "rhel-drivers"
RHEL_INSTALL = ("rhel-drivers", "install", "--batch", "nvidia:{version}")
#: Where it comes from: the repository's name on a registered host, where the tool enables it, and on a cloud's image, where
#: nobody does.
RHEL_REPOSITORIES = (
    ("rhel-10-for-{architecture}-extensions-rpms", "rhel-10-extensions-rhui-rpms"),
    ("rhel-10-for-{architecture}-supplementary-rpms", "rhel-10-supplementary-rhui-rpms"),
)
#: What dnf enables a repository with, and what it locks a version with.
CONFIG_MANAGER = "dnf-plugins-core"
VERSIONLOCK = "python3-dnf-plugin-versionlock"

#: Names of packages that carry the driver's version.
FAMILY = (
    r"(lib)?nvidia-(?!container|driver-pinning|cdi-|docker)[\w.+-]+|libnvsdm(-\d+)?|libcuda1|libnvcuvid1|libnvoptix1"
    r"|firmware-nvidia-gsp|cuda-drivers(-\d+)?|kmod-nvidia[\w.+-]*|xserver-xorg-video-nvidia[\w-]*|xorg-x11-nvidia[\w-]*"
    r"|linux-modules-nvidia-[\w.+-]+"
)
#: Those of them that only work in one and the same version.
LOCKSTEP = (
    r"nvidia-driver-cuda|nvidia-kernel-(open-)?dkms|nvidia-open(-kernel-dkms)?|libcuda1|libnvidia-ml1|libnvidia-compute.*"
    r"|nvidia(-compute)?-utils.*|nvidia-dkms.*|kmod-nvidia-(open|(open|latest)-dkms)|nvidia-fabric-?manager.*|libnvidia-nscq.*|libnvsdm.*"
    r"|nvidia-imex.*|nvidia-headless-.*"
)
#: Names by which the installed version is known, the surest first.
WITNESSES = (
    r"nvidia-driver-cuda",
    r"libnvidia-compute(-\d+)?(-server)?",
    r"libcuda1",
    r"nvidia-smi",
    r"kmod-nvidia-open",
)
#: What tells that a driver came from the distribution, and what that it came from NVIDIA's repository, by package manager.
ORIGINS = {
    "apt": {
        "distribution": r"nvidia-open-kernel-dkms|nvidia-headless-no-dkms-\d+-server(-open)?|linux-modules-nvidia-.*",
        "cuda_repo": r"nvidia-driver-cuda|nvidia-kernel-open-dkms|nvidia-driver-pinning-.*|nvidia-dkms(-open)?|nvidia-dkms-\d+(-open)?",
    },
    # Red Hat has NVIDIA's names for all but the modules.
    "dnf": {"distribution": r"kmod-nvidia-open", "cuda_repo": r"kmod-nvidia-(open|latest)-dkms"},
}

#: Packages that are a kernel, or bring one.
KERNELS = (
    r"linux-image-.*|linux-(generic|virtual|lowlatency|amd64|arm64|cloud-(amd64|arm64))(-.*)?"
    r"|kernel(-rt|-64k|-uek)?(-core|-modules.*)?"
)

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
