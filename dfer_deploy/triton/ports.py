"""TCP ports of this machine: a server's endpoints, the choice of free ports, and the process that holds a port."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from dfer_deploy.errors import ServerError

_LISTEN = "0A"


@dataclass(frozen=True)
class Endpoints:
    """The host and the ports that a started server listens on."""

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int

    @property
    def grpc_url(self) -> str:
        return f"grpc://{self.reachable_host}:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"http://{self.reachable_host}:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self.reachable_host}:{self.metrics_port}/metrics"

    @property
    def reachable_host(self) -> str:
        """The host for connections from this machine: the loopback if the server listens on every address."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104


@dataclass(frozen=True)
class Holder:
    """The process that listens on a port."""

    pid: int
    command: str


def reserve_ports(host: str, ports: dict[str, int]) -> dict[str, int]:
    """Check that every port is free, and replace 0 by a free port.

    Args:
        host: IPv4 address or name to listen on.
        ports: port numbers by their purpose; 0 chooses a free one.

    Returns:
        The same keys with the chosen port numbers, all different.

    Raises:
        DferDeployError: a number is not a port, is given twice or is taken (the error names the process), or the host
            is not an address of this machine.
    """
    chosen: dict[str, int] = {}
    sockets: list[socket.socket] = []
    try:
        # All sockets stay open until the last port is chosen, so no number is chosen twice. Given numbers come first.
        for what, port in sorted(ports.items(), key=lambda item: item[1] == 0):
            if not 0 <= port <= 65535:
                raise ServerError(f"the {what} port is {port}, expected 0 to 65535 (0 chooses a free one)")
            if port and port in chosen.values():
                raise ServerError(f"the {what} port {port} is given twice; give every service its own")
            chosen[what] = _bind(host, port, what, sockets)
    finally:
        for opened in sockets:
            opened.close()
    return {what: chosen[what] for what in ports}


def port_holder(port: int, *, proc: Path = Path("/proc")) -> Holder | None:
    """Find the process that listens on ``port``.

    Returns:
        The process, or None if no process of this user listens on the port.
    """
    inodes = set().union(*(_listening_inodes(proc / "net" / name, port) for name in ("tcp", "tcp6")))
    links = {f"socket:[{inode}]" for inode in inodes}
    for process in proc.iterdir() if links else ():
        if process.name.isdigit() and _has_open(process, links):
            return Holder(int(process.name), _command(process))
    return None


def _bind(host: str, port: int, what: str, sockets: list[socket.socket]) -> int:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sockets.append(listener)
    # As servers do: connections of a server that has just ended do not block the port, a listening server does.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except PermissionError as error:
        raise ServerError(f"the {what} port {port} needs root; choose one above 1023") from error
    except socket.gaierror as error:
        raise ServerError(f"the host {host!r} has no IPv4 address; give one of this machine's") from error
    except OSError as error:
        holder = port_holder(port)
        if holder is not None:
            raise ServerError(
                f"the {what} port {port} is taken by process {holder.pid} ({holder.command}); "
                "stop it or choose another port, 0 for any free one"
            ) from error
        raise ServerError(
            f"cannot listen on {host}:{port} for {what} ({error.strerror or error}); choose another port or host"
        ) from error
    number: int = listener.getsockname()[1]
    return number


def _listening_inodes(table: Path, port: int) -> set[str]:
    """Inodes of the sockets in one of the kernel's tables (``/proc/net/tcp``) that listen on the port."""
    try:
        rows = table.read_text().splitlines()[1:]
    except OSError:
        return set()
    columns = [row.split() for row in rows]
    return {row[9] for row in columns if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port}


def _has_open(process: Path, links: set[str]) -> bool:
    try:
        return any(str(descriptor.readlink()) in links for descriptor in (process / "fd").iterdir())
    except OSError:
        # The process has ended meanwhile, or belongs to another user.
        return False


def _command(process: Path) -> str:
    try:
        words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        words = ""
    return words if len(words) <= 120 else words[:117] + "..."
