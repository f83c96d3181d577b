"""Build the TensorRT engines of this bundle for this machine's GPU.

Needs only TensorRT's Python module and the standard library. ``dfer-deploy export --target tensorrt`` joins this module
and those that it imports to the file ``build_engines.py`` in the bundle, so that engines can be built inside the image
that serves them, without PyTorch and without dfer-deploy.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dfer_deploy.bundles.engine_builds import EngineBuild, onnx_path, plan_path, read_engine_builds
from dfer_deploy.bundles.engine_records import (
    HARDWARE_COMPATIBILITY,
    OLDEST_TENSORRT,
    SIDECAR,
    SIDECAR_FORMAT,
    Builder,
    BuildOptions,
    Device,
    EngineRecord,
    EngineSet,
)
from dfer_deploy.errors import DferDeployError, EngineError
from dfer_deploy.export.engine import Engine, Report, engine_from_onnx
from dfer_deploy.hardware import ask_cuda_driver
from dfer_deploy.plain_data import plain, spec_from_dict


def builder_module(name: str) -> Any:
    """Import ``tensorrt`` or another module with its API.

    Raises:
        EngineError: the module is not installed, cannot be loaded, or is not TensorRT (type stubs alone import as an
            empty ``tensorrt``).
    """
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, ValueError, TypeError) as error:  # the last two for a name that is not a module's
        raise EngineError(
            f"the module {name!r} cannot be imported ({error}); install it for this machine's CUDA"
        ) from error
    if not hasattr(module, "Builder"):
        raise EngineError(
            f"the module {name!r} has no Builder, so it is not TensorRT; install TensorRT's Python module"
        )
    return module


def build_bundle(
    trt: Any, bundle: Path, options: BuildOptions, *, opt_batch: int | None = None, report: Report
) -> tuple[Path, EngineSet, list[str]]:
    """Build the engines of a bundle, each beside its ``config.pbtxt``, and record them in ``engines/engines.json``.

    An engine whose graph, profile, builder, options and GPU equal the recorded ones is not built again. Plans of
    TensorRT-RTX, which Triton cannot load, are written to ``engines/tensorrt_rtx``.

    Args:
        trt: the module ``tensorrt``, or a module with its API.
        bundle: the folder that ``dfer-deploy export --target tensorrt`` wrote.
        options: options for the builder.
        opt_batch: number of clips in a usual execution; None for the number in ``build_engines.json``: 8, or the
            largest batch if that is smaller.
        report: see ``engine_from_onnx``.

    Returns:
        The sidecar's path, its content, and the names of the graphs that were built now.

    Raises:
        EngineError: the folder is not such a bundle, its graphs are damaged, or an engine cannot be built.
    """
    builds = read_engine_builds(bundle)
    graphs = builds.graphs
    if opt_batch is not None:
        graphs = {name: build.with_usual_batch(opt_batch) for name, build in graphs.items()}
    servable = trt.__name__ == "tensorrt"
    sidecar = _sidecar(bundle, trt)
    builder = Builder(module=trt.__name__, version=trt.__version__, **asdict(options))
    found = EngineSet(builder, _device(), {})
    found = replace(found, engines=_recorded(sidecar, found))
    built = []
    for graph, build in graphs.items():
        plan = bundle / plan_path(graph, builds.version) if servable else sidecar.with_name(f"{graph}.engine")
        if _sha256(bundle / onnx_path(graph)) != build.onnx_sha256:
            raise EngineError(
                f"{bundle / onnx_path(graph)} is not the graph that was exported; export the bundle again"
            )
        if _is_built(bundle, plan, build, found.engines.get(graph)):
            continue
        start = time.perf_counter()
        cache = sidecar.with_name(_cache_name(trt, found.device)) if found.device else None
        engine = engine_from_onnx(
            trt,
            bundle / onnx_path(graph),
            build.profile,
            options,
            precision=build.precision,
            products=build.matrix_products,
            timing_cache=None if cache is None else cache.read_bytes() if cache.exists() else b"",
            report=report,
        )
        record = _record(bundle, plan, graph, build, engine, time.perf_counter() - start)
        found = replace(found, engines=found.engines | {graph: record})
        _keep(bundle, sidecar, found, graph, engine)
        if cache is not None and engine.timing_cache is not None:
            _write(bundle, cache, engine.timing_cache)
        built.append(graph)
    return sidecar, found, built


def _sidecar(bundle: Path, trt: Any) -> Path:
    """Return the path of the record of a builder's engines. An old TensorRT is refused."""
    path = bundle / SIDECAR
    if trt.__name__ != "tensorrt":
        return path.parent / str(trt.__name__) / path.name
    if tuple(int(part) for part in trt.__version__.split(".")[:2]) < OLDEST_TENSORRT:
        raise EngineError(f"TensorRT {trt.__version__} is too old, expected 10.12 or later; upgrade it")
    return path


