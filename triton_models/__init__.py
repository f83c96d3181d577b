"""What Triton loads: templates of ``config.pbtxt`` and the Python-backend model of the embedded server."""

from __future__ import annotations

from importlib import resources

if __name__ == "triton_models":
    raise ImportError("import this package as dfer_deploy.triton_models")

_PACKAGE = "dfer_deploy.triton_models"


def config_template(*path: str) -> str:
    """The text of a template, for example ``config_template("embedded", "image_encoder.pbtxt")``."""
    return _text(*path)


def onnx_model_source() -> str:
    """The source of the Python-backend model that runs ``model.onnx`` with onnxruntime."""
    return _text("onnx_model", "model.py")


def _text(*path: str) -> str:
    return resources.files(_PACKAGE).joinpath(*path).read_text(encoding="utf-8")
