"""An engine has the precision that it is said to have: by its network, by its size, and by what the inspector says."""

import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from dfer_deploy.export.engine import Engine

pytestmark = pytest.mark.gpu


def matrix_products(engine: Engine) -> list[dict[str, Any]]:
    """The layers that multiply matrices, as far as TensorRT names them or their kernels so."""
    assert engine.layers is not None, "with a GPU the inspector must have been asked"
    layers: list[dict[str, Any]] = json.loads(engine.layers)["Layers"]
    assert layers
    assert all(isinstance(layer, dict) for layer in layers), "the plan was built without DETAILED verbosity"
    words = ("gemm", "matrixmultiply", "matrix_multiply", "matmul", "convolution")
    return [
        layer
        for layer in layers
        if any(word in f"{layer.get('LayerType')} {layer.get('TacticName')}".lower() for word in words)
    ]


def types_of(layer: dict[str, Any]) -> set[str]:
    """Of the matrices that a layer multiplies; a product's scalar factors may be of another type.

    TensorRT 10 writes "Format/Datatype"; 11 splits the field (migration guide to 11.0).
    """
    matrices = [tensor for tensor in layer.get("Inputs", ()) if math.prod(tensor["Dimensions"]) > 1]
    formats = " ".join(t.get("Format/Datatype") or t.get("DataType") or t.get("Datatype") or "" for t in matrices)
    words = {"fp16": r"fp16|half", "fp32": r"fp32|\bfloat\b", "bf16": r"bf16|bfloat16"}
    return {name for name, pattern in words.items() if re.search(pattern, formats.lower())}


def test_networks_and_inspector_agree(built: Any) -> None:
    encoder, head = built.engines
    half, single = ("HALF", "FLOAT") if built.precision == "fp16" else ("FLOAT", "FLOAT")
    assert set(encoder.matrix_products) == {half}
    assert set(head.matrix_products) == {half, single}
    assert encoder.precision == head.precision == built.precision
    products = matrix_products(encoder)
    assert products, "no matrix product is named: read the layers of this TensorRT and teach the test its names"
    for layer in products:
        assert types_of(layer) == {built.precision}, json.dumps(layer, indent=1)[:2000]


def test_fp16_halves_the_plan(built_models: Callable[..., Any]) -> None:
    sizes = {p: len(built_models("ViT-B-32", p).engines[0].plan) for p in ("fp32", "fp16")}
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
