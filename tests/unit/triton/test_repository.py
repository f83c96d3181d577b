"""The model repository: complete, true to the contract, and the same bytes every time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from dfer_deploy import triton_models
from dfer_deploy.bundles.bundle import TARGETS, ServingOptions, Target
from dfer_deploy.errors import BundleError, SettingError, WriteError
from dfer_deploy.export.repository import write_model_repository
from dfer_deploy.specs import (
    MAX_IMAGE_BYTES,
    ClipSpec,
    Contract,
    ModelSpec,
    PromptSpec,
    TensorSpec,
    VisionSpec,
    contract_for,
)

CLASSES = ("joy", "no joy", "Überraschung")


def spec_with(classes: tuple[str, ...] = CLASSES) -> ModelSpec:
    return ModelSpec(PromptSpec(classes, classes), ClipSpec(VisionSpec(image_size=64, patch_size=16), embed_dim=256))


def write(folder: Path, target: Target = "embedded", *, version: int = 1, name: str = "dfer", **changes) -> Contract:
    graphs = folder.parent / "graphs"
    graphs.mkdir(exist_ok=True)
    for graph in ("encoder", "head", "window"):
        (graphs / graph).write_bytes(graph.encode())
    spec = changes.pop("spec", spec_with())
    contract = contract_for(spec, name)
    arguments = {"serving": ServingOptions(16), "target": target, "spec": spec, "frame_interval_s": None} | changes
    write_model_repository(
        folder, contract=contract, version=version, image_encoder_onnx=graphs / "encoder",
        temporal_head_onnx=graphs / "head", window_onnx=graphs / "window", **arguments,
    )  # fmt: skip
    return contract


def config_of(folder: Path, model: str):
    text = (folder / model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def tensors(entries) -> dict[str, tuple[str, list[int]]]:
    """Names, dtypes and dims of inputs or outputs, without receipts."""
    types = model_config_pb2
    names = {
        types.TYPE_UINT8: "uint8",
        types.TYPE_INT32: "int32",
        types.TYPE_FP32: "float32",
        types.TYPE_STRING: "bytes",
    }
    return {e.name: (names[e.data_type], list(e.dims)) for e in entries if not e.name.endswith("receipt")}


def outputs_of(step) -> dict[str, str]:
    """What an ensemble's step gives to others, without its receipt."""
    return {name: tensor for name, tensor in step.output_map.items() if name != "receipt"}


def expected(specs: tuple[TensorSpec, ...]) -> dict[str, tuple[str, list[int]]]:
    return {s.name: (s.dtype, [-1 if isinstance(size, str) else size for size in s.shape[1:]]) for s in specs}


@pytest.mark.parametrize("target", TARGETS)
def test_configurations_say_what_the_contract_says(tmp_path: Path, target: Target) -> None:
    contract = write(tmp_path / "repository", target, name="mine", serving=ServingOptions(5))
    for graph in (
        contract.image_encoder, contract.temporal_head, contract.ensemble, contract.preprocess, contract.encoded
    ):  # fmt: skip
        config = config_of(tmp_path / "repository", graph.name)
        assert config.name == graph.name
        assert config.max_batch_size == 5
        assert tensors(config.input) == expected(graph.inputs)
        assert tensors(config.output) == expected(graph.outputs)
        assert list(tensors(config.output)) == [tensor.name for tensor in graph.outputs]


@pytest.mark.parametrize("target", TARGETS)
def test_models_batch_and_warm_up(tmp_path: Path, target: Target) -> None:
    contract = write(tmp_path / "repository", target)
    for graph, dims in ((contract.image_encoder, [16, 64, 64, 3]), (contract.temporal_head, [16, 256])):
        config = config_of(tmp_path / "repository", graph.name)
        assert config.backend == ("python" if target == "embedded" else target)
        assert config.platform == ("tensorrt_plan" if target == "tensorrt" else "")
        assert config.HasField("dynamic_batching")
        (warmup,) = config.model_warmup
        sample = warmup.inputs[graph.inputs[0].name]
        assert (list(sample.dims), sample.zero_data) == (dims, True)
        (group,) = config.instance_group
        kinds = model_config_pb2.ModelInstanceGroup
        expected_kind = {"embedded": kinds.KIND_CPU, "onnxruntime": kinds.KIND_AUTO, "tensorrt": kinds.KIND_GPU}
        assert group.kind == expected_kind[target]
        assert not group.gpus  # an instance on every GPU
        assert group.count == 1


