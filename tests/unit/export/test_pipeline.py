import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tiny import save_reference, tiny_model

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.bundles.integrity import check_bundle_files, open_bundle
from dfer_deploy.checkpoints.checkpoint import FRAME_INTERVAL, save_checkpoint
from dfer_deploy.errors import BundleError, DferDeployError, SettingError, WriteError
from dfer_deploy.export import bundle_folder, pipeline
from dfer_deploy.export.export_options import ExportOptions
from dfer_deploy.export.pipeline import export_to_folder
from dfer_deploy.export.repository import check_model_repository
from dfer_deploy.export.window_graph import WindowGraph
from dfer_deploy.files import sha256_of_file
from dfer_deploy.specs import encoder_id


def test_the_manifest_says_what_the_bundle_is(bundle: Bundle) -> None:
    manifest = open_bundle(bundle.path).manifest
    assert manifest.spec == tiny_model().spec
    assert manifest.frame_interval_s == 0.1
    assert manifest.parity["batches"] == [1, 2, 5]
    files = {p.relative_to(bundle.path).as_posix() for p in bundle.path.rglob("*") if p.is_file()}
    assert set(manifest.files) == files - {"manifest.json"}


def test_an_unchanged_export_is_skipped_and_another_needs_force(
    own_checkpoint: Path, tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "b"
    assert cli("export", own_checkpoint, "-o", out).exit_code == 0
    before = (out / "manifest.json").stat().st_mtime_ns
    again = cli("export", own_checkpoint, "-o", out)
    assert again.exit_code == 0
    assert "is up to date" in again.output
    assert (out / "manifest.json").stat().st_mtime_ns == before
    monkeypatch.setattr("dfer_deploy.triton_models.onnx_model_sources", lambda: {"model.py": "another version's\n"})
    assert "is up to date" not in cli("export", own_checkpoint, "-o", out, "--force").output
    check_model_repository(open_bundle(out))
    refused = cli("export", own_checkpoint, "-o", out, "--name", "face")
    assert refused.exit_code == 2
    assert "--force" in refused.output
    assert cli("export", own_checkpoint, "-o", out, "--name", "face", "--force").exit_code == 0
    assert open_bundle(out).manifest.name == "face"
    faster = ("export", own_checkpoint, "-o", out, "--name", "face", "--frame-interval-s", 0.07)
    assert cli(*faster).exit_code == 2
    assert cli(*faster, "--force").exit_code == 0
    assert "is up to date" in cli(*faster).output
    assert open_bundle(out).manifest.frame_interval_s == 0.07
    assert '"0.07"' in (out / "model_repository" / "face" / "config.pbtxt").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]


