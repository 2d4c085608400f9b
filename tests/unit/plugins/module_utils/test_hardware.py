# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts as sysfs has them, from recordings and made by hand, and what is seen in them."""

from __future__ import annotations

import pathlib
import re

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _hardware, _survey

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures"
SWITCH_VPD = b"\x82\x12\x00ConnectX-7 bridge\x90\x30\x00V0\x06SMDL=SW_MNG\x78"
CARD_VPD = b"\x82\x12\x00ConnectX-7 adapter\x90\x10\x00PN\x06MCX750\x78"


class Sysfs:
    """A host below a directory: PCI functions, InfiniBand devices, the SoC."""

    def __init__(self, root):
        self.root = root
        self.count = 0

    def function(self, vendor, device, kind, driver=None, address=None, vpd=None, virtual=False):
        """A PCI function, at the next address."""
        self.count += 1
        address = address or f"0000:{self.count:02x}:00.0"
        home = self.root / "bus/pci/devices" / address
        home.mkdir(parents=True)
        for name, value in (("vendor", vendor), ("device", device), ("class", kind)):
            (home / name).write_text(f"0x{value}\n")
        if driver:
            (home / "driver").symlink_to(f"../../../../bus/pci/drivers/{driver}")
        if vpd is not None:
            (home / "vpd").write_bytes(vpd)
        if virtual:
            (home / "physfn").symlink_to("../0000:00:00.0")
        return home

    def gpu(self, device, count=1, kind="030200", driver="nvidia", **options):
        """GPUs of one kind."""
        for _ in range(count):
            self.function("10de", device, kind, driver, **options)

    def soc(self, name):
        """What the firmware calls the SoC."""
        home = self.root / "devices/soc0"
        home.mkdir(parents=True)
        (home / "soc_id").write_text(f"{name}\n")

    def hardware(self):
        """What is seen of it."""

        def run(*argv):
            raise AssertionError(f"{argv} was run; sysfs tells everything")

        return _survey.Survey(run, {"sys": str(self.root)}).hardware()


@pytest.fixture
def sysfs(tmp_path):
    host = Sysfs(tmp_path / "sys")
    # What every server has.
    host.function("8086", "0d57", "060000")
    host.function("1a03", "2000", "030000", "ast")
    return host


def hgx_a100(host):
    host.gpu("20b2", 8)
    for _ in range(6):
        host.function("10de", "1af1", "068000", "nvidia-nvswitch")


def hgx_h100(host):
    host.gpu("2330", 8)
    for _ in range(4):
        host.function("10de", "22a3", "068000", "nvidia-nvswitch")
    host.function("15b3", "1021", "020700", "mlx5_core", vpd=CARD_VPD)


def hgx_b200(host):
    host.gpu("2901", 8)
    for _ in range(4):
        host.function("15b3", "1021", "020700", "mlx5_core", vpd=SWITCH_VPD)
    for _ in range(8):
        host.function("15b3", "1023", "020700", "mlx5_core", vpd=CARD_VPD)


def bare_b200(host):
    """mlx5_core is not even loaded, so there is no /sys/class/infiniband."""
    host.gpu("2901", 8, driver=None)
    host.function("15b3", "1021", "020700", vpd=SWITCH_VPD)


def gb200(host):
    host.gpu("2941", 4)
    host.soc("jep106:036b:0241")
    host.function("15b3", "1021", "020700", "mlx5_core", vpd=CARD_VPD)


