"""Builds TensorRT engines from the ONNX graphs of a bundle.

Needs TensorRT's Python module and the standard library, nothing else: ``dfer-deploy export --target tensorrt`` joins
this module and those that it imports to the file ``build_engines.py`` in the bundle, so that engines can be built
inside the image that serves them, without PyTorch and without dfer-deploy. One code path for TensorRT 10.12 and later
and 11, whose weak typing is gone: precision lies in the graphs, and the network is strongly typed. The module is a
parameter, so that the tests run the same functions with TensorRT-RTX's builder, which has the API of 11 and needs no
GPU.

Source: NVIDIA TensorRT documentation, "Python API" and "Working with Dynamic Shapes", 10.16 and 11.4.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dfer_deploy.cuda_driver import ask_cuda_driver

if TYPE_CHECKING:
    import tensorrt

OLDEST_TENSORRT = (10, 12)
SIDECAR = Path("engines") / "engines.json"
SIDECAR_FORMAT = "dfer-deploy-engines/1"
HARDWARE_COMPATIBILITY = ("none", "ampere_plus", "same_compute_capability")
MAX_FRAMES = 16
DEFAULT_OPT_BATCH = 8
MOST_WORKSPACE_BYTES = 1 << 40

_PRODUCTS_OF_A_LAYER = 8
"""In a transformer layer: queries, keys, values, two of the attention, its output, two of the MLP."""

_MATRIX_PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION", "EINSUM")

Report = Callable[[str, str, float], None]
"""Is told which graph is being built, the builder's phase, and the share that is done, 0 to 1."""

T = TypeVar("T")


class EngineError(Exception):
    """The engine cannot be built, told in one sentence: what was found, what was expected, what to do."""