def test_the_ensemble_joins_the_two_models(tmp_path: Path) -> None:
    write(tmp_path / "repository", name="mine")
    config = config_of(tmp_path / "repository", "mine")
    encoder, head = config.ensemble_scheduling.step
    assert (encoder.model_name, head.model_name) == ("mine_image_encoder", "mine_temporal_head")
    assert encoder.model_version == head.model_version == -1
    assert encoder.output_map["frame_features"] == head.input_map["frame_features"]
    assert outputs_of(head) == {"probabilities": "probabilities", "logits": "logits"}
    assert not config.instance_group
    assert not config.model_warmup


@pytest.mark.parametrize("target", TARGETS)
def test_encoded_images_take_the_way_of_frames(tmp_path: Path, target: Target) -> None:
    folder = tmp_path / "repository"
    write(folder, target, name="mine", serving=ServingOptions(32))
    config = config_of(folder, "mine_encoded")
    first, *rest = config.ensemble_scheduling.step
    assert first.model_name == "mine_preprocess"
    assert (dict(first.input_map), outputs_of(first)) == ({"images": "images"}, {"frames": "frames"})
    assert rest == list(config_of(folder, "mine").ensemble_scheduling.step)
    assert tensors(config.output) == tensors(config_of(folder, "mine").output)
    preprocess = config_of(folder, "mine_preprocess")
    assert (preprocess.backend, preprocess.platform) == ("python", "")
    assert [(group.kind, group.count) for group in preprocess.instance_group] == [
        (model_config_pb2.ModelInstanceGroup.KIND_CPU, 1)
    ]
    assert preprocess.parameters["max_frames"].string_value == "16"
    assert preprocess.parameters["max_image_bytes"].string_value == str(MAX_IMAGE_BYTES)
    assert not preprocess.model_warmup  # Triton's warm-up has no image to send
    sources = {path.name: path.read_text(encoding="utf-8") for path in (folder / "mine_preprocess" / "1").iterdir()}
    assert sources == triton_models.preprocess_sources()
    assert set(sources) == {"model.py", "image_decoding.py", "model_requests.py", "receipts.py", "cgroups.py"}


@pytest.mark.parametrize("target", TARGETS)
def test_a_stream_is_encoder_window_and_head_without_state(tmp_path: Path, target: Target) -> None:
    serving = ServingOptions(9, queue_delay_us=70, instances=3)
    folder = tmp_path / "repository"
    contract = write(folder, target, name="mine", serving=serving, frame_interval_s=0.2)
    window = config_of(folder, "mine_window")
    assert (window.backend, window.platform) == ("python" if target == "embedded" else "onnxruntime", "")
    assert tensors(window.input) == expected(contract.window.inputs)
    assert tensors(window.output) == expected(contract.window.outputs)
    # Nobody waits for company where nothing is computed.
    assert (window.max_batch_size, window.dynamic_batching.max_queue_delay_microseconds) == (9, 0)
    (group,) = window.instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_CPU, 1)
    assert (folder / "mine_window" / "1" / "model.onnx").read_bytes() == b"window"
    stream = config_of(folder, "mine_stream")
    assert stream.max_batch_size == 9
    assert tensors(stream.input) == {
        "frames": ("uint8", [1, 64, 64, 3]),
        "recent_features": ("float32", [15, 256]),
        "recent_count": ("int32", [1]),
    }
    assert tensors(stream.output) == {
        "probabilities": ("float32", [3]),
        "logits": ("float32", [3]),
        "frame_features": ("float32", [1, 256]),
        "encoder_id": ("int32", [1]),
    }
    assert [step.model_name for step in stream.ensemble_scheduling.step] == [
        "mine_image_encoder", "mine_window", "mine_temporal_head"
    ]  # fmt: skip
    encoded = config_of(folder, "mine_encoded_stream")
    first, *rest = encoded.ensemble_scheduling.step
    assert first == config_of(folder, "mine_encoded").ensemble_scheduling.step[0]
    assert rest == list(stream.ensemble_scheduling.step)
    assert tensors(encoded.input) == {"images": ("bytes", [1])} | tensors(stream.input[1:])
    assert tensors(encoded.output) == tensors(stream.output)
    for config in (stream, encoded, config_of(folder, "mine")):
        told = {name: value.string_value for name, value in config.parameters.items() if not name.endswith("receipt")}
        assert set(told) == {"image_encoder_sha256", "temporal_head_sha256", "frame_interval_s"}
        assert told["frame_interval_s"] == "0.2"
    for path in folder.glob("*/config.pbtxt"):
        assert not config_of(folder, path.parent.name).HasField("sequence_batching")


