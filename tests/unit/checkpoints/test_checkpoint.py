import dataclasses
import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TEXTS, clips_of, reference_names, save_reference, tiny_model

from dfer_deploy.checkpoints.checkpoint import FRAME_INTERVAL, load_checkpoint, save_checkpoint
from dfer_deploy.errors import CheckpointError, DferDeployError, SettingError
from dfer_deploy.model.dfer_clip import DferClip, images_from_frames


def _answers(model: DferClip) -> torch.Tensor:
    with torch.inference_mode():
        return model(images_from_frames(torch.from_numpy(clips_of(3))))


def test_our_own_format_comes_back_whole(tmp_path: Path) -> None:
    model = tiny_model(depth=2, position="middle", class_specific=False)
    save_checkpoint(tmp_path / "a.pt", model, {"seed": 3, FRAME_INTERVAL: 0.08})
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert checkpoint.format == "dfer-deploy"
    assert checkpoint.spec == model.spec
    assert checkpoint.frame_interval_s == 0.08
    assert torch.equal(_answers(checkpoint.build_model()), _answers(model))
    assert isinstance(torch.load(tmp_path / "a.pt", weights_only=True), dict)


def test_the_frame_interval_of_an_older_file_is_unknown(tmp_path: Path, cli: Any) -> None:
    """It was that of the clips' folders, not of the frames that the model sees."""
    save_checkpoint(tmp_path / "a.pt", tiny_model(), {"frame_interval_s": 0.04})
    assert load_checkpoint(tmp_path / "a.pt").frame_interval_s is None
    assert "unknown (not in the file; export --frame-interval-s)" in cli("inspect", tmp_path / "a.pt").output


@pytest.mark.parametrize("classifier", ["linear", "image_conditioned_text"])
def test_other_classifiers_come_back_whole(tmp_path: Path, classifier: str) -> None:
    model = tiny_model(classifier=classifier, depth=0)
    save_checkpoint(tmp_path / "a.pt", model, {})
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert checkpoint.spec.classifier == classifier
    assert torch.equal(_answers(checkpoint.build_model()), _answers(model))