@dataclass(frozen=True)
class Profile:
    """The smallest, the usual and the largest shape of a dynamic input; the builder chooses kernels for the usual."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class BuildOptions:
    """What the builder is told.

    Attributes:
        optimization_level: 0 (builds fast) to 5 (searches longest); 3 is TensorRT's default.
        workspace_bytes: device memory that a layer may use while it runs; None is TensorRT's default, all there is.
        hardware_compatibility: ``none`` for this GPU model only, ``ampere_plus`` for every GPU since Ampere,
            ``same_compute_capability`` for all GPUs of this one's compute capability. Wider is slower.
        version_compatible: later TensorRT versions can load the plan. It then carries code that the loading process
            executes, so Triton loads it only with ``--backend-config=tensorrt,version-compatible=true``.
    """

    optimization_level: int = 3
    workspace_bytes: int | None = None
    hardware_compatibility: str = "none"
    version_compatible: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.optimization_level <= 5:
            raise EngineError(f"the optimisation level is {self.optimization_level}, expected 0 to 5")
        if self.workspace_bytes is not None and not 0 < self.workspace_bytes <= MOST_WORKSPACE_BYTES:
            raise EngineError(
                f"the workspace has {self.workspace_bytes >> 20} MiB, expected 1 to {MOST_WORKSPACE_BYTES >> 20}"
            )
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            raise EngineError(
                f"the hardware compatibility is {self.hardware_compatibility!r}, expected one of "
                + ", ".join(HARDWARE_COMPATIBILITY)
            )


@dataclass(frozen=True)
class Engine:
    """A serialised engine and what is known about it.

    Attributes:
        plan: the bytes of the plan file.
        precision: ``fp16`` if all matrix products but the one that gives the logits are HALF, ``fp32`` if all are
            FLOAT, ``mixed`` if they have the types that the bundle says for each block, and not all the same.
        matrix_products: how many of the network's matrix products have which type.
        layers: what the engine inspector says about the built layers (JSON), None without a GPU to load the plan.
        timing_cache: measured kernel times, for the next build on the same GPU, CUDA and TensorRT; None where the
            builder keeps none.
    """

    plan: bytes
    precision: str
    matrix_products: dict[str, int]
    layers: str | None
    timing_cache: bytes | None


def engine_from_onnx(
    trt: Any,
    onnx: Path,
    profiles: Mapping[str, Profile],
    options: BuildOptions,
    *,
    precision: str | None = None,
    products: Sequence[str] | None = None,
    timing_cache: bytes | None = None,
    report: Report = lambda graph, phase, share: None,
) -> Engine:
    """Parses an ONNX graph into a strongly typed network and builds its engine.

    Args:
        trt: the module ``tensorrt``, or one with its API.
        onnx: a single-file ONNX graph; its types decide the precision.
        profiles: for every dynamic input.
        options: for the builder.
        precision: what the graph is said to have, ``fp16`` or ``fp32``; held against the network before anything is
            built.
        products: for a graph with blocks that stay fp32, in place of the precision: the type of every matrix product,
            ``HALF`` or ``FLOAT``, in the network's order, which is that of the computation.
        timing_cache: of an earlier build on the same GPU, CUDA and TensorRT (empty bytes start one); None for no cache.
        report: is told how far the builder is.

    Raises:
        EngineError: the file is missing or not understood, its matrix products have another precision, a profile is
            impossible, or the builder fails; with everything that parser and builder said about it.
        KeyboardInterrupt: the build was interrupted.
    """
    if not onnx.is_file():
        raise EngineError(f"{onnx} does not exist; export the bundle again")
    log = _log(trt)
    builder: tensorrt.Builder = _not_none(trt.Builder(log), "no builder could be made", log)
    # Bit 0 was EXPLICIT_BATCH, which 11 refuses together with bit 1; 11 ignores STRONGLY_TYPED, it knows nothing else.
    flags = trt.NetworkDefinitionCreationFlag
    strongly_typed = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    network = _not_none(builder.create_network(strongly_typed), "no network could be made", log)
    parser: tensorrt.OnnxParser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        raise EngineError(f"{onnx} is refused by the parser: {_parser_errors(parser) or log.said()}")
    if network.num_outputs == 0:
        # The parser takes bytes that are no model for an empty one.
        raise EngineError(f"{onnx} holds no graph; export the bundle again")
    found, matrix_products = _precision(network, onnx, precision, products)
    config = _not_none(builder.create_builder_config(), "no configuration could be made", log)
    _configure(trt, config, options)
    _add_profile(builder, network, config, profiles, log)
    cache = None
    if timing_cache is not None:
        cache = config.create_timing_cache(timing_cache)
        if cache is None or not config.set_timing_cache(cache, False):
            # Damaged, or of another GPU: start anew.
            cache = _not_none(config.create_timing_cache(b""), "no timing cache could be made", log)
            if not config.set_timing_cache(cache, False):
                raise EngineError(f"the builder accepts no timing cache: {log.said()}")
    monitor = _monitor(trt, onnx.stem, report)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor.stopped_by is not None:
        raise monitor.stopped_by
    plan = bytes(_not_none(plan, f"{onnx} could not be built", log))
    report(onnx.stem, "built", 1.0)
    cache = config.get_timing_cache() if cache is not None else None
    kept = bytes(cache.serialize()) if cache is not None else None
    return Engine(plan, found, matrix_products, _inspected(trt, plan, options, log), kept)


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps what TensorRT complains about; its failures are return values, the reasons are only here."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.complaints: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.complaints.append(" ".join(message.split()))

        def said(self) -> str:
            return "; ".join(dict.fromkeys(self.complaints)) or "it gave no reason"

    return Log()


def _monitor(trt: Any, graph: str, report: Report) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Turns the builder's nested phases into one share.

        The builder calls from several threads, and takes no notice of exceptions: they are kept and stop it.
        """

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped_by: BaseException | None = None
            self.phases: dict[str, tuple[str | None, int, int]] = {}  # parent, steps done, steps
            self.done = 0.0
            self.lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self.alone():
                self.phases[phase_name] = (parent_phase, 0, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            with self.alone():
                self.phases.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self.alone():
                parent, _, steps = self.phases.get(phase_name, (None, 0, 1))
                self.phases[phase_name] = (parent, step + 1, steps)
                for name, (above, _, _) in self.phases.items():
                    if above is None:
                        # Phases side by side end in any order.
                        self.done = max(self.done, min(1.0, self.share(name)))
                        report(graph, name, self.done)
            return self.stopped_by is None

        @contextlib.contextmanager
        def alone(self) -> Iterator[None]:
            try:
                with self.lock:
                    yield
            except BaseException as error:
                self.stopped_by = error

        def share(self, name: str) -> float:
            _, done, steps = self.phases[name]
            below = [self.share(other) for other, (parent, _, _) in self.phases.items() if parent == name]
            return (done + min(1.0, max(below, default=0.0))) / max(steps, 1)

    return Monitor()


def _not_none(value: T | None, what: str, log: Any) -> T:
    if value is None:
        raise EngineError(f"{what}: {log.said()}")
    return value


def _parser_errors(parser: tensorrt.OnnxParser) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return "; ".join(
        f"{' '.join(error.desc().split())} (code {getattr(error.code(), 'name', error.code())}"
        + (f", node {error.node()} {error.node_name()!r} of type {error.node_operator()}" if error.node() >= 0 else "")
        + ")"
        for error in errors
    )


def _precision(
    network: tensorrt.INetworkDefinition, onnx: Path, expected: str | None, products: Sequence[str] | None
) -> tuple[str, dict[str, int]]:
    """Reads the types of the network's matrix products; a graph with none but that of the logits fits any claim."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    last = {network.get_output(index).name for index in range(network.num_outputs)}
    # A linear classifier adds its bias after the product.
    last |= {
        layer.get_input(index).name
        for layer in layers
        if layer.type.name == "ELEMENTWISE" and layer.get_output(0).name in last
        for index in range(layer.num_inputs)
    }
    inner, found = set[str](), list[str]()
    for layer in layers:
        if layer.type.name not in _MATRIX_PRODUCTS:
            continue
        dtype = layer.get_input(0).dtype.name
        found.append(dtype)
        # The product with the classifier gives the logits; it is fp32 in either precision.
        if layer.get_output(0).name not in last:
            inner.add(dtype)
    all_types = Counter(found)
    precision = {("HALF",): "fp16", ("FLOAT",): "fp32", (): "fp32"}.get(tuple(sorted(inner)))
    if products is not None:
        if found != list(products):
            place = next((i for i, (a, b) in enumerate(zip(found, products, strict=False)) if a != b), len(found))
            raise EngineError(
                f"the matrix products of {onnx} have the types {dict(sorted(all_types.items()))}, the manifest's "
                f"blocks in fp32 mean {dict(sorted(Counter(products).items()))}, and product {place + 1} is the first "
                "that differs; export the bundle again"
            )
        return precision or "mixed", dict(sorted(all_types.items()))
    if precision is None or (inner and expected not in (None, precision)):
        raise EngineError(
            f"the matrix products of {onnx} have the types {dict(sorted(all_types.items()))}, expected "
            f"{'one precision' if expected is None else expected}; export the bundle again"
        )
    return precision, dict(sorted(all_types.items()))


def _configure(trt: Any, config: tensorrt.IBuilderConfig, options: BuildOptions) -> None:
    config.builder_optimization_level = options.optimization_level
    config.hardware_compatibility_level = getattr(
        trt.HardwareCompatibilityLevel, options.hardware_compatibility.upper()
    )
    # On by default: products of FLOAT would be rounded to 10 bits, and fp32 is what the graph says.
    config.clear_flag(trt.BuilderFlag.TF32)
    # The engine inspector can name layers and types only if the plan carries them.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)


def _add_profile(
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    profiles: Mapping[str, Profile],
    log: Any,
) -> None:
    inputs = {network.get_input(index).name: network.get_input(index) for index in range(network.num_inputs)}
    dynamic = sorted(name for name, tensor in inputs.items() if -1 in tuple(tensor.shape))
    if sorted(profiles) != dynamic:
        raise EngineError(f"there are profiles for the inputs {sorted(profiles)}, the dynamic inputs are {dynamic}")
    profile = _not_none(builder.create_optimization_profile(), "no optimisation profile could be made", log)
    for name, shapes in profiles.items():
        expected = tuple(inputs[name].shape)
        for shape in (shapes.min, shapes.opt, shapes.max):
            fits = len(shape) == len(expected) and all(e in (-1, s) for s, e in zip(shape, expected, strict=True))
            if not fits:
                raise EngineError(f"the profile of {name!r} has the shape {list(shape)}, expected {list(expected)}")
        try:
            profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
        except (RuntimeError, ValueError) as error:  # the documentation says ValueError, the bindings raise the other
            raise EngineError(f"the profile of {name!r} is refused: {error}; {log.said()}") from error
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"the builder refuses the profile {dict(profiles)}: {log.said()}")


def _inspected(trt: Any, plan: bytes, options: BuildOptions, log: Any) -> str | None:
    """What the engine inspector says; loading a plan needs a GPU."""
    if not ask_cuda_driver().gpus:
        return None
    runtime: tensorrt.Runtime = _not_none(trt.Runtime(log), "no runtime could be made", log)
    # A version-compatible plan brings its own runtime as code; this one was built a moment ago, here.
    if options.version_compatible:
        runtime.engine_host_code_allowed = True
    engine = _not_none(runtime.deserialize_cuda_engine(plan), "the engine that was built cannot be loaded", log)
    inspector = _not_none(engine.create_engine_inspector(), "no engine inspector could be made", log)
    layers = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return str(_not_none(layers, "the engine inspector says nothing", log))


def _device() -> dict[str, Any] | None:
    """The first visible GPU and its driver; None without one."""
    driver = ask_cuda_driver()
    return asdict(driver.gpus[0]) | {"cuda_driver": driver.cuda or "unknown"} if driver.gpus else None


def builder_module(name: str) -> Any:
    """Imports ``tensorrt`` or another module with its API.

    Raises:
        EngineError: it is not installed, cannot be loaded, or is not TensorRT (type stubs alone import as an empty
            ``tensorrt``).
    """
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, ValueError, TypeError) as error:  # the last two for what is no name of a module
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
) -> tuple[Path, dict[str, Any], list[str]]:
    """Builds the engines of a bundle, each beside its ``config.pbtxt``, and records how in ``engines/engines.json``.

    An engine whose graph, profile, builder, options and GPU are the recorded ones is not built again. Plans of
    TensorRT-RTX, which Triton cannot load, go to ``engines/tensorrt_rtx``.

    Args:
        trt: the module ``tensorrt``, or one with its API.
        bundle: the folder that ``dfer-deploy export --target tensorrt`` wrote.
        options: for the builder.
        opt_batch: clips in the usual execution; None for 8, or the largest batch where that is smaller.
        report: as in ``engine_from_onnx``.

    Returns:
        The sidecar's path, its content, and the names of the graphs that were built now.

    Raises:
        EngineError: the bundle is no such bundle, its graphs are damaged, or an engine cannot be built.
    """
    manifest = _manifest(bundle)
    servable = trt.__name__ == "tensorrt"
    if servable and tuple(int(part) for part in trt.__version__.split(".")[:2]) < OLDEST_TENSORRT:
        raise EngineError(f"TensorRT {trt.__version__} is too old, expected 10.12 or later; upgrade it")
    folder = bundle / SIDECAR.parent / ("" if servable else trt.__name__)
    sidecar, device = folder / SIDECAR.name, _device()
    conditions = {
        "format": SIDECAR_FORMAT,
        "builder": {"module": trt.__name__, "version": trt.__version__, **asdict(options)},
        "device": device,
    }
    engines = _recorded(sidecar, conditions)
    built = []
    for graph, profiles in _profiles(manifest, opt_batch).items():
        onnx = f"onnx/{graph}.onnx"
        sha256 = _sha256(bundle / onnx)
        if sha256 != manifest["files"].get(onnx):
            raise EngineError(f"{bundle / onnx} is not the graph that was exported; export the bundle again")
        plan = f"model_repository/{graph}/{manifest['version']}/model.plan"
        if not servable:
            plan = (folder / f"{graph}.engine").relative_to(bundle).as_posix()
        shapes = {name: {bound: list(shape) for bound, shape in asdict(p).items()} for name, p in profiles.items()}
        wanted = {"plan": plan, "onnx": onnx, "onnx_sha256": sha256, "profile": shapes}
        known = engines.get(graph, {})
        if wanted.items() <= known.items() and _sha256(bundle / plan) == known.get("sha256"):
            continue
        start = time.perf_counter()
        cache = folder / _cache_name(trt, device) if device else None
        engine = engine_from_onnx(
            trt,
            bundle / onnx,
            profiles,
            options,
            precision=manifest["precision"],
            products=_products(manifest, graph),
            timing_cache=None if cache is None else cache.read_bytes() if cache.exists() else b"",
            report=report,
        )
        engines[graph] = wanted | {
            "sha256": hashlib.sha256(engine.plan).hexdigest(),
            "bytes": len(engine.plan),
            "precision": engine.precision,
            "matrix_products": engine.matrix_products,
            "seconds": round(time.perf_counter() - start, 1),
        }
        # The record first: a plan that is not the recorded one is built again, one without a record looks foreign.
        _write(bundle, sidecar, _json(conditions | {"engines": engines}))
        _write(bundle, bundle / plan, engine.plan)
        if engine.layers is not None:
            _write(bundle, folder / f"{graph}.layers.json", engine.layers.encode())
        if cache is not None and engine.timing_cache is not None:
            _write(bundle, cache, engine.timing_cache)
        built.append(graph)
    return sidecar, conditions | {"engines": engines}, built


def _manifest(bundle: Path) -> dict[str, Any]:
    """What the build needs of ``manifest.json``, which may have been damaged or made by somebody else."""
    path = bundle / "manifest.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        clip = content["spec"]["clip"]
        manifest = {
            "name": re.fullmatch(r"[A-Za-z0-9_-]+", content["name"]).group(),  # type: ignore[union-attr]
            "target": str(content["target"]),
            "precision": str(content["precision"]),
            "version": int(content["version"]),
            "max_batch_size": int(content["serving"]["max_batch_size"]),
            "image_size": int(clip["vision"]["image_size"]),
            "embed_dim": int(clip["embed_dim"]),
            "layers": int(clip["vision"]["layers"]),
            "depth": int(content["spec"]["temporal"]["depth"]),
            "keep_fp32": [str(block) for block in content.get("keep_fp32", [])],
            "files": dict(content["files"]),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EngineError(f"{path} is no manifest of a bundle ({error}); give the folder that export wrote") from error
    if manifest["target"] != "tensorrt":
        raise EngineError(
            f"{bundle} has the target {manifest['target']!r}, expected 'tensorrt'; export with --target tensorrt"
        )
    return manifest


def _profiles(manifest: Mapping[str, Any], opt_batch: int | None) -> dict[str, dict[str, Profile]]:
    """For both graphs: 1 clip of 1 frame, the usual batch of 16 frames, the largest batch of 16 frames."""
    largest, side, features = manifest["max_batch_size"], manifest["image_size"], manifest["embed_dim"]
    usual = min(DEFAULT_OPT_BATCH, largest) if opt_batch is None else opt_batch
    if not 1 <= usual <= largest:
        raise EngineError(f"the usual batch has {usual} clips, expected 1 to {largest}, the bundle's largest")
    return {
        f"{manifest['name']}_{graph}": {
            tensor: Profile((1, 1, *shape), (usual, MAX_FRAMES, *shape), (largest, MAX_FRAMES, *shape))
        }
        for graph, tensor, shape in (
            ("image_encoder", "frames", (side, side, 3)),
            ("temporal_head", "frame_features", (features,)),
        )
    }


def _products(manifest: Mapping[str, Any], graph: str) -> list[str] | None:
    """The types of a graph's matrix products where the bundle says that some blocks stay fp32, else None."""
    kept = manifest["keep_fp32"]
    if not kept:
        return None
    if graph == f"{manifest['name']}_image_encoder":
        layers = range(manifest["layers"])
        blocks = [("patch_embedding", 1), *((f"encoder.{i}", _PRODUCTS_OF_A_LAYER) for i in layers), ("projection", 1)]
        logits = []
    else:
        blocks = [(f"head.{i}", _PRODUCTS_OF_A_LAYER) for i in range(manifest["depth"])]
        logits = ["FLOAT"]
    return ["FLOAT" if block in kept else "HALF" for block, count in blocks for _ in range(count)] + logits


def _recorded(sidecar: Path, conditions: Mapping[str, Any]) -> dict[str, Any]:
    """The engines that were built under the very same conditions."""
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
        if not conditions.items() <= content.items():
            return {}
        return {graph: record for graph, record in content["engines"].items() if isinstance(record, dict)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _cache_name(trt: Any, device: Mapping[str, Any]) -> str:
    key = f"{device['name']}-sm{device['compute_capability']}-cuda{device['cuda_driver']}-trt{trt.__version__}"
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
    """Writes a file of the bundle whole or not at all; never through a link out of it."""
    if path.parent.resolve() != bundle.resolve() / path.parent.relative_to(bundle):
        raise EngineError(f"{path.parent} is a link to another place; export the bundle again")
    # Beside the manifest: Triton and dfer-deploy would take a forgotten file in the repository for a foreign one.
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
    """Command line of the file in a bundle; see ``--help``."""
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
        sidecar, content, built = build_bundle(trt, given.bundle, options, opt_batch=given.opt_batch, report=report)
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is built already is kept", file=sys.stderr)
        return 130
    for graph, engine in content["engines"].items():
        state = f"built in {engine['seconds']} s" if graph in built else "unchanged"
        size = f"{engine['bytes'] / 1e6:.1f} MB"
        print(f"{graph}: {engine['precision']}, matrix products {engine['matrix_products']}, {size}, {state}")
    print(f"recorded in {sidecar}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
