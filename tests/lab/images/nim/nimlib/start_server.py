# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start the service: choose a profile, fill the cache, run the engine and stay until it ends."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from . import faults, logs
from .exceptions import NimError
from .ngc_profile import Profile, gpus, select
from .nim_sdk import Cache
from .settings import Settings

log = logging.getLogger(__name__)
BACKEND_PORT = 8001
GRACE = 1.0
ENGINE_PATHS = "chat/completions|completions|responses|messages|models|metadata|version|license|manifest|metrics"

NGINX = """\
daemon off;
worker_processes 1;
pid {dir}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    server_tokens off;
    client_max_body_size 0;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    default_type application/json;
    proxy_http_version 1.1;
    proxy_set_header Host $host;
    proxy_set_header Connection "";
{buffering}    proxy_read_timeout 4h;
{servers}}}
"""
UNBUFFERED = "    proxy_buffering off;\n"
# nginx passes on what comes even when it buffers; compression without a flush does not.
BUFFERED = "    proxy_buffering on;\n    gzip on;\n    gzip_types text/event-stream;\n"
LIVE = """\
        location = /v1/health/live {
            return 200 '{"object":"health.response","message":"live","status":"live"}';
        }
        location = /v1/health/ready { proxy_pass http://127.0.0.1:8001; }
"""
INFERENCE = f"""\
        location ~ ^/v1/({ENGINE_PATHS})(/|$) {{ proxy_pass http://127.0.0.1:{BACKEND_PORT}; }}
        location / {{ return 404 '{{"detail":"Not Found"}}'; }}
        location ~ ^/(tokenize|detokenize|docs|openapi.json)$ {{ proxy_pass http://127.0.0.1:{BACKEND_PORT}; }}
"""


class Terminated(BaseException):
    """SIGTERM or SIGINT came; a BaseException so that no error handler swallows it."""


def nginx_conf(settings: Settings, directory: Path) -> str:
    """Render the proxy: only known paths are open, liveness never waits for the engine."""
    blocks = {settings.port: INFERENCE}
    blocks[settings.health_port] = LIVE + blocks.get(settings.health_port, "")
    servers = "".join(f"    server {{\n        listen {port};\n{body}    }}\n" for port, body in blocks.items())
    return NGINX.format(dir=directory, servers=servers, buffering=BUFFERED if faults.on("buffered") else UNBUFFERED)


def engine_command(settings: Settings, model: Path, extra: list[str]) -> list[str]:
    """Return the command line of the engine."""
    host, port = ("127.0.0.1", BACKEND_PORT) if settings.llm else ("0.0.0.0", settings.port)  # noqa: S104
    if faults.on("out_of_memory") or faults.on("never_ready"):
        return [sys.executable, "-m", "nimlib.faults"]
    vllm = settings.engine == "vllm"
    module = "vllm.entrypoints.launchers.api_server.entry" if vllm else "nimlib.reference_server"
    command = [sys.executable, "-m", module, "--model", str(model), "--host", host, "--port", str(port)]
    command += ["--served-model-name"]
    # vLLM answers with the first name and takes requests for any.
    command += [faults.WRONG_MODEL] if vllm and faults.on("wrong_model") else []
    command += settings.served_names
    if settings.max_model_len:
        command += ["--max-model-len", str(settings.max_model_len)]
    if vllm:
        command += ["--middleware", "nimlib.api.NimMiddleware", "--enforce-eager", "--dtype", "float32"]
        # Left alone, vLLM on a CPU takes nearly all memory of the machine for its cache.
        command += ["--kv-cache-memory-bytes", str(64 << 20)]
    return command + shlex.split(settings.passthrough) + extra