def test_a_file_from_before_there_were_other_classifiers_loads(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", tiny_model(), {})
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    del content["spec"]["classifier"]
    torch.save(content, tmp_path / "a.pt")
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert checkpoint.spec.classifier == "text"
    assert torch.equal(_answers(checkpoint.build_model()), _answers(tiny_model()))


@pytest.mark.parametrize("class_specific", [True, False])
@pytest.mark.parametrize("position", ["front", "middle", "end"])
@pytest.mark.parametrize(("depth", "contexts"), [(1, 4), (3, 5), (6, 0)])
def test_a_reference_file_is_understood(
    tmp_path: Path, class_specific: bool, position: Any, depth: int, contexts: int
) -> None:
    model = tiny_model(depth=depth, contexts=contexts, class_specific=class_specific, position=position)
    path = save_reference(tmp_path / "model_best.pth", model)
    checkpoint = load_checkpoint(path, prompt_position=position)
    assert checkpoint.format == "reference"
    assert checkpoint.spec == model.spec
    assert checkpoint.best_acc == pytest.approx(66.6667)
    assert torch.equal(_answers(checkpoint.build_model()), _answers(model))


def test_the_position_is_end_and_names_come_from_the_texts_unless_told(tmp_path: Path) -> None:
    path = save_reference(tmp_path / "a.pth", tiny_model())
    prompts = load_checkpoint(path).spec.prompts
    assert (prompts.position, prompts.class_names, prompts.class_texts) == (
        "end",
        ("happiness", "sadness", "anger"),
        TEXTS,
    )
    assert load_checkpoint(path, class_names=["x", "y", "z"]).spec.prompts.class_names == ("x", "y", "z")
    with pytest.raises(CheckpointError, match=r"2 class names given \(x, y\), .* has 3 classes"):
        load_checkpoint(path, class_names=["x", "y"])


def test_a_file_written_under_numpy_1_loads(tmp_path: Path) -> None:
    path = save_reference(tmp_path / "a.pth", tiny_model())
    rewritten = tmp_path / "b.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(rewritten, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in data
                data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            target.writestr(entry, data)
    assert load_checkpoint(rewritten).spec == tiny_model().spec


def test_half_precision_and_bare_state_dicts_load(tmp_path: Path) -> None:
    state = {name.removeprefix("module."): tensor.half() for name, tensor in reference_names(tiny_model()).items()}
    torch.save(state, tmp_path / "a.pth")
    model = load_checkpoint(tmp_path / "a.pth").build_model()
    assert model.spec == tiny_model().spec
    assert next(model.parameters()).dtype == torch.float32


class _Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_that_would_run_code_is_refused_and_named(tmp_path: Path) -> None:
    marker = tmp_path / "was-here"
    malicious = _Malicious(marker)
    save_reference(tmp_path / "zip.pth", tiny_model(), recorder=malicious)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"state_dict": malicious}))
    (tmp_path / "bare2.pth").write_bytes(pickle.dumps(malicious, protocol=2))
    torch.save(malicious, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("zip.pth", "bare.pth", "bare2.pth", "old.pth"):
        with pytest.raises(CheckpointError, match=r"is refused: loading it would import posix\.system"):
            load_checkpoint(tmp_path / name)
    assert not marker.exists()


def _zip_with(path: Path, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), data)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b""), "is not a torch checkpoint"),
        (lambda p: p.write_bytes(b"hello"), "is not a torch checkpoint"),
        (lambda p: p.write_bytes(pickle.dumps([1, 2])), "is a bare pickle or a file from before PyTorch 1.6"),
        (lambda p: _zip_with(p, readme_txt=b"x"), "not a torch checkpoint"),
        (lambda p: _zip_with(p, a__data_pkl=b"\0" * 100_000_000), "is compressed or claims 100000000 bytes"),
        (lambda p: torch.save([1, 2], p), "holds a list"),
        (lambda p: torch.save({"state_dict": {"weight": torch.zeros(3)}}, p), "is not a DFER-CLIP checkpoint"),
        (lambda p: torch.save({"state_dict": {}}, p), "holds no tensors"),
        (lambda p: torch.save({"format": "dfer-deploy-checkpoint/9"}, p), "has the format 'dfer-deploy-checkpoint/9'"),
    ],
)
def test_foreign_files_get_one_sentence(tmp_path: Path, make: Any, message: str) -> None:
    path = tmp_path / "a.pth"
    make(path)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_a_missing_file_and_every_truncation_get_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a file"):
        load_checkpoint(tmp_path / "none.pth")
    buffer = io.BytesIO()
    torch.save({"state_dict": reference_names(tiny_model())}, buffer)
    data = buffer.getvalue()
    for size in (1, 100, len(data) // 2, len(data) - 30, len(data) - 1):
        (tmp_path / "a.pth").write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"truncated|damaged|not a torch checkpoint"):
            load_checkpoint(tmp_path / "a.pth")


def test_a_flipped_bit_in_a_weight_is_seen(tmp_path: Path) -> None:
    path = save_reference(tmp_path / "a.pth", tiny_model())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"the checksum of .* is wrong"):
        load_checkpoint(path)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.temporal_net.blocks[0].mlp_in.bias[3] = float("nan")
    save_checkpoint(tmp_path / "a.pt", model, {})
    with pytest.raises(CheckpointError, match=r"not finite in 'temporal_net\.blocks\.0\.mlp_in\.bias'"):
        load_checkpoint(tmp_path / "a.pt").build_model()


def test_an_old_torch_file_is_not_accused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"from before PyTorch 1\.6"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("seed", range(20))
def test_damaged_bytes_never_crash(tmp_path: Path, seed: int) -> None:
    path = save_reference(tmp_path / "a.pth", tiny_model())
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    start = data.find(b"data.pkl")
    for _ in range(10):
        data[start + int(rng.integers(0, 20_000))] = int(rng.integers(0, 256))
    path.write_bytes(data)
    try:
        load_checkpoint(path).build_model()
    except DferDeployError as error:
        assert "\n" not in str(error)


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    state = reference_names(tiny_model())
    state["module.image_encoder.conv1.weight"] = torch.zeros(1).expand(100_000, 3, 1000, 1000)
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"'module.image_encoder.conv1.weight' .*expected stored"):
        load_checkpoint(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_a_sparse_tensor_is_refused(tmp_path: Path) -> None:
    state = reference_names(tiny_model())
    state["module.image_encoder.proj"] = state["module.image_encoder.proj"].to_sparse()
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"refused|expected stored"):
        load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [("width", 6_400_000, SettingError), ("width", 16_384, CheckpointError), ("layers", 120, CheckpointError)],
)
def test_a_small_file_that_describes_a_huge_model_costs_nothing(
    tmp_path: Path, key: str, value: int, kind: type[DferDeployError]
) -> None:
    save_checkpoint(tmp_path / "a.pt", tiny_model(), {})
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    content["spec"]["clip"]["vision"][key] = value
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(kind, match=r"expected 1 to 16384|does not hold the parameters"):
        load_checkpoint(tmp_path / "a.pt").build_model()


