"""Make the content of ``build_engines.json`` from a bundle's manifest."""

from __future__ import annotations

import dataclasses

from dfer_deploy.bundles.blocks import encoder_blocks, head_blocks
from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.bundles.engine_builds import BUILDS_FORMAT, EngineBuild, EngineBuilds
from dfer_deploy.bundles.engine_records import Profile
from dfer_deploy.files import json_text
from dfer_deploy.specs import MAX_FRAMES, TensorSpec

_USUAL_CLIPS = 8
"""Number of clips for which kernels are chosen by default."""

_PRODUCTS_OF_A_LAYER = 8
"""Matrix products in a transformer layer: queries, keys, values, two of the attention, its output, two of the MLP."""


def engine_builds_of(bundle: Bundle) -> EngineBuilds:
    """Return how the engines of a bundle's two graphs are built.

    Args:
        bundle: bundle of the target tensorrt; its manifest lists both graphs.

    Raises:
        DferDeployError: the manifest lacks one of the graphs.
    """
    contract, manifest = bundle.contract, bundle.manifest
    encoder_products = _product_types(encoder_blocks(bundle.spec), manifest.keep_fp32)
    # The matrix product that gives the logits is fp32 in any precision.
    head_products = (*_product_types(head_blocks(bundle.spec), manifest.keep_fp32), "FLOAT")
    builds = {}
    for graph, sha256, products in zip(
        (contract.image_encoder, contract.temporal_head),
        bundle.graphs_sha256,
        (encoder_products, head_products),
        strict=True,
    ):
        profile = {tensor.name: _profile(tensor, manifest.serving.max_batch_size) for tensor in graph.inputs}
        mixed = products if manifest.keep_fp32 else None
        builds[graph.name] = EngineBuild(sha256, profile, manifest.precision, mixed)
    return EngineBuilds(manifest.version, builds)


def engine_builds_text(bundle: Bundle) -> str:
    """Return the content of ``build_engines.json``; the same manifest gives the same bytes."""
    return json_text({"format": BUILDS_FORMAT} | dataclasses.asdict(engine_builds_of(bundle)))


def _profile(tensor: TensorSpec, largest: int) -> Profile:
    """Return the shapes: 1 clip of 1 frame to the largest batch of 16 frames, optimised for some clips of 16 frames."""
    rest = tuple(size for size in tensor.shape[2:] if isinstance(size, int))
    usual = min(_USUAL_CLIPS, largest)
    return Profile((1, 1, *rest), (usual, MAX_FRAMES, *rest), (largest, MAX_FRAMES, *rest))


def _product_types(blocks: tuple[str, ...], keep_fp32: tuple[str, ...]) -> tuple[str, ...]:
    types: list[str] = []
    for block in blocks:
        count = _PRODUCTS_OF_A_LAYER if "." in block else 1
        types += ["FLOAT" if block in keep_fp32 else "HALF"] * count
    return tuple(types)