@pytest.mark.parametrize("target", TARGETS)
def test_only_the_embedded_server_returns_receipts(tmp_path: Path, target: Target) -> None:
    folder = tmp_path / "repository"
    write(folder, target, name="mine")
    found = {}
    for path in folder.glob("*/config.pbtxt"):
        config = config_of(folder, path.parent.name)
        receipts = {output.name: list(output.dims) for output in config.output if output.name.endswith("receipt")}
        found[config.name] = {name: config.parameters[name].string_value for name in receipts}
        assert list(receipts.values()) == [[len(tensors.split(","))] for tensors in found[config.name].values()]
    if target != "embedded":
        assert not any(found.values())
        return
    encoder, head = "frames,frame_features", "frame_features,logits,probabilities"
    window = "frame_features,recent_features,recent_count,window_features,encoder_id"
    clip = {"image_encoder_receipt": encoder, "temporal_head_receipt": head}
    stream = clip | {"temporal_head_receipt": "window_features,logits,probabilities", "window_receipt": window}
    images = {"preprocess_receipt": "images,frames"}
    assert found == {
        "mine": clip,
        "mine_encoded": images | clip,
        "mine_stream": stream,
        "mine_encoded_stream": images | stream,
        "mine_image_encoder": {"receipt": encoder},
        "mine_temporal_head": {"receipt": head},
        "mine_window": {"receipt": window},
        "mine_preprocess": {"receipt": "images,frames"},
    }


def test_files_of_the_embedded_target(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    write(folder)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "dfer/config.pbtxt", "dfer/labels.txt", "dfer/1/.keep",
        "dfer_image_encoder/config.pbtxt", "dfer_image_encoder/1/model.onnx", "dfer_image_encoder/1/model.py",
        "dfer_image_encoder/1/model_requests.py", "dfer_temporal_head/1/model_requests.py",
        "dfer_preprocess/1/model_requests.py", "dfer_window/1/model_requests.py",
        *(f"dfer_{name}/1/cgroups.py" for name in ("image_encoder", "temporal_head", "preprocess", "window")),
        "dfer_image_encoder/1/receipts.py", "dfer_temporal_head/1/receipts.py",
        "dfer_preprocess/1/receipts.py", "dfer_window/1/receipts.py",
        "dfer_temporal_head/config.pbtxt", "dfer_temporal_head/1/model.onnx", "dfer_temporal_head/1/model.py",
        "dfer_temporal_head/labels.txt",
        "dfer_encoded/config.pbtxt", "dfer_encoded/labels.txt", "dfer_encoded/1/.keep",
        "dfer_preprocess/config.pbtxt", "dfer_preprocess/1/model.py", "dfer_preprocess/1/image_decoding.py",
        "dfer_stream/config.pbtxt", "dfer_stream/labels.txt", "dfer_stream/1/.keep",
        "dfer_encoded_stream/config.pbtxt", "dfer_encoded_stream/labels.txt", "dfer_encoded_stream/1/.keep",
        "dfer_window/config.pbtxt", "dfer_window/1/model.onnx", "dfer_window/1/model.py",
    }  # fmt: skip
    assert (folder / "dfer" / "labels.txt").read_text(encoding="utf-8") == "joy\nno joy\nÜberraschung\n"
    graph = folder / "dfer_temporal_head" / "1" / "model.onnx"
    assert graph.read_bytes() == b"head"
    assert graph.samefile(tmp_path / "graphs" / "head")
    for model in ("dfer", "dfer_temporal_head"):
        outputs = [output for output in config_of(folder, model).output if not output.name.endswith("receipt")]
        assert {output.label_filename for output in outputs} == {"labels.txt"}
    assert "dfer_deploy" not in (folder / "dfer_image_encoder" / "1" / "model.py").read_text().split('"""')[2]


def test_a_file_system_without_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, destination: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    write(tmp_path / "repository")
    graph = tmp_path / "repository" / "dfer_image_encoder" / "1" / "model.onnx"
    assert graph.read_bytes() == b"encoder"
    assert not graph.samefile(tmp_path / "graphs" / "encoder")


@pytest.mark.parametrize("target", TARGETS)
def test_the_same_bytes_every_time(tmp_path: Path, target: Target) -> None:
    contents = []
    for name in ("a", "b"):
        folder = tmp_path / name / "repository"
        folder.parent.mkdir()
        write(folder, target)
        contents.append({p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()})
    assert contents[0] == contents[1]