class Launcher:
    """The first process of the container: starts the others and ends with them."""

    def __init__(self, settings: Settings, extra: list[str]) -> None:
        self.settings = settings
        self.extra = extra
        self.children: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}
        self.held: list[int] = []

    def run(self) -> int:
        """Serve until a signal or the end of a child."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        try:
            code = self._serve()
        except Terminated:
            code = 0
            if faults.on("slow_shutdown"):
                log.warning("Waiting for background tasks to complete. (CTRL+C to force quit)")
                time.sleep(float(os.environ.get("NIM_LAB_SHUTDOWN_SECONDS", "60")))
        except NimError as error:
            log.error("%s", error)
            print("".join(traceback.format_exception(error)), file=sys.stderr, flush=True)
            code = 1
        finally:
            self._stop()
        log.info("Shutting down, exit status %d", code)
        return code

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        raise Terminated

    def _serve(self) -> int:
        settings = self.settings
        with contextlib.suppress(OSError):
            faults.KILL_FILE.unlink()
        if faults.on("crash_at_start"):
            time.sleep(1)
            print(faults.CRASH, file=sys.stderr, flush=True)
            return 1
        if settings.llm:
            self._spawn("nginx", self._nginx())
        # A driver does not unload under a model that is served; here nothing else would keep it.
        self.held = [os.open(node, os.O_PATH) for node in Path("/dev").glob("nvidia[0-9]*")]
        profile = select(settings, gpus())
        if settings.cache.is_dir() and not os.access(settings.cache, os.W_OK):
            log.warning(
                "%s is read-only, application may fail if model is not already present in cache", settings.cache
            )
        log.info("Preparing model workspace. This step might download additional files to run the model.")
        begun = time.monotonic()
        model = Cache(settings, profile).ensure()
        log.info("Model workspace is now ready. It took %.3f seconds", time.monotonic() - begun)
        if settings.llm:
            log.info("Starting vLLM v%s", "0.32.0")
        self._spawn("engine", engine_command(settings, model, self.extra), profile)
        log.info("Server starting on port %d", settings.port)
        return self._watch()

    def _nginx(self) -> list[str]:
        directory = Path(os.environ.get("NIM_NGINX_DIR", "/tmp/nginx"))  # noqa: S108
        directory.mkdir(parents=True, exist_ok=True)
        conf = directory / "nginx.conf"
        conf.write_text(nginx_conf(self.settings, directory), encoding="utf-8")
        return ["nginx", "-e", "stderr", "-c", str(conf)]

    def _spawn(self, name: str, command: list[str], profile: Profile | None = None) -> None:
        env = dict(os.environ)
        # The engine needs no key: nothing that it logs or dumps can show one.
        for variable in ("NGC_API_KEY", "NGC_CLI_API_KEY"):
            env.pop(variable, None)
        if profile:
            env["NIM_MODEL_PROFILE"] = profile.id
            env.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            env.setdefault("VLLM_LOGGING_LEVEL", logs.LEVELS.get(self.settings.log_level, self.settings.log_level))
        child = subprocess.Popen(command, env=env, start_new_session=True)
        self.children[child.pid] = (name, child)

    def _watch(self) -> int:
        """Wait for children; as process 1 also reap what others left behind."""
        while True:
            pid, status = os.wait()
            if pid not in self.children:
                continue
            name, child = self.children.pop(pid)
            child.returncode = os.waitstatus_to_exitcode(status)
            log.error("%s exited with status %d, shutting the container down", name, child.returncode)
            return child.returncode if child.returncode > 0 else 128 - child.returncode if child.returncode else 1

    def _stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        deadline = time.monotonic() + GRACE
        for _name, child in self.children.values():
            child.terminate()
        for _name, child in self.children.values():
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def dry_run(settings: Settings, extra: list[str]) -> int:
    """Print the resolved configuration."""
    try:
        profile = select(settings, gpus())
    except NimError as error:
        log.error("%s", error)
        return 1
    cache = Cache(settings, profile)
    shown = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()}
    shown["key"] = "set" if settings.key else "not set"
    shown["profile"] = {"id": profile.id, "name": profile.name, "tags": profile.tags, "missing": cache.missing()}
    shown["command"] = shlex.join(engine_command(settings, cache.snapshot, extra))
    print(json.dumps(shown, indent=2))
    return 0


def main(argv: list[str]) -> int:
    """Run nim-serve."""
    settings = Settings.read()
    logs.setup(settings)
    if "--dry-run" in argv:
        return dry_run(settings, [arg for arg in argv if arg != "--dry-run"])
    return Launcher(settings, argv).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
