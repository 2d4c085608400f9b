# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps the byte code of what Python imports from archives, as it does for files.

Each module of Ansible comes as an archive of some sixty files, and compiling them is half of what a call costs. A real host has cores
to spare; the hosts of a lab share two of them.
"""

import _imp
import marshal
import os
import sys
import zipimport

FOLDER = "/var/cache/lab-bytecode"
compile_source = zipimport._compile_source


def kept(pathname, source):
    """What zipimport._compile_source returns, from a file if this source was compiled before."""
    name = f"{sys.implementation.cache_tag}-{len(source)}-{_imp.source_hash(0, source).hex()}"
    path = os.path.join(FOLDER, name)
    try:
        with open(path, "rb") as file:
            return marshal.loads(file.read())  # noqa: S302 # Only root writes there.
    except (OSError, ValueError, EOFError, TypeError):
        code = compile_source(pathname, source)
    try:
        with open(f"{path}.{os.getpid()}", "wb") as file:
            file.write(marshal.dumps(code))
        os.replace(file.name, path)
    except OSError:
        # A full disk, or somebody else than root.
        pass
    return code


zipimport._compile_source = kept
