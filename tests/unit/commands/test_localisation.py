"""When the blocks' effects on the logits, which take most of the time, are measured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from dfer_deploy.commands import localisation
from dfer_deploy.export import layers
from dfer_deploy.export.layers import LayerError, Localisation


@pytest.mark.parametrize(
    ("failures", "own", "asked"),
    [((), 0.0, [False]), (("a logit differs",), 0.0, [True]), ((), 1.0, [False, True])],
    ids=["all is well", "answers differ", "only a block leaves its tolerance"],
)
def test_effects_are_measured_where_something_failed(
    monkeypatch: pytest.MonkeyPatch, failures: tuple[str, ...], own: float, asked: list[bool]
) -> None:
    effects: list[bool] = []

    def localise(*arguments: Any, **options: Any) -> Localisation:
        effects.append(options.get("effects", True))
        return Localisation((LayerError("encoder.0", "fp32", own, 1e-7, own, 1.0, None),), 1)

    monkeypatch.setattr(layers, "localise", localise)
    monkeypatch.setattr(localisation, "_worst", lambda clips, result: None)
    manifest = SimpleNamespace(precision="fp32", keep_fp32=())
    bundle = SimpleNamespace(manifest=manifest, image_encoder_onnx=None, temporal_head_onnx=None)
    result = SimpleNamespace(comparisons=[SimpleNamespace(failures=()), SimpleNamespace(failures=failures)])
    localisation.localised(cast(Any, bundle), cast(Any, None), cast(Any, None), cast(Any, result))
    assert effects == asked
