"""Write the folder that Triton loads: models, and the ensembles that join them."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelQueuePolicy

from dfer_deploy import triton_models
from dfer_deploy.bundles.bundle import Bundle, ServingOptions, Target, check_serving
from dfer_deploy.errors import BundleError, SettingError, WriteError, spelled
from dfer_deploy.export.receipt_outputs import add_receipts
from dfer_deploy.files import atomic_file, link_or_copy, sha256_of_file
from dfer_deploy.specs import (
    MAX_FRAMES,
    MAX_IMAGE_BYTES,
    Contract,
    GraphSpec,
    ModelSpec,
    TensorSpec,
)

_DATA_TYPES = {
    "uint8": model_config_pb2.TYPE_UINT8,
    "int32": model_config_pb2.TYPE_INT32,
    "float32": model_config_pb2.TYPE_FP32,
    "bytes": model_config_pb2.TYPE_STRING,
}


def write_model_repository(
    folder: Path,
    *,
    contract: Contract,
    spec: ModelSpec,
    target: Target,
    serving: ServingOptions,
    frame_interval_s: float | None,
    version: int,
    image_encoder_onnx: Path,
    temporal_head_onnx: Path,
    window_onnx: Path,
) -> None:
    """Write ``<folder>/<model>/config.pbtxt`` and ``<folder>/<model>/<version>/…`` for every model.

    The graphs are hard links to the given files if the file system allows it, else copies. The same arguments give the
    same bytes. A version can be added to an existing repository of the same classes. The configurations are then
    written again, and Triton serves the highest version.

    Args:
        folder: the model repository, which is created if it does not exist.
        contract: names and shapes of the served graphs.
        spec: the model, whose class names become ``labels.txt``.
        target: the server that will read the repository.
        serving: batches, instances, queue and accelerators.
        frame_interval_s: seconds between the frames of a training clip, for clients that sample videos.
        version: number of the version folder, at least 1.
        image_encoder_onnx: the graph of ``contract.image_encoder``.
        temporal_head_onnx: the graph of ``contract.temporal_head``.
        window_onnx: the graph of ``contract.window``.

    Raises:
        DferDeployError: a number is out of range, the version exists already, or its classes differ from those of the
            other versions.
    """
    check_serving(target, serving)
    if version < 1:
        raise SettingError(f"the version is {version}, expected at least 1")
    labels = _labels(spec)
    graphs = {
        contract.image_encoder.name: image_encoder_onnx,
        contract.temporal_head.name: temporal_head_onnx,
        contract.window.name: window_onnx,
    }
    code = _python_files(contract, target)
    told = _told(frame_interval_s, sha256_of_file(image_encoder_onnx), sha256_of_file(temporal_head_onnx))
    for config in _model_configs(contract, spec, target, serving, told):
        model_folder = folder / config.name
        version_folder = model_folder / str(version)
        if version_folder.exists():
            raise WriteError(f"{version_folder} exists already; choose the next version or another folder")
        version_folder.mkdir(parents=True)
        if any(output.label_filename for output in config.output):
            _write_labels(model_folder / "labels.txt", labels)
        if config.name in graphs and config.backend != "tensorrt":
            link_or_copy(graphs[config.name], version_folder / "model.onnx")
        _write_code(version_folder, code.get(config.name, {}))
        _write_text(model_folder / "config.pbtxt", config_text(config))


def _write_code(version_folder: Path, sources: Mapping[str, str]) -> None:
    """Write a model's source files by name. A folder that stays empty gets a file, because git drops empty folders."""
    for name, source in sources.items():
        _write_text(version_folder / name, source)
    if not any(version_folder.iterdir()):
        # An ensemble's folder stays empty, an engine's until it is built. Object stores drop empty folders too.
        (version_folder / ".keep").touch()


def check_model_repository(bundle: Bundle) -> None:
    """Refuse a repository with anything that ``export`` does not write, before a server executes it.

    The manifest's hashes detect damage, not intent: a person who changes a model.py can change the manifest too.

    Raises:
        DferDeployError: a configuration or a Python file differs from what this version writes, or there is an
            additional file.
    """
    manifest = bundle.manifest
    configs = bundle_configs(bundle, manifest.serving)
    expected = {bundle.model_repository / config.name / "config.pbtxt": config_text(config) for config in configs}
    labels = _labels(bundle.spec)
    expected |= {
        bundle.model_repository / config.name / "labels.txt": labels
        for config in configs
        if any(output.label_filename for output in config.output)
    }
    expected |= {
        bundle.model_repository / model / str(manifest.version) / name: source
        for model, files in _python_files(bundle.contract, manifest.target).items()
        for name, source in files.items()
    }
    for path, text in expected.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            raise BundleError(
                f"{path} is not what this version of dfer-deploy writes, and a server would execute it; "
                f"write the bundle anew with: dfer-deploy migrate {shlex.quote(str(bundle.path))} -o NEW"
            )
    _check_nothing_else(bundle, expected.keys(), {config.name for config in configs})


