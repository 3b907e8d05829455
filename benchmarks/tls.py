"""Run a sink behind nginx, which terminates TLS like the remotes' servers, with one certificate for all contenders."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.programs import Failed, Sink, sink

#: How long nginx may take to start, seconds.
_START_S = 10.0
#: How the peers, which are Go programs and httpx, learn of the certificate.
_TRUST = ("SSL_CERT_FILE", "RCLONE_CA_CERT", "AWS_CA_BUNDLE")
_CONFIG = """
user {user}; daemon off; pid {place}/nginx.pid; error_log {place}/error.log; worker_processes 1;
events {{ worker_connections 256; }}
http {{
  access_log off; client_max_body_size 0; client_body_temp_path {place}; proxy_temp_path {place};
  fastcgi_temp_path {place}; uwsgi_temp_path {place}; scgi_temp_path {place};
  upstream sink {{ server unix:{place}/sink; keepalive 64; }}
  server {{
    listen 127.0.0.1:{port} ssl backlog=512; keepalive_requests 1000000; keepalive_timeout 60;
    ssl_certificate {place}/certificate.pem; ssl_certificate_key {place}/key.pem;
    location / {{
      proxy_pass http://sink; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_request_buffering off;
      client_body_buffer_size 128k;
    }}
  }}
}}
"""


def missing() -> str | None:
    """Return why nothing can be measured over TLS, None when it can."""
    wanting = [name for name in ("nginx", "openssl") if shutil.which(name) is None]
    return f"{' and '.join(wanting)} not installed: nothing is measured over TLS" if wanting else None


@contextmanager
def tls_sink() -> Iterator[Sink]:
    """Run a sink behind nginx during the context; peers started within it trust its certificate."""
    with tempfile.TemporaryDirectory(prefix="docferry-tls-") as folder:
        place, port = Path(folder), _free_port()
        _certify(place)
        base, ca_file = f"https://127.0.0.1:{port}", place / "certificate.pem"
        with sink("--base", base, "--unix", str(place / "sink")) as server:
            config = place / "nginx.conf"
            config.write_text(_CONFIG.format(user=getpass.getuser(), place=place, port=port), encoding="utf-8")
            with subprocess.Popen(["nginx", "-c", str(config)], stderr=subprocess.DEVNULL) as nginx:
                os.environ.update(dict.fromkeys(_TRUST, str(ca_file)))
                try:
                    _await(port, ca_file)
                    yield replace(server, front=base, ca_file=ca_file)
                finally:
                    for name in _TRUST:
                        os.environ.pop(name, None)
                    nginx.terminate()


def _certify(place: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(place / "key.pem"), "-out", str(place / "certificate.pem"), "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)


def _await(port: int, ca_file: Path) -> None:
    deadline, context = time.monotonic() + _START_S, ssl.create_default_context(cafile=ca_file)
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as plain:
                return context.wrap_socket(plain, server_hostname="127.0.0.1").close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise Failed(f"nginx did not start: {error}") from error
        time.sleep(0.05)  # nothing announces that nginx listens


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
