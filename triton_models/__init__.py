"""The files that Triton loads, and those of its containers.

They are templates of ``config.pbtxt``, models for Triton's Python backend, and files for Docker.
"""

from __future__ import annotations

from importlib import resources

if __name__ == "triton_models":
    raise ImportError("import this package as dfer_deploy.triton_models")

_PACKAGE = "dfer_deploy.triton_models"


def config_template(*path: str) -> str:
    """Read a template, for example ``config_template("embedded", "image_encoder.pbtxt")``."""
    return _text(*path)


def onnx_model_sources() -> dict[str, str]:
    """Read the files, by name, of the Python-backend model that runs ``model.onnx`` with onnxruntime."""
    return {"model.py": _text("onnx_model", "model.py"), **_beside_model()}


def preprocess_sources() -> dict[str, str]:
    """Read the files, by name, of the Python-backend model that turns encoded images into frames."""
    decoding = resources.files("dfer_deploy.clips").joinpath("image_decoding.py")
    return {
        "model.py": _text("preprocess", "model.py"),
        **_beside_model(),
        "image_decoding.py": decoding.read_text(encoding="utf-8"),
    }


def _beside_model() -> dict[str, str]:
    cgroups = resources.files("dfer_deploy.machine").joinpath("cgroups.py").read_text(encoding="utf-8")
    return {name: _text(name) for name in ("model_requests.py", "receipts.py")} | {"cgroups.py": cgroups}


def container_files(target: str) -> dict[str, str]:
    """Build the files for Docker in a bundle, by name; none for the target ``embedded``.

    The Dockerfile is joined from one file for each stage. Only the target ``tensorrt`` has a stage that builds engines.
    """
    if target == "embedded":
        return {}
    stages, services = ["serve.Dockerfile"], ["compose.yaml"]
    files = {"healthcheck.py": _text("container", "healthcheck.py")}
    if target == "tensorrt":
        stages.append("build.Dockerfile")
        services.append("compose.build.yaml")
        files["install_tensorrt.py"] = _text("container", "install_tensorrt.py")
    files["Dockerfile"] = "\n".join(_text("container", name) for name in stages)
    files["compose.yaml"] = "\n".join(_text("container", name) for name in services)
    return files


def _text(*path: str) -> str:
    return resources.files(_PACKAGE).joinpath(*path).read_text(encoding="utf-8")
