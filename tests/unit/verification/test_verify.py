"""What ``verify`` makes of batches, of clips that cannot be read, and of saved answers; with tiny models in PyTorch."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from tiny import clips_of, tiny_model, tiny_spec, write_frames

from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.clips.dataset import LabelledClips
from dfer_deploy.clips.reading import clip_from_path
from dfer_deploy.errors import ClipError, SettingError
from dfer_deploy.metrics import softmax
from dfer_deploy.runtimes.torch_predictor import TorchPredictor
from dfer_deploy.verification.baseline import PredictorTruth, clip_hash, load_baseline, save_baseline
from dfer_deploy.verification.compared_answers import ComparedAnswers
from dfer_deploy.verification.folds import EarlierVerification
from dfer_deploy.verification.limits import Limits
from dfer_deploy.verification.verify import ShownClips, show_clips

SHA256 = "c0" * 32
SPEC = tiny_spec()
NAMES = SPEC.prompts.class_names
NO_LIMITS = Limits("fp32", head_logits=1e6, logits=1e6, flip_margin=1e6, roundings=30, probabilities=1e6, points=100)


model = functools.cache(tiny_model)


def named(name: str, seed: int = 0) -> TorchPredictor:
    predictor = TorchPredictor(model(seed))
    predictor.name = name
    return predictor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips of one frame."""
    root = tmp_path_factory.mktemp("clips")
    for index, clip in enumerate(clips_of(5, frames=1)):
        write_frames(root / f"{index}", clip)
    return root


def listed(folder: Path, names: str = "01234") -> LabelledClips:
    """Clips with the labels 0, 1, 2, 0, …; a name that is none of the five cannot be read."""
    annotations = [Annotation(f"film/{name}", folder / name, 1, index % 3) for index, name in enumerate(names)]
    return LabelledClips(annotations, SPEC.clip.vision.image_size)


def show(*arguments: Any, **options: Any) -> ShownClips:
    return show_clips(NAMES, *arguments, **options)


def failures_of(found: ShownClips, limits: Limits = NO_LIMITS, pool: Sequence[EarlierVerification] = ()) -> list[str]:
    return [f for comparison in found.comparisons(limits, pool) for f in comparison.failures]


@pytest.fixture(scope="module")
def truth() -> PredictorTruth:
    return PredictorTruth(named("truth"), SHA256)


def test_all_clips_count_whatever_the_batches(folder: Path, truth: PredictorTruth) -> None:
    frames = np.stack([clip_from_path(folder / name, 32) for name in "01234"])
    other = named("other", seed=5)
    expected, answered = truth.predictor.predict(frames).logits, other.predict(frames).logits
    labels = np.array([0, 1, 2, 0, 1])
    for batch_size in (2, 5):
        found = show(truth, [named("same"), other], listed(folder), batch_size=batch_size)
        same, different = found.comparisons(NO_LIMITS)
        assert (same.name, different.name) == ("same", "other")
        assert (same.max_logit_difference, same.flips) == (pytest.approx(0, abs=1e-4), ())
        assert different.max_logit_difference == pytest.approx(np.abs(answered - expected).max(), abs=1e-3)
        np.testing.assert_allclose(found.logits, expected, atol=1e-3)
        np.testing.assert_allclose(found.frame_features, truth.predictor.encode(frames), atol=1e-3)
        np.testing.assert_array_equal(found.answers.candidates["other"], answered.argmax(axis=1))
        np.testing.assert_array_equal(found.answers.labels, labels)
        assert found.truth_score.war == 100 * np.mean(expected.argmax(axis=1) == labels)
        confidence = softmax(expected).max(axis=1)
        assert sum(b.clips * b.confidence for b in found.truth_score.calibration_bins) == pytest.approx(
            confidence.sum()
        )
        failures = failures_of(found)
        assert len(failures) == 2
        assert all(failure.startswith("other: ") and "rounding" in failure for failure in failures)


def test_errors_are_held_against_rounding_on_the_same_clips_whatever_the_batches(
    folder: Path, truth: PredictorTruth
) -> None:
    first, *others = (
        show(truth, [named("other", seed=5)], listed(folder), batch_size=batch_size) for batch_size in (1, 3, 5)
    )
    four = show(truth, [named("other", seed=5)], listed(folder, "0123"))
    for found in (*others, four):
        assert found.rounding == first.rounding
        errors = vars(found.collected["other"].errors)
        assert errors == pytest.approx(vars(first.collected["other"].errors), rel=1e-3)
    assert show(truth, [named("other", seed=5)], listed(folder, "0")).rounding != first.rounding


def test_an_error_of_one_graph_is_not_charged_to_the_other(folder: Path, truth: PredictorTruth) -> None:
    encoder, head = copy.deepcopy(model(0)), copy.deepcopy(model(0))
    encoder.image_encoder, head.temporal_net = model(5).image_encoder, model(5).temporal_net
    predictors = [TorchPredictor(encoder), TorchPredictor(head)]
    for predictor, name in zip(predictors, ("encoder", "head"), strict=True):
        predictor.name = name
    found = show(truth, predictors, listed(folder), batch_size=3).collected
    errors = {name: of_one.errors for name, of_one in found.items()}
    assert errors["encoder"].features > 0.1
    assert errors["head"].head_logits > 0.1
    assert max(errors["encoder"].head_logits, errors["head"].features) < 1e-4