def _check_nothing_else(bundle: Bundle, expected: Collection[Path], models: Collection[str]) -> None:
    """Refuse additional files, because Python imports what lies beside a model.py. Older versions are not loaded."""
    repository, newest = bundle.model_repository, bundle.manifest.version
    for path in repository.rglob("*"):
        model, version, name = (*path.relative_to(repository).parts, "", "")[:3]
        is_version = model in models and version.isascii() and version.isdecimal()
        known = (
            path in expected
            or (path.is_dir() and not path.is_symlink())
            or (is_version and int(version) == newest and name in ("model.onnx", "model.plan", ".keep"))
            or (is_version and int(version) < newest)
        )
        if not known:
            raise BundleError(
                f"{path} is nothing that this version of dfer-deploy writes, and a server might execute it; "
                f"write the bundle anew with: dfer-deploy migrate {shlex.quote(str(bundle.path))} -o NEW"
            )


def bundle_configs(bundle: Bundle, serving: ServingOptions) -> tuple[ModelConfig, ...]:
    """Return the configurations of all models of a bundle with these options: graphs, Python code and ensembles.

    Raises:
        DferDeployError: the manifest lacks one of the graphs.
    """
    manifest, contract = bundle.manifest, bundle.contract
    told = _told(manifest.frame_interval_s, *bundle.graphs_sha256)
    return _model_configs(contract, bundle.spec, manifest.target, serving, told)


def _told(frame_interval_s: float | None, image_encoder_sha256: str, temporal_head_sha256: str) -> dict[str, str]:
    """Return what the ensembles report to clients as Triton parameters: the frame interval and the graphs' hashes."""
    told = {"image_encoder_sha256": image_encoder_sha256, "temporal_head_sha256": temporal_head_sha256}
    return told if frame_interval_s is None else told | {"frame_interval_s": repr(frame_interval_s)}


def _model_configs(
    contract: Contract, spec: ModelSpec, target: Target, serving: ServingOptions, told: Mapping[str, str]
) -> tuple[ModelConfig, ...]:
    graphs = (
        _model_config(_template(target, template), graph, target, serving)
        for template, graph in (
            ("image_encoder.pbtxt", contract.image_encoder),
            ("temporal_head.pbtxt", contract.temporal_head),
        )
    )
    most, encoder, head = serving.max_batch_size, contract.image_encoder, contract.temporal_head
    preprocess, window = contract.preprocess, contract.window
    ensembles = [
        _ensemble(_template("ensemble.pbtxt"), contract.ensemble, (encoder, head), most),
        _ensemble(_template("encoded.pbtxt"), contract.encoded, (preprocess, encoder, head), most),
        _ensemble(_template("stream.pbtxt"), contract.stream, (encoder, window, head), most),
        _ensemble(
            _template("encoded_stream.pbtxt"), contract.encoded_stream, (preprocess, encoder, window, head), most
        ),
    ]
    for ensemble in ensembles:
        for name, value in told.items():
            ensemble.parameters[name].string_value = value
    models = (*graphs, _preprocess(preprocess, serving), _window(window, target, serving))
    if target == "embedded":
        add_receipts(models, ensembles, contract.ensemble.name)
    return (*models, *ensembles)


def _python_files(contract: Contract, target: Target) -> dict[str, dict[str, str]]:
    """Return what the Python backend executes: the files in the version's folder with their content, by model."""
    code = {contract.preprocess.name: triton_models.preprocess_sources()}
    if target == "embedded":
        for graph in (contract.image_encoder, contract.temporal_head, contract.window):
            code[graph.name] = triton_models.onnx_model_sources()
    return code


def _model_config(template: ModelConfig, graph: GraphSpec, target: Target, serving: ServingOptions) -> ModelConfig:
    config = _filled(template, graph, serving.max_batch_size)
    (tensor,) = graph.inputs
    clip = _dims(tensor, time=MAX_FRAMES)
    (group,) = config.instance_group
    group.count = serving.instances
    config.dynamic_batching.max_queue_delay_microseconds = serving.queue_delay_us
    _limit_queue(config, serving)
    (sample,) = config.model_warmup
    sample.inputs[tensor.name].dims[:] = clip
    if target == "embedded":
        config.parameters["max_frames"].string_value = str(MAX_FRAMES)
    if target == "tensorrt":
        _record_cuda_graphs(config, tensor.name, clip, serving.cuda_graph_batches)
    if target == "onnxruntime" and serving.execution_provider == "tensorrt":
        bounds = ((1, 1, *clip[1:]), (min(8, serving.max_batch_size), *clip), (serving.max_batch_size, *clip))
        _build_inside_onnxruntime(config, tensor.name, bounds)
    return config


