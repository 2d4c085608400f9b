# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How systemd and container engines read what this collection writes, for tests. Written by their documentation.

Sources: systemd.syntax(7), "QUOTING"; systemd.service(5), "COMMAND LINES"; systemd.unit(5), "SPECIFIERS"; systemd.exec(5),
"EnvironmentFile="; the behaviour of docker run --env-file in the Docker CLI's reference, and of Go's bufio.Scanner, by which it reads.
"""

from __future__ import annotations

import re

#: What a unit of systemd's has in its environment, among other things.
ENVIRONMENT = {"HOME": "/root", "LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin", "X": "of the unit", "EMPTY": ""}
_ESCAPES = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "s": " ",
    "\\": "\\",
    '"': '"',
    "'": "'",
}


def values_of(unit: str, key: str) -> list[str]:
    """The values of a key of a unit file, with continued lines joined."""
    joined = re.sub(r"\\\n", " ", re.sub(r"(?m)^[#;].*\n", "", unit))
    return [line.partition("=")[2].strip(" \t") for line in joined.split("\n") if line.partition("=")[0].strip() == key]


def words_of(line: str) -> list[str]:
    """A line of a unit as words: quotes begin and end a word or a part of one, backslashes escape."""
    words, word, quote, there = [], "", "", False
    place = 0
    while place < len(line):
        char = line[place]
        place += 1
        if char == "\\":
            after = line[place : place + 1]
            if after == "x":
                word += chr(int(line[place + 1 : place + 3], 16))
                place += 3
            elif after in _ESCAPES:
                word += _ESCAPES[after]
                place += 1
            else:
                raise ValueError(f"bad escape in {line!r}")
            there = True
        elif quote:
            quote, word = ("", word) if char == quote else (quote, word + char)
        elif char in "\"'":
            quote, there = char, True
        elif char in " \t\n\r":
            if there:
                words.append(word)
            word, there = "", False
        else:
            word, there = word + char, True
    if quote:
        raise ValueError(f"quote is open in {line!r}")
    return [*words, word] if there else words


def specified(text: str) -> str:
    """A text of a unit file with its specifiers: %% is one %, each other stands for something else."""
    return re.sub("%(.)", lambda found: "%" if found[1] == "%" else f"<specifier {found[1]}>", text)


def expanded(argv: list[str]) -> list[str]:
    """A command with variables in their places, as the manager does it when it starts the unit: $X as a word, ${X} within one, $$ for $."""
    words = argv[:1]
    for word in argv[1:]:
        alone = re.fullmatch(r"\$([^{$].*|)", word, re.DOTALL)
        if alone:
            words += ENVIRONMENT.get(alone[1], "").split()
            continue
        words.append(
            re.sub(
                r"\$\$|\$\{([^}]*)\}", lambda found: "$" if found[0] == "$$" else ENVIRONMENT.get(found[1], ""), word
            )
        )
    return words


def command_of(unit: str) -> list[str]:
    """The command of the one ExecStart of a unit file."""
    (line,) = values_of(unit, "ExecStart")
    return expanded([specified(word) for word in words_of(line)])


def transient(argv: list[str]) -> list[str]:
    """The command that systemd-run has a unit run: nothing is quoted on its way, and variables are put in their places."""
    for word in argv:
        word.encode()
        if "\0" in word:
            raise ValueError("a NUL ends an argument")
    return expanded(argv[argv.index("--") + 1 :])


def env_file(text: str) -> dict[str, str]:
    """The variables of a file as `docker run --env-file` reads them; Podman's differs in nothing that matters here."""
    found = {}
    for number, raw in enumerate(text.encode().split(b"\n")):
        if len(raw) >= 65536:
            raise ValueError("bufio.Scanner: token too long")
        line = raw[:-1].decode() if raw.endswith(b"\r") else raw.decode()
        line = (line.removeprefix("\ufeff") if not number else line).lstrip()
        if not line or line.startswith("#"):
            continue
        name, there, value = line.partition("=")
        if any(char.isspace() for char in name) or not name:
            raise ValueError(f"variable {name!r}")
        if there:
            found[name] = value
    return found


def systemd_env_file(text: str) -> dict[str, str]:
    """The variables of a file of lines NAME="VALUE" as systemd's EnvironmentFile= reads it."""
    found = {}
    for name, value in re.findall(r'(?s)([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"\n', text):
        plain = re.sub(r'(?s)\\(["\\`$])', r"\1", value)
        # What has control characters in it systemd drops.
        if not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", plain):
            found[name] = plain
    return found
