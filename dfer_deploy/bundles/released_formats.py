"""Manifests of the bundle formats that released versions wrote, read as today's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfer_deploy.bundles.bundle import MANIFEST_FORMAT, Bundle
from dfer_deploy.bundles.integrity import bundle_from_values, manifest_values

FORMAT_OF_0_1 = "dfer-deploy-bundle/3"
"""The format of 0.1.0, whose servers kept the state of streams."""

_SERVING_OF_0_1 = ("max_streams", "stream_idle_s")
"""Serving options of 0.1.0 without a successor: streams have no state on the server, so it has no limits for them."""


def open_released_bundle(path: Path) -> Bundle:
    """Open a bundle of any released format, without a check of its files.

    Returns:
        The bundle. Its manifest has the fields of today and the format of the file.

    Raises:
        BundleError: the folder is not a bundle, or its manifest is damaged or of an unknown format.
    """
    values = manifest_values(path)
    if values.get("format") == FORMAT_OF_0_1:
        return bundle_from_values(path, _without_stream_state(values), expected=FORMAT_OF_0_1)
    return bundle_from_values(path, values, expected=MANIFEST_FORMAT)


def _without_stream_state(values: dict[str, Any]) -> dict[str, Any]:
    serving = values.get("serving")
    if isinstance(serving, dict):
        serving = {name: value for name, value in serving.items() if name not in _SERVING_OF_0_1}
    return values | {"serving": serving}
