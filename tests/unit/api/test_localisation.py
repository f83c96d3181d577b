"""When the blocks' effects on the logits, which take most of the time, are measured, and what is blamed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from report_pages import planted_result

from dfer_deploy.api import localisation
from dfer_deploy.export import layers
from dfer_deploy.verification.blocks import BlockComparison, BlockError


def measured(
    monkeypatch: pytest.MonkeyPatch, failing: bool, own: float, served: list[str]
) -> tuple[list[bool], BlockComparison]:
    """Whether effects were asked for at each comparison of the blocks, and the last result."""
    effects: list[bool] = []

    def localise(*arguments: Any, **options: Any) -> BlockComparison:
        effects.append(options.get("effects", True))
        return BlockComparison((BlockError("encoder.0", "fp32", own, 1e-7, own, 1.0, None),), 1)

    monkeypatch.setattr(layers, "localise", localise)
    monkeypatch.setattr(localisation, "worst_clips", lambda shown, comparisons: None)
    bundle = SimpleNamespace(
        manifest=SimpleNamespace(precision="fp32", keep_fp32=()), image_encoder_onnx=None, temporal_head_onnx=None
    )
    first, second = planted_result(12, (0, 0)).comparisons
    comparisons = (first, replace(second, failures=("a logit differs",) if failing else ()))
    found = localisation.localised(cast(Any, bundle), cast(Any, None), cast(Any, None), comparisons, served)
    return effects, found


@pytest.mark.parametrize(
    ("failing", "own", "asked"),
    [(False, 0.0, [False]), (True, 0.0, [True]), (False, 1.0, [False, True])],
    ids=["all is well", "answers differ", "only a block leaves its tolerance"],
)
def test_effects_are_measured_where_something_failed(
    monkeypatch: pytest.MonkeyPatch, failing: bool, own: float, asked: list[bool]
) -> None:
    assert measured(monkeypatch, failing, own, [])[0] == asked


@pytest.mark.parametrize(
    ("failing", "own", "served", "blamed"),
    [
        (True, 0.0, ["candidate 1"], True),
        (True, 1.0, ["candidate 1"], False),
        (True, 0.0, ["candidate 0"], False),
        (False, 0.0, ["candidate 1"], False),
    ],
)
def test_the_repository_is_blamed_where_only_served_answers_differ_and_no_block_does(
    monkeypatch: pytest.MonkeyPatch, failing: bool, own: float, served: list[str], blamed: bool
) -> None:
    _, found = measured(monkeypatch, failing, own, served)
    assert (found.where == localisation.SERVED_DIFFERS) == blamed
