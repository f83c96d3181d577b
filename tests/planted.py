"""Errors that an export could have, planted in the graphs of a bundle whose hashes fit them."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.export.configure import configure_bundle
from dfer_deploy.files import sha256_of_file, write_json

Change = Callable[[onnx.GraphProto], None]


def planted(bundle: Bundle, folder: Path, graph: str, change: Change) -> Bundle:
    """A copy of a bundle with ``image_encoder`` or ``temporal_head`` changed, in process and served."""
    model = f"dfer_{graph}"
    return rewritten(bundle, folder, change, f"onnx/{model}.onnx", f"model_repository/{model}/1/model.onnx")


def planted_where_served(bundle: Bundle, folder: Path, model: str, change: Change) -> Bundle:
    """A copy of a bundle with one model of its repository changed; the graphs of the bundle stay right."""
    return rewritten(bundle, folder, change, f"model_repository/{model}/1/model.onnx")


def drifted(bundle: Bundle, folder: Path, graph: str, relative: float) -> Path:
    """A copy of a bundle whose weights of one graph were changed a little, in process and served."""
    return planted(bundle, folder, graph, functools.partial(drift, relative=relative)).path


def rewritten(bundle: Bundle, folder: Path, change: Change, *files: str) -> Bundle:
    """A copy of a bundle in which ``files``, copies of one graph, were changed, with hashes that fit the change."""
    shutil.copytree(bundle.path, folder)
    model = onnx.load(folder / files[0])
    change(model.graph)
    for name in files:
        (folder / name).unlink()  # it may be the same file as the bundle's
        onnx.save(model, folder / name)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        manifest["files"][name] = sha256_of_file(folder / name)
    write_json(folder / "manifest.json", manifest)
    # The configurations tell clients which graphs they serve.
    return configure_bundle(folder, bundle.manifest.serving)[0]


def drift(graph: onnx.GraphProto, relative: float = 0.005) -> None:
    """Every matrix off by half a percent at random."""
    rng = np.random.default_rng(0)
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 2 and values.dtype.kind == "f":
            noise = 1 + relative * rng.standard_normal(values.shape)
            tensor.CopyFrom(numpy_helper.from_array((values * noise).astype(values.dtype), tensor.name))


def swap_classes(graph: onnx.GraphProto) -> None:
    """The first two classes change places in the classifier."""
    product = next(node for node in graph.node if "logits" in node.output)
    tensor = next(tensor for tensor in graph.initializer if tensor.name in product.input)
    values = numpy_helper.to_array(tensor).copy()
    values[:, :2] = values[:, 1::-1]
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def only_the_newest(graph: onnx.GraphProto) -> None:
    """A stream's window in which all frames are the newest."""
    chosen = next(node for node in graph.node if node.op_type == "Where")
    chosen.input[1] = chosen.input[2]


def never_finite(graph: onnx.GraphProto) -> None:
    """A stream's window in which all frames but the newest are NaN."""
    chosen = next(node for node in graph.node if node.op_type == "Where")
    chosen.input[1] = "spoilt"
    graph.initializer.append(numpy_helper.from_array(np.float32(np.nan), "nan"))
    product = helper.make_node("Mul", ["recent_features", "nan"], ["spoilt"])
    graph.node.insert(list(graph.node).index(chosen), product)


def negate_probabilities(graph: onnx.GraphProto) -> None:
    """The probabilities no longer follow from the logits."""
    final = next(node for node in graph.node if "probabilities" in node.output)
    final.input[0] = "negated"
    graph.node.insert(list(graph.node).index(final), helper.make_node("Neg", ["logits"], ["negated"]))


def swap_channels(graph: onnx.GraphProto) -> None:
    """BGR for RGB."""
    cast = _cast(graph)
    cast.input[0] = "swapped"
    graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))
    graph.node.insert(0, helper.make_node("Gather", ["frames", "order"], ["swapped"], axis=4))


def reverse_time(graph: onnx.GraphProto) -> None:
    """The last frame first."""
    cast = _cast(graph)
    cast.input[0] = "reversed"
    graph.initializer.extend(
        numpy_helper.from_array(np.array(values, np.int64), name)
        for name, values in (("last", [-1]), ("before_first", [-(2**62)]), ("time", [1]), ("back", [-1]))
    )
    names = ["frames", "last", "before_first", "time", "back"]
    graph.node.insert(0, helper.make_node("Slice", names, ["reversed"]))


def add_mean_and_std(graph: onnx.GraphProto) -> None:
    """CLIP's normalisation, which DFER-CLIP was trained without."""
    mean = 255 * np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
    std = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
    graph.initializer.extend([numpy_helper.from_array(mean, "mean"), numpy_helper.from_array(std, "std")])
    cast = _cast(graph)
    after = list(graph.node).index(cast) + 1
    for node in graph.node:
        node.input[:] = ["normalised" if name == cast.output[0] else name for name in node.input]
    graph.node.insert(after, helper.make_node("Sub", [cast.output[0], "mean"], ["centred"]))
    graph.node.insert(after + 1, helper.make_node("Div", ["centred", "std"], ["normalised"]))


def halve_layer_norm(graph: onnx.GraphProto) -> None:
    """The second LayerNorm of the first block in fp16."""
    norm = [node for node in graph.node if node.op_type == "LayerNormalization"][2]
    at = list(graph.node).index(norm)
    casts = [
        helper.make_node("Cast", [name], [f"half.{index}"], to=onnx.TensorProto.FLOAT16)
        for index, name in enumerate(norm.input)
    ]
    output = norm.output[0]
    norm.input[:] = [cast.output[0] for cast in casts]
    norm.output[0] = "half.output"
    for value in [value for value in graph.value_info if value.name == output]:
        graph.value_info.remove(value)
    graph.node.insert(at + 1, helper.make_node("Cast", ["half.output"], [output], to=onnx.TensorProto.FLOAT))
    for cast in reversed(casts):
        graph.node.insert(at, cast)


def _cast(graph: onnx.GraphProto) -> onnx.NodeProto:
    """Where pixels become numbers that can be computed with."""
    return next(node for node in graph.node if node.op_type == "Cast" and "frames" in node.input)
