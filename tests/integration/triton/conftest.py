"""A tiny bundle for the embedded server, and the private environment (made once in the cache folder)."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from dfer_deploy.bundles import bundle as bundles
from dfer_deploy.bundles.bundle import ServingOptions
from dfer_deploy.export.onnx_file import onnx_from_graph
from dfer_deploy.export.repository import write_model_repository
from dfer_deploy.export.window_graph import WindowGraph
from dfer_deploy.files import sha256_of_file, write_json
from dfer_deploy.runtimes.predictor import Float32, Frames, Prediction
from dfer_deploy.specs import ClipSpec, Contract, ModelSpec, PromptSpec, VisionSpec, contract_for, encoder_id

CLASSES = ("happiness", "sadness", "neutral: calm", "anger", "surprise", "disgust", "fear")
SIZE, FEATURES, MAX_BATCH = 32, 8, 4


@dataclass(frozen=True)
class TinyModel:
    """Two random graphs that fulfil the contract, and onnxruntime's own answers."""

    spec: ModelSpec
    contract: Contract
    image_encoder_onnx: Path
    temporal_head_onnx: Path

    def encode(self, frames: Frames) -> Float32:
        session = onnxruntime.InferenceSession(str(self.image_encoder_onnx), providers=["CPUExecutionProvider"])
        return session.run(None, {"frames": frames})[0]  # type: ignore[no-any-return]

    def predict(self, frames: Frames) -> Prediction:
        session = onnxruntime.InferenceSession(str(self.temporal_head_onnx), providers=["CPUExecutionProvider"])
        return Prediction(*session.run(["logits", "probabilities"], {"frame_features": self.encode(frames)}))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    folder = tmp_path_factory.mktemp("tiny")
    random = np.random.default_rng(7)

    def constant(name: str, values: np.ndarray) -> TensorProto:
        return numpy_helper.from_array(values, name)

    def save(path: Path, nodes: list, inputs: list, outputs: list, constants: list) -> Path:
        graph = helper.make_graph(nodes, path.stem, inputs, outputs, constants)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
        return path

    features = helper.make_tensor_value_info("frame_features", TensorProto.FLOAT, ["batch", "time", FEATURES])
    weights = random.standard_normal((SIZE * SIZE * 3, FEATURES)).astype(np.float32) / (255 * SIZE)
    encoder = save(
        folder / "encoder.onnx",
        [
            helper.make_node("Cast", ["frames"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["pixels", "flat"], ["rows"]),
            helper.make_node("MatMul", ["rows", "weights"], ["frame_features"]),
        ],
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["batch", "time", SIZE, SIZE, 3])],
        [features],
        [constant("flat", np.array([0, 0, SIZE * SIZE * 3])), constant("weights", weights)],
    )
    head_weights = random.standard_normal((FEATURES, len(CLASSES))).astype(np.float32)
    head = save(
        folder / "head.onnx",
        [
            helper.make_node("ReduceMean", ["frame_features", "axis"], ["video"], keepdims=0),
            helper.make_node("MatMul", ["video", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        ],
        [features],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", len(CLASSES)])
            for name in ("logits", "probabilities")
        ],
        [constant("axis", np.array([1])), constant("weights", head_weights)],
    )
    spec = ModelSpec(
        PromptSpec(CLASSES, CLASSES), ClipSpec(VisionSpec(SIZE, 16, 128, 2), embed_dim=FEATURES)
    )  # fmt: skip
    return TinyModel(spec, contract_for(spec), encoder, head)


@pytest.fixture(scope="session")
def bundle(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the target embedded with a manifest as the exporter writes it."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny", tiny_model, "embedded")


@pytest.fixture(scope="session")
def onnxruntime_bundle(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "ort", tiny_model, "onnxruntime")


@pytest.fixture(scope="session")
def tensorrt_bundle(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its engines are not built."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "not built", tiny_model, "tensorrt")


def write_bundle(path: Path, model: TinyModel, target: bundles.Target) -> Path:
    (path / "onnx").mkdir(parents=True)
    shutil.copy(model.image_encoder_onnx, path / "onnx" / "dfer_image_encoder.onnx")
    shutil.copy(model.temporal_head_onnx, path / "onnx" / "dfer_temporal_head.onnx")
    window = WindowGraph(16, encoder_id(sha256_of_file(model.image_encoder_onnx)))
    onnx_from_graph(window, model.contract.window, path / "onnx" / "dfer_window.onnx")
    write_model_repository(
        path / "model_repository",
        contract=model.contract,
        spec=model.spec,
        target=target,
        serving=ServingOptions(MAX_BATCH),
        frame_interval_s=None,
        version=1,
        image_encoder_onnx=model.image_encoder_onnx,
        temporal_head_onnx=model.temporal_head_onnx,
        window_onnx=path / "onnx" / "dfer_window.onnx",
    )
    files = {str(file.relative_to(path)): sha256_of_file(file) for file in sorted(path.rglob("*")) if file.is_file()}
    manifest = {
        "format": bundles.MANIFEST_FORMAT,
        "name": "dfer",
        "version": 1,
        "spec": model.spec.to_dict(),
        "target": target,
        "precision": "fp32",
        "serving": dataclasses.asdict(ServingOptions(MAX_BATCH)),
        "checkpoint": {"sha256": "0" * 64, "format": "reference", "best_acc": None},
        "frame_interval_s": None,
        "preprocessing": {},
        "parity": {},
        "tools": {},
        "files": files,
    }
    write_json(path / bundles.MANIFEST_NAME, manifest)
    return path
