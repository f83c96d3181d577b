"""Complete a bundle's folder around its two graphs: the window graph, the model repository, the manifest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dfer_deploy.bundles.bundle import MANIFEST_NAME, Bundle, Manifest, Target
from dfer_deploy.bundles.engine_builds import BUILDS_NAME
from dfer_deploy.console import step
from dfer_deploy.export.build_description import engine_builds_text
from dfer_deploy.export.onnx_file import onnx_from_graph
from dfer_deploy.export.parity import check_window
from dfer_deploy.export.repository import write_model_repository
from dfer_deploy.export.standalone import build_engines_source
from dfer_deploy.export.window_graph import WindowGraph
from dfer_deploy.files import link_or_copy, sha256_of_file, write_json
from dfer_deploy.specs import encoder_id
from dfer_deploy.triton_models import container_files


def complete_bundle(folder: Path, plan: Manifest, older_versions: Path | None = None) -> None:
    """Write everything of a bundle that its graphs and its manifest determine. The manifest is written last.

    Args:
        folder: the bundle's folder, which has the graphs of the image encoder and of the temporal head.
        plan: the manifest without ``files``.
        older_versions: a model repository whose version folders stay beside the new one's.

    Raises:
        DferDeployError: the window graph is wrong, or a file cannot be written.
    """
    bundle = Bundle(folder, plan)
    window = bundle.contract.window
    with step(f"export {window.name}.onnx"):
        of_encoder = encoder_id(sha256_of_file(bundle.image_encoder_onnx))
        onnx_from_graph(WindowGraph(plan.spec.temporal.max_frames, of_encoder), window, bundle.window_onnx)
        check_window(bundle.window_onnx, window, of_encoder)
    with step(f"write the Triton model repository for the target {plan.target}"):
        write_model_repository(
            bundle.model_repository,
            contract=bundle.contract,
            spec=plan.spec,
            target=plan.target,
            serving=plan.serving,
            frame_interval_s=plan.frame_interval_s,
            version=plan.version,
            image_encoder_onnx=bundle.image_encoder_onnx,
            temporal_head_onnx=bundle.temporal_head_onnx,
            window_onnx=bundle.window_onnx,
        )
        for name, text in _deployment_files(plan.target).items():
            (folder / name).write_text(text, encoding="utf-8")
        if older_versions is not None:
            _keep_versions(older_versions, bundle.model_repository)
        written = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in written}
        manifest = dataclasses.replace(plan, files=files)
        if plan.target == "tensorrt":
            (folder / BUILDS_NAME).write_text(engine_builds_text(Bundle(folder, manifest)), encoding="utf-8")
            files[BUILDS_NAME] = sha256_of_file(folder / BUILDS_NAME)
        write_json(folder / MANIFEST_NAME, dataclasses.asdict(manifest))


def keep_timing_caches(previous: Path, folder: Path) -> None:
    """Link the builder's timing caches of a bundle into its successor, so that the next build is faster.

    They are not listed in the manifest, because each build changes them.
    """
    for cache in previous.glob("engines/*.timing_cache"):
        (folder / "engines").mkdir(exist_ok=True)
        link_or_copy(cache, folder / "engines" / cache.name)


def _deployment_files(target: Target) -> dict[str, str]:
    """Return the files with which another machine needs no dfer-deploy: for the container, and the engines' builder."""
    files = container_files(target)
    if target == "tensorrt":
        files["build_engines.py"] = build_engines_source()
    return files


def _keep_versions(old_repository: Path, repository: Path) -> None:
    """Link the version folders of an older repository into a new one."""
    for old_version in old_repository.glob("*/[0-9]*"):
        folder = repository / old_version.relative_to(old_repository)
        folder.mkdir()
        for path in old_version.iterdir():
            link_or_copy(path, folder / path.name)
