"""Ports: a free one is chosen, a taken one names its holder."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from dfer_deploy.errors import ServerError
from dfer_deploy.triton.ports import Holder, port_holder, reserve_ports


def test_zero_chooses_different_free_ports() -> None:
    ports = reserve_ports("127.0.0.1", {"HTTP": 0, "gRPC": 0, "metrics": 0})
    assert list(ports) == ["HTTP", "gRPC", "metrics"]
    assert len(set(ports.values())) == 3
    for port in ports.values():
        with socket.create_server(("127.0.0.1", port)):
            pass


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])  # noqa: S104
def test_a_taken_port_names_the_process(address: str) -> None:
    with socket.create_server((address, 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(ServerError, match=f"the HTTP port {port} is taken by process {os.getpid()} ") as taken:
            reserve_ports("127.0.0.1", {"HTTP": port, "gRPC": 0})
        assert re.search(r"\(.*python.*\)", str(taken.value))


def test_the_holder_of_an_ipv6_socket_is_found() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6) as holder:
        found = port_holder(holder.getsockname()[1])
    assert found is not None
    assert found.pid == os.getpid()


def test_a_connection_that_has_ended_takes_no_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            server.accept()[0].close()
    assert port_holder(port) is None
    assert reserve_ports("127.0.0.1", {"HTTP": port}) == {"HTTP": port}


def test_the_holder_is_read_from_the_kernels_tables(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    header = "  sl  local_address rem_address   st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode\n"
    row = "   {n}: 0100007F:{port} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 {inode} 1 0\n"
    table = (
        header + row.format(n=0, port="1F41", state="01", inode=11) + row.format(n=1, port="1F40", state="0A", inode=12)
    )
    (tmp_path / "net" / "tcp").write_text(table)
    for pid, inode in (("41", "11"), ("42", "12"), ("self", "12")):
        (tmp_path / pid / "fd").mkdir(parents=True)
        (tmp_path / pid / "fd" / "3").symlink_to(f"socket:[{inode}]")
        (tmp_path / pid / "cmdline").write_bytes(b"server\0--port\x008000\0")
    assert port_holder(8000, proc=tmp_path) == Holder(42, "server --port 8000")
    assert port_holder(8001, proc=tmp_path) is None


@pytest.mark.parametrize(
    ("ports", "said"),
    [
        ({"HTTP": 65536}, "the HTTP port is 65536, expected 0 to 65535"),
        ({"HTTP": -1}, "the HTTP port is -1, expected 0 to 65535"),
        ({"HTTP": 45123, "gRPC": 45123}, "the gRPC port 45123 is given twice"),
    ],
)
def test_impossible_ports(ports: dict[str, int], said: str) -> None:
    with pytest.raises(ServerError, match=said):
        reserve_ports("127.0.0.1", ports)


def test_a_host_of_another_machine() -> None:
    with pytest.raises(ServerError, match=r"cannot listen on 192\.0\.2\.1:0 for HTTP"):
        reserve_ports("192.0.2.1", {"HTTP": 0})