def _device() -> Device | None:
    """Return the first visible GPU and its driver; None without a GPU."""
    driver = ask_cuda_driver()
    return Device(**asdict(driver.gpus[0]), cuda_driver=driver.cuda or "unknown") if driver.gpus else None


def _is_built(bundle: Path, plan: Path, build: EngineBuild, record: EngineRecord | None) -> bool:
    return (
        record is not None
        and (bundle / record.plan, record.onnx_sha256, record.profile) == (plan, build.onnx_sha256, build.profile)
        and record.sha256 == _sha256(plan)
    )


def _record(bundle: Path, plan: Path, graph: str, build: EngineBuild, engine: Engine, seconds: float) -> EngineRecord:
    return EngineRecord(
        plan=plan.relative_to(bundle).as_posix(),
        sha256=hashlib.sha256(engine.plan).hexdigest(),
        bytes=len(engine.plan),
        onnx=onnx_path(graph),
        onnx_sha256=build.onnx_sha256,
        profile=build.profile,
        precision=engine.precision,
        matrix_products=engine.matrix_products,
        seconds=round(seconds, 1),
    )


def _keep(bundle: Path, sidecar: Path, found: EngineSet, graph: str, engine: Engine) -> None:
    """Write the record, then the plan: a plan without a record looks foreign, one that differs is built again."""
    _write(bundle, sidecar, _json({"format": SIDECAR_FORMAT} | asdict(found)))
    _write(bundle, bundle / found.engines[graph].plan, engine.plan)
    if engine.layers is not None:
        _write(bundle, sidecar.with_name(f"{graph}.layers.json"), engine.layers.encode())


def _recorded(sidecar: Path, now: EngineSet) -> dict[str, EngineRecord]:
    """Return the engines that were built under the same conditions. Damaged ones are omitted and so built again."""
    conditions = plain({"format": SIDECAR_FORMAT} | asdict(now))
    records = {}
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
        if any(content[name] != conditions[name] for name in ("format", "builder", "device")):
            return {}
        for graph, values in content["engines"].items():
            with contextlib.suppress(DferDeployError):
                records[graph] = spec_from_dict(EngineRecord, values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return records


def _cache_name(trt: Any, device: Device) -> str:
    key = f"{device.name}-sm{device.compute_capability}-cuda{device.cuda_driver}-trt{trt.__version__}"
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in key) + ".timing_cache"


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while piece := file.read(1 << 20):
                digest.update(piece)
            return digest.hexdigest()
    except OSError:
        return None


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _write(bundle: Path, path: Path, content: bytes) -> None:
    """Write a file of the bundle completely or not at all, and never through a link out of the bundle."""
    if path.parent.resolve() != bundle.resolve() / path.parent.relative_to(bundle):
        raise EngineError(f"{path.parent} is a link to another place; export the bundle again")
    # The temporary file lies beside the manifest, because a leftover in the repository would look like a foreign file.
    temporary = bundle / f".{path.name}.{os.getpid()}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise EngineError(f"cannot write {path} ({error.strerror}); free some space or choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def main() -> int:
    """Run the command line of ``build_engines.py`` in a bundle; see ``--help``."""
    parser = argparse.ArgumentParser(description="Build the TensorRT engines of this bundle for this machine's GPU.")
    parser.add_argument("bundle", type=Path, nargs="?", default=Path(__file__).resolve().parent)
    parser.add_argument("--builder", default="tensorrt", help="the module that builds (default: %(default)s)")
    parser.add_argument("--opt-batch", type=int, help="clips in the usual execution (default: 8)")
    parser.add_argument("--optimization-level", type=int, default=3, help="0 to 5 (default: %(default)s)")
    parser.add_argument("--workspace-mib", type=int, help="device memory for a layer (default: all)")
    parser.add_argument("--hardware-compatibility", choices=HARDWARE_COMPATIBILITY, default="none")
    parser.add_argument("--version-compatible", action="store_true", help="for trusted plans only: they carry code")
    given = parser.parse_args()
    start = time.perf_counter()

    def report(graph: str, phase: str, share: float) -> None:
        if sys.stderr.isatty():
            passed = time.perf_counter() - start
            line = f"{graph}: {phase} {share:4.0%}, {passed:.0f} s"
            print(f"\r{line}\033[K", end="\n" if share == 1 else "", file=sys.stderr, flush=True)

    try:
        options = BuildOptions(
            given.optimization_level,
            None if given.workspace_mib is None else given.workspace_mib << 20,
            given.hardware_compatibility,
            given.version_compatible,
        )
        trt = builder_module(given.builder)
        sidecar, found, built = build_bundle(trt, given.bundle, options, opt_batch=given.opt_batch, report=report)
    except DferDeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is built already is kept", file=sys.stderr)
        return 130
    for graph, engine in found.engines.items():
        state = f"built in {engine.seconds} s" if graph in built else "unchanged"
        size = f"{engine.bytes / 1e6:.1f} MB"
        print(f"{graph}: {engine.precision}, matrix products {engine.matrix_products}, {size}, {state}")
    print(f"recorded in {sidecar}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
