"""The bundle that ``export`` writes: a folder with a manifest, ONNX graphs and a Triton model repository."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dfer_deploy.bundles.blocks import checked_blocks
from dfer_deploy.bundles.engine_records import EngineSet
from dfer_deploy.bundles.engines import read_engines
from dfer_deploy.errors import BundleError
from dfer_deploy.plain_data import check_fields
from dfer_deploy.specs import Contract, ModelSpec, Precision, contract_for, require

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = "dfer-deploy-bundle/4"

Target = Literal["tensorrt", "onnxruntime", "embedded"]
TARGETS: tuple[Target, ...] = ("tensorrt", "onnxruntime", "embedded")

ExecutionProvider = Literal["cuda", "tensorrt"]
EXECUTION_PROVIDERS: tuple[ExecutionProvider, ...] = ("cuda", "tensorrt")

MAX_BATCH = 1024
"""Limits the clips of one batch, so that a mistyped option is refused before a server reserves memory for it."""

MAX_QUEUE = 1_000_000
"""Limits the number of waiting requests that an option may set. 0 means an unlimited queue."""


@dataclass(frozen=True)
class ServingOptions:
    """The server's options for running the models. The defaults are minimal; ``bench --propose`` finds better ones.

    Attributes:
        max_batch_size: the largest number of clips in one execution, 1 to 1024. For TensorRT engines, it is the maximum
            of the profile.
        instances: number of copies of each model that run at the same time, on every GPU or on the CPU, 1 to 64.
        queue_delay_us: time that a request may wait for others to join its batch, in microseconds, 0 to 10,000,000.
        max_queue_size: number of requests that may wait for each model, 0 to 1,000,000. Further ones are refused; 0
            sets no limit.
        cuda_graph_batches: numbers of clips in a batch, of 16 frames each, for which the target ``tensorrt`` records a
            CUDA graph; increasing, 1 to ``max_batch_size``.
        execution_provider: execution provider of the target ``onnxruntime`` on a GPU; ``tensorrt`` builds engines
            inside onnxruntime.

    Raises:
        DferDeployError: a value is out of range.
    """

    max_batch_size: int
    instances: int = 1
    queue_delay_us: int = 0
    max_queue_size: int = 0
    cuda_graph_batches: tuple[int, ...] = (1,)
    execution_provider: ExecutionProvider = "cuda"

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            1 <= self.max_batch_size <= MAX_BATCH,
            f"the maximal batch is {self.max_batch_size}, expected 1 to {MAX_BATCH}",
        )
        require(1 <= self.instances <= 64, f"the number of instances is {self.instances}, expected 1 to 64")
        require(
            0 <= self.queue_delay_us <= 10_000_000,
            f"the queue delay is {self.queue_delay_us} µs, expected 0 to 10000000",
        )
        require(
            0 <= self.max_queue_size <= MAX_QUEUE,
            f"the longest queue is {self.max_queue_size}, expected 0 (without limit) to {MAX_QUEUE}",
        )
        for batch in self.cuda_graph_batches:
            require(
                1 <= batch <= self.max_batch_size,
                f"a CUDA graph for the batch {batch}, expected 1 to {self.max_batch_size}, the maximal batch",
            )
        require(
            list(self.cuda_graph_batches) == sorted(set(self.cuda_graph_batches)),
            f"the batches of the CUDA graphs are {list(self.cuda_graph_batches)}, expected each once and in order",
        )


def check_serving(target: Target, serving: ServingOptions) -> None:
    """Refuse options that the target's server would ignore.

    Raises:
        DferDeployError: CUDA graphs or an execution provider are set for a target that does not support them.
    """
    plain = ServingOptions(serving.max_batch_size)
    for what, owner, asked, usual in (
        ("CUDA graphs", "tensorrt", serving.cuda_graph_batches, plain.cuda_graph_batches),
        ("execution provider", "onnxruntime", serving.execution_provider, plain.execution_provider),
    ):
        require(
            target == owner or asked == usual,
            f"{what}: {asked!r} was asked of the target {target!r}, only {owner!r} has them; omit it",
        )


@dataclass(frozen=True)
class CheckpointRecord:
    """The checkpoint that the weights came from.

    Attributes:
        sha256: hexadecimal SHA-256 of the checkpoint file.
        format: ``dfer-deploy`` or ``reference``.
        best_acc: WAR in percent that the file states for its own test list, or None.
    """

    sha256: str
    format: str
    best_acc: float | None


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``.

    Attributes:
        format: version of the manifest's format.
        name: prefix of the Triton model names.
        version: version folder of the models in the repository.
        spec: specification of the whole model, including class names and prompts.
        target: server that the model repository is for.
        precision: precision of the weights and matrix products in the graphs.
        serving: the server's options for running the models.
        checkpoint: source of the weights.
        frame_interval_s: seconds between the frames of a training clip; None if unknown.
        preprocessing: description of how a client turns an image into frames, in words and numbers.
        parity: differences between PyTorch and onnxruntime, measured at export and rounded up to 1, 2 or 5 × 10ⁿ.
        tools: versions of the tools that wrote the bundle.
        files: SHA-256 of every other file, by its path in the bundle.
        keep_fp32: blocks whose matrix products are fp32 although the precision is fp16; see ``bundles.blocks``.

    Raises:
        DferDeployError: ``keep_fp32`` is set without the precision fp16, is not in the order of the computation, or
            names an unknown block.
    """

    format: str
    name: str
    version: int
    spec: ModelSpec
    target: Target
    precision: Precision
    serving: ServingOptions
    checkpoint: CheckpointRecord
    frame_interval_s: float | None
    preprocessing: dict[str, Any]
    parity: dict[str, Any]
    tools: dict[str, Any]
    files: dict[str, Any]
    keep_fp32: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(
            not self.keep_fp32 or self.precision == "fp16",
            f"the blocks {', '.join(self.keep_fp32)} stay fp32 with the precision {self.precision}, expected fp16",
        )
        in_order = checked_blocks(self.keep_fp32, self.spec)
        require(in_order == self.keep_fp32, f"keep_fp32 is {list(self.keep_fp32)}, expected {list(in_order)}")

    @property
    def precision_name(self) -> str:
        """The precision for display: ``fp32``, ``fp16``, or ``mixed`` if some blocks of an fp16 export are fp32."""
        return "mixed" if self.keep_fp32 else self.precision


