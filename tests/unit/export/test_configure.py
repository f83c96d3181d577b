"""Other serving options for a bundle that exists."""

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from dfer_deploy.bundles.bundle import Bundle, ServingOptions
from dfer_deploy.bundles.engine_builds import BUILDS_NAME, read_engine_builds
from dfer_deploy.bundles.integrity import check_file, open_bundle
from dfer_deploy.bundles.pending import PENDING_NAME
from dfer_deploy.errors import BundleError, WriteError
from dfer_deploy.export.configure import configure_bundle, temporary_bundle
from dfer_deploy.export.repository import check_model_repository, write_model_repository
from dfer_deploy.files import write_json


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.path, tmp_path / "b"))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_only_what_is_given_changes(cli: Any, copy: Path) -> None:
    before = contents(copy)
    result = cli("configure", copy, "--instances", 3, "--queue-delay-us", 200)
    assert result.exit_code == 0, result.output
    assert "restart it" in result.output
    after = contents(copy)
    changed = {name for name in before if before[name] != after[name]}
    assert before.keys() == after.keys()
    models = [f"model_repository/dfer_{part}/config.pbtxt" for part in ("image_encoder", "temporal_head")]
    assert changed == {"manifest.json", *models}
    opened = open_bundle(copy)
    check_model_repository(opened)
    assert opened.manifest.serving == ServingOptions(16, instances=3, queue_delay_us=200)
    for model in models:
        config = text_format.Parse(after[model].decode(), model_config_pb2.ModelConfig())
        assert config.instance_group[0].count == 3
        assert config.dynamic_batching.max_queue_delay_microseconds == 200
        assert config.max_batch_size == 16
    again = cli("configure", copy, "--instances", 3)
    assert "nothing to change" in again.output
    assert contents(copy) == after
    assert cli("configure", copy, "--instances", 1, "--queue-delay-us", 0).exit_code == 0
    assert contents(copy) == before, "back to the very same bytes"


def test_the_largest_batch_changes_all_configurations(cli: Any, copy: Path) -> None:
    assert cli("configure", copy, "--max-batch-size", 5).exit_code == 0
    configs = {path.parent.name: path for path in copy.glob("model_repository/*/config.pbtxt")}
    assert configs.keys() == {
        "dfer", "dfer_encoded", "dfer_image_encoder", "dfer_preprocess", "dfer_temporal_head", "dfer_window",
        "dfer_stream", "dfer_encoded_stream",
    }  # fmt: skip
    for path in configs.values():
        assert text_format.Parse(path.read_text(), model_config_pb2.ModelConfig()).max_batch_size == 5
    open_bundle(copy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--instances", 0), "the number of instances is 0"),
        (("--queue-delay-us", -1), "the queue delay is -1"),
        (("--max-batch-size", 5000), "the maximal batch is 5000"),
        (("--cuda-graph-batches", "1,2"), "only 'tensorrt' has them"),
        (("--cuda-graph-batches", "none"), "only 'tensorrt' has them"),
        (("--cuda-graph-batches", "1;2"), "not a list of batches"),
        (("--execution-provider", "tensorrt"), "only 'onnxruntime' has them"),
    ],
)
def test_what_is_impossible_changes_nothing(cli: Any, copy: Path, options: tuple[Any, ...], message: str) -> None:
    before = contents(copy)
    result = cli("configure", copy, *options)
    assert result.exit_code == 2
    assert message in result.output
    assert contents(copy) == before


