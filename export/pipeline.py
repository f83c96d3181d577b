"""Export a checkpoint to a bundle, step by step."""

from __future__ import annotations

import contextlib
import dataclasses
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfer_deploy import __version__
from dfer_deploy.bundles.blocks import checked_blocks
from dfer_deploy.bundles.bundle import (
    MANIFEST_FORMAT,
    Bundle,
    CheckpointRecord,
    Manifest,
    ServingOptions,
)
from dfer_deploy.bundles.integrity import check_bundle_files, is_bundle, is_intact, open_bundle
from dfer_deploy.checkpoints.checkpoint import Checkpoint, load_checkpoint
from dfer_deploy.clips.timed import check_interval
from dfer_deploy.console import step
from dfer_deploy.errors import BundleError, CheckpointError, DferDeployError, WriteError, spelled
from dfer_deploy.export.bundle_folder import complete_bundle, keep_timing_caches
from dfer_deploy.export.export_options import ExportOptions
from dfer_deploy.export.frame_bound import bound_frames
from dfer_deploy.export.graphs import ImageEncoderGraph, TemporalHeadGraph
from dfer_deploy.export.onnx_file import onnx_from_graph
from dfer_deploy.export.parity import measure_parity
from dfer_deploy.export.repository import check_model_repository
from dfer_deploy.files import sha256_of_file
from dfer_deploy.machine.folders import atomic_folder, locked_folder
from dfer_deploy.specs import (
    MAX_FRAMES,
    GraphSpec,
    ModelSpec,
    contract_for,
)

_TOOLS = ("torch", "open_clip_torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy")
"""Packages whose versions the manifest records."""


def export_to_folder(
    checkpoint_path: Path, output: Path, options: ExportOptions, *, force: bool = False, add_version: bool = False
) -> tuple[Bundle, bool]:
    """Write a bundle atomically. A failure leaves no files.

    Args:
        checkpoint_path: file of dfer-deploy or of the reference implementation.
        output: the bundle's folder.
        options: what to export.
        force: replace an existing bundle. Anything else in its place is refused.
        add_version: add the models to the existing bundle as the next version. Older versions stay in its repository.

    Returns:
        The bundle, and whether it was written. An existing bundle that would become identical is left unchanged.

    Raises:
        DferDeployError: the checkpoint cannot be used, a check failed, or the bundle cannot be written.
    """
    with step(f"read {checkpoint_path}"):
        checkpoint = load_checkpoint(
            checkpoint_path, prompt_position=options.prompt_position, class_names=options.class_names
        )
        _check_exportable(checkpoint)
        plan = _manifest(checkpoint, options)
    # Another export to the same folder is waited for before the folder is looked at.
    with locked_folder(output, make_parents=True):
        return _written(checkpoint, plan, output, force=force, add_version=add_version)


def _written(
    checkpoint: Checkpoint, plan: Manifest, output: Path, *, force: bool, add_version: bool
) -> tuple[Bundle, bool]:
    """Write the bundle unless it is there already; see ``export_to_folder``. The caller has locked the folder."""
    previous = _previous(output) if output.exists() else None
    if previous is not None and _same_content(previous.manifest, plan) and _can_be_served(previous):
        return previous, False
    if output.exists() and previous is None and not force:
        raise WriteError(
            f"{output} exists already and is damaged or of another version of dfer-deploy; choose another "
            f"{spelled('output')}, or replace it with {spelled('force', True)}"
        )
    if output.exists() and not force and not add_version:
        raise WriteError(
            f"{output} exists already and holds another export or a damaged one; choose another "
            f"{spelled('output')}, replace it with {spelled('force', True)}, or put this one beside it with "
            f"{spelled('add_version', True)}"
        )
    kept = None
    if add_version and previous is not None:
        _check_compatible(previous, plan)
        kept, plan = previous, dataclasses.replace(plan, version=previous.manifest.version + 1)
    with atomic_folder(output, force=output.exists()) as folder:
        _write(folder, checkpoint, plan, kept)
    return open_bundle(output), True


def _can_be_served(bundle: Bundle) -> bool:
    """Return whether no file is damaged and the server's files are those that this version writes."""
    try:
        check_model_repository(bundle)
    except DferDeployError:
        return False
    return is_intact(bundle)


def _check_exportable(checkpoint: Checkpoint) -> None:
    if checkpoint.spec.classifier == "image_conditioned_text":
        raise CheckpointError(
            f"{checkpoint.path} was trained with Co-CoOp, whose class texts depend on the clip: every answer would "
            "need the text encoder, which the two served graphs do not have; export a checkpoint of another strategy, "
            "such as coop"
        )


