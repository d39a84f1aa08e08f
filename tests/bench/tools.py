"""Well-known tools where this machine has them: `wrk` to load, `nginx` as the limit of a reverse proxy."""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
import psutil

from ports.errors import Unavailable
from tests.bench import machine
from tests.bench.http_load import Plan, Sample, first_number

NO_WRK: Final = "wrk is not installed, the bench's own client loads instead and costs more CPU; apt install wrk"
NO_NGINX: Final = "nginx is not installed, so there is no plain reverse proxy to compare with; apt install nginx-light"

_SCRIPT: Final = """
wrk.method = "POST"
wrk.body = [==[{body}]==]
{headers}
{request}
done = function(summary, latency)
  local e = summary.errors
  io.stderr:write(string.format('{{"requests":%d,"failures":%d,"seconds":%.6f,"p50_ms":%.6f,"p99_ms":%.6f}}',
    summary.requests, e.connect + e.read + e.write + e.status + e.timeout, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""
_NUMBERED: Final = """
local number = {first}
request = function()
  number = number + 1
  return wrk.format(nil, nil, nil, (string.gsub(wrk.body, '{numbered}', string.format('%0{digits}d', number))))
end
"""
_NGINX: Final = """
daemon off; master_process off; worker_processes 1; pid nginx.pid; error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 100000000; client_body_buffer_size 64k;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  upstream backend {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""


def has(tool: str) -> bool:
    return _found(tool) is not None


def load(plan: Plan, home: Path, *, by: Sequence[str] = ()) -> Sample:
    """By wrk, where there is one and the plan asks for no rate, and of the answers for nothing but their status.

    wrk loads for a second at least. `by`: what the load's command begins with.
    """
    wrk = _found("wrk")
    if wrk is None or plan.first or plan.rate:
        done = _run([*by, *machine.python("tests.bench.http_load")], msgspec.json.encode(plan), plan.seconds)
        sample = msgspec.json.decode(done.stdout, type=Sample)
    else:
        script = home / "wrk.lua"
        headers = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in plan.headers.items())
        request = ""
        if plan.numbered:
            digits = len(plan.numbered)
            request = _NUMBERED.format(first=first_number(digits), numbered=plan.numbered, digits=digits)
        script.write_text(_SCRIPT.format(body=plan.body, headers=headers, request=request))
        lasting = f"{max(1.0, plan.seconds):.0f}s"
        command = [wrk, "--threads", "1", "--connections", str(plan.connections), "--duration", lasting]
        command += ["--timeout", "10s", "--script", str(script), f"http://127.0.0.1:{plan.port}{plan.path}"]
        done = _run([*by, *command], b"", plan.seconds)
        sample = msgspec.json.decode(done.stderr.splitlines()[-1], type=Sample)
    if sample.failures or not sample.requests:
        raise Unavailable(f"{sample.failures} of {sample.requests} answers were not what they should be; see the logs")
    return sample


@contextmanager
def nginx(home: Path, *, port: int, upstream: int) -> Iterator[psutil.Process]:
    """nginx as a plain reverse proxy in one process, so that its CPU time is all there is."""
    program = _found("nginx")
    assert program is not None, "ask `has` first"
    prefix = home / "nginx"
    prefix.mkdir()
    configuration = prefix / "nginx.conf"
    configuration.write_text(_NGINX.format(port=port, upstream=upstream))
    command = [*machine.on_one_cpu(), program, "-p", str(prefix), "-c", str(configuration), "-e", "stderr"]
    with machine.child(command, log=home / "nginx.log") as process:
        machine.wait_until_open(port)
        yield process


def _found(tool: str) -> str | None:
    # Debian keeps daemons where an ordinary user's PATH does not look.
    return shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/usr/local/sbin")


def _run(command: list[str], stdin: bytes, seconds: float) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        command, input=stdin, capture_output=True, check=False, timeout=seconds + 30, cwd=machine.ROOT
    )
    if done.returncode != 0:
        sys.stderr.write(done.stderr.decode(errors="replace"))
        raise Unavailable(f"{command[0]} ended with {done.returncode}; its words are above")
    return done