def test_a_full_disk_changes_nothing(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(copy)
    write, written = Path.write_text, []

    def fill(path: Path, *args: Any, **kwargs: Any) -> int:
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device", str(path))
        return write(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", fill)
    with pytest.raises(WriteError, match="free some space"):
        configure_bundle(copy, ServingOptions(8))
    assert contents(copy) == before


@pytest.mark.parametrize("renames", [0, 1, 2, 3])
def test_a_change_that_is_killed_between_two_renames_is_completed(
    cli: Any, copy: Path, renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ServingOptions(8, instances=2)

    class Killed(BaseException):
        """Nothing handles it, as nothing handles SIGKILL."""

    replace, done = os.replace, 0

    def killed_later(source: Any, destination: Any, **kwargs: Any) -> None:
        nonlocal done
        if Path(destination).name in ("manifest.json", "config.pbtxt"):
            if done == renames:
                raise Killed
            done += 1
        replace(source, destination, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", killed_later)
        configure_bundle(copy, wanted)
    assert (copy / PENDING_NAME).is_file()
    assert open_bundle(copy).manifest.serving == wanted
    assert not (copy / PENDING_NAME).exists()
    assert cli("configure", copy).exit_code == 0
    assert open_bundle(copy).manifest.serving == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"../outside": "x"}', "is not a configuration"),
        ('{"model_repository/../config.pbtxt": "x"}', "is not a configuration"),
        ('{"model_repository/dfer/1/model.py": "x"}', "is not a configuration"),
        ('{"manifest.json": 1}', "is not a table of texts"),
        ("[", "Expecting value"),
    ],
)
def test_a_change_of_anything_else_is_refused(copy: Path, text: str, said: str) -> None:
    before = contents(copy)
    (copy / PENDING_NAME).write_text(text)
    with pytest.raises(BundleError, match=f"cannot be completed .*{said}"):
        open_bundle(copy)
    (copy / PENDING_NAME).unlink()
    assert contents(copy) == before


def test_two_processes_that_configure_take_turns(copy: Path) -> None:
    """Without a lock, each deleted the other's temporary files, and the bundle could often not be served."""
    failed: list[BaseException] = []

    def configure(instances: int) -> None:
        try:
            for batch in (4, 8, 16):
                configure_bundle(copy, ServingOptions(batch, instances=instances))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=configure, args=[instances]) for instances in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    check_model_repository(open_bundle(copy))
    assert list(copy.parent.iterdir()) == [copy]


