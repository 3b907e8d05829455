"""Run compose.yaml with podman-compose on a bridge, with a simulator at its gateway: compose_up.py ARCHIVE FOLDER.

It needs namespaces of its own, `unshare --net --mount`, so that it changes nothing of this machine. It prints the names
of the documents that the simulator stores, and ends with 0 when the container was healthy and stopped with exit code 0.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from app_env import until
from docferry import __version__
from docferry.simulator import Simulator, SimulatorOptions, SimulatorThread

_COMPOSE = Path(__file__).resolve().parent.parent / "packaging" / "compose.yaml"
#: What lies in /run and /srv belongs to the machine. It may have cgroups of both versions, which crun refuses.
_NAMESPACES = """\
ip link set lo up
mount -t tmpfs none /run && mkdir -p /run/netns /run/lock
mount -t tmpfs none /srv && mkdir -p /srv/customers/acme
[ ! -d /sys/fs/cgroup/unified ] || umount /sys/fs/cgroup/unified
"""
#: Podman's default limits are higher than those that a root without CAP_SYS_RESOURCE may set.
_ENGINE = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
[network]
network_config_dir = "{folder}/networks"
"""
_STORAGE = '[storage]\ndriver = "vfs"\ngraphroot = "{folder}/storage"\nrunroot = "/run/containers"\n'
_DOCUMENT = Path("/srv/customers/acme/march.pdf")
_CONFIGURATION = """\
settle = "1s"
[codat]
base_url = "{url}"
list_lag = "1s"
[[upload]]
name = "acme"
folder = "/srv/customers/acme"
to = "codat"
company_id = "8a210b68-6988-11ed-a1eb-0242ac120002"
connection_id = "2e9d2c44-f675-40ba-8049-353bfcb5e171"
"""


def main(archive: Path, folder: Path) -> None:
    """Load the image, start the service of compose.yaml, wait for its document, and stop it."""
    subprocess.run(["sh", "-ec", _NAMESPACES], check=True)
    _DOCUMENT.write_bytes(b"%PDF-1.4\n%%EOF\n")
    (folder / "networks").mkdir(parents=True)
    (folder / "containers.conf").write_text(_ENGINE.format(folder=folder))
    (folder / "storage.conf").write_text(_STORAGE.format(folder=folder))
    os.environ["CONTAINERS_CONF"] = str(folder / "containers.conf")
    os.environ["CONTAINERS_STORAGE_CONF"] = str(folder / "storage.conf")
    os.environ["DOCFERRY_VERSION"] = __version__
    os.chdir(folder)
    shutil.copy(_COMPOSE, folder)
    key = folder / "codat.key"
    key.write_text(SimulatorOptions().codat_key)
    key.chmod(0o600)
    os.chown(key, 10001, -1)
    _run("podman", "load", "--quiet", "--input", str(archive))
    with SimulatorThread(Simulator(), host=_bridge(f"{folder.name}_default")) as thread:
        (folder / "docferry.toml").write_text(_CONFIGURATION.format(url=thread.url))
        _run("podman-compose", "up", "-d")
        try:
            (container,) = _run("podman", "ps", "--format", "{{.Names}}").split()
            until(lambda: bool(thread.simulator.stored), 120, "the document")
            _run("podman", "healthcheck", "run", container)
            _run("podman", "stop", container)
            (stopped,) = json.loads(_run("podman", "inspect", container))
            assert stopped["State"]["ExitCode"] == 0, _run("podman", "logs", container)
        finally:
            _run("podman-compose", "down")
        print(*(document.name for document in thread.simulator.stored))


def _bridge(network: str) -> str:
    """Create a network as podman-compose would, with its bridge, which podman makes later; return the gateway."""
    _run("podman", "network", "create", network)
    (created,) = json.loads(_run("podman", "network", "inspect", network))
    bridge, gateway = created["network_interface"], created["subnets"][0]["gateway"]
    _run("ip", "link", "add", bridge, "type", "bridge")
    _run("ip", "address", "add", f"{gateway}/24", "dev", bridge)
    _run("ip", "link", "set", bridge, "up")
    return str(gateway)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