def _write(folder: Path, checkpoint: Checkpoint, plan: Manifest, previous: Bundle | None) -> None:
    bundle = Bundle(folder, plan)
    contract = bundle.contract
    with step("build the model, encode the class texts"):
        model = checkpoint.build_model()
        bundle.image_encoder_onnx.parent.mkdir()
    graphs: list[tuple[GraphSpec, Path, type[nn.Module]]] = [
        (contract.image_encoder, bundle.image_encoder_onnx, ImageEncoderGraph),
        (contract.temporal_head, bundle.temporal_head_onnx, TemporalHeadGraph),
    ]
    for spec, path, graph in graphs:
        with step(f"export {spec.name}.onnx") as notes:
            with torch.inference_mode():
                module = graph(model, plan.precision, plan.keep_fp32)
            onnx_from_graph(module, spec, path)
            if plan.target == "onnxruntime":  # the other servers check requests before the graph
                bound_frames(path, plan.spec.temporal.max_frames)
            notes.append(f"{path.stat().st_size / 1e6:.1f} MB")
    with step("compare onnxruntime with PyTorch") as notes:
        parity = measure_parity(
            model, bundle.image_encoder_onnx, bundle.temporal_head_onnx, plan.precision, plan.keep_fp32
        )
        notes.append(f"logits within {parity['logit_error']:g}")
    older_versions = previous.model_repository if previous else None
    complete_bundle(folder, dataclasses.replace(plan, parity=parity), older_versions)
    if previous is not None:
        keep_timing_caches(previous.path, folder)


def _manifest(checkpoint: Checkpoint, options: ExportOptions) -> Manifest:
    """Return the manifest, as far as it is known before the work begins."""
    target = options.target or "embedded"
    frame_interval_s = options.frame_interval_s or checkpoint.frame_interval_s
    if frame_interval_s is not None:
        check_interval(frame_interval_s)
    return Manifest(
        format=MANIFEST_FORMAT,
        name=options.name,
        version=1,
        spec=checkpoint.spec,
        target=target,
        precision=options.precision or ("fp16" if target == "tensorrt" or options.keep_fp32 else "fp32"),
        keep_fp32=checked_blocks(options.keep_fp32, checkpoint.spec),
        serving=options.serving or ServingOptions(max_batch_size=16),
        checkpoint=CheckpointRecord(sha256_of_file(checkpoint.path), checkpoint.format, checkpoint.best_acc),
        frame_interval_s=frame_interval_s,
        preprocessing=_preprocessing(checkpoint.spec),
        parity={},
        tools={"dfer-deploy": __version__} | _tool_versions(),
        files={},
    )


def _tool_versions() -> dict[str, str]:
    """Return the versions of all tools that affect the graphs, with whichever onnxruntime package is installed."""
    versions = {}
    for name in _TOOLS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _preprocessing(spec: ModelSpec) -> dict[str, Any]:
    size = spec.clip.vision.image_size
    return {
        "color": "RGB",
        "dtype": "uint8",
        "range": [0, 255],
        "frames": MAX_FRAMES,
        "sampling": "the middle frame of each of 16 equal parts; at most 16 frames: all, then the last one repeated",
        "size": [size, size],
        "resize": "Pillow bilinear, aspect ratio not kept",
        "mean_and_std": "none; the division by 255 is in the graph",
    }


def _previous(output: Path) -> Bundle | None:
    """Return the existing bundle; None if its manifest is damaged or of another version of dfer-deploy.

    Raises:
        DferDeployError: something else than a bundle exists there, which must not be replaced.
    """
    if not is_bundle(output):
        raise WriteError(f"{output} exists and is not a bundle, so it is not replaced; choose another -o")
    try:
        return open_bundle(output, check_files=False)
    except DferDeployError:
        return None


def _check_compatible(previous: Bundle, plan: Manifest) -> None:
    """Raise an error unless ``plan`` can be the next version of ``previous``."""
    check_bundle_files(previous)
    for what in ("name", "target", "serving"):
        old, new = getattr(previous.manifest, what), getattr(plan, what)
        if old != new:
            raise BundleError(
                f"{previous.path} has the {what} {old!r}, {spelled('add_version')} needs the same, not {new!r}"
            )
    old_classes, new_classes = (spec.prompts.class_names for spec in (previous.spec, plan.spec))
    if previous.contract != contract_for(plan.spec, plan.name) or old_classes != new_classes:
        raise BundleError(
            f"{previous.path} serves the classes {', '.join(old_classes)} at {previous.spec.clip.vision.image_size} "
            f"pixels, {spelled('add_version')} needs the same, not {', '.join(new_classes)} at "
            f"{plan.spec.clip.vision.image_size}; export to a bundle of its own"
        )


def _same_content(old: Manifest, plan: Manifest) -> bool:
    return dataclasses.replace(plan, version=old.version, parity=old.parity, files=old.files) == old
