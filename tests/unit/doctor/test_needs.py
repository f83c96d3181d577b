"""What bundles of every target need of machines that have it or not. Machines and engine records are written by hand;
no engine here was ever built."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dfer_deploy.bundles.bundle import Bundle, ServingOptions, Target
from dfer_deploy.bundles.compatibility import (
    CONTAINERS,
    SECURITY_FLOOR,
    fitting_containers,
    gpu_mismatch,
    tensorrt_mismatch,
)
from dfer_deploy.bundles.engine_records import Builder, Device
from dfer_deploy.doctor.finding import Finding
from dfer_deploy.doctor.gpu import Gpus
from dfer_deploy.doctor.machine import Machine
from dfer_deploy.doctor.needs import bundle_findings, is_able, memory_bytes, next_command
from dfer_deploy.doctor.packages import PACKAGES, Package
from dfer_deploy.doctor.resources import MachineResources
from dfer_deploy.doctor.servers import Docker, EmbeddedServer, LocalTriton
from dfer_deploy.files import sha256_of_file
from dfer_deploy.hardware import Gpu

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 85_000_000_000)
A10 = Gpu("NVIDIA A10", "8.6", 24_000_000_000)
T4 = Gpu("Tesla T4", "7.5", 16_000_000_000)
A40 = Gpu("NVIDIA A40", "8.6", 48_000_000_000)

DOCKER = Docker("/usr/bin/docker", "29.1.0", "NVIDIA runtime", "2.39.1")
NO_ROOM = MachineResources(taken_ports="the HTTP port 8000 is taken")


def builder(version: str = "11.1.0.42", **changes: Any) -> Builder:
    return Builder(**{"module": "tensorrt", "version": version, **changes})


def on(gpu: Gpu) -> Device:
    return Device(gpu.name, gpu.compute_capability, gpu.memory_bytes, "13.0")


def machine(*gpus: Gpu, tensorrt: str | None = "11.1.0.42", **changes: Any) -> Machine:
    packages = {name: Package() for name in PACKAGES}
    packages["tensorrt"] = Package(tensorrt)
    packages["onnxruntime"] = Package("1.24.4", {"cuda": "loads", "providers": [], "installed": []})
    return Machine(**{"packages": packages, "gpus": Gpus(gpus), "docker": DOCKER, **changes})


def lines(bundle: Bundle, on_machine: Machine) -> dict[str, Finding]:
    # Opened anew, as by the command: an opened bundle keeps the engines that it has read.
    return {line.what: line for line in bundle_findings(dataclasses.replace(bundle), on_machine)}


def verdict(bundle: Bundle, on_machine: Machine) -> tuple[bool, str]:
    found = bundle_findings(dataclasses.replace(bundle), on_machine)
    return is_able(found), next_command(bundle, on_machine, found)


def for_target(bundle: Bundle, target: Target) -> Bundle:
    """The bundle's files under a manifest that names another target."""
    manifest = dataclasses.replace(bundle.manifest, target=target, serving=ServingOptions(max_batch_size=4))
    return dataclasses.replace(bundle, manifest=manifest)


@pytest.fixture
def tensorrt_bundle(bundle: Bundle, tmp_path: Path) -> Bundle:
    """A bundle without engines that a test may change."""
    shutil.copytree(bundle.path, tmp_path / "bundle")
    return for_target(dataclasses.replace(bundle, path=tmp_path / "bundle"), "tensorrt")


def write_engines(bundle: Bundle, built_by: Builder, device: Device | None) -> Path:
    """The record that a build would leave, with plans of a few bytes."""
    records = {}
    contract = bundle.contract
    for graph in (contract.image_encoder, contract.temporal_head):
        plan = f"model_repository/{graph.name}/1/model.plan"
        (bundle.path / plan).write_bytes(b"a plan of " + graph.name.encode())
        onnx = f"onnx/{graph.name}.onnx"
        shapes = {
            tensor.name: [4, *(16 if size == "time" else int(size) for size in tensor.shape[1:])]
            for tensor in graph.inputs
        }
        records[graph.name] = {
            "plan": plan,
            "sha256": sha256_of_file(bundle.path / plan),
            "bytes": (bundle.path / plan).stat().st_size,
            "onnx": onnx,
            "onnx_sha256": bundle.manifest.files[onnx],
            "profile": {name: {"min": shape, "opt": shape, "max": shape} for name, shape in shapes.items()},
            "precision": "fp32",
            "matrix_products": {"FLOAT": 20},
            "seconds": 3.5,
        }
    content = {
        "format": "dfer-deploy-engines/1",
        "builder": dataclasses.asdict(built_by),
        "device": device and dataclasses.asdict(device),
        "engines": records,
    }
    path = bundle.path / "engines" / "engines.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_an_embedded_bundle_needs_the_embedded_server(bundle: Bundle) -> None:
    serve = f"dfer-deploy serve {bundle.path}"
    assert verdict(bundle, Machine()) == (True, serve)
    taken = f"{serve} --http-port 0 --grpc-port 0 --metrics-port 0"
    assert verdict(bundle, Machine(resources=NO_ROOM)) == (True, taken)
    refused = Machine(embedded=EmbeddedServer(problem="the embedded server needs glibc 2.35"))
    assert verdict(bundle, refused) == (False, "dfer-deploy export CHECKPOINT --target onnxruntime")