HOSTS = [
    # GPUs, name, architecture, NVSwitches, NVLink 5, Grace, links that leave the node
    pytest.param(hgx_a100, 8, "A100 SXM4 80GB", "Ampere", 6, False, False, False, id="hgx-a100"),
    pytest.param(hgx_h100, 8, "H100 SXM", "Hopper", 4, False, False, False, id="hgx-h100"),
    pytest.param(lambda host: host.gpu("2331"), 1, "H100 PCIe", "Hopper", 0, False, False, False, id="h100-pcie"),
    pytest.param(lambda host: host.gpu("233b", 2), 2, "H200 NVL", "Hopper", 0, False, False, False, id="h200-nvl"),
    pytest.param(hgx_b200, 8, "B200", "Blackwell", 0, True, False, False, id="hgx-b200"),
    pytest.param(bare_b200, 8, "B200", "Blackwell", 0, True, False, False, id="hgx-b200-without-drivers"),
    pytest.param(lambda host: host.gpu("2901"), 1, "B200", "Blackwell", 0, False, False, False, id="b200-of-a-guest"),
    pytest.param(gb200, 4, "GB200", "Blackwell", 0, False, True, True, id="gb200"),
    pytest.param(lambda host: host.gpu("31c2", 4), 4, "GB300", "Blackwell", 0, False, True, True, id="gb300"),
    pytest.param(lambda host: host.gpu("2342"), 1, "GH200", "Hopper", 0, False, True, False, id="gh200"),
    pytest.param(lambda host: host.gpu("26b9", 4), 4, "L40S", "Ada Lovelace", 0, False, False, False, id="l40s"),
    pytest.param(
        lambda host: host.gpu("2bb5", 8),
        8,
        "RTX PRO 6000 Blackwell Server Edition",
        "Blackwell",
        0,
        False,
        False,
        False,
        id="rtx-pro-6000",
    ),
    pytest.param(
        lambda host: host.gpu("2e12", kind="030000", address="000f:01:00.0"),
        1,
        "GB10",
        "Blackwell",
        0,
        False,
        False,
        False,
        id="gb10",
    ),
]


@pytest.mark.parametrize(
    ("build", "count", "name", "architecture", "switches", "nvlink5", "grace", "multi_node"), HOSTS
)
def test_pain_7_and_25_hosts_by_their_pci_functions(
    sysfs, build, count, name, architecture, switches, nvlink5, grace, multi_node
):
    build(sysfs)
    found = sysfs.hardware()
    assert [(gpu["name"], gpu["architecture"]) for gpu in found["gpus"]] == [(name, architecture)] * count
    assert {key: found[key] for key in found if key != "gpus"} == {
        "nvswitches": switches,
        "nvlink5": nvlink5,
        "grace": grace,
        "multi_node_nvlink": multi_node,
    }


@pytest.mark.parametrize(
    ("path", "addresses"), [("h200/proc.txt", ["0000:00:06.0"]), ("h200-x2/host-and-list.txt", None)]
)
def test_recorded_hosts(sysfs, path, addresses):
    rows = re.findall(r"^(?:/sys\S+/)?(0000:\S+) 0x(\S+) 0x(\S+) 0x(\S+)", (FIXTURES / path).read_text(), re.MULTILINE)
    assert len(rows) in (7, 8)
    for address, vendor, device, kind in rows:
        sysfs.function(vendor, device, kind, "nvidia" if vendor == "10de" else None, address=f"0001{address[4:]}")
    found = sysfs.hardware()
    assert [gpu["address"][4:] for gpu in found["gpus"]] == [
        address[4:] for address in addresses or ["0000:00:06.0", "0000:00:07.0"]
    ]
    assert {key: value for key, value in found["gpus"][0].items() if key != "address"} == {
        "device_id": "2335",
        "class": "0302",
        "name": "H200 SXM",
        "architecture": "Hopper",
        "driver": "nvidia",
    }
    assert (found["nvswitches"], found["nvlink5"]) == (0, False)


@pytest.mark.parametrize("driver", ["nvidia", "nouveau", "vfio-pci", None], ids=str)
def test_driver_that_is_bound(sysfs, driver):
    sysfs.gpu("2331", driver=driver)
    assert [gpu["driver"] for gpu in sysfs.hardware()["gpus"]] == [driver]


def test_pain_25_what_is_no_gpu(sysfs):
    """Names are never asked: audio functions, network cards and guests' functions of NVIDIA are no GPUs."""
    sysfs.function("10de", "22ba", "040300", "snd_hda_intel")
    sysfs.function("10de", "1ad9", "0c0330")
    sysfs.function("15b3", "1021", "020000", "mlx5_core")
    sysfs.function("1002", "740f", "038000", "amdgpu")
    sysfs.gpu("20b5", virtual=True)
    assert sysfs.hardware() == {
        "gpus": [],
        "nvswitches": 0,
        "nvlink5": False,
        "grace": False,
        "multi_node_nvlink": False,
    }


