# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """How modules reach an endpoint."""

    DOCUMENTATION = r"""
options:
  url:
    description:
      - Address of the endpoint without a path, such as V(http://127.0.0.1:8000). An ending C(/v1) is dropped.
      - Proxies and C(.netrc) in the environment are not used.
    type: str
    required: true
  api_key:
    description: Bearer token of the endpoint, where a gateway in front of it asks for one.
    type: str
  validate_certs:
    description: Whether the certificate of an C(https) endpoint must be trusted.
    type: bool
    default: true
  ca_path:
    description: File or directory on the host with the CA certificates to trust. By default those of C(requests), or of the system.
    type: path
  client_cert:
    description: File on the host with the client certificate in PEM format, for an endpoint with mutual TLS.
    type: path
  client_key:
    description: File on the host with the key of O(client_cert), when that does not hold it itself.
    type: path
"""