@pytest.mark.parametrize(
    ("changes", "able"),
    [
        ({}, False),
        ({"docker": Docker("/usr/bin/docker", "29.1.0")}, True),
        ({"docker": Docker("/usr/bin/docker", problem="permission denied")}, False),
        ({"triton": LocalTriton("/bin/tritonserver", backends=("onnxruntime", "python"))}, True),
        ({"triton": LocalTriton("/bin/tritonserver", backends=("python",))}, False),
        ({"triton": LocalTriton("/bin/tritonserver", backends=("tensorrt", "python"))}, False),
        ({"triton": LocalTriton("/bin/tritonserver", backends=("onnxruntime",), problem="does not start")}, False),
    ],
)
def test_an_onnxruntime_bundle_needs_a_triton_with_that_backend(
    bundle: Bundle, changes: dict[str, Any], able: bool
) -> None:
    found, command = verdict(for_target(bundle, "onnxruntime"), Machine(**changes))
    assert found is able
    assert command.startswith("dfer-deploy serve" if able else ("sudo usermod", "dfer-deploy export"))


def test_engines_that_are_not_built(tensorrt_bundle: Bundle) -> None:
    build = f"dfer-deploy build {tensorrt_bundle.path}"
    assert lines(tensorrt_bundle, machine(H100))["engines"].state == "missing"
    assert verdict(tensorrt_bundle, machine(H100)) == (True, build)
    able, command = verdict(tensorrt_bundle, machine(H100, tensorrt=None))
    assert able
    assert command.startswith("env UID=$(id -u) GID=$(id -g) docker compose")
    assert not verdict(tensorrt_bundle, machine())[0]
    assert not verdict(tensorrt_bundle, machine(H100, tensorrt=None, docker=Docker()))[0]
    assert not verdict(tensorrt_bundle, Machine())[0]


def test_engines_that_fit(tensorrt_bundle: Bundle) -> None:
    write_engines(tensorrt_bundle, builder(), on(H100))
    serve = f"dfer-deploy serve {tensorrt_bundle.path}"
    found = lines(tensorrt_bundle, machine(H100))
    assert found["engines"].found == "built by tensorrt 11.1.0.42 on NVIDIA H100 80GB HBM3 (9.0)"
    assert "26.07" in found["plans, Docker"].found
    assert verdict(tensorrt_bundle, machine(H100)) == (True, serve)
    local = LocalTriton("/bin/tritonserver", "2.71.0", ("onnxruntime", "tensorrt"), "11.1.0.42")
    assert verdict(tensorrt_bundle, machine(H100, docker=Docker(), triton=local, tensorrt=None)) == (True, serve)
    without = dataclasses.replace(local, backends=("tensorrt",))
    server = lines(tensorrt_bundle, machine(H100, docker=Docker(), triton=without, tensorrt=None))["server"]
    assert (server.state, server.found) == ("problem", "the tritonserver on PATH has no backend onnxruntime")


def test_engines_of_another_gpu(tensorrt_bundle: Bundle) -> None:
    write_engines(tensorrt_bundle, builder(), on(H100))
    line = lines(tensorrt_bundle, machine(A10))["plans, GPU"]
    assert line.state == "problem"
    assert "do not fit NVIDIA A10 (8.6): they were built on NVIDIA H100 80GB HBM3" in line.found
    assert verdict(tensorrt_bundle, machine(A10)) == (False, f"dfer-deploy build {tensorrt_bundle.path}")
    assert verdict(tensorrt_bundle, machine(A10, H100)) == (False, "export CUDA_VISIBLE_DEVICES=1")


