"""The model repository: complete, true to the contract, and the same bytes every time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from dfer_deploy import triton_models
from dfer_deploy.bundle import TARGETS, ServingOptions, Target
from dfer_deploy.errors import DferDeployError
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
    stream_state_graph,
)

CLASSES = ("joy", "no joy", "Überraschung")


def spec_with(classes: tuple[str, ...] = CLASSES) -> ModelSpec:
    return ModelSpec(PromptSpec(classes, classes), ClipSpec(VisionSpec(image_size=64, patch_size=16), embed_dim=256))


def write(folder: Path, target: Target = "embedded", *, version: int = 1, name: str = "dfer", **changes) -> Contract:
    graphs = folder.parent / "graphs"
    graphs.mkdir(exist_ok=True)
    for graph in ("encoder", "head", "stream"):
        (graphs / graph).write_bytes(graph.encode())
    spec = changes.pop("spec", spec_with())
    contract = contract_for(spec, name)
    arguments = {"serving": ServingOptions(16), "target": target, "spec": spec, "frame_interval_s": None} | changes
    write_model_repository(
        folder, contract=contract, version=version, image_encoder_onnx=graphs / "encoder",
        temporal_head_onnx=graphs / "head", stream_head_onnx=graphs / "stream", **arguments,
    )  # fmt: skip
    return contract


def config_of(folder: Path, model: str):
    text = (folder / model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def tensors(entries) -> dict[str, tuple[str, list[int]]]:
    types = model_config_pb2
    names = {types.TYPE_UINT8: "uint8", types.TYPE_FP32: "float32", types.TYPE_STRING: "bytes"}
    return {entry.name: (names[entry.data_type], list(entry.dims)) for entry in entries}


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
    assert dict(head.output_map) == {"probabilities": "probabilities", "logits": "logits"}
    assert not config.instance_group
    assert not config.model_warmup


@pytest.mark.parametrize("target", TARGETS)
def test_encoded_images_take_the_way_of_frames(tmp_path: Path, target: Target) -> None:
    folder = tmp_path / "repository"
    write(folder, target, name="mine", serving=ServingOptions(32))
    config = config_of(folder, "mine_encoded")
    first, *rest = config.ensemble_scheduling.step
    assert first.model_name == "mine_preprocess"
    assert (dict(first.input_map), dict(first.output_map)) == ({"images": "images"}, {"frames": "frames"})
    assert rest == list(config_of(folder, "mine").ensemble_scheduling.step)
    assert config.output == config_of(folder, "mine").output
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
    assert set(sources) == {"model.py", "image_decoding.py"}


@pytest.mark.parametrize("target", TARGETS)
def test_streams_are_sequences_of_single_frames(tmp_path: Path, target: Target) -> None:
    serving = ServingOptions(16, max_streams=9, stream_idle_s=2.5, queue_delay_us=70)
    contract = write(tmp_path / "repository", target, name="mine", serving=serving)
    head = config_of(tmp_path / "repository", "mine_stream_head")
    assert tensors(head.input) == {"frame_features": ("float32", [1, 256])}
    assert tensors(head.output) == expected(contract.stream_head.outputs)
    assert head.max_batch_size == 9
    assert head.sequence_batching.oldest.max_candidate_sequences == 9
    assert head.sequence_batching.oldest.max_queue_delay_microseconds == 70
    assert head.sequence_batching.max_sequence_idle_microseconds == 2_500_000
    assert head.instance_group[0].count == 1
    assert not head.model_warmup
    stream = config_of(tmp_path / "repository", "mine_stream")
    assert stream.max_batch_size == 1
    assert tensors(stream.input) == {"frames": ("uint8", [1, 64, 64, 3])}
    assert [step.model_name for step in stream.ensemble_scheduling.step] == ["mine_image_encoder", "mine_stream_head"]
    assert {output.label_filename for output in stream.output} == {"labels.txt"}


def test_the_embedded_stream_head_asks_the_request_for_its_stream(tmp_path: Path) -> None:
    """A control tensor for the correlation id would have to be of one type: a number or a string."""
    write(tmp_path / "repository", serving=ServingOptions(16, max_streams=9))
    head = config_of(tmp_path / "repository", "dfer_stream_head")
    assert not head.sequence_batching.state
    assert not head.sequence_batching.control_input
    assert head.parameters["max_streams"].string_value == "9"
    assert head.parameters["max_frames"].string_value == "16"
    source = (tmp_path / "repository" / "dfer_stream_head" / "1" / "model.py").read_text(encoding="utf-8")
    assert source == triton_models.stream_head_source()


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_states_are_those_of_the_graph_and_begin_with_zeros(tmp_path: Path, target: Target) -> None:
    contract = write(tmp_path / "repository", target)
    batching = config_of(tmp_path / "repository", "dfer_stream_head").sequence_batching
    graph = stream_state_graph(contract.stream_head)
    shapes = {tensor.name: list(tensor.shape[1:]) for tensor in (*graph.inputs, *graph.outputs)}
    assert [(state.input_name, state.output_name) for state in batching.state] == [
        ("state_in", "state_out"), ("count_in", "count_out")
    ]  # fmt: skip
    for state in batching.state:
        assert list(state.dims) == shapes[state.input_name] == shapes[state.output_name]
        assert state.data_type == model_config_pb2.TYPE_FP32
        (initial,) = state.initial_state
        assert (list(initial.dims), initial.zero_data) == (list(state.dims), True)
        assert initial.data_type == state.data_type
    (start,) = batching.control_input
    assert start.name == "start"
    assert start.control[0].kind == model_config_pb2.ModelSequenceBatching.Control.CONTROL_SEQUENCE_START
    assert list(start.control[0].fp32_false_true) == [0, 1]


def test_a_batch_holds_no_more_streams_than_a_batch_of_clips(tmp_path: Path) -> None:
    write(tmp_path / "repository", "tensorrt", serving=ServingOptions(4, max_streams=64))
    assert config_of(tmp_path / "repository", "dfer_stream_head").max_batch_size == 4


def test_files_of_the_embedded_target(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    write(folder)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "dfer/config.pbtxt", "dfer/labels.txt", "dfer/1/.keep",
        "dfer_image_encoder/config.pbtxt", "dfer_image_encoder/1/model.onnx", "dfer_image_encoder/1/model.py",
        "dfer_temporal_head/config.pbtxt", "dfer_temporal_head/1/model.onnx", "dfer_temporal_head/1/model.py",
        "dfer_temporal_head/labels.txt",
        "dfer_encoded/config.pbtxt", "dfer_encoded/labels.txt", "dfer_encoded/1/.keep",
        "dfer_preprocess/config.pbtxt", "dfer_preprocess/1/model.py", "dfer_preprocess/1/image_decoding.py",
        "dfer_stream/config.pbtxt", "dfer_stream/labels.txt", "dfer_stream/1/.keep",
        "dfer_stream_head/config.pbtxt", "dfer_stream_head/1/model.onnx", "dfer_stream_head/1/model.py",
        "dfer_stream_head/labels.txt",
    }  # fmt: skip
    assert (folder / "dfer" / "labels.txt").read_text(encoding="utf-8") == "joy\nno joy\nÜberraschung\n"
    graph = folder / "dfer_temporal_head" / "1" / "model.onnx"
    assert graph.read_bytes() == b"head"
    assert graph.samefile(tmp_path / "graphs" / "head")
    for model in ("dfer", "dfer_temporal_head"):
        assert {output.label_filename for output in config_of(folder, model).output} == {"labels.txt"}
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
    with pytest.raises(DferDeployError, match="1 exists already"):
        write(folder)
    write(folder, version=2)
    assert sorted(path.name for path in (folder / "dfer").iterdir()) == ["1", "2", "config.pbtxt", "labels.txt"]
    with pytest.raises(
        DferDeployError, match=r"labels\.txt has the classes joy, no joy, Überraschung, the new version"
    ):
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
    assert not list((tmp_path / "repository").rglob("*.onnx"))  # Triton has no use for the graph
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
    stream_head = config_of(tmp_path / "repository", "dfer_stream_head")
    (provider,) = stream_head.optimization.execution_accelerators.gpu_execution_accelerator
    assert (
        provider.parameters["trt_profile_opt_shapes"]
        == "frame_features:8x1x256,start:8x1,state_in:8x16x256,count_in:8x1"
    )
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
    with pytest.raises(DferDeployError, match=message):
        write(tmp_path / "repository", target, serving=ServingOptions(**{"max_batch_size": 16} | changes))


def test_a_version_is_at_least_1(tmp_path: Path) -> None:
    with pytest.raises(DferDeployError, match="the version is 0, expected at least 1"):
        write(tmp_path / "repository", version=0)


@pytest.mark.parametrize("target", TARGETS)
def test_the_queue_has_a_policy_only_with_a_limit(tmp_path: Path, target: Target) -> None:
    for limit in (0, 7):
        folder = tmp_path / str(limit)
        contract = write(folder, target, serving=ServingOptions(16, max_queue_size=limit))
        for graph in (contract.image_encoder, contract.temporal_head, contract.preprocess):
            batching = config_of(folder, graph.name).dynamic_batching
            policy = batching.default_queue_policy
            # Any policy would end Triton's prefetching.
            assert batching.HasField("default_queue_policy") == (limit > 0)
            assert (policy.max_queue_size, policy.timeout_action) == (limit, policy.REJECT)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("file", ["image_encoder.pbtxt", "temporal_head.pbtxt", "stream_head.pbtxt"])
def test_templates_parse_as_they_are(target: Target, file: str) -> None:
    config = text_format.Parse(triton_models.config_template(target, file), model_config_pb2.ModelConfig())
    assert config.max_batch_size == (64 if target == "tensorrt" else 16)