def test_pain_25_gpu_that_is_too_new(sysfs):
    """It is seen, and so are the switches that come with it; only its name is not known."""
    sysfs.gpu("2925", 2)
    sysfs.gpu("3fff")
    sysfs.function("15b3", "1021", "020700", vpd=SWITCH_VPD)
    found = sysfs.hardware()
    assert [(gpu["name"], gpu["architecture"]) for gpu in found["gpus"]] == [
        (None, "Blackwell"),
        (None, "Blackwell"),
        (None, None),
    ]
    assert found["nvlink5"] is True


def test_pain_25_grace_is_told_by_the_chip(sysfs):
    """Graviton and Axion have the same cores, and an H200 has the letters of its name in GH200's."""
    sysfs.gpu("2335")
    sysfs.soc("jep106:0a01:0001")
    assert sysfs.hardware()["grace"] is False


def test_pain_25_grace_without_a_superchip(sysfs):
    sysfs.gpu("26b9", 4)
    sysfs.soc("jep106:036b:0241")
    found = sysfs.hardware()
    assert (found["grace"], found["multi_node_nvlink"]) == (True, False)


def test_switches_of_an_unbound_pci_function(sysfs):
    """Where the vital product data are only below the InfiniBand device."""
    sysfs.gpu("3182", 8)
    home = sysfs.root / "class/infiniband/mlx5_4/device"
    home.mkdir(parents=True)
    (home / "vpd").write_bytes(SWITCH_VPD)
    assert sysfs.hardware()["nvlink5"] is True


def test_vital_product_data_are_read_only_where_they_may_matter(sysfs, monkeypatch):
    """A read takes many milliseconds, and an HGX H100 has ten network cards."""
    hgx_h100(sysfs)
    read = []
    real = _survey.read_bytes
    monkeypatch.setattr(_survey, "read_bytes", lambda path: read.append(path) or real(path))
    sysfs.hardware()
    assert not [path for path in read if path.endswith("vpd")]


def test_host_without_sysfs(tmp_path):
    assert Sysfs(tmp_path / "nowhere").hardware()["gpus"] == []


# -- the table ---------------------------------------------------------------------------------------------------------

CAPABILITIES = {
    "20b2": "8.0",
    "20b7": "8.0",
    "2331": "9.0",
    "2321": "9.0",
    "2342": "9.0",
    "2335": "9.0",
    "2329": "9.0",
    "2901": "10.0",
    "3182": "10.3",
    "2941": "10.0",
    "31c2": "10.3",
    "27b8": "8.9",
    "26b5": "8.9",
    "26b1": "8.9",
    "2bb1": "12.0",
    "2236": "8.6",
    "2235": "8.6",
    "1eb8": "7.5",
    "1db6": "7.0",
    "2e12": "12.1",
}


@pytest.mark.parametrize(("device", "capability"), CAPABILITIES.items())
def test_compute_capability_by_device(device, capability):
    assert _hardware.compute_capability(device) == capability


@pytest.mark.parametrize(
    ("device", "told", "capability"),
    [
        ("2684", "Ada Lovelace", "8.9"),
        ("2684", None, "8.9"),
        (None, "Hopper", "9.0"),
        ("2204", "Ampere", None),
        ("2b85", "Blackwell", None),
        (None, None, None),
        ("3fff", "Rubin", None),
    ],
)
def test_compute_capability_by_architecture(device, told, capability):
    """Only where all GPUs of an architecture have the same; a guess would be worse than nothing."""
    assert _hardware.compute_capability(device, told) == capability


def test_table_is_sound():
    for device, (name, architecture, capability) in _hardware.GPUS.items():
        assert re.fullmatch(r"[0-9a-f]{4}", device)
        assert name and re.fullmatch(r"\d+\.\d", capability)
        blocks = [kind for first, last, kind in _hardware._BLOCKS if first <= int(device, 16) <= last]
        assert blocks == [architecture], device
    for group in (_hardware.GRACE_GPUS, _hardware.MULTI_NODE_GPUS, _hardware.NVLINK5_GPUS):
        assert group <= _hardware.GPUS.keys()
    assert _hardware.MULTI_NODE_GPUS < _hardware.GRACE_GPUS
    assert not _hardware.GRACE_GPUS & _hardware.NVLINK5_GPUS
