"""The command ``selftest``, as far as it goes without a GPU."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.bundles.engine_records import Builder, EngineSet
from dfer_deploy.commands.selftest import engine_facts, gpu_steps, output_types
from dfer_deploy.doctor.selftest import Outcome, run_steps
from dfer_deploy.errors import EngineError


def test_without_a_gpu_it_says_so_and_writes_nothing(
    cli: Callable[..., Any], bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = cli("selftest", "--gpu", bundle.path, "-o", tmp_path / "report.md")
    assert result.exit_code == 2
    assert "selftest --gpu needs an NVIDIA GPU, and CUDA has none here" in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_the_runtimes_of_this_process_agree(cli: Callable[..., Any], bundle: Bundle, tmp_path: Path) -> None:
    result = cli("selftest", bundle.path, "--json", tmp_path / "found.json")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["passed"]
    assert found["predictors"][0]["name"] == "onnxruntime fp32"


@pytest.mark.parametrize(
    "options",
    [["--checkpoint", "x"], ["--checkpoint", "x", "--data", "y"], ["--gpu", "--url", "grpc://h:1"]],
    ids=["checkpoint alone", "without --gpu", "--gpu and --url"],
)
def test_options_that_contradict_each_other(cli: Callable[..., Any], bundle: Bundle, options: list[str]) -> None:
    assert cli("selftest", bundle.path, *options).exit_code == 2


@pytest.mark.usefixtures("environment")
def test_the_steps_run_without_a_gpu_on_the_embedded_server(bundle: Bundle) -> None:
    """All but the first and the last, which take long and have tests of their own."""
    with ExitStack() as stack:
        doctor, *steps, bench = gpu_steps(bundle, ["selftest", bundle.path], stack)
        assert (doctor.name, bench.name) == ("doctor", "bench")
        records = run_steps(steps, lambda so_far: None)
    assert [(record.name, record.state) for record in records] == [
        ("verify in process", "done"),
        ("serve", "done"),
        ("verify served", "done"),
    ], records
    served = records[2].result
    assert served["passed"]
    assert [predictor["name"] for predictor in served["predictors"]] == ["onnxruntime fp32", "triton grpc"]


def test_engines_are_built_for_the_target_tensorrt_only(bundle: Bundle) -> None:
    assert not {"build", "engines"} & {step.name for step in gpu_steps(bundle, ["selftest"], ExitStack())}
    with pytest.raises(EngineError, match="has no engines"):
        engine_facts(bundle)


def test_engines_that_are_there_are_not_replaced(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    built = EngineSet(Builder(module="tensorrt", version="11.1.0.106"), None, {})
    monkeypatch.setattr(Bundle, "engines", property(lambda bundle: built))
    monkeypatch.setattr("dfer_deploy.commands.selftest.run_command", lambda *words: pytest.fail("was built"))
    for_tensorrt = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, target="tensorrt"))
    steps = [step for step in gpu_steps(for_tensorrt, ["selftest"], ExitStack()) if step.name.startswith("build")]
    build, in_container = run_steps(steps, lambda so_far: None)
    assert (build.state, in_container.state) == ("done", "skipped")
    assert build.output == "nothing was built: the bundle has engines of tensorrt 11.1.0.106, which stay"


def test_engines_are_looked_for_again_after_the_build(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[EngineSet | None] = [None]
    monkeypatch.setattr("dfer_deploy.bundles.bundle.read_engines", lambda *given, **named: found[-1])

    def build(*words: object) -> Outcome:
        found.append(EngineSet(Builder(module="tensorrt", version="11.1.0.106"), None, {}))
        return Outcome(None)

    monkeypatch.setattr("dfer_deploy.commands.selftest.run_command", build)
    for_tensorrt = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, target="tensorrt"))
    assert for_tensorrt.engines is None
    steps = [step for step in gpu_steps(for_tensorrt, ["selftest"], ExitStack()) if step.name in ("build", "engines")]
    assert [record.state for record in run_steps(steps, lambda so_far: None)] == ["done", "done"]


def test_types_of_the_layers_are_counted() -> None:
    half = {"Name": "x", "Dimensions": [1], "Format/Datatype": "Half"}
    layers = {"Layers": [{"Name": "a", "Outputs": [half, half]}, {"Outputs": [half | {"Format/Datatype": "Float"}]}]}
    assert output_types(json.dumps(layers)) == {"Half": 2, "Float": 1}
    # Without detailed verbosity the layers are names.
    assert output_types('{"Layers": ["a", "b"]}') == {}
    for text in ("", "[]", '{"Layers": 1}'):
        with pytest.raises(EngineError, match="not understood"):
            output_types(text)