def test_engines_for_another_tensorrt(tensorrt_bundle: Bundle) -> None:
    write_engines(tensorrt_bundle, builder("11.4.0.9"), on(H100))
    local = LocalTriton("/bin/tritonserver", "2.71.0", ("tensorrt",), "11.1.0.42")
    inside = machine(H100, triton=local, docker=Docker())
    assert verdict(tensorrt_bundle, inside) == (False, f"dfer-deploy build {tensorrt_bundle.path}")
    # Building again with the TensorRT of this Python would change nothing.
    stubborn = machine(H100, triton=local, docker=Docker(), tensorrt="11.4.0.9")
    assert verdict(tensorrt_bundle, stubborn) == (False, "pip install 'tensorrt==11.1.0.42'")
    found = lines(tensorrt_bundle, machine(H100))
    assert found["plans, Docker"].state == "problem", "no release is known to have this version"
    assert found["plans, Python"].command == "pip install 'tensorrt==11.4.0.9'"
    write_engines(tensorrt_bundle, builder("10.16.0.72"), on(H100))
    assert lines(tensorrt_bundle, machine(H100))["plans, Docker"].state == "problem"


def test_version_compatible_engines_name_the_servers_option(tensorrt_bundle: Bundle) -> None:
    write_engines(tensorrt_bundle, builder("11.0.0.1", version_compatible=True), on(H100))
    line = lines(tensorrt_bundle, machine(H100))["plans, Docker"]
    assert "26.07, 26.08" in line.found
    assert "version-compatible=true" in line.advice
    assert "serve them with --allow-host-code" in line.advice


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: values["engines"].clear(),
        lambda values: values.pop("device"),
        lambda values: values["builder"].pop("version"),
        lambda values: values["engines"].update(dfer_image_encoder=3),
        lambda values: [record.update(profile={"frames": 3}) for record in values["engines"].values()],
        lambda values: [record.update(sha256="0" * 64) for record in values["engines"].values()],
        lambda values: [record.update(plan="/etc/passwd") for record in values["engines"].values()],
        lambda values: values.update(format="other"),
    ],
)
def test_a_damaged_record_of_engines_is_a_line(tensorrt_bundle: Bundle, damage: Any) -> None:
    path = write_engines(tensorrt_bundle, builder(), on(H100))
    values = json.loads(path.read_text())
    damage(values)
    path.write_text(json.dumps(values))
    line = lines(tensorrt_bundle, machine(H100))["engines"]
    assert line.state == "problem"
    assert verdict(tensorrt_bundle, machine(H100)) == (False, f"dfer-deploy build {tensorrt_bundle.path}")


def test_damaged_files_are_a_line(tensorrt_bundle: Bundle) -> None:
    tensorrt_bundle.image_encoder_onnx.write_bytes(b"damaged")
    line = lines(tensorrt_bundle, machine(H100))["files"]
    assert line.state == "problem"
    assert tensorrt_bundle.image_encoder_onnx.name in line.found
    able, command = verdict(tensorrt_bundle, machine(H100))
    assert not able
    export = f"dfer-deploy export CHECKPOINT -o {tensorrt_bundle.path}"
    assert command == f"{export} --target tensorrt --name dfer --precision fp32 --force"


def test_a_damaged_configuration_is_written_again(bundle: Bundle, tmp_path: Path) -> None:
    copied = dataclasses.replace(bundle, path=tmp_path / "my bundle")
    shutil.copytree(bundle.path, copied.path)
    assert lines(copied, Machine())["files"].state == "ok"
    (copied.model_repository / "dfer" / "config.pbtxt").write_text("name: 'x'")
    assert lines(copied, Machine())["files"].command == f"dfer-deploy configure '{copied.path}'"


def test_missing_graphs_are_a_line(tensorrt_bundle: Bundle) -> None:
    shutil.rmtree(tensorrt_bundle.path / "onnx")
    found = lines(tensorrt_bundle, machine(H100))
    assert found["files"].state == "problem"
    assert "is missing from the bundle" in found["files"].found
    assert found["memory"].state == "ok"