def test_versions_are_added_but_never_overwritten_or_mixed(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    write(folder)
    with pytest.raises(WriteError, match="1 exists already"):
        write(folder)
    write(folder, version=2)
    assert sorted(path.name for path in (folder / "dfer").iterdir()) == ["1", "2", "config.pbtxt", "labels.txt"]
    with pytest.raises(BundleError, match=r"labels\.txt has the classes joy, no joy, Überraschung, the new version"):
        write(folder, version=3, spec=spec_with(("joy", "anger", "fear")))


def test_serving_options_reach_the_configurations(tmp_path: Path) -> None:
    serving = ServingOptions(32, instances=2, queue_delay_us=300, cuda_graph_batches=(1, 8))
    contract = write(tmp_path / "repository", "tensorrt", serving=serving)
    for graph, dims in ((contract.image_encoder, [16, 64, 64, 3]), (contract.temporal_head, [16, 256])):
        config = config_of(tmp_path / "repository", graph.name)
        assert config.max_batch_size == 32
        assert (config.instance_group[0].count, list(config.instance_group[0].profile)) == (2, ["0"])
        assert config.dynamic_batching.max_queue_delay_microseconds == 300
        cuda = config.optimization.cuda
        assert cuda.graphs
        graphs = [
            (spec.batch_size, {name: list(shape.dim) for name, shape in spec.input.items()}) for spec in cuda.graph_spec
        ]
        assert graphs == [(batch, {graph.inputs[0].name: dims}) for batch in (1, 8)]
        assert config.default_model_filename == "model.plan"
    assert config_of(tmp_path / "repository", "dfer").max_batch_size == 32
    # Triton has no use for the graphs of which there are engines.
    assert [path.parts[-3] for path in (tmp_path / "repository").rglob("*.onnx")] == ["dfer_window"]
    write(tmp_path / "without", "tensorrt", serving=ServingOptions(32, cuda_graph_batches=()))
    assert not config_of(tmp_path / "without", "dfer_image_encoder").optimization.cuda.graphs


def test_the_tensorrt_provider_of_onnxruntime_has_one_profile_and_keeps_the_types_of_the_graph(tmp_path: Path) -> None:
    write(tmp_path / "repository", "onnxruntime", serving=ServingOptions(16, execution_provider="tensorrt"))
    config = config_of(tmp_path / "repository", "dfer_image_encoder")
    (provider,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert provider.name == "tensorrt"
    assert dict(provider.parameters) == {
        "trt_profile_min_shapes": "frames:1x1x64x64x3",
        "trt_profile_opt_shapes": "frames:8x16x64x64x3",
        "trt_profile_max_shapes": "frames:16x16x64x64x3",
    }
    assert not config_of(tmp_path / "repository", "dfer_window").optimization.HasField("execution_accelerators")
    write(tmp_path / "cuda", "onnxruntime")
    assert not config_of(tmp_path / "cuda", "dfer_image_encoder").optimization.HasField("execution_accelerators")


@pytest.mark.parametrize(
    ("target", "changes", "message"),
    [
        ("embedded", {"max_batch_size": 0}, "maximal batch is 0, expected 1 to 1024"),
        ("embedded", {"instances": 0}, "number of instances is 0"),
        ("embedded", {"queue_delay_us": -1}, "queue delay is -1"),
        ("embedded", {"max_queue_size": -1}, r"longest queue is -1, expected 0 \(without limit\) to 1000000"),
        ("tensorrt", {"cuda_graph_batches": (1, 32)}, "CUDA graph for the batch 32, expected 1 to 16"),
        ("tensorrt", {"cuda_graph_batches": (2, 1)}, r"\[2, 1\], expected each once and in order"),
        ("embedded", {"cuda_graph_batches": (1, 2)}, "target 'embedded', only 'tensorrt' has them"),
        ("tensorrt", {"execution_provider": "tensorrt"}, "target 'tensorrt', only 'onnxruntime' has them"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, target: Target, changes: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        write(tmp_path / "repository", target, serving=ServingOptions(**{"max_batch_size": 16} | changes))


def test_a_version_is_at_least_1(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="the version is 0, expected at least 1"):
        write(tmp_path / "repository", version=0)


@pytest.mark.parametrize("target", TARGETS)
def test_the_queue_has_a_policy_only_with_a_limit(tmp_path: Path, target: Target) -> None:
    for limit in (0, 7):
        folder = tmp_path / str(limit)
        contract = write(folder, target, serving=ServingOptions(16, max_queue_size=limit))
        for graph in (contract.image_encoder, contract.temporal_head, contract.preprocess, contract.window):
            batching = config_of(folder, graph.name).dynamic_batching
            policy = batching.default_queue_policy
            # Any policy would end Triton's prefetching.
            assert batching.HasField("default_queue_policy") == (limit > 0)
            assert (policy.max_queue_size, policy.timeout_action) == (limit, policy.REJECT)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("file", ["image_encoder.pbtxt", "temporal_head.pbtxt", "window.pbtxt"])
def test_templates_parse_as_they_are(target: Target, file: str) -> None:
    folder = "onnxruntime" if (target, file) == ("tensorrt", "window.pbtxt") else target
    config = text_format.Parse(triton_models.config_template(folder, file), model_config_pb2.ModelConfig())
    assert config.max_batch_size == (64 if folder == "tensorrt" else 16)