def _window(graph: GraphSpec, target: Target, serving: ServingOptions) -> ModelConfig:
    """Configure the window graph. It has no arithmetic, so TensorRT, more instances or batching delays do not help."""
    template = _template("embedded" if target == "embedded" else "onnxruntime", "window.pbtxt")
    config = _filled(template, graph, serving.max_batch_size)
    _limit_queue(config, serving)
    return config


def _preprocess(graph: GraphSpec, serving: ServingOptions) -> ModelConfig:
    config = _filled(_template("preprocess.pbtxt"), graph, serving.max_batch_size)
    _limit_queue(config, serving)
    config.parameters["max_frames"].string_value = str(MAX_FRAMES)
    config.parameters["max_image_bytes"].string_value = str(MAX_IMAGE_BYTES)
    return config


def _ensemble(template: ModelConfig, graph: GraphSpec, steps: Sequence[GraphSpec], max_batch_size: int) -> ModelConfig:
    config = _filled(template, graph, max_batch_size)
    for step, model in zip(config.ensemble_scheduling.step, steps, strict=True):
        step.model_name = model.name
    return config


def _record_cuda_graphs(config: ModelConfig, name: str, clip: list[int], batches: Sequence[int]) -> None:
    """Record CUDA graphs. Triton replays them only for the exact shape (tensorrt_backend, ``InitializeGraphSpecs``)."""
    del config.optimization.cuda.graph_spec[:]
    config.optimization.cuda.graphs = bool(batches)
    for batch in batches:
        graph = config.optimization.cuda.graph_spec.add(batch_size=batch)
        graph.input[name].dim[:] = clip


def _build_inside_onnxruntime(config: ModelConfig, name: str, shapes: Sequence[Sequence[int]]) -> None:
    """Enable onnxruntime's TensorRT provider, with one profile for all shapes instead of a new engine for each.

    ``shapes`` are the smallest, the usual and the largest shape of the input ``name``.

    Without a precision mode onnxruntime makes a strongly typed network, so that the graph's own types hold. Source:
    onnxruntime's documentation, "TensorRT Execution Provider", explicit shape range.
    """
    provider = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
    for bound, shape in zip(("min", "opt", "max"), shapes, strict=True):
        provider.parameters[f"trt_profile_{bound}_shapes"] = f"{name}:{'x'.join(map(str, shape))}"


def _limit_queue(config: ModelConfig, serving: ServingOptions) -> None:
    """Limit the queue, if the options say so; further requests are refused.

    Any policy of the queue ends Triton's prefetching. Its batcher then looks for a free instance when a request comes,
    and otherwise every 500 ms, so that the last requests of a burst wait that long (Triton's core,
    ``PriorityQueue::SupportPrefetching`` and ``DynamicBatchScheduler::WaitForPayloadSlotAvailable``).
    """
    if serving.max_queue_size:
        policy = config.dynamic_batching.default_queue_policy
        policy.timeout_action, policy.max_queue_size = ModelQueuePolicy.REJECT, serving.max_queue_size


def config_text(config: ModelConfig) -> str:
    """Return the text of ``config.pbtxt``. It is deterministic, and it is parsed back to prove that nothing is lost.

    Raises:
        RuntimeError: the text does not parse back to the same message, which is a bug.
    """
    text: str = text_format.MessageToString(config)
    if text_format.Parse(text, ModelConfig()) != config:
        raise RuntimeError(f"the configuration of {config.name} does not survive its text form")
    return f"# Written by dfer-deploy export.\n{text}"


def _template(*path: str) -> ModelConfig:
    return text_format.Parse(triton_models.config_template(*path), ModelConfig())


def _filled(config: ModelConfig, graph: GraphSpec, max_batch_size: int) -> ModelConfig:
    config.name = graph.name
    config.max_batch_size = max_batch_size
    for entries, tensors in ((config.input, graph.inputs), (config.output, graph.outputs)):
        by_name = {tensor.name: tensor for tensor in tensors}
        if sorted(by_name) != sorted(entry.name for entry in entries):
            raise RuntimeError(f"the template of {graph.name} has other tensors than the contract")
        for entry in entries:
            tensor = by_name[entry.name]
            entry.data_type = _DATA_TYPES[tensor.dtype]
            entry.dims[:] = _dims(tensor, time=-1)
    return config


def _dims(tensor: TensorSpec, *, time: int) -> list[int]:
    """Return a tensor's dimensions as Triton writes them: without the batch, and ``time`` for the dynamic one."""
    return [time if isinstance(size, str) else size for size in tensor.shape[1:]]


def _labels(spec: ModelSpec) -> str:
    return "".join(f"{name}\n" for name in spec.prompts.class_names)


def _write_labels(path: Path, labels: str) -> None:
    if path.exists() and (old := path.read_text(encoding="utf-8")) != labels:
        raise BundleError(
            f"{path} has the classes {_listing(old.splitlines())}, the new version has "
            f"{_listing(labels.splitlines())}; export it under another {spelled('name')}"
        )
    _write_text(path, labels)


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names)


def _write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
