# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator's text must be for the place where it ends up: argument, unit, file of variables, path. Private; pure.

A text either arrives in the container as it was written, or is refused before anything is changed. So nothing here cleans a text: what a
place cannot hold is told, with the option, what was seen, and what is wanted. Only what is handed to systemd is escaped (systemd_words).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

#: Most bytes of a line: Docker's client reads lines of 64 KiB from a file of variables (bufio.MaxScanTokenSize).
MOST_BYTES = 65000
#: Most characters of a path; Linux takes 4096 bytes, with what is put behind it.
MOST_OF_A_PATH = 3000
#: What no file of variables, argument or message of D-Bus carries unchanged: control characters but the tabulator, halves of pairs
#: (which UTF-8 has no bytes for), and those that Unicode keeps for itself, which systemd takes for no text (systemd: unichar_is_valid).
_STRAY = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr((plane << 16) + last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]"
)
#: Ends of names of variables that are one word.
_ONE_WORD = ("_url", "_suite", "_version", "_kernel", "_image", "_helper", "_username")
_CALLED = {"\x00": "a NUL", "\n": "a line break", "\r": "a carriage return", "\x1b": "an escape sequence"}
#: Docker and systemd give :, %, $, quotes and spaces a meaning.
_PART = r"/(?!\.\.?(?:/|$))[A-Za-z0-9._+@=,-]+"
_DIRECTORY = re.compile(rf"(?:{_PART}){{2,}}")
_ROOT = re.compile(rf"(?:{_PART})+/?")
#: How CDI calls a GPU: by index, by uuid, or as a part that MIG made.
_GPU = re.compile(r"[0-9]{1,3}(?::[0-9]{1,3})?|(?:GPU|MIG)-[A-Za-z0-9/-]{1,100}")
_SIZE = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,6})?(?:[kmgt]i?)?b?", re.IGNORECASE)
_ULIMIT = re.compile(r"[a-z]{1,20}=-?[0-9]{1,19}(?::-?[0-9]{1,19})?")
#: A name or an address of a host; of a link-local address, the interface as well.
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?|[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9_.-]{1,15})?")
#: What Linux calls the parts of root's power (capabilities(7)).
_CAPABILITIES = (
    "AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID"
    " IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW"
    " PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE"
    " SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM"
)
CAPABILITIES = tuple(_CAPABILITIES.split())


def shown(value: Any, limit: int = 80) -> str:
    """A value in a message: in quotes where it is text, printable, and short."""
    if isinstance(value, str):
        more = f" and {len(value) - limit} characters more" if len(value) > limit else ""
        return f"{value[:limit]!r}{more}"
    try:
        text = repr(value)
    except ValueError:
        # Python prints no number of more than 4300 digits.
        return "a number of thousands of digits"
    return text if len(text) <= 2 * limit else f"{text[: 2 * limit]}..."


def stray(text: str, lines: bool = False) -> str:
    """What a text has in it that it cannot carry anywhere, in words; empty for nothing. LINES: it may have several lines."""
    for match in _STRAY.finditer(text):
        char = match[0]
        if not (lines and char == "\n"):
            return _CALLED.get(char, f"the character U+{ord(char):04X}")
    return ""


def line_problem(name: str, text: str, lines: bool = False, hidden: bool = False) -> str:
    """Why a text cannot be a line of a file, or an argument; empty when it can.

    LINES: as an argument it may have several. HIDDEN: it may be a secret, and is not shown.
    """
    seen = "" if hidden else f" is {shown(text)}, which"
    found = stray(text, lines)
    if found:
        return f"{name}{seen} has {found} in it, wanted {'' if lines else 'one line of '}plain text; take it out."
    size = len(text.encode())
    return f"{name}{seen} has {size} bytes, wanted {MOST_BYTES} at most." if size > MOST_BYTES else ""


def variable_problem(name: str, text: str) -> str:
    """Why a text cannot be a variable of a role that reaches a file or a command of a host; empty when it can. NAME tells its kind."""
    wrong = line_problem(name, text)
    if wrong or not name.endswith(_ONE_WORD):
        return wrong
    if text.startswith("-") or re.search(r"\s", text) or (name.endswith("_helper") and "/" in text):
        return f"{name} is {shown(text)}, wanted one word that no program takes for an option."
    return ""


def directory_problem(name: str, path: Any, example: str, root: bool = False) -> str:
    """Why a text is no directory that can be mounted, empty when it is. ROOT: services have one of their own below it."""
    form = _ROOT if root else _DIRECTORY
    if isinstance(path, str) and len(path) <= MOST_OF_A_PATH and form.fullmatch(path):
        return ""
    return f"{name} is {shown(path)}, wanted an absolute directory such as {example}, of plain characters."


def file_problem(name: str, path: str) -> str:
    """Why a text is no path of something on a host, empty when it is: Ansible puts variables of the environment in the place of $X."""
    if path.startswith("/") and len(path) <= MOST_OF_A_PATH and "$" not in path and not stray(path):
        return ""
    return (
        f"{name} is {shown(path)}, wanted the absolute path of a tarball or directory on the host, of plain characters."
    )


def is_gpu(name: str) -> bool:
    """Whether a text can be the name of a GPU, or of a part of one."""
    return bool(_GPU.fullmatch(name))


def is_size(text: str) -> bool:
    """Whether a text is a size as container engines take it."""
    return bool(_SIZE.fullmatch(text))


def is_ulimit(item: Any) -> bool:
    """Whether an item is a limit as container engines take it."""
    return isinstance(item, str) and bool(_ULIMIT.fullmatch(item))


def is_host(text: Any) -> bool:
    """Whether a text can be the name or the address of a host, and no option of a program."""
    return isinstance(text, str) and bool(_HOST.fullmatch(text))


def key_problem(name: str, key: str) -> str:
    """Why a text can be no key, empty when it can. It is not shown."""
    if re.search(r"\s", key):
        return f"{name} has white space in it; check how ngc_api_key was pasted."
    if not key.isascii() or stray(key):
        return f"{name} has characters in it that no key has; check how ngc_api_key was pasted."
    return f"{name} has {len(key)} characters; check how ngc_api_key was pasted." if len(key) > MOST_BYTES else ""


def systemd_words(argv: Sequence[str]) -> list[str]:
    """Arguments so that a unit gets them as they are: systemd puts variables of the unit in the place of $X and ${X}, $$ is a $.

    `systemd-run --expand-environment=no` would do, and is too new (254).
    """
    return [word.replace("$", "$$") for word in argv]
