# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which NVIDIA hardware a host has, told from sysfs alone, with or without a driver. Private to the collection; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

NVIDIA, MELLANOX = "10de", "15b3"
#: PCI classes (base and sub class) of GPUs, with and without a display; and of NVSwitches (bridge, other).
GPU_CLASSES = ("0300", "0302")
SWITCH_CLASS = "0680"
#: PCI classes of the ConnectX functions that may stand before an NVSwitch.
NETWORK_CLASSES = ("0200", "0207")
#: In the vital product data of a ConnectX function that stands before an NVSwitch of the fifth NVLink generation.
SWITCH_MANAGEMENT = b"SW_MNG"
#: sysfs name of NVIDIA's T241 (JEP-106 code 036b), the Grace CPU; the kernel's own quirks go by it.
GRACE_SOC = "jep106:036b:0241"

# Names and capabilities go by the PCI device id: names that nvidia-smi prints contain each other, and need a driver.
# From pci.ids (2026-10) and the table of supported products of NVIDIA's open kernel modules.
_VOLTA, _TURING, _AMPERE, _ADA, _HOPPER, _BLACKWELL = (
    "Volta",
    "Turing",
    "Ampere",
    "Ada Lovelace",
    "Hopper",
    "Blackwell",
)
#: PCI device id to name, architecture and compute capability.
GPUS: dict[str, tuple[str, str, str]] = {
    "1db1": ("V100 SXM2 16GB", _VOLTA, "7.0"),
    "1db4": ("V100 PCIe 16GB", _VOLTA, "7.0"),
    "1db5": ("V100 SXM2 32GB", _VOLTA, "7.0"),
    "1db6": ("V100 PCIe 32GB", _VOLTA, "7.0"),
    "1db8": ("V100 SXM3 32GB", _VOLTA, "7.0"),
    "1df6": ("V100S PCIe 32GB", _VOLTA, "7.0"),
    "1eb8": ("T4", _TURING, "7.5"),
    "20b0": ("A100 SXM4 40GB", _AMPERE, "8.0"),
    "20b1": ("A100 PCIe 40GB", _AMPERE, "8.0"),
    "20b2": ("A100 SXM4 80GB", _AMPERE, "8.0"),
    "20b3": ("A100 SXM 64GB", _AMPERE, "8.0"),
    "20b5": ("A100 PCIe 80GB", _AMPERE, "8.0"),
    "20b7": ("A30", _AMPERE, "8.0"),
    "20bd": ("A800 SXM4 40GB", _AMPERE, "8.0"),
    "20f1": ("A100 PCIe 40GB", _AMPERE, "8.0"),
    "20f3": ("A800 SXM4 80GB", _AMPERE, "8.0"),
    "20f5": ("A800 PCIe 80GB", _AMPERE, "8.0"),
    "2230": ("RTX A6000", _AMPERE, "8.6"),
    "2235": ("A40", _AMPERE, "8.6"),
    "2236": ("A10", _AMPERE, "8.6"),
    "2237": ("A10G", _AMPERE, "8.6"),
    "25b6": ("A2 or A16", _AMPERE, "8.6"),
    "26b1": ("RTX 6000 Ada Generation", _ADA, "8.9"),
    "26b5": ("L40", _ADA, "8.9"),
    "26b8": ("L40G", _ADA, "8.9"),
    "26b9": ("L40S", _ADA, "8.9"),
    "26ba": ("L20", _ADA, "8.9"),
    "27b6": ("L2", _ADA, "8.9"),
    "27b8": ("L4", _ADA, "8.9"),
    "2321": ("H100 NVL", _HOPPER, "9.0"),
    "2322": ("H800 PCIe", _HOPPER, "9.0"),
    "2324": ("H800 SXM", _HOPPER, "9.0"),
    "2329": ("H20", _HOPPER, "9.0"),
    "232c": ("H20 HBM3e", _HOPPER, "9.0"),
    "2330": ("H100 SXM", _HOPPER, "9.0"),
    "2331": ("H100 PCIe", _HOPPER, "9.0"),
    "2335": ("H200 SXM", _HOPPER, "9.0"),
    "2337": ("H100 SXM 64GB", _HOPPER, "9.0"),
    "2338": ("H100 SXM 96GB", _HOPPER, "9.0"),
    "2339": ("H100 SXM 94GB", _HOPPER, "9.0"),
    "233a": ("H800 NVL", _HOPPER, "9.0"),
    "233b": ("H200 NVL", _HOPPER, "9.0"),
    "2342": ("GH200", _HOPPER, "9.0"),
    "2348": ("GH200 144GB", _HOPPER, "9.0"),
    "2901": ("B200", _BLACKWELL, "10.0"),
    "2909": ("B200 168GB", _BLACKWELL, "10.0"),
    "2920": ("B100", _BLACKWELL, "10.0"),
    "29bc": ("B100", _BLACKWELL, "10.0"),
    "2941": ("GB200", _BLACKWELL, "10.0"),
    "2bb1": ("RTX PRO 6000 Blackwell Workstation Edition", _BLACKWELL, "12.0"),
    "2bb4": ("RTX PRO 6000 Blackwell Max-Q Workstation Edition", _BLACKWELL, "12.0"),
    "2bb5": ("RTX PRO 6000 Blackwell Server Edition", _BLACKWELL, "12.0"),
    "2c3a": ("RTX PRO 4500 Blackwell Server Edition", _BLACKWELL, "12.0"),
    "2e12": ("GB10", _BLACKWELL, "12.1"),
    "3182": ("B300", _BLACKWELL, "10.3"),
    "31a1": ("GB300", _BLACKWELL, "10.3"),
    "31c2": ("GB300", _BLACKWELL, "10.3"),
    "31c3": ("GB300", _BLACKWELL, "10.3"),
}
#: Superchips: these GPUs share a module with a Grace CPU.
GRACE_GPUS = frozenset({"2342", "2348", "2941", "31a1", "31c2", "31c3"})
#: Superchips whose NVLinks leave the node.
MULTI_NODE_GPUS = frozenset({"2941", "31a1", "31c2", "31c3"})
#: GPUs on baseboards whose NVSwitches are reached through ConnectX functions.
NVLINK5_GPUS = frozenset({"2901", "2909", "2920", "29bc", "3182"})
#: Blocks of device ids, first and last, by architecture: what is not in the table has an architecture all the same.
_BLOCKS = (
    (0x1D81, 0x1DFF, _VOLTA),
    (0x1E00, 0x1FFF, _TURING),
    (0x2080, 0x20FF, _AMPERE),
    (0x2180, 0x21FF, _TURING),
    (0x2200, 0x227F, _AMPERE),
    (0x2300, 0x23FF, _HOPPER),
    (0x2400, 0x25FF, _AMPERE),
    (0x2680, 0x28FF, _ADA),
    (0x2900, 0x2FFF, _BLACKWELL),
    (0x3180, 0x337F, _BLACKWELL),
)
# Architectures of which every GPU has the same capability.
_CAPABILITIES = {_VOLTA: "7.0", _TURING: "7.5", _ADA: "8.9", _HOPPER: "9.0"}


