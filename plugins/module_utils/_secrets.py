# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which variables and words are secrets, by their names and by their form. Private to the collection; pure.

What is found is told by its kind, never by its text. It errs on the side of a secret: the operator can say that one is none.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any

#: Of these there is one way only, and it is another than the environment: the option ngc_api_key.
NGC_VARIABLES = ("NGC_API_KEY", "NGC_CLI_API_KEY")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: A name with one of these words is a secret's, whatever else it says...
_STRONG = _words("SECRET SECRETS PASSWORD PASSWD PASSPHRASE PASSCODE AUTHORIZATION APIKEY APITOKEN")
#: ...and with one of these at its end.
_AT_THE_END = _words("TOKEN KEY PASS PWD CREDENTIAL CREDENTIALS JWT BEARER")
#: A name that ends so tells of a secret: where it is, how long, how it is called.
_ABOUT = _words(
    "ALGORITHM ARN BITS COUNT DIR DIRECTORY ENABLED ENDPOINT EXPIRY FILE FILENAME FORMAT HOST ID LEN LENGTH LIMIT MODE MOUNT NAME"
    " PATH POLICY PORT PREFIX PROVIDER REGION SIZE TIMEOUT TTL TYPE URI URL VERSION"
)
#: Tokens of a tokenizer, and measures of them.
_OF_TEXT = _words(
    "ADD AUDIO BOS CLS DRAFT EACH END EOS FIRST IMAGE INPUT LAST MASK MAX MIN NEXT NUM OUTPUT PAD PER SEP SPECIAL START STOP THINK"
    " TIMESTAMP UNK VIDEO"
)
#: Keys that open nothing.
_OF_DATA = _words(
    "CACHE COLUMN CONFIG DICT FIELD FOREIGN GROUP HASH INDEX JSON LABEL LOOKUP METRIC ORDER PARTITION PRIMARY PUBLIC ROUTING ROW"
    " SHARD SORT STATE TAG"
)
_NOTHING = {"", "0", "1", "true", "false", "yes", "no", "on", "off", "none", "null", "auto"}
_FILE = re.compile(r"/(?:certs|data|etc|home|keys|mnt|opt|root|run|secrets|srv|tmp|usr|var|workspace)(?:/[\w.@+-]+)+")