def test_the_same_graphs_must_agree_with_the_first_of_them_on_every_batch(folder: Path, truth: PredictorTruth) -> None:
    frames = np.stack([clip_from_path(folder / name, 32) for name in "01234"])
    first, second, third = named("first", seed=5), named("second"), named("third", seed=6)
    by_clip = np.abs(second.predict(frames).logits - first.predict(frames).logits).max(axis=1)
    order = "".join(map(str, np.argsort(-by_clip)))
    found = show(truth, [first, second, third], listed(folder, order), same_graphs=("first", "second"),
        batch_size=1,
    )  # fmt: skip
    assert [failure for failure in failures_of(found) if "rounding" not in failure] == [
        f"second: a logit against onnxruntime in process differs by {by_clip.max():.3g}, at most 0.001 is accepted"
    ]


def test_one_of_twenty_clips_may_be_unreadable_and_two_may_not(folder: Path, truth: PredictorTruth) -> None:
    groups = {f"film/{name}": f"source {name}" for name in "10x"}
    found = show(truth, [named("same")], listed(folder, "0x1"), groups=groups)
    assert (found.answers.clips, found.answers.groups) == (("film/0", "film/1"), ("source 0", "source 1"))
    assert found.answers.labels.tolist() == [0, 2]
    assert set(found.unreadable) == {"film/x"}
    assert len(found.list_failures(NO_LIMITS)) == 2
    for clips, failures in ((19, 0), (18, 1)):
        others = dataclasses.replace(found, lost_classes=(), answers=earlier(clips).result.answers)
        assert len(others.list_failures(NO_LIMITS)) == failures
    with pytest.raises(ClipError, match="none of the 2 clips"):
        show(truth, [named("same")], listed(folder, "xy"))


def test_saved_answers_are_the_truth_on_the_same_clips(folder: Path, truth: PredictorTruth, tmp_path: Path) -> None:
    path = tmp_path / "b.npz"
    first = show(truth, [named("other", seed=5)], listed(folder, "20314"))
    save_baseline(path, first.baseline(SHA256, SPEC))
    saved = load_baseline(path, SPEC)
    assert saved.checkpoint_sha256 == SHA256
    again = show(saved, [named("other", seed=5)], listed(folder, "20314"), batch_size=5)
    np.testing.assert_array_equal(again.logits, first.logits)
    np.testing.assert_array_equal(again.frame_features, first.frame_features)
    assert again.truth_score.war == first.truth_score.war
    flipped = [[flip.clip for flip in found.comparisons(NO_LIMITS)[0].flips] for found in (first, again)]
    assert flipped[0] == flipped[1]


def test_a_class_whose_clips_cannot_be_read_is_a_failure(folder: Path, truth: PredictorTruth, tmp_path: Path) -> None:
    """Without it the UAR is the mean over the other classes, which says less with fewer of them."""
    clips = listed(folder, "01")
    limits = dataclasses.replace(NO_LIMITS, unreadable=1)
    assert show(truth, [named("same")], clips).list_failures(limits) == []
    clips.annotations.append(Annotation("absent", tmp_path / "absent", 1, 2))
    found = show(truth, [named("same")], clips)
    assert found.list_failures(limits) == [f"no clip of {NAMES[2]} could be read, so nothing is known of its recall"]


def earlier(clips: int, **changes: tuple[str, ...]) -> EarlierVerification:
    """A verification of so many clips of which all were answered rightly."""
    labels, names = np.arange(clips) % 3, tuple(map(str, range(clips)))
    hashes = tuple(f"{index:064x}" for index in range(clips))
    answers = ComparedAnswers(NAMES, names, hashes, None, labels, labels, {"same": labels})
    result = SimpleNamespace(answers=dataclasses.replace(answers, **changes))
    return EarlierVerification(Path("fold.json"), cast(Any, result))


def test_pooled_clips_count_towards_the_equivalence_only(folder: Path, truth: PredictorTruth) -> None:
    pool, limits = [earlier(1500)], dataclasses.replace(NO_LIMITS, points=1)
    found = show(truth, [named("same")], listed(folder), pool=pool)
    (comparison,) = found.comparisons(limits, pool)
    assert comparison.failures == ()
    assert (comparison.equivalence.clips, comparison.equivalence.verdict) == (1505, "equivalent")
    assert (comparison.flip_rate.n, np.sum(comparison.confusion)) == (1505, 5)
    assert comparison.undecided == ()
    (alone,) = show(truth, [named("same")], listed(folder)).comparisons(limits)[0].undecided
    assert alone.startswith("same: too few clips")


def test_a_clip_counts_once_in_the_decision_whatever_its_name(
    folder: Path, truth: PredictorTruth, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0").symlink_to(folder / "0")
    (tmp_path / "1").symlink_to(folder / "2")
    clips = listed(folder, "1231")
    clips.annotations += [Annotation(f"copy/{name}", tmp_path / name, 1, 0) for name in "01"]
    pool = [earlier(3, clip_hashes=("a" * 64, "b" * 64, "a" * 64))]
    found = show(truth, [named("same")], clips, batch_size=2, pool=pool)
    assert len(found.answers.labels) == 6
    (comparison,) = found.comparisons(NO_LIMITS, pool)
    assert comparison.equivalence.clips == comparison.flip_rate.n == 4 + 2
    assert "2 of the 6 clips have the frames of another one of them" in " ".join(capsys.readouterr().err.split())


def test_a_clip_of_a_pooled_verification_does_not_count_again(folder: Path, truth: PredictorTruth) -> None:
    first = show(truth, [named("same")], listed(folder, "012"))
    assert first.answers.clip_hashes == tuple(clip_hash(clip_from_path(folder / name, 32)) for name in "012")
    pool = [earlier(3, clip_hashes=first.answers.clip_hashes)]
    with pytest.raises(SettingError, match=r"^the clip 'film/2' has the frames of '2' in another pooled"):
        show(truth, [named("same")], listed(folder, "342"), pool=pool)
