"""The properties of a served model and of its streams, read from the configuration of its ensembles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dfer_deploy.client.receipt_check import Receipts
from dfer_deploy.errors import IncompatibleServerError, SettingError
from dfer_deploy.triton.address import Address
from dfer_deploy.triton_models.receipts import RECEIPT


@dataclass(frozen=True)
class ServedModel:
    """The properties of a model that a client needs.

    Attributes:
        name: name of the ensemble.
        image_encoder: Triton's name of the ensemble's first step.
        temporal_head: Triton's name of the ensemble's second step.
        image_size: S, height and width of the frames in pixels.
        num_classes: C, the number of classes.
        max_batch_size: the largest number of clips in one request.
        frame_interval_s: seconds between the frames of a training clip; None if the server does not report it.
        graphs_sha256: SHA-256 of the exported image encoder and temporal head; None if the server does not report them.
    """

    name: str
    image_encoder: str
    temporal_head: str
    image_size: int
    num_classes: int
    max_batch_size: int
    frame_interval_s: float | None
    graphs_sha256: tuple[str, str] | None


@dataclass(frozen=True)
class ServedStream:
    """The properties of a model's streams that a client needs.

    Attributes:
        name: name of the ensemble that takes frames.
        recent_frames: N − 1, the number of frames before the newest one in a window of N frames.
        features: L, the size of a frame's features.
    """

    name: str
    recent_frames: int
    features: int


def served_model(name: str, address: Address, config: Any) -> ServedModel:
    """Read the configuration of the model ``name``, plain JSON data.

    Raises:
        DferDeployError: the model is not an ensemble from frames to classes, or its configuration cannot be read.
    """
    try:
        return _read(name, address, config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(name, address, error) from error


def served_stream(name: str, address: Address, config: Any) -> ServedStream:
    """Read the configuration of the ensemble for streams, plain JSON data.

    Raises:
        IncompatibleServerError: the ensemble does not take the features of earlier frames, so another version of
            dfer-deploy exported it.
    """
    try:
        inputs = {entry["name"]: [int(size) for size in entry["dims"]] for entry in config["input"]}
        recent_frames, features = inputs["recent_features"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise IncompatibleServerError(
            f"the model {name!r} at {address} is of another version of dfer-deploy (it does not take the features of "
            "earlier frames); export the checkpoint again with this version and serve that bundle"
        ) from error
    return ServedStream(name, recent_frames, features)


def served_receipts(name: str, address: Address, config: Any) -> Receipts:
    """Read which outputs of the model ``name`` are receipts. Only the target ``embedded`` has any.

    Raises:
        IncompatibleServerError: the configuration cannot be read.
    """
    try:
        parameters = config.get("parameters", {})
        return {
            output["name"]: tuple(parameters[output["name"]]["string_value"].split(","))
            for output in config["output"]
            if output["name"].endswith(RECEIPT)
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(name, address, error) from error


def _unreadable(name: str, address: Address, error: Exception) -> IncompatibleServerError:
    return IncompatibleServerError(
        f"the configuration of the model {name!r} at {address} cannot be read ({type(error).__name__}: {error}); "
        "serve a bundle of this version of dfer-deploy"
    )


def _read(name: str, address: Address, config: Mapping[str, Any]) -> ServedModel:
    steps = config.get("ensemble_scheduling", {}).get("step", [])
    if not steps:
        raise SettingError(f"the model {name!r} at {address} is not an ensemble; give the ensemble's name")
    frames = config["input"][0]
    time, *shape = (int(size) for size in frames["dims"])
    classes = {int(output["dims"][-1]) for output in config["output"] if not output["name"].endswith(RECEIPT)}
    if len(steps) != 2 or time != -1 or len(shape) != 3 or len(classes) != 1:
        whole = name.removesuffix("_stream").removesuffix("_encoded")
        advice = f"give {whole!r}, which takes images and streams too" if whole != name else "give the name of one"
        raise IncompatibleServerError(
            f"the model {name!r} at {address} is not an ensemble from the frames of a clip; {advice}"
        )
    told = {key: str(value["string_value"]) for key, value in config.get("parameters", {}).items()}
    interval = told.get("frame_interval_s")
    encoder_sha256, head_sha256 = told.get("image_encoder_sha256"), told.get("temporal_head_sha256")
    image_encoder, temporal_head = (str(step["model_name"]) for step in steps)
    return ServedModel(
        name=name,
        image_encoder=image_encoder,
        temporal_head=temporal_head,
        image_size=shape[0],
        num_classes=classes.pop(),
        max_batch_size=max(1, int(config["max_batch_size"])),
        frame_interval_s=float(interval) if interval else None,
        graphs_sha256=(encoder_sha256, head_sha256) if encoder_sha256 and head_sha256 else None,
    )