#: Forms of secrets, whatever they are called.
_FORMS = (
    ("an NVIDIA API key", r"(?<![\w-])nvapi-\S"),
    ("a Hugging Face token", r"(?<![A-Za-z0-9_-])hf_(?!transfer\b)[A-Za-z0-9]{8,}(?![A-Za-z0-9_])"),
    ("a GitHub token", r"(?<!\w)(?:gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{20,})"),
    ("a GitLab token", r"(?<![\w-])glpat-[\w-]{16,}"),
    ("an API key", r"(?<![\w-])sk-(?:[A-Za-z]+-)*[A-Za-z0-9_-]{20,}"),
    ("a Slack token", r"(?<!\w)xox[abeoprs]-[\w-]{10,}"),
    ("a Google API key", r"(?<!\w)AIza[\w-]{35}"),
    ("a JSON Web Token", r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),
    ("a private key", r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    ("a bearer token", r"(?i)(?<![\w-])bearer(?:\s|%20|\+)+[^\s,;<{$]{4,}"),
    ("a header that authenticates", r"(?i)(?<![\w-])(?:proxy-)?authorization\s*[=:]\s*\S"),
    (
        "a header that authenticates",
        r"(?i)(?<![\w-])(?:x-)?(?:[a-z]+-)*(?:api-?key|auth-token|access-token|secret)\s*[=:]\s*[^\s,;]{4,}",
    ),
    ("a URL with a password", r"(?<![\w+.-])[A-Za-z][\w+.-]*://[^\s/?#@]*:[^\s/?#@]+@"),
    (
        "a URL with a secret",
        r"(?i)[?&](?:[\w-]*(?:token|secret|password|signature)|(?:[\w-]*api[_-]?)?key|sig)=[^&\s]{4,}",
    ),
    (
        "an option with a secret",
        r"(?i)(?<!\S)--?(?:[a-z]+[-_])*(?:api[-_]?key|(?<!stop-)(?<![be]os-)(?<!pad-)token|passw(?:or)?d|secret)(?:=|\s+)(?![-<]|\d+(?:\s|$))\S+",
    ),
    (
        "a connection string with a secret",
        r"(?i)(?<![A-Za-z0-9-])(?:password|passwd|pwd|secret|accountkey|sharedaccesskey)\s*=\s*[^\s;,&<]{3,}",
    ),
)
_COMPILED = tuple((what, re.compile(form)) for what, form in _FORMS)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{40,}={0,2}")
#: What a legacy key of NGC is once it is decoded.
_LEGACY = re.compile(r"\w{16,}:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def named_so(name: str, value: str = "") -> bool:
    """Whether a variable is a secret by its name; VALUE tells apart what only turns something on, counts, or leads to a file."""
    text = value.strip()
    parts = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).upper().split("_")
    words = [part for part in (part.rstrip("0123456789") or part for part in parts) if not part.isdigit() and part]
    if not words or words in (["PWD"], ["OLDPWD"]) or text.lower() in _NOTHING or words[-1] in _ABOUT:
        return False
    if _STRONG & set(words):
        return True
    if words[-1] not in _AT_THE_END:
        return False
    before = words[-2] if len(words) > 1 else ""
    # A file that is named is no secret, nor is a number of tokens, nor what a tokenizer puts at an end.
    if _FILE.fullmatch(text) or re.fullmatch(r"[-+]?\d+(\.\d+)?", text) or re.fullmatch(r"</?\S*>|\[[A-Z]+\]", text):
        return words[-1] in ("PASS", "PWD") and text.isdigit()
    if words[-1] == "TOKEN":
        return before not in _OF_TEXT
    if words[-1] == "KEY":
        return before not in _OF_DATA
    return True


def _in_json(node: Any) -> bool:
    """Whether any member of plain data is a secret."""
    if isinstance(node, Mapping):
        return any(
            (isinstance(value, str) and bool(named_so(str(key).replace("-", "_"), value) or formed_so(value)))
            or (key == "auth" and isinstance(value, str) and bool(value))
            or _in_json(value)
            for key, value in node.items()
        )
    if isinstance(node, list):
        return any(_in_json(item) or (isinstance(item, str) and bool(formed_so(item))) for item in node)
    return False


def _json_secret(text: str) -> bool:
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        return _in_json(json.loads(text))
    except ValueError:
        return False


def formed_so(value: str) -> str:
    """What kind of secret a text has in it, by its form; empty for none."""
    for what, form in _COMPILED:
        if form.search(value):
            return what
    if _json_secret(value):
        return "JSON with a secret"
    text = value.strip()
    if _BASE64.fullmatch(text):
        try:
            decoded = base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4)).decode()
        except (binascii.Error, ValueError):
            return ""
        if _LEGACY.fullmatch(decoded):
            return "an NGC API key"
        if _json_secret(decoded):
            return "JSON with a secret, in base64"
    return ""


def refusal(name: str, value: str, seen_by: bool = False) -> str:
    """Why a variable is refused, with the cure; empty when it seems to be no secret.

    SEEN_BY: the operator said that it may be seen. Of a key of NGC nobody can say that: there is a better way for it.
    """
    why = found(name, value)
    if not why or (seen_by and name not in NGC_VARIABLES):
        return ""
    if name in NGC_VARIABLES or "NVIDIA API key" in why or "NGC API key" in why:
        cure = "Set ngc_api_key instead: it is used to stage, and handed to a service that says key_at_runtime."
    else:
        cure = (
            "Take it out: weights that want it can be staged elsewhere and named by cache_seed or cache_path, and a proxy on the host"
            " can add it to what is sent."
        )
    if name not in NGC_VARIABLES:
        cure += f" If it is no secret, or may be seen: env_in_clear: [{name}]."
    return f"env has {name}, {why}; docker inspect and podman inspect show it to whoever may use the engine. {cure}"


def found(name: str, value: str) -> str:
    """Why a variable is a secret, in words that follow its name; empty when it seems to be none."""
    form = formed_so(value)
    if form:
        return f"whose value is {form}" if form.startswith("JSON") else f"whose value has {form} in it"
    return "which is a secret by its name" if named_so(name, value) else ""
