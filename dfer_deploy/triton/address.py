"""The address of a server, and the options of a gRPC channel to it."""

from __future__ import annotations

import ipaddress
import os
from typing import Literal, NamedTuple

from dfer_deploy.errors import SettingError

Scheme = Literal["grpc", "http"]


class Address(NamedTuple):
    """A server's address: ``scheme`` and ``host:port``."""

    scheme: Scheme
    netloc: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"

    @property
    def is_this_machine(self) -> bool:
        """Whether the host is a loopback address, or the unspecified one, which leads to this machine too."""
        host = self.netloc.rpartition(":")[0].strip("[]").lower().rstrip(".")
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")
        mapped = getattr(address, "ipv4_mapped", None) or address
        return bool(mapped.is_loopback or mapped.is_unspecified)


def parse_url(url: str) -> Address:
    """Parse ``grpc://host:port``, ``http://host:port`` or ``host:port`` (gRPC).

    Raises:
        DferDeployError: the address has another form, or its port is not 1 to 65535.
    """
    if not isinstance(url, str):
        raise SettingError(f"the address is a {type(url).__name__}, expected a text such as grpc://127.0.0.1:8001")
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "grpc", url
    host, colon, port = rest.rstrip("/").rpartition(":")
    valid = bool(host) and bool(colon) and "/" not in host and port.isascii() and port.isdigit()
    if scheme not in ("grpc", "http") or not valid or not 0 < int(port) < 65536:
        raise SettingError(
            f"the address {url!r} is not understood; expected grpc://HOST:PORT or http://HOST:PORT with the port, "
            "which servers usually have at 8001 for gRPC and at 8000 for HTTP"
        )
    return Address("grpc" if scheme == "grpc" else "http", f"{host}:{port}")


def channel_options(netloc: str) -> list[tuple[str, int]]:
    """Build the options of a gRPC channel: messages of up to 2 GB, and no proxy for connections to this machine.

    Other machines are reached without a proxy if ``no_proxy`` is ``*``, which gRPC itself does not understand.
    """
    largest = 2**31 - 1
    options = [("grpc.max_send_message_length", largest), ("grpc.max_receive_message_length", largest)]
    nowhere = "*" in (os.environ.get("no_proxy"), os.environ.get("NO_PROXY"))
    if nowhere or Address("grpc", netloc).is_this_machine:
        options.append(("grpc.enable_http_proxy", 0))
    return options