def test_co_coop_is_refused_and_nothing_is_written(tmp_path: Path, cli: Any) -> None:
    save_checkpoint(tmp_path / "a.pt", tiny_model(classifier="image_conditioned_text", depth=0), {})
    result = cli("export", tmp_path / "a.pt", "-o", tmp_path / "b")
    assert result.exit_code == 2
    assert "whose class texts depend on the clip" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_next_version_keeps_the_old_one(own_checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions("embedded")
    first, _ = export_to_folder(own_checkpoint, tmp_path / "b", options)
    old = (first.model_repository / "dfer_temporal_head" / "1" / "model.onnx").read_bytes()
    save_checkpoint(tmp_path / "new.pt", tiny_model(seed=1), {})
    second, written = export_to_folder(tmp_path / "new.pt", tmp_path / "b", options, add_version=True)
    assert written
    assert second.manifest.version == 2
    head = second.model_repository / "dfer_temporal_head"
    assert (head / "1" / "model.onnx").read_bytes() == old
    assert (head / "2" / "model.onnx").read_bytes() == second.temporal_head_onnx.read_bytes() != old
    check_bundle_files(second)
    path = save_reference(tmp_path / "renamed.pth", tiny_model())
    renamed = ExportOptions("embedded", class_names=("happiness", "anger", "sadness"))
    with pytest.raises(BundleError, match="serves the classes happiness, sadness, anger"):
        export_to_folder(path, tmp_path / "b", renamed, add_version=True)
    with pytest.raises(BundleError, match="has the name 'dfer'"):
        export_to_folder(tmp_path / "new.pt", tmp_path / "b", ExportOptions("embedded", name="x"), add_version=True)


def test_the_versions_have_windows_that_name_their_own_encoders(own_checkpoint: Path, tmp_path: Path) -> None:
    export_to_folder(own_checkpoint, tmp_path / "b", ExportOptions("embedded"))
    save_checkpoint(tmp_path / "new.pt", tiny_model(seed=1), {})
    export_to_folder(tmp_path / "new.pt", tmp_path / "b", ExportOptions("embedded"), add_version=True)
    folder = tmp_path / "b" / "model_repository"
    for version in ("1", "2"):
        session = onnxruntime.InferenceSession(
            str(folder / "dfer_window" / version / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        nothing = {"frame_features": np.zeros((1, 1, 64), np.float32), "recent_count": np.int32([[0]])}
        (found,) = session.run(["encoder_id"], nothing | {"recent_features": np.zeros((1, 15, 64), np.float32)})
        assert found == encoder_id(sha256_of_file(folder / "dfer_image_encoder" / version / "model.onnx"))


def test_a_window_that_joins_wrongly_is_not_exported(
    own_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Newest(WindowGraph):
        def forward(self, frame_features, recent_features, recent_count):  # type: ignore[no-untyped-def]
            return super().forward(frame_features, recent_features, recent_count * 0)

    monkeypatch.setattr(bundle_folder, "WindowGraph", Newest)
    with pytest.raises(RuntimeError, match="does not join the features"):
        export_to_folder(own_checkpoint, tmp_path / "b", ExportOptions("embedded"))
    assert list(tmp_path.iterdir()) == []


def test_a_version_is_not_added_to_a_bundle_of_another_format(own_checkpoint: Path, tmp_path: Path, cli: Any) -> None:
    old, _ = export_to_folder(own_checkpoint, tmp_path / "b", ExportOptions("embedded"))
    manifest = tmp_path / "b" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(old.manifest.format, "dfer-deploy-bundle/3"))
    for options in ((), ("--add-version",)):
        refused = cli("export", own_checkpoint, "-o", tmp_path / "b", "--target", "embedded", *options)
        assert refused.exit_code == 2
        assert "of another version of dfer-deploy; choose another -o, or replace it with --force" in " ".join(
            refused.output.split()
        )
    assert "dfer-deploy-bundle/3" in manifest.read_text()


def test_force_replaces_bundles_only(own_checkpoint: Path, tmp_path: Path) -> None:
    precious = tmp_path / "thesis" / "chapter.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(WriteError, match="is not a bundle, so it is not replaced"):
        export_to_folder(own_checkpoint, precious.parent, ExportOptions("embedded"), force=True)
    assert precious.read_text() == "years of work"


def test_a_damaged_bundle_is_not_up_to_date(own_checkpoint: Path, tmp_path: Path) -> None:
    bundle, _ = export_to_folder(own_checkpoint, tmp_path / "b", ExportOptions("embedded"))
    bundle.temporal_head_onnx.write_bytes(b"x")
    with pytest.raises(WriteError, match="holds another export or a damaged one"):
        export_to_folder(own_checkpoint, tmp_path / "b", ExportOptions("embedded"))
    again, written = export_to_folder(own_checkpoint, tmp_path / "b", ExportOptions("embedded"), force=True)
    assert written
    check_bundle_files(again)


def test_what_a_server_would_execute_must_be_what_export_writes(bundle: Bundle, tmp_path: Path) -> None:
    copy = open_bundle(Path(shutil.copytree(bundle.path, tmp_path / "b")))
    check_model_repository(copy)
    intruder = copy.model_repository / "other" / "1" / "model.py"
    intruder.parent.mkdir(parents=True)
    intruder.write_text("import os")
    with pytest.raises(BundleError, match=r"other/1/model\.py is not part of the exported bundle"):
        open_bundle(copy.path)
    intruder.unlink()
    with pytest.raises(BundleError, match=r"other/1 is not part of the exported bundle"):
        open_bundle(copy.path)
    shutil.rmtree(copy.model_repository / "other")
    (copy.model_repository / "link").symlink_to(tmp_path)
    with pytest.raises(BundleError, match=r"model_repository/link is not part of the exported bundle"):
        open_bundle(copy.path)
    (copy.model_repository / "link").unlink()
    for name in (
        "dfer_temporal_head/1/model.py", "dfer/config.pbtxt", "dfer_preprocess/1/model.py",
        "dfer_preprocess/1/image_decoding.py", "dfer_preprocess/1/model_requests.py",
        "dfer_temporal_head/1/model_requests.py", "dfer_encoded/config.pbtxt",
    ):  # fmt: skip
        path = copy.model_repository / name
        original = path.read_text()
        path.write_text(original + "\n# changed, and the manifest's hash with it\n")
        with pytest.raises(BundleError, match="is not what this version of dfer-deploy writes"):
            check_model_repository(copy)
        path.write_text(original)
    for name in ("other/1/model.py", "dfer_window/1/json.py", "dfer_window/2/model.py", "dfer/numpy.py"):
        path = copy.model_repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with pytest.raises(BundleError, match=f"{name} is nothing that this version of dfer-deploy writes"):
            check_model_repository(copy)
        path.unlink()
    check_model_repository(copy)


def test_a_failure_in_the_middle_leaves_nothing(
    own_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> None:
        raise BundleError("the exported graphs do not answer like PyTorch")

    monkeypatch.setattr(pipeline, "measure_parity", fails)
    with pytest.raises(BundleError):
        export_to_folder(own_checkpoint, tmp_path / "b", ExportOptions("embedded"))
    assert list(tmp_path.iterdir()) == []


def test_a_reference_file_exports_with_its_best_acc(tmp_path: Path) -> None:
    path = save_reference(tmp_path / "a.pth", tiny_model(position="front"), best_acc=50.0)
    bundle, _ = export_to_folder(
        path, tmp_path / "b", ExportOptions("onnxruntime", precision="fp16", prompt_position="front")
    )
    assert bundle.manifest.checkpoint.best_acc == 50.0
    assert bundle.spec.prompts.position == "front"
    assert not (bundle.model_repository / "dfer_image_encoder" / "1" / "model.py").exists()


@pytest.mark.parametrize("interval_s", [0.0, -1.0, 61.0, float("nan")])
def test_intervals_that_no_video_is_cut_into_are_refused(interval_s: float) -> None:
    with pytest.raises(SettingError, match=r"frame interval is .* expected 0\.01 to 60"):
        ExportOptions("embedded", frame_interval_s=interval_s)


def test_an_interval_of_a_checkpoint_that_no_video_is_cut_into_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", tiny_model(), {FRAME_INTERVAL: 0.0})
    with pytest.raises(SettingError, match=r"frame interval is 0\.0 s, expected 0\.01 to 60"):
        export_to_folder(tmp_path / "a.pt", tmp_path / "b", ExportOptions("embedded"))


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "x" * 65, "näme"])
def test_names_that_are_no_folder_names_are_refused(name: str) -> None:
    with pytest.raises(BundleError, match="is not usable"):
        ExportOptions("embedded", name=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="dfer-deploy-bundle/9"), "has the format 'dfer-deploy-bundle/9'"),
        (lambda m: m.update(extra=1), "unknown key 'extra'"),
        (lambda m: m["files"].update({"../../etc/passwd": "0"}), "which is not inside the bundle"),
        (lambda m: m["files"].update({"/etc/passwd": "0"}), "which is not inside the bundle"),
        (lambda m: m["files"].update({"onnx/none.onnx": "0"}), "is missing from the bundle"),
        (lambda m: m.update(name="../x"), "is not usable"),
        (lambda m: m["spec"]["temporal"].update(depth=99), "expected 0 to 6"),
    ],
)
def test_manifests_are_not_trusted(bundle: Bundle, tmp_path: Path, change: Any, message: str) -> None:
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    change(manifest)
    (tmp_path / "onnx").symlink_to(bundle.path / "onnx")
    (tmp_path / "model_repository").symlink_to(bundle.path / "model_repository")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=message):
        open_bundle(tmp_path)