def test_loading_a_large_file_takes_less_than_three_times_its_size(tmp_path: Path) -> None:
    """In a process of its own: 200 MB of weights and as much of optimizer state, which is never touched."""
    script = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import dataclasses
from pathlib import Path
import torch
from dfer_deploy.checkpoints.checkpoint import FRAME_INTERVAL, load_checkpoint
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_checkpoint(Path({str(tmp_path / "big.pth")!r})).build_model()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    spec = tiny_model().spec
    wide = dataclasses.replace(spec.clip.vision, width=1024, layers=4)
    model = DferClip(dataclasses.replace(spec, clip=dataclasses.replace(spec.clip, vision=wide)))
    momentum = {0: {"momentum_buffer": torch.zeros(50_000_000)}}
    path = save_reference(tmp_path / "big.pth", model, optimizer={"state": momentum, "param_groups": []})
    assert path.stat().st_size > 400e6
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2 * path.stat().st_size


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clip_model_.token_embedding.weight", "lacks the tensor 'clip_model_.token_embedding.weight'"),
        ("temporal_net.cls_token", "lacks the tensor 'temporal_net.cls_token'"),
        ("image_encoder.ln_post.weight", r"image_encoder\.ln_post\.weight"),
    ],
)
def test_a_missing_tensor_is_named(tmp_path: Path, name: str, message: str) -> None:
    state = reference_names(tiny_model())
    del state[f"module.{name}"]
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "a.pth").build_model()


def test_prompts_that_are_no_rows_of_the_embedding_are_refused(tmp_path: Path) -> None:
    state = reference_names(tiny_model())
    state["module.prompt_learner.token_suffix"] = state["module.prompt_learner.token_suffix"] + 1
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match="a token in the prompt of class 0 that is not a row of its token embedding"
    ):
        load_checkpoint(tmp_path / "a.pth")


def test_our_own_file_refuses_another_position(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", tiny_model(), {})
    with pytest.raises(CheckpointError, match="says itself that its contexts stand at the 'end'"):
        load_checkpoint(tmp_path / "a.pt", prompt_position="front")


def test_the_reference_implementations_own_file_and_answers(shared_data: Path) -> None:
    """The file was written, and the answers were given, by the reference implementation itself."""
    checkpoint = load_checkpoint(shared_data / "a_dfew7_end_specific.pth")
    answers = np.load(shared_data / "a_dfew7_end_specific.npz")
    assert checkpoint.best_acc == pytest.approx(85.7143, abs=1e-3)
    model = checkpoint.build_model()
    frames = torch.from_numpy(answers["frames"].repeat(8, axis=2).repeat(8, axis=3))
    with torch.inference_mode():
        images = images_from_frames(frames)
        features = model.encode_frames(images)
        text = model.encode_text()
        logits, first9 = model(images), model(images[:, :9])
    np.testing.assert_allclose(features, answers["frame_features"], atol=1e-3)
    np.testing.assert_allclose(text, answers["text_features"], atol=1e-5)
    np.testing.assert_allclose(logits, answers["logits"], atol=3e-3)
    np.testing.assert_allclose(first9, answers["logits_first9"], atol=3e-3)


def test_a_file_system_that_cannot_map_files_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    save_checkpoint(tmp_path / "a.pt", model, {})
    load = torch.load

    def unmapped(*arguments: Any, mmap: bool, **options: Any) -> Any:
        if mmap:
            raise RuntimeError("unable to mmap 5 bytes from file </net/a.pt>: No such device (19)")
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", unmapped)
    assert torch.equal(_answers(load_checkpoint(tmp_path / "a.pt").build_model()), _answers(model))


def test_a_file_that_the_system_does_not_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "a.pt", tiny_model(), {})

    def fails(self: zipfile.ZipFile) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(zipfile.ZipFile, "testzip", fails)
    with pytest.raises(CheckpointError, match=r"cannot be read \(Input/output error\); check its permissions"):
        load_checkpoint(tmp_path / "a.pt")
