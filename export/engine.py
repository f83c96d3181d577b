"""Build one TensorRT engine from an ONNX graph.

Needs only TensorRT's Python module and the standard library, because it is a part of ``build_engines.py`` in a bundle
(see ``export.standalone``). One code path serves TensorRT 10.12 and later, and 11, which has no weak typing: the graphs
define the precision, and the network is strongly typed. The module is a parameter, so that the tests run the same
functions with TensorRT-RTX's builder, which has the API of 11 and needs no GPU.

Source: NVIDIA TensorRT documentation, "Python API" and "Working with Dynamic Shapes", 10.16 and 11.4.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dfer_deploy.bundles.engine_records import BuildOptions, Profile
from dfer_deploy.errors import EngineError
from dfer_deploy.hardware import ask_cuda_driver

if TYPE_CHECKING:
    import tensorrt

_MATRIX_PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION", "EINSUM")
"""Types of layers that are matrix products."""

Report = Callable[[str, str, float], None]
"""Is called with the name of the graph, the builder's phase, and the share that is done, 0 to 1."""

T = TypeVar("T")


@dataclass(frozen=True)
class Engine:
    """A serialised engine with its description.

    Attributes:
        plan: the bytes of the plan file.
        precision: ``fp16`` if all matrix products except the one that gives the logits are HALF, ``fp32`` if all are
            FLOAT, ``mixed`` if they have the types that the bundle states for each block, and not all the same.
        matrix_products: number of the network's matrix products by type.
        layers: description of the built layers by the engine inspector (JSON); None without a GPU to load the plan.
        timing_cache: measured kernel times, for the next build on the same GPU, CUDA and TensorRT; None if the builder
            does not keep them.
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
    """Parse an ONNX graph into a strongly typed network and build its engine.

    Args:
        trt: the module ``tensorrt``, or a module with its API.
        onnx: a single-file ONNX graph, whose types define the precision.
        profiles: the range of shapes of every dynamic input.
        options: options for the builder.
        precision: the stated precision of the graph, ``fp16`` or ``fp32``. It is compared with the network before
            anything is built.
        products: for a graph with blocks that stay fp32, used instead of the precision: the type of every matrix
            product, ``HALF`` or ``FLOAT``, in the network's order, which is that of the computation.
        timing_cache: cache of an earlier build on the same GPU, CUDA and TensorRT; empty bytes start one, None uses
            none.
        report: is called with the progress of the builder.

    Raises:
        EngineError: the file is missing or cannot be parsed, its matrix products have another precision, a profile is
            impossible, or the builder fails; with all messages of the parser and the builder.
        KeyboardInterrupt: the build was interrupted.
    """
    if not onnx.is_file():
        raise EngineError(f"{onnx} does not exist; export the bundle again")
    log = _log(trt)
    builder: tensorrt.Builder = _not_none(trt.Builder(log), "no builder could be made", log)
    network, _parser = _parsed(trt, builder, onnx, log)  # the parser holds the weights until the engine is built
    found, matrix_products = _precision(network, onnx, precision, products)
    config = _not_none(builder.create_builder_config(), "no configuration could be made", log)
    _configure(trt, config, options)
    _add_profile(builder, network, config, profiles, log)
    if timing_cache is not None:
        _set_timing_cache(config, timing_cache, log)
    monitor = _monitor(trt, onnx.stem, report)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor.stopped_by is not None:
        raise monitor.stopped_by
    plan = bytes(_not_none(plan, f"{onnx} could not be built", log))
    report(onnx.stem, "built", 1.0)
    cache = None if timing_cache is None else config.get_timing_cache()
    kept = None if cache is None else bytes(cache.serialize())
    return Engine(plan, found, matrix_products, _inspected(trt, plan, options, log), kept)


def _parsed(
    trt: Any, builder: tensorrt.Builder, onnx: Path, log: Any
) -> tuple[tensorrt.INetworkDefinition, tensorrt.OnnxParser]:
    """Parse a graph into a strongly typed network; return it with the parser, which must live as long."""
    # Bit 0 was EXPLICIT_BATCH, which 11 refuses together with bit 1. 11 ignores STRONGLY_TYPED: every network is.
    flags = trt.NetworkDefinitionCreationFlag
    strongly_typed = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    network = _not_none(builder.create_network(strongly_typed), "no network could be made", log)
    parser: tensorrt.OnnxParser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        raise EngineError(f"{onnx} is refused by the parser: {_parser_errors(parser) or log.said()}")
    if network.num_outputs == 0:
        # The parser accepts bytes that are not a model as an empty model.
        raise EngineError(f"{onnx} holds no graph; export the bundle again")
    return network, parser


def _set_timing_cache(config: tensorrt.IBuilderConfig, content: bytes, log: Any) -> None:
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        # Damaged, or from another GPU: start with an empty cache.
        cache = _not_none(config.create_timing_cache(b""), "no timing cache could be made", log)
        if not config.set_timing_cache(cache, False):
            raise EngineError(f"the builder accepts no timing cache: {log.said()}")


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keep TensorRT's complaints. Its failures are return values, and the reasons appear only here."""

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
        """Turn the builder's nested phases into one share.

        The builder calls from several threads and ignores exceptions, so they are kept and stop the build.
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
                        # Parallel phases end in any order.
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
    """Read the types of the network's matrix products. A graph with only that of the logits fits any precision."""
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
        # The product with the classifier gives the logits and is fp32 in either precision.
        if layer.get_output(0).name not in last:
            inner.add(dtype)
    all_types = Counter(found)
    precision = {("HALF",): "fp16", ("FLOAT",): "fp32", (): "fp32"}.get(tuple(sorted(inner)))
    if products is not None:
        if found != list(products):
            place = next((i for i, (a, b) in enumerate(zip(found, products, strict=False)) if a != b), len(found))
            raise EngineError(
                f"the matrix products of {onnx} have the types {dict(sorted(all_types.items()))}, the bundle's "
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
    # On by default, which would round products of FLOAT to 10 bits, but the graph says fp32.
    config.clear_flag(trt.BuilderFlag.TF32)
    # The engine inspector can only name layers and types that the plan carries.
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
        except (
            RuntimeError,
            ValueError,
        ) as error:  # documented as ValueError, raised as RuntimeError
            raise EngineError(f"the profile of {name!r} is refused: {error}; {log.said()}") from error
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"the builder refuses the profile {dict(profiles)}: {log.said()}")


def _inspected(trt: Any, plan: bytes, options: BuildOptions, log: Any) -> str | None:
    """Return the engine inspector's JSON; None without a GPU, which loading a plan needs."""
    if not ask_cuda_driver().gpus:
        return None
    runtime: tensorrt.Runtime = _not_none(trt.Runtime(log), "no runtime could be made", log)
    # A version-compatible plan carries its own runtime as code, which is trusted because it was built here just now.
    if options.version_compatible:
        runtime.engine_host_code_allowed = True
    engine = _not_none(runtime.deserialize_cuda_engine(plan), "the engine that was built cannot be loaded", log)
    inspector = _not_none(engine.create_engine_inspector(), "no engine inspector could be made", log)
    layers = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return str(_not_none(layers, "the engine inspector says nothing", log))
