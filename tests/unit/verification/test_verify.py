"""What ``verify`` makes of batches, of clips that cannot be read, and of saved answers; with tiny models in PyTorch."""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
from tiny import clips_of, tiny_model, tiny_spec, write_frames

from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.clips.dataset import LabelledClips
from dfer_deploy.clips.reading import clip_from_path
from dfer_deploy.errors import DferDeployError
from dfer_deploy.metrics import softmax
from dfer_deploy.runtimes.torch_predictor import TorchPredictor
from dfer_deploy.verification.baseline import PredictorTruth, clip_hash, load_baseline
from dfer_deploy.verification.folds import ComparedAnswers, EarlierVerification
from dfer_deploy.verification.limits import Limits
from dfer_deploy.verification.verify import verify

SHA256 = "c0" * 32
SPEC = tiny_spec()
NAMES = SPEC.prompts.class_names
NO_LIMITS = Limits("fp32", head_logits=1e6, logits=1e6, flip_margin=1e6, probabilities=1e6, points=100)


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


@pytest.fixture(scope="module")
def truth() -> PredictorTruth:
    return PredictorTruth(named("truth"), SHA256)


def test_all_clips_count_whatever_the_batches(folder: Path, truth: PredictorTruth) -> None:
    frames = np.stack([clip_from_path(folder / name, 32) for name in "01234"])
    other = named("other", seed=5)
    expected, answered = truth.predictor.predict(frames).logits, other.predict(frames).logits
    labels = np.array([0, 1, 2, 0, 1])
    for batch_size in (2, 5):
        found = verify(SPEC, truth, [named("same"), other], listed(folder), NO_LIMITS, batch_size=batch_size)
        same, different = found.comparisons
        assert (same.name, different.name) == ("same", "other")
        assert (same.logits, same.flips) == (pytest.approx(0, abs=1e-4), ())
        assert different.logits == pytest.approx(np.abs(answered - expected).max(), abs=1e-3)
        np.testing.assert_allclose(found.logits, expected, atol=1e-3)
        np.testing.assert_allclose(found.frame_features, truth.predictor.encode(frames), atol=1e-3)
        np.testing.assert_array_equal(different.answers, answered.argmax(axis=1))
        np.testing.assert_array_equal(found.labels, labels)
        assert found.truth_score.war == 100 * np.mean(expected.argmax(axis=1) == labels)
        confidence = softmax(expected).max(axis=1)
        assert sum(b.clips * b.confidence for b in found.truth_calibration.bins) == pytest.approx(confidence.sum())
        assert len(found.failures) == 2
        assert all(failure.startswith("other: ") and "rounding" in failure for failure in found.failures)


def test_errors_are_held_against_rounding_on_the_same_clips_whatever_the_batches(
    folder: Path, truth: PredictorTruth
) -> None:
    first, *others = (
        verify(SPEC, truth, [named("other", seed=5)], listed(folder), NO_LIMITS, batch_size=batch_size)
        for batch_size in (1, 3, 5)
    )
    four = verify(SPEC, truth, [named("other", seed=5)], listed(folder, "0123"), NO_LIMITS)
    for found in (*others, four):
        assert found.rounding == first.rounding
        assert vars(found.errors["other"]) == pytest.approx(vars(first.errors["other"]), rel=1e-3)
    assert verify(SPEC, truth, [named("other", seed=5)], listed(folder, "0"), NO_LIMITS).rounding != first.rounding


def test_an_error_of_one_graph_is_not_charged_to_the_other(folder: Path, truth: PredictorTruth) -> None:
    encoder, head = copy.deepcopy(model(0)), copy.deepcopy(model(0))
    encoder.image_encoder, head.temporal_net = model(5).image_encoder, model(5).temporal_net
    predictors = [TorchPredictor(encoder), TorchPredictor(head)]
    for predictor, name in zip(predictors, ("encoder", "head"), strict=True):
        predictor.name = name
    errors = verify(SPEC, truth, predictors, listed(folder), NO_LIMITS, batch_size=3).errors
    assert errors["encoder"].features > 0.1
    assert errors["head"].head_logits > 0.1
    assert max(errors["encoder"].head_logits, errors["head"].features) < 1e-4


def test_the_same_graphs_must_agree_with_the_first_of_them_on_every_batch(folder: Path, truth: PredictorTruth) -> None:
    frames = np.stack([clip_from_path(folder / name, 32) for name in "01234"])
    first, second, third = named("first", seed=5), named("second"), named("third", seed=6)
    by_clip = np.abs(second.predict(frames).logits - first.predict(frames).logits).max(axis=1)
    order = "".join(map(str, np.argsort(-by_clip)))
    found = verify(
        SPEC, truth, [first, second, third], listed(folder, order), NO_LIMITS, same_graphs=("first", "second"),
        batch_size=1,
    )  # fmt: skip
    assert tuple(failure for failure in found.failures if "rounding" not in failure) == (
        f"second: a logit against onnxruntime in process differs by {by_clip.max():.3g}, at most 0.001 is accepted",
    )


