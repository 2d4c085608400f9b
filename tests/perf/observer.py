# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a host, as root, sent there by bench.py: python3 - LOAD_SECONDS.

Restarts nim-llama with that loading time, asks for readiness every 10 ms, and tells when each client got its first 200.

How that is exact: neither the clock of the controller nor the results of the tasks are used. All clients talk to
127.0.0.1:8000 of one host, so a packet socket on its loopback sees every answer. The kernel stamps the packets, clients
are told apart by User-Agent, and all instants are of one clock. Nothing stands between a client and the service.
"""

from __future__ import annotations

import http.client
import json
import pathlib
import re
import socket
import struct
import subprocess
import sys
import threading
import time

PORT = 8000
PATH = "/v1/health/ready"
#: First word of a client's User-Agent, and what it is called here.
CLIENTS = {"observer": "observer", "python-requests": "module", "ansible-httpget": "uri"}
ENVIRONMENT = pathlib.Path("/etc/nim/llama.env")
POLL = 0.01
PATIENCE = 90.0
# Values of <linux/if_ether.h>, <linux/if_packet.h> and <asm-generic/socket.h>.
ETH_P_IP, PACKET_OUTGOING, SO_TIMESTAMPNS = 0x0800, 4, 35


class Sniffer:
    """Reads the HTTP of one port from the loopback interface."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.socket.bind(("lo", ETH_P_IP))
        self.socket.settimeout(0.5)
        self.flows: dict[int, str] = {}
        #: Per client: how often it asked, and when it got its first 200.
        self.asked: dict[str, int] = {}
        self.noticed: dict[str, float] = {}

    def read(self) -> None:
        """Takes one packet, or gives up after half a second."""
        try:
            packet, extra, _flags, address = self.socket.recvmsg(1 << 17, 64)
        except TimeoutError:
            return
        # Each packet passes loopback twice, going out and coming in.
        if address[2] == PACKET_OUTGOING or packet[9] != socket.IPPROTO_TCP:
            return
        begin = (packet[0] & 15) * 4
        source, target = struct.unpack_from("!HH", packet, begin)
        data = packet[begin + (packet[begin + 12] >> 4) * 4 :]
        if target == PORT and data.startswith(b"GET "):
            agent = re.search(rb"\r\nUser-Agent: ([\w-]+)", data, re.IGNORECASE)
            client = CLIENTS.get(agent[1].decode() if agent else "", "")
            self.flows[source] = client if data.split()[1].decode() == PATH else ""
            if self.flows[source]:
                self.asked[client] = self.asked.get(client, 0) + 1
        elif source == PORT and re.match(rb"HTTP/1\.[01] 200 ", data) and self.flows.get(target):
            seconds, nanoseconds = struct.unpack("ll", extra[0][2][:16])
            self.noticed.setdefault(self.flows[target], seconds + nanoseconds / 1e9)


def poll() -> None:
    """Asks every 10 ms until the first 200."""
    status = 0
    while status != 200:
        started = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=1)
        try:
            connection.request("GET", PATH, headers={"User-Agent": "observer"})
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException):
            status = 0
        finally:
            connection.close()
        time.sleep(max(0.0, POLL - (time.monotonic() - started)))


def main() -> int:
    """Restarts, watches, prints "restarted" and then the result as JSON."""
    others = [line for line in ENVIRONMENT.read_text().splitlines() if not line.startswith("NIM_LAB_LOAD_SECONDS=")]
    ENVIRONMENT.write_text("\n".join([*others, f"NIM_LAB_LOAD_SECONDS={float(sys.argv[1])}", ""]))
    # Returns when the old process is gone and the new one is started, so that no 200 is a leftover.
    subprocess.run(["systemctl", "restart", "nim-llama"], check=True)
    sniffer = Sniffer()
    restarted = time.time()
    print("restarted", flush=True)
    threading.Thread(target=poll, daemon=True).start()
    deadline = time.monotonic() + PATIENCE
    while len(sniffer.noticed) < len(CLIENTS) and time.monotonic() < deadline:
        sniffer.read()
    print(json.dumps({"restarted": restarted, "asked": sniffer.asked, "noticed": sniffer.noticed}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
