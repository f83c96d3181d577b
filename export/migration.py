"""Migrate a bundle that an older version wrote: the graphs stay, everything around them is written anew."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dfer_deploy import __version__
from dfer_deploy.bundles.bundle import MANIFEST_FORMAT, Bundle
from dfer_deploy.bundles.integrity import check_file, open_bundle
from dfer_deploy.bundles.released_formats import open_released_bundle
from dfer_deploy.console import step
from dfer_deploy.errors import BundleError
from dfer_deploy.export.bundle_folder import complete_bundle, keep_timing_caches
from dfer_deploy.files import link_or_copy, refuse_to_write_into_bundle
from dfer_deploy.machine.folders import atomic_folder


def migrate_to_folder(old_path: Path, output: Path) -> tuple[Bundle, Bundle]:
    """Write a bundle of this version's format with the graphs of an older one. The older one is left unchanged.

    The graphs, the measured parity and the version number are kept. The window graph, the model repository and the
    files for containers and engines are those of this version. Older versions in the repository and built engines are
    not carried over. The engines' timing caches are, so that the next build is faster.

    Args:
        old_path: folder of a bundle of any released format.
        output: the new bundle's folder, which must not exist.

    Returns:
        The old bundle and the new one. The old one's manifest has its fields in today's form.

    Raises:
        DferDeployError: the old bundle or one of its graphs is damaged, its format is not known, or the new one cannot
            be written.
    """
    old = open_released_bundle(old_path)
    refuse_to_write_into_bundle(output, old_path)
    if output.exists():
        raise BundleError(f"{output} exists already; choose another -o for the migrated bundle")
    with step(f"check the graphs of {old_path}"):
        graphs = (old.image_encoder_onnx, old.temporal_head_onnx)
        for graph in graphs:
            check_file(old, graph.relative_to(old.path).as_posix())
    tools = old.manifest.tools | {"migrated by dfer-deploy": __version__}
    plan = dataclasses.replace(old.manifest, format=MANIFEST_FORMAT, tools=tools, files={})
    with atomic_folder(output) as folder:
        (folder / "onnx").mkdir()
        for graph in graphs:
            link_or_copy(graph, folder / "onnx" / graph.name)
        complete_bundle(folder, plan)
        keep_timing_caches(old.path, folder)
    return old, open_bundle(output)