@dataclass(frozen=True)
class Bundle:
    """An opened bundle whose manifest has been checked."""

    path: Path
    manifest: Manifest

    @property
    def spec(self) -> ModelSpec:
        return self.manifest.spec

    @property
    def contract(self) -> Contract:
        return contract_for(self.spec, self.manifest.name)

    @property
    def image_encoder_onnx(self) -> Path:
        return self.path / "onnx" / f"{self.contract.image_encoder.name}.onnx"

    @property
    def temporal_head_onnx(self) -> Path:
        return self.path / "onnx" / f"{self.contract.temporal_head.name}.onnx"

    @property
    def window_onnx(self) -> Path:
        return self.path / "onnx" / f"{self.contract.window.name}.onnx"

    @cached_property
    def engines(self) -> EngineSet | None:
        """The TensorRT engines that were built from the bundle's graphs; None if none were built.

        The first access reads and hashes the engines, and the result is kept. Open the bundle again after a build.

        Raises:
            DferDeployError: the record is damaged, an engine is missing or changed, or it was built from another graph.
        """
        manifest, contract = self.manifest, self.contract
        return read_engines(
            self.path,
            (contract.image_encoder, contract.temporal_head),
            version=manifest.version,
            largest_batch=manifest.serving.max_batch_size,
            files=manifest.files,
        )

    @property
    def graphs_sha256(self) -> tuple[str, str]:
        """The SHA-256 of the image encoder's and the temporal head's graphs, as the manifest lists them.

        Raises:
            DferDeployError: the manifest does not list one of them.
        """
        encoder, head = (f"onnx/{path.name}" for path in (self.image_encoder_onnx, self.temporal_head_onnx))
        for name in (encoder, head):
            require(
                name in self.manifest.files,
                f"{self.path / MANIFEST_NAME} does not list {name}; export the bundle again",
            )
        return self.manifest.files[encoder], self.manifest.files[head]

    @property
    def model_repository(self) -> Path:
        return self.path / "model_repository"


def check_model_name(name: str) -> str:
    """Check that a name can be a folder in a model repository, and return it.

    Raises:
        DferDeployError: the name is not 1 to 64 ASCII letters, digits, ``_`` and ``-``.
    """
    if not name or not name.replace("_", "").replace("-", "").isalnum() or not name.isascii() or len(name) > 64:
        raise BundleError(f"the model name {name!r} is not usable; expected up to 64 letters, digits, _ and -")
    return name
