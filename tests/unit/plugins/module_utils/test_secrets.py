# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which variables are secrets, by name and by form, and which only sound or look like one. All of these are made up."""

from __future__ import annotations

import base64
import json

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _secrets
from ansible_collections.baremetal.nim.plugins.module_utils._resolve import ResolveError, resolve_services

HEX64 = "6b" * 32
UUID = "9136dd64-4777-11ef-9f27-37cfd56fa6ee"


def packed(data):
    """As a key of a service account is handed around."""
    return base64.b64encode(data if isinstance(data, bytes) else json.dumps(data).encode()).decode()


PEM = "-----BEGIN PRIVATE KEY-----\\nMIIE"
SECRETS = {
    # by name
    "HF_TOKEN": "hf_x",
    "HUGGING_FACE_HUB_TOKEN": "x",
    "MODELSCOPE_API_TOKEN": "x",
    "HF_TOKEN_2": "abc",
    "AWS_SECRET_ACCESS_KEY": "wJalr/abc",
    "AWS_SESSION_TOKEN": "IQoJ",
    "POSTGRES_PASSWORD": "1234",
    "DB_PASSWORD": "/run/secrets/is-a-password-here",
    "MYSQL_ROOT_PASSWORD": "a",
    "REDIS_PASS": "abc",
    "DB_PWD": "abc",
    "SSL_KEY_PASSPHRASE": "abc",
    "CLIENT_SECRET_VALUE": "x",
    "OPENAI_API_KEY": "x",
    "WANDB_API_KEY": "abc",
    "TAVILY_KEY": "abc",
    "KEY": "abc",
    "TOKEN": "abc",
    "api_key": "x",
    "hfToken": "x",
    "AUTHORIZATION": "x",
    "NVIDIA_API_KEY": "x",
    "GOOGLE_CREDENTIALS": "abc",
    # by form
    "A1": "nvapi-abc",
    "A2": "hf_abcdefghijkl",
    "A3": "--x hf_abcdefghijklmnopqrstuvwxyz",
    "A4": "ghp_abcdefghijklmnopqrst",
    "A5": "sk-proj-abcdefghijklmnopqrstuvwx",
    "A6": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.abc",
    "A7": PEM,
    "A8": "glpat-abcdefghijklmnopqrst",
    "H1": "Authorization=Bearer abc",
    "H2": "authorization=Basic%20abc",
    "H3": "x-tenant=1,api-key=abcdef",
    "H4": "x-team=1,X-Api-Key: abcdef",
    "H5": "bearer abcdef",
    "U1": "http://user:word@proxy:3128",
    "U2": "redis://:word@redis:6379",
    "U3": "https://s3.example.com/x?X-Amz-Signature=abcdef&y=1",
    "U4": "https://example.com/y?api_key=abcd",
    "U5": "postgresql+psycopg://nim:word@db/nim",
    "P1": "--api-key abc",
    "P2": "--max-model-len 8192 --hf-token=abc",
    "P3": "--db-password word",
    "C1": "Server=db;Database=x;User Id=a;Password=hunter2;",
    "C2": "DefaultEndpointsProtocol=https;AccountName=x;AccountKey=abcdef==",
    "J1": '{"type": "service_account", "private_key": "abc"}',
    "J2": '{"auths": {"nvcr.io": {"auth": "JG9h"}}}',
    "J3": '[{"headers": {"api-key": "abcdef"}}]',
    "B1": packed({"type": "service_account", "private_key": PEM, "client_email": "a@b"}),
    "B2": packed({"auths": {"nvcr.io": {"auth": "JG9hdXRodG9rZW46bnY="}}}),
    # A key of NGC before there were nvapi-.
    "B3": packed(f"abcdefghij1234567890abcdef:{UUID}".encode()),
}
OTHERS = [
    ("NIM_MAX_TOKENS", "8"),
    ("MAX_TOKENS", "100"),
    ("NIM_MAX_BATCHED_TOKENS", "8192"),
    ("TOKENIZER_MODE", "slow"),
    ("TOKENIZERS_PARALLELISM", "false"),
    ("NIM_TOKENIZER_PATH", "/opt/nim/tokenizer"),
    ("NIM_STOP_TOKEN", "stop"),
    ("NIM_END_OF_TURN_TOKEN", "<|im_end|>"),
    ("EOS_TOKEN", "</s>"),
    ("MASK_TOKEN", "[MASK]"),
    ("NIM_SECONDS_PER_TOKEN", "20"),
    ("NIM_TIME_TO_FIRST_TOKEN", "fast"),
    ("KEY_BITS", "2048"),
    ("NIM_SORT_KEY", "name"),
    ("PUBLIC_KEY", "abc"),
    ("NIM_SSL_KEY_PATH", "/certs/server.key"),
    ("NIM_SSL_KEY", "/certs/server.key"),
    ("HF_TOKEN_PATH", "/run/secrets/hf"),
    ("POSTGRES_PASSWORD_FILE", "/run/secrets/pg"),
    ("GOOGLE_APPLICATION_CREDENTIALS", "/etc/gcp.json"),
    ("SECRETS_DIR", "/run/secrets"),
    ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE"),
    ("NIM_REQUIRE_PASSWORD", "true"),
    ("NIM_ENABLE_API_KEY", "false"),
    ("HF_TOKEN", ""),
    ("NIM_MULTI_PASS", "1"),
    ("PWD", "/opt/nim"),
    ("HF_HUB_ENABLE_HF_TRANSFER", "1"),
    ("DOWNLOADER", "hf_transfer"),
    ("NIM_MODEL_PATH", "hf://jinaai/jina-embeddings-v3"),
    ("NIM_MODEL_PATH", "s3://bucket/model@v2"),
    ("NIM_MODEL_PROFILE", HEX64),
    ("NIM_MANIFEST_PROFILE", UUID),
    ("NIM_TAGS_SELECTOR", "name=parakeet-1-1b,mode=ofl"),
    ("TRITON_OTEL_URL", "http://otel-collector:4318/v1/traces"),
    ("HTTPS_PROXY", "http://proxy:3128"),
    ("NO_PROXY", "localhost,127.0.0.1,[::1]:8000"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a,x-scope=b"),
    ("NIM_PASSTHROUGH_ARGS", "--max-num-batched-tokens 8192 --stop-token x --tokenizer y --max-tokens=5"),
    ("NIM_PASSTHROUGH_ARGS", '--override-generation-config {"temperature":0.6} --gpu-memory-utilization 0.9'),
    ("NIM_PASSTHROUGH_ARGS", "--enable-auto-tool-choice --tool-call-parser qwen3_coder --return-tokens-as-token-ids"),
    ("DESCRIPTION", "the secret of success is a bearer of news, and no token"),
    ("JSON", '{"tokens": 5, "max_tokens": 7, "tokenizer": "x", "sort_key": "name"}'),
    ("PACKED", packed({"name": "x", "replicas": 3, "description": "long enough to be looked at"})),
    ("NCCL_SOCKET_IFNAME", "eth0"),
    ("NIM_SERVED_MODEL_NAME", "task-skill-sk-learn"),
    ("SSH", "git@github.com:a/b.git"),
]
SERVICE = {"name": "llama", "image": "nvcr.io/nim/meta/llama", "tag": "1.8.6"}
DEFAULTS = {"cache_root": "/c", "config_dir": "/e", "state_dir": "/s", "bind_address": "127.0.0.1"}


def refused(**changes):
    """The problems of a service."""
    with pytest.raises(ResolveError) as caught:
        resolve_services([{**SERVICE, **changes}], {"gpus": []}, DEFAULTS)
    return caught.value.problems


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_found_and_not_told(name):
    (problem,) = refused(env={name: SECRETS[name]})
    assert problem.startswith(f"service llama: env has {name}, wh") and "docker inspect" in problem
    assert f"env_in_clear: [{name}]" in problem
    assert len(SECRETS[name]) < 4 or SECRETS[name] not in problem


@pytest.mark.parametrize(("name", "value"), OTHERS)
def test_what_is_no_secret_passes(name, value):
    assert _secrets.found(name, value) == ""


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("NGC_API_KEY", "x", "Set ngc_api_key instead"),
        ("NGC_CLI_API_KEY", "x", "Set ngc_api_key instead"),
        ("ANYTHING", "nvapi-abc", "Set ngc_api_key instead"),
        ("HF_TOKEN", "hf_x", "staged elsewhere and named by cache_seed or cache_path"),
    ],
)
def test_the_cure_is_one_that_helps(name, value, cure):
    (problem,) = refused(env={name: value})
    assert cure in problem
    assert ("ngc_api_key" in problem) == ("ngc_api_key" in cure)