def architecture(device_id: str) -> str | None:
    """Architecture of the GPU with a PCI device id (four hexadecimal digits), None when it is not known."""
    if device_id in GPUS:
        return GPUS[device_id][1]
    number = int(device_id, 16)
    return next((name for first, last, name in _BLOCKS if first <= number <= last), None)


def compute_capability(device_id: str | None, told: str | None = None) -> str | None:
    """CUDA compute capability by PCI device id, else by the architecture that nvidia-smi TOLD, else None."""
    if device_id in GPUS:
        return GPUS[device_id][2]
    return _CAPABILITIES.get(told or (architecture(device_id) if device_id else None) or "")


def may_have_switch(function: Mapping[str, Any]) -> bool:
    """Whether the vital product data of a PCI function may name an NVSwitch; reading them is slow."""
    return function["vendor"] == MELLANOX and function["class"] in NETWORK_CLASSES


def wants_nvlink5(functions: Iterable[Mapping[str, Any]]) -> bool:
    """Whether there is a GPU that NVSwitches of the fifth NVLink generation may join, known to the table or too new."""
    return any(
        item["vendor"] == NVIDIA
        and item["class"] in GPU_CLASSES
        and (item["device"] in NVLINK5_GPUS or item["device"] not in GPUS)
        for item in functions
    )


def describe(functions: Iterable[Mapping[str, Any]], vpds: Iterable[bytes], soc_ids: Iterable[str]) -> dict[str, Any]:
    """PCI functions, vital product data of ConnectX functions and names of the SoC to what the roles decide from.

    A function has ``address``, ``vendor``, ``device``, ``class`` (four hexadecimal digits each) and ``driver``.
    """
    nvidia = [item for item in functions if item["vendor"] == NVIDIA]
    gpus = [
        {
            "address": item["address"],
            "device_id": item["device"],
            "class": item["class"],
            "name": GPUS[item["device"]][0] if item["device"] in GPUS else None,
            "architecture": architecture(item["device"]),
            "driver": item["driver"],
        }
        for item in sorted(nvidia, key=lambda item: str(item["address"]))
        if item["class"] in GPU_CLASSES
    ]
    ids = {gpu["device_id"] for gpu in gpus}
    return {
        "gpus": gpus,
        "nvswitches": sum(item["class"] == SWITCH_CLASS for item in nvidia),
        "nvlink5": any(SWITCH_MANAGEMENT in data for data in vpds),
        "grace": bool(ids & GRACE_GPUS) or GRACE_SOC in {name.strip() for name in soc_ids},
        "multi_node_nvlink": bool(ids & MULTI_NODE_GPUS),
    }