_KILLED_AT_EVERY_OPERATION = """
import itertools, os, shutil, signal, sys
from pathlib import Path
from dfer_deploy.bundles.bundle import ServingOptions
from dfer_deploy.export.configure import configure_bundle

bundle, copies = map(Path, sys.argv[1:])
for operations in itertools.count():
    copy = copies / str(operations)
    shutil.copytree(bundle, copy)
    child = os.fork()
    if child == 0:
        left = operations

        def hook(event, arguments):
            global left
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            changes = event in ("os.rename", "os.remove", "os.chmod", "os.mkdir", "os.rmdir", "tempfile.mkstemp")
            if (writes or changes) and str(arguments[0]).startswith(str(copy)):
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        sys.addaudithook(hook)
        configure_bundle(copy, ServingOptions(8, instances=2))
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


def test_a_bundle_can_be_served_whenever_its_change_was_killed(copy: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    subprocess.run([sys.executable, "-c", _KILLED_AT_EVERY_OPERATION, str(copy), str(copies)], check=True)
    configure_bundle(copy, ServingOptions(8, instances=2))
    expected = contents(copy)
    killed = sorted(path for path in copies.iterdir() if not path.name.startswith("."))
    before = open_bundle(killed[0]).manifest.serving
    assert len(killed) > 4 * 4, "a file is opened, written, made readable and renamed"
    for bundle in killed:
        for name in contents(bundle).keys() - expected.keys():
            assert "/" not in name, "in the model repository it would be a foreign file"
        opened = open_bundle(bundle)
        check_model_repository(opened)
        assert opened.manifest.serving in (before, ServingOptions(8, instances=2))
        configure_bundle(bundle, ServingOptions(8, instances=2))
        assert contents(bundle) == expected


def test_a_damaged_configuration_is_mended_and_other_damage_is_not_hidden(cli: Any, copy: Path) -> None:
    before = contents(copy)
    config = copy / "model_repository" / "dfer" / "config.pbtxt"
    config.write_text("name: 'x'")
    graph = copy / "model_repository" / "dfer_image_encoder" / "1" / "model.onnx"
    graph.write_bytes(b"x")
    assert cli("configure", copy, "--instances", 2).exit_code == 0
    with pytest.raises(BundleError, match=r"model\.onnx is damaged"):
        open_bundle(copy)
    graph.write_bytes(before[graph.relative_to(copy).as_posix()])
    open_bundle(copy)
    config.unlink()
    assert cli("configure", copy).exit_code == 0
    open_bundle(copy)


def test_nothing_is_written_through_a_link(copy: Path, tmp_path: Path) -> None:
    folder, outside = copy / "model_repository" / "dfer", tmp_path / "outside"
    folder.rename(outside)
    before = contents(outside)
    folder.symlink_to(outside)
    with pytest.raises(BundleError, match="is not a folder of the bundle"):
        configure_bundle(copy, ServingOptions(8))
    assert contents(outside) == before


def test_a_trial_leaves_the_bundle_as_it_is(copy: Path) -> None:
    before, beside = contents(copy), sorted(copy.parent.iterdir())
    with temporary_bundle(open_bundle(copy)) as trial:
        assert contents(trial) == before
        graph = "onnx/dfer_image_encoder.onnx"
        assert (trial / graph).samefile(copy / graph)
        configure_bundle(trial, ServingOptions(4, instances=2))
        check_model_repository(open_bundle(trial))
        assert contents(copy) == before
    assert contents(copy) == before
    assert sorted(copy.parent.iterdir()) == beside


def test_a_trial_whose_process_was_killed_vanishes_with_the_next_one(copy: Path) -> None:
    trial = (
        "import os, pathlib, signal, sys\n"
        "from dfer_deploy.bundles.integrity import open_bundle\n"
        "from dfer_deploy.export.configure import temporary_bundle\n"
        "with temporary_bundle(open_bundle(pathlib.Path(sys.argv[1]))):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", trial, str(copy)], check=False)
    (abandoned,) = copy.parent.glob(".b.*.trial")
    with temporary_bundle(open_bundle(copy)) as first, temporary_bundle(open_bundle(copy)) as second:
        assert not abandoned.exists()
        assert contents(first) == contents(second), "the first is still used"
    assert list(copy.parent.iterdir()) == [copy]


def test_engines_for_another_largest_batch_are_named(cli: Any, tensorrt_bundle: Path) -> None:
    built = cli("configure", tensorrt_bundle, "--instances", 2, "--cuda-graph-batches", "1,4")
    assert built.exit_code == 0
    assert "build again" not in built.output
    assert open_bundle(tensorrt_bundle).manifest.serving.cuda_graph_batches == (1, 4)
    smaller = cli("configure", tensorrt_bundle, "--max-batch-size", 8)
    assert smaller.exit_code == 0
    assert "build again with: dfer-deploy build" in smaller.output
    frames = read_engine_builds(tensorrt_bundle).graphs["dfer_image_encoder"].profile["frames"]
    assert (frames.opt[0], frames.max[0]) == (8, 8)
    check_file(open_bundle(tensorrt_bundle, check_files=False), BUILDS_NAME)
    back = cli("configure", tensorrt_bundle, "--max-batch-size", 16)
    assert "build again" not in back.output
    open_bundle(tensorrt_bundle)
    assert cli("configure", tensorrt_bundle, "--cuda-graph-batches", "none").exit_code == 0
    assert open_bundle(tensorrt_bundle).manifest.serving.cuda_graph_batches == ()


@pytest.fixture
def tensorrt_bundle(bundle: Bundle, tmp_path: Path) -> Path:
    """The tiny bundle written for the target tensorrt, with files of random bytes as its plans."""
    path, manifest = tmp_path / "t", bundle.manifest
    serving = ServingOptions(16)
    write_model_repository(
        path / "model_repository",
        contract=bundle.contract,
        spec=bundle.spec,
        target="tensorrt",
        serving=serving,
        frame_interval_s=manifest.frame_interval_s,
        version=1,
        image_encoder_onnx=bundle.image_encoder_onnx,
        temporal_head_onnx=bundle.temporal_head_onnx,
        window_onnx=bundle.window_onnx,
    )
    shutil.copytree(bundle.path / "onnx", path / "onnx")
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents(path).items()}
    changed = dataclasses.replace(manifest, target="tensorrt", serving=serving, files=files)
    write_json(path / "manifest.json", dataclasses.asdict(changed))
    engines = {}
    for graph, shapes in (
        ("dfer_image_encoder", {"frames": [16, 32, 32, 3]}),
        ("dfer_temporal_head", {"frame_features": [16, 64]}),
    ):
        plan = f"model_repository/{graph}/1/model.plan"
        content = graph.encode()
        (path / plan).write_bytes(content)
        engines[graph] = {
            "plan": plan, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content),
            "onnx": f"onnx/{graph}.onnx", "onnx_sha256": files[f"onnx/{graph}.onnx"],
            "profile": {
                tensor: {"min": [1, *shape], "opt": [8, *shape], "max": [16, *shape]}
                for tensor, shape in shapes.items()
            },
            "precision": "fp32", "matrix_products": {"FLOAT": 9}, "seconds": 1.0,
        }  # fmt: skip
    builder = {
        "module": "tensorrt", "version": "11.1.0", "optimization_level": 3, "workspace_bytes": None,
        "hardware_compatibility": "none", "version_compatible": False,
    }  # fmt: skip
    (path / "engines").mkdir()
    sidecar = {"format": "dfer-deploy-engines/1", "builder": builder, "device": None, "engines": engines}
    write_json(path / "engines" / "engines.json", sidecar)
    return path
