"""Examine this machine: all checks of ``doctor``, independent of each other and at the same time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from dfer_deploy.doctor.child import shortened
from dfer_deploy.doctor.finding import Sections
from dfer_deploy.doctor.gpu import Gpus, gpu_findings, probe_gpus
from dfer_deploy.doctor.packages import PACKAGES, Package, package_findings, probe_package
from dfer_deploy.doctor.resources import MachineResources, probe_resources, resource_findings
from dfer_deploy.doctor.servers import (
    Docker,
    EmbeddedServer,
    LocalTriton,
    probe_docker,
    probe_embedded,
    probe_triton,
    server_findings,
)

F = TypeVar("F", Package, Gpus, EmbeddedServer, LocalTriton, Docker, MachineResources)


@dataclass(frozen=True)
class Machine:
    """What was found on a machine. Without arguments, a machine that has nothing."""

    packages: dict[str, Package] = field(default_factory=lambda: {name: Package() for name in PACKAGES})
    gpus: Gpus = Gpus()
    embedded: EmbeddedServer = EmbeddedServer()
    triton: LocalTriton = LocalTriton()
    docker: Docker = Docker()
    resources: MachineResources = MachineResources()


def examine_machine() -> Machine:
    """Examine everything without changing anything. Every check has a timeout, so this always ends."""
    with ThreadPoolExecutor(max_workers=len(PACKAGES) + 5) as pool:
        packages = {name: _submit(pool, Package, partial(probe_package, name)) for name in PACKAGES}
        gpus = _submit(pool, Gpus, probe_gpus)
        embedded = _submit(pool, EmbeddedServer, probe_embedded)
        triton = _submit(pool, LocalTriton, probe_triton)
        docker = _submit(pool, Docker, probe_docker)
        resources = _submit(pool, MachineResources, probe_resources)
        return Machine(
            {name: future.result() for name, future in packages.items()},
            gpus.result(),
            embedded.result(),
            triton.result(),
            docker.result(),
            resources.result(),
        )


def machine_findings(machine: Machine) -> Sections:
    """Return the findings about a machine."""
    gpu = bool(machine.gpus.devices)
    return {
        "Python": package_findings(machine.packages, gpu=gpu),
        "GPU": gpu_findings(machine.gpus),
        "servers": server_findings(machine.embedded, machine.triton, machine.docker, gpu=gpu),
        "this machine": resource_findings(machine.resources),
    }


def _submit(pool: ThreadPoolExecutor, facts: type[F], probe: Callable[[], F]) -> Future[F]:
    def guarded() -> F:
        try:
            return probe()
        except Exception as error:  # one odd thing about a machine must not hide the other findings
            return facts(problem=f"could not be looked at ({type(error).__name__}: {shortened(str(error))})")

    return pool.submit(guarded)