def test_one_of_twenty_clips_may_be_unreadable_and_two_may_not(folder: Path, truth: PredictorTruth) -> None:
    groups = {f"film/{name}": f"source {name}" for name in "10x"}
    found = verify(SPEC, truth, [named("same")], listed(folder, "0x1"), NO_LIMITS, groups=groups)
    assert (found.clip_names, found.groups) == (("film/0", "film/1"), ("source 0", "source 1"))
    assert found.labels.tolist() == [0, 2]
    assert set(found.unreadable) == {"film/x"}
    assert len(found.failures) == 2
    found = dataclasses.replace(found, lost_classes=())
    of_twenty = dataclasses.replace(found, labels=np.zeros(19, np.int64))
    assert of_twenty.failures == ()
    of_nineteen = dataclasses.replace(found, labels=np.zeros(18, np.int64))
    assert len(of_nineteen.failures) == 1
    with pytest.raises(DferDeployError, match="none of the 2 clips"):
        verify(SPEC, truth, [named("same")], listed(folder, "xy"), NO_LIMITS)


def test_saved_answers_are_the_truth_on_the_same_clips(folder: Path, truth: PredictorTruth, tmp_path: Path) -> None:
    path = tmp_path / "b.npz"
    first = verify(SPEC, truth, [named("other", seed=5)], listed(folder, "20314"), NO_LIMITS, baseline_file=path)
    saved = load_baseline(path, SPEC)
    assert saved.checkpoint_sha256 == SHA256
    again = verify(SPEC, saved, [named("other", seed=5)], listed(folder, "20314"), NO_LIMITS, batch_size=5)
    np.testing.assert_array_equal(again.logits, first.logits)
    np.testing.assert_array_equal(again.frame_features, first.frame_features)
    assert again.truth_score.war == first.truth_score.war
    assert [flip.clip for flip in again.comparisons[0].flips] == [flip.clip for flip in first.comparisons[0].flips]


def test_a_class_whose_clips_cannot_be_read_is_a_failure(folder: Path, truth: PredictorTruth, tmp_path: Path) -> None:
    """Without it the UAR is the mean over the other classes, which says less with fewer of them."""
    clips = listed(folder, "01")
    limits = dataclasses.replace(NO_LIMITS, unreadable=1)
    assert verify(SPEC, truth, [named("same")], clips, limits).failures == ()
    clips.annotations.append(Annotation("absent", tmp_path / "absent", 1, 2))
    found = verify(SPEC, truth, [named("same")], clips, limits)
    assert found.failures == (f"no clip of {NAMES[2]} could be read, so nothing is known of its recall",)


def earlier(clips: int, failure: str | None = None, **changes: tuple[str, ...]) -> EarlierVerification:
    labels, names = np.arange(clips) % 3, tuple(map(str, range(clips)))
    hashes = tuple(f"{index:064x}" for index in range(clips))
    answers = ComparedAnswers(NAMES, names, hashes, None, labels, labels, {"same": labels})
    return EarlierVerification(
        Path("fold.json"), dataclasses.replace(answers, **changes), NO_LIMITS, "embedded", failure
    )


def test_pooled_clips_count_towards_the_equivalence_only(folder: Path, truth: PredictorTruth) -> None:
    pool = [earlier(1500)]
    found = verify(SPEC, truth, [named("same")], listed(folder), dataclasses.replace(NO_LIMITS, points=1), pool=pool)
    assert found.failures == ()
    (comparison,) = found.comparisons
    assert (comparison.equivalence.clips, comparison.equivalence.verdict) == (1505, "equivalent")
    assert (comparison.flip_rate.n, comparison.score.confusion.sum()) == (1505, 5)
    assert found.undecided == ()
    (alone,) = verify(SPEC, truth, [named("same")], listed(folder), dataclasses.replace(NO_LIMITS, points=1)).undecided
    assert alone.startswith("same: too few clips")


def test_a_pooled_verification_that_failed_fails_this_one(folder: Path, truth: PredictorTruth) -> None:
    pool = [earlier(3), earlier(0, "fold2.json failed")]
    found = verify(SPEC, truth, [named("same")], listed(folder), NO_LIMITS, pool=pool)
    assert found.failures == ("fold2.json failed",)


def test_a_clip_counts_once_in_the_decision_whatever_its_name(
    folder: Path, truth: PredictorTruth, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0").symlink_to(folder / "0")
    (tmp_path / "1").symlink_to(folder / "2")
    clips = listed(folder, "1231")
    clips.annotations += [Annotation(f"copy/{name}", tmp_path / name, 1, 0) for name in "01"]
    pool = [earlier(3, clip_hashes=("a" * 64, "b" * 64, "a" * 64))]
    found = verify(SPEC, truth, [named("same")], clips, NO_LIMITS, batch_size=2, pool=pool)
    assert len(found.labels) == 6
    assert found.comparisons[0].equivalence.clips == found.comparisons[0].flip_rate.n == 4 + 2
    assert "2 of the 6 clips have the frames of another one of them" in " ".join(capsys.readouterr().err.split())


def test_a_clip_of_a_pooled_verification_does_not_count_again(folder: Path, truth: PredictorTruth) -> None:
    first = verify(SPEC, truth, [named("same")], listed(folder, "012"), NO_LIMITS)
    assert first.clip_hashes == tuple(clip_hash(clip_from_path(folder / name, 32)) for name in "012")
    pool = [earlier(3, clip_hashes=first.clip_hashes)]
    with pytest.raises(DferDeployError, match=r"^the clip 'film/2' has the frames of '2' in another pooled"):
        verify(SPEC, truth, [named("same")], listed(folder, "342"), NO_LIMITS, pool=pool)
