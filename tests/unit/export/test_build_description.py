"""What the builder of engines is told about a bundle."""

import dataclasses
from pathlib import Path

import pytest

from dfer_deploy.bundles.bundle import Bundle, ServingOptions
from dfer_deploy.bundles.engine_builds import BUILDS_NAME, read_engine_builds
from dfer_deploy.bundles.engine_records import Profile
from dfer_deploy.errors import EngineError
from dfer_deploy.export.build_description import engine_builds_of, engine_builds_text


def served(bundle: Bundle, largest: int, **changes: object) -> Bundle:
    serving = ServingOptions(largest, cuda_graph_batches=())
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, serving=serving, **changes))


def test_the_description_survives_its_file(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / BUILDS_NAME).write_text(engine_builds_text(bundle))
    assert read_engine_builds(tmp_path) == engine_builds_of(bundle)


def test_shapes_reach_from_one_frame_to_the_largest_batch(bundle: Bundle) -> None:
    builds = engine_builds_of(served(bundle, 64))
    assert builds.version == 1
    encoder, head = builds.graphs["dfer_image_encoder"], builds.graphs["dfer_temporal_head"]
    assert encoder.profile == {"frames": Profile((1, 1, 32, 32, 3), (8, 16, 32, 32, 3), (64, 16, 32, 32, 3))}
    assert head.profile == {"frame_features": Profile((1, 1, 64), (8, 16, 64), (64, 16, 64))}
    assert (encoder.onnx_sha256, head.onnx_sha256) == bundle.graphs_sha256
    smaller = engine_builds_of(served(bundle, 4)).graphs["dfer_temporal_head"]
    assert smaller.profile["frame_features"].opt == (4, 16, 64)
    assert smaller.with_usual_batch(2).profile["frame_features"].opt == (2, 16, 64)
    for clips in (0, 5):
        with pytest.raises(EngineError, match=f"the usual batch has {clips} clips, expected 1 to 4"):
            smaller.with_usual_batch(clips)


def test_each_product_has_a_type_where_some_blocks_stay_fp32(bundle: Bundle) -> None:
    uniform = engine_builds_of(served(bundle, 4, precision="fp16"))
    assert {build.matrix_products for build in uniform.graphs.values()} == {None}
    mixed = engine_builds_of(served(bundle, 4, precision="fp16", keep_fp32=("encoder.1", "projection")))
    of_encoder = mixed.graphs["dfer_image_encoder"].matrix_products
    assert of_encoder == ("HALF", *["HALF"] * 8, *["FLOAT"] * 8, "FLOAT")
    of_head = mixed.graphs["dfer_temporal_head"].matrix_products
    assert of_head == (*["HALF"] * 8, "FLOAT"), "the logits are fp32 in any precision"