def test_what_may_be_seen_is_set_and_taken_care_of_elsewhere():
    (service,) = resolve_services(
        [{**SERVICE, "env": {"HF_TOKEN": "hf_x", "NIM_A": "b"}, "env_in_clear": ["HF_TOKEN", "NIM_A"]}],
        {"gpus": []},
        DEFAULTS,
    )
    assert (service["env"]["HF_TOKEN"], service["env_hidden"]) == ("hf_x", ["HF_TOKEN"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"env": {"NGC_API_KEY": "x"}, "env_in_clear": ["NGC_API_KEY"]},
            ["for which there is ngc_api_key", "Set ngc_api_key"],
        ),
        ({"env": {"HF_TOKEN": ""}, "env_in_clear": ["HF_TOKE"]}, ["not in env. Did you mean 'HF_TOKEN'?"]),
        ({"env_in_clear": "HF_TOKEN"}, ["wanted a list of names"]),
        ({"env": {}, "env_in_clear": [True]}, ["env_in_clear has true, which is not in env."]),
        ({"otel_endpoint": "https://user:word@otel:4318"}, ["otel_endpoint has a URL with a password in it"]),
        (
            {"prefetch": ["download", "--hf-token", "hf_abcdefgh"]},
            ["prefetch has a Hugging Face token in it, which ps shows"],
        ),
    ],
)
def test_other_ways_in(changes, said):
    problems = refused(**changes)
    assert len(problems) == len(said)
    for problem, words in zip(problems, said):
        assert words in problem and "word@" not in problem and "hf_abc" not in problem


def test_a_number_that_is_a_password_is_in_no_message():
    """It is refused for what it is before anybody looks at what YAML has made of it."""
    (problem,) = refused(env={"DB_PASSWORD": 1.5})
    assert "by its name" in problem and "1.5" not in problem