def test_a_changed_graph_and_what_is_no_bundle_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle.path, tmp_path / "copy")
    graph = copy / "onnx" / "dfer_temporal_head.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="is damaged or was changed after the export"):
        open_bundle(copy)
    with pytest.raises(BundleError, match="is not a bundle"):
        open_bundle(tmp_path)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match="is not valid JSON"):
        open_bundle(copy)


def test_a_replacement_that_was_killed_halfway_says_where_the_old_bundle_is(
    own_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "b[1]"
    export_to_folder(own_checkpoint, path, ExportOptions("embedded"))
    path.rename(tmp_path / ".b[1].xyz12345.old")
    with pytest.raises(BundleError, match=r"the old one is there: mv .*\.b\[1\]\.xyz12345\.old"):
        open_bundle(path)
    again, written = export_to_folder(own_checkpoint, path, ExportOptions("embedded"))
    assert not written, "before, a new bundle hid the older versions in the folder .old"
    assert again.manifest.version == 1
    assert list(tmp_path.iterdir()) == [path]


def test_two_exports_to_one_folder_take_turns(own_checkpoint: Path, tmp_path: Path) -> None:
    """Before, both succeeded, and one of the two bundles vanished."""
    path, outcomes = tmp_path / "b", []

    def export(name: str) -> None:
        try:
            outcomes.append(
                export_to_folder(own_checkpoint, path, ExportOptions("embedded", name=name))[0].manifest.name
            )
        except DferDeployError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=export, args=[name]) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    (made,) = [outcome for outcome in outcomes if isinstance(outcome, str)]
    (refused,) = [outcome for outcome in outcomes if isinstance(outcome, DferDeployError)]
    assert "holds another export" in str(refused)
    assert open_bundle(path).manifest.name == made
    assert list(tmp_path.iterdir()) == [path]