def test_too_little_memory(tensorrt_bundle: Bundle, bundle: Bundle) -> None:
    small = dataclasses.replace(H100, memory_bytes=1 << 20)
    line = lines(tensorrt_bundle, machine(small))["memory"]
    assert line.state == "problem"
    path = tensorrt_bundle.path
    assert line.command == f"dfer-deploy configure {path} --max-batch-size 2 && dfer-deploy build {path}"

    def command(serving: ServingOptions) -> str:
        manifest = dataclasses.replace(tensorrt_bundle.manifest, serving=serving)
        changed = dataclasses.replace(tensorrt_bundle, manifest=manifest)
        return lines(changed, machine(small, tensorrt=None, docker=Docker()))["memory"].command

    configure = f"dfer-deploy configure {path}"
    assert command(ServingOptions(8, cuda_graph_batches=(1, 8))) == (
        f"{configure} --max-batch-size 4 --cuda-graph-batches 1"
    )
    assert command(ServingOptions(8, cuda_graph_batches=(8,))).endswith("--cuda-graph-batches none")
    assert command(ServingOptions(8, instances=3)) == f"{configure} --instances 1"
    assert command(ServingOptions(1)) == ""
    assert lines(bundle, Machine(resources=MachineResources(1 << 30, 1 << 20)))["memory"].state == "problem"
    assert lines(bundle, Machine(resources=MachineResources(1 << 30, 1 << 29)))["memory"].state == "ok"


def test_the_least_memory_is_counted(tensorrt_bundle: Bundle) -> None:
    """The tiny model: 32 × 32 pixels, patches of 16, width 64; 5 tokens, hidden layers of 256."""
    graphs = sorted((tensorrt_bundle.path / "onnx").glob("*.onnx"))
    weights = sum(path.stat().st_size for path in graphs if "window" not in path.name)
    assert len(graphs) == 3
    frames, activations = 4 * 16 * 32 * 32 * 3, 4 * 16 * 5 * (256 + 64) * 4
    assert memory_bytes(tensorrt_bundle, on_gpu=True) == weights + frames + activations
    halves = dataclasses.replace(tensorrt_bundle.manifest, precision="fp16")
    in_fp16 = dataclasses.replace(tensorrt_bundle, manifest=halves)
    assert memory_bytes(in_fp16, on_gpu=True) == weights + frames + 4 * 16 * 5 * (256 * 2 + 64 * 4)
    # onnxruntime's kernels on the CPU widen the weights.
    assert memory_bytes(in_fp16, on_gpu=False) == 2 * weights + frames + activations
    two = dataclasses.replace(halves, serving=ServingOptions(max_batch_size=4, instances=2))
    assert memory_bytes(dataclasses.replace(in_fp16, manifest=two), on_gpu=False) == 2 * (
        2 * weights + frames + activations
    )


@pytest.mark.parametrize(
    ("compatibility", "built_on", "here", "fits"),
    [
        ("none", H100, H100, True),
        ("none", A10, A40, False),
        ("none", A10, H100, False),
        ("same_compute_capability", A10, A40, True),
        ("same_compute_capability", A10, H100, False),
        ("same_compute_capability", H100, A10, False),
        ("ampere_plus", A10, H100, True),
        ("ampere_plus", H100, A10, True),
        ("ampere_plus", H100, T4, False),
    ],
)
def test_hardware_compatibility(compatibility: str, built_on: Gpu, here: Gpu, fits: bool) -> None:
    assert (gpu_mismatch(builder(hardware_compatibility=compatibility), on(built_on), here) == "") is fits


def test_plans_for_an_unknown_gpu_do_not_fit() -> None:
    assert "without a GPU" in gpu_mismatch(builder(), None, H100)
    assert "does not load" in gpu_mismatch(builder(module="tensorrt_rtx"), on(H100), H100)


@pytest.mark.parametrize(
    ("built", "runs", "plain", "compatible"),
    [
        ("11.1.0.42", "11.1.0.42", True, True),
        ("11.1.0.42", "11.1.0.43", False, True),
        ("11.1.0.42", "11.1.0.41", False, False),
        ("11.1.0.42", "11.1.0", True, True),  # as the table of containers gives it
        ("10.16.0.72", "10.16", True, True),
        ("10.16.0.72", "11.4", False, True),
        ("11.0.0.1", "10.16.0.72", False, False),
        ("11.4.0.1", "12.0", False, False),
    ],
)
def test_version_compatibility(built: str, runs: str, plain: bool, compatible: bool) -> None:
    assert (tensorrt_mismatch(builder(built), runs) == "") is plain
    assert (tensorrt_mismatch(builder(built, version_compatible=True), runs) == "") is compatible


def test_containers_with_known_holes_are_never_named() -> None:
    assert [container.tag for container in fitting_containers(builder("11.0.0.1"))] == []
    assert [container.tag for container in fitting_containers(builder("10.16.0.72"))] == []
    fitting = fitting_containers(builder("10.16.0.72", version_compatible=True))
    assert [container.tag for container in fitting] == ["26.07", "26.08"]
    assert SECURITY_FLOOR in [container.tag for container in CONTAINERS]
