"""Decide what a bundle needs, and whether a machine has it.

Here a ``problem`` prevents the machine from serving the bundle; one command can repair what is ``missing``.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.bundles.compatibility import fitting_containers, gpu_mismatch, tensorrt_mismatch
from dfer_deploy.bundles.engine_records import EngineSet
from dfer_deploy.bundles.integrity import check_bundle_files
from dfer_deploy.doctor.child import shortened
from dfer_deploy.doctor.finding import Finding, first_command
from dfer_deploy.doctor.gpu import gpu_findings
from dfer_deploy.doctor.machine import Machine
from dfer_deploy.doctor.packages import usable_tensorrt
from dfer_deploy.doctor.resources import FREE_PORTS, gigabytes
from dfer_deploy.doctor.servers import docker_findings
from dfer_deploy.errors import ConfigurationError, DferDeployError, install_command
from dfer_deploy.triton.container import compose_command

_BYTES = {"fp32": 4, "fp16": 2}
_INSTALL = install_command("gpu")


def bundle_findings(bundle: Bundle, machine: Machine) -> list[Finding]:
    """Return one finding for everything that a bundle needs.

    Args:
        bundle: an opened bundle; its files need not have been checked.
        machine: the machine that should serve it.
    """
    manifest, spec = bundle.manifest, bundle.spec
    lines = [
        Finding(
            "bundle",
            "ok",
            f"{manifest.name}, target {manifest.target}, {manifest.precision_name}, "
            f"{spec.prompts.num_classes} classes, clips of {spec.temporal.max_frames} × "
            f"{spec.clip.vision.image_size} × {spec.clip.vision.image_size}, "
            f"batches up to {manifest.serving.max_batch_size}",
        ),
        Finding(
            "checkpoint", "ok", f"{manifest.checkpoint.format}, SHA-256 {shortened(manifest.checkpoint.sha256, 17)}"
        ),
    ]
    engines, reason = _engines(bundle)
    lines.append(_files(bundle, reason))
    if manifest.target == "tensorrt":
        lines += [_gpu(bundle, machine), *_engine_findings(bundle, machine, engines, reason)]
    lines += [_server(bundle, machine), _in_process(bundle, machine), _memory(bundle, machine, engines)]
    return lines


def is_able(findings: list[Finding]) -> bool:
    """Return whether the machine can do what the bundle needs, according to the findings."""
    return all(finding.state != "problem" for finding in findings)


def next_command(bundle: Bundle, machine: Machine, findings: list[Finding]) -> str:
    """Return the next command to type."""
    if not is_able(findings):
        return first_command(findings)
    engines = [finding for finding in findings if finding.what == "engines"]
    ports = f" {FREE_PORTS}" if machine.resources.taken_ports else ""
    return first_command(engines) or f"dfer-deploy serve {_path(bundle)}{ports}"


def memory_bytes(bundle: Bundle, engines: EngineSet | None = None, *, on_gpu: bool) -> int:
    """Estimate the smallest memory for serving, in bytes: weights, the frames of one largest batch, and activations.

    This is a lower bound from the sizes alone. The widest activations are the MLP's hidden layer and, beside it, the
    residual stream in fp32. onnxruntime's kernels on the CPU compute fp16 graphs in fp32. The embedded server encodes
    one clip at a time.
    """
    manifest, vision = bundle.manifest, bundle.spec.clip.vision
    if engines is not None:
        weights = sum(record.bytes for record in engines.engines.values())
    else:
        stored = sum(_size(graph) for graph in (bundle.image_encoder_onnx, bundle.temporal_head_onnx))
        weights = stored if on_gpu else stored * 4 // _BYTES[manifest.precision]
    clips = manifest.serving.max_batch_size
    frames = clips * bundle.spec.temporal.max_frames * vision.image_size**2 * 3
    tokens = bundle.spec.temporal.max_frames * ((vision.image_size // vision.patch_size) ** 2 + 1)
    computed = 1 if manifest.target == "embedded" else clips
    hidden = int(vision.width * vision.mlp_ratio) * (_BYTES[manifest.precision] if on_gpu else 4)
    activations = computed * tokens * (hidden + vision.width * 4)
    return manifest.serving.instances * (weights + frames + activations)


def _files(bundle: Bundle, engines_reason: str) -> Finding:
    is_configured_again = False
    if engines_reason and bundle.manifest.target == "tensorrt":
        return Finding("files", "missing", "not compared with the manifest before the engines are right")
    try:
        if not engines_reason:
            check_bundle_files(bundle)
            return Finding("files", "ok", f"{len(bundle.manifest.files)} files, as they were exported")
        reason = engines_reason
    except DferDeployError as error:
        reason, is_configured_again = str(error), isinstance(error, ConfigurationError)
    except OSError as error:
        reason = f"{error.filename} cannot be read ({error.strerror})"
    configure = f"dfer-deploy configure {_path(bundle)}"
    manifest = bundle.manifest
    export = (
        f"dfer-deploy export CHECKPOINT -o {_path(bundle)} --target {manifest.target} --name {manifest.name} "
        f"--precision {manifest.precision} --force"
    )
    return Finding("files", "problem", reason, command=configure if is_configured_again else export)


def _engines(bundle: Bundle) -> tuple[EngineSet | None, str]:
    """Return the engines, and why they cannot be used."""
    try:
        return bundle.engines, ""
    except DferDeployError as error:
        return None, str(error)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        return None, f"engines/engines.json is damaged ({type(error).__name__}: {shortened(str(error))})"


def _gpu(bundle: Bundle, machine: Machine) -> Finding:
    if machine.gpus.devices:
        unfit = [finding for finding in gpu_findings(machine.gpus) if finding.state == "problem" and
                 finding.what.startswith("GPU")]  # fmt: skip
        found = ", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in machine.gpus.devices)
        if not unfit:
            return Finding("GPU", "ok", found)
        return Finding("GPU", "problem", unfit[0].found, unfit[0].advice, _elsewhere(machine, gpu=True))
    advice = "serve this bundle on a machine with an NVIDIA GPU, or export the checkpoint for this one"
    return Finding("GPU", "problem", "TensorRT needs one, and CUDA has none here", advice, _elsewhere(machine))


def _engine_findings(bundle: Bundle, machine: Machine, engines: EngineSet | None, reason: str) -> list[Finding]:
    can_build = _build_command(bundle, machine)
    if reason:
        return [Finding("engines", "problem", reason, command=can_build or _INSTALL)]
    if engines is None:
        if can_build:
            return [Finding("engines", "missing", "not built yet", command=can_build)]
        if not machine.gpus.devices:
            return [Finding("engines", "problem", "not built, and building them needs the GPU that will serve them")]
        advice = "install TensorRT, or Docker with the NVIDIA Container Toolkit"
        return [Finding("engines", "problem", "not built, and nothing here can build them", advice, _INSTALL)]
    builder, device = engines.builder, engines.device
    widened = [builder.hardware_compatibility] if builder.hardware_compatibility != "none" else []
    widened += ["version compatible"] if builder.version_compatible else []
    found = f"{builder.module} {builder.version}" + (
        f" on {device.name} ({device.compute_capability})" if device else ""
    )
    found += f", {' and '.join(widened)}" if widened else ""
    return [
        Finding("engines", "ok", f"built by {shortened(found)}"),
        *_plans_on_gpus(machine, engines, can_build),
        *_plans_in_servers(bundle, machine, engines, can_build),
        *_plans_in_process(machine, engines),
    ]


def _plans_on_gpus(machine: Machine, engines: EngineSet, can_build: str) -> list[Finding]:
    gpus = machine.gpus.devices
    mismatches = [(gpu, gpu_mismatch(engines.builder, engines.device, gpu)) for gpu in gpus]
    unfit = [(gpu, reason) for gpu, reason in mismatches if reason]
    if not gpus:
        return []
    if not unfit:
        return [Finding("plans, GPU", "ok", "fit")]
    gpu, reason = unfit[0]
    found = f"do not fit {gpu.name} ({gpu.compute_capability}): {reason}"
    if len(unfit) < len(gpus):
        fitting = ",".join(str(index) for index, (_, reason) in enumerate(mismatches) if not reason)
        advice = "Triton loads them on every GPU that it sees; show it only those that they fit"
        return [Finding("plans, GPU", "problem", found, advice, f"export CUDA_VISIBLE_DEVICES={fitting}")]
    return [Finding("plans, GPU", "problem", found, "build them on this one", can_build or _INSTALL)]


def _plans_in_servers(bundle: Bundle, machine: Machine, engines: EngineSet, can_build: str) -> list[Finding]:
    builder = engines.builder
    flag = ""
    if builder.version_compatible:
        flag = "they carry code: if you built them, serve them with --allow-host-code, which starts Triton with "
        flag += "--backend-config=tensorrt,version-compatible=true"
    triton = machine.triton
    if triton.path and not triton.problem:
        what = "plans, server"
        if triton.tensorrt is None:
            found = "the TensorRT of this tritonserver cannot be told before it loads them"
            return [Finding(what, "ok", found, flag)]
        reason = tensorrt_mismatch(builder, triton.tensorrt)
        if not reason:
            return [Finding(what, "ok", f"fit TensorRT {triton.tensorrt} of this tritonserver", flag)]
        found = f"this tritonserver has TensorRT {triton.tensorrt}; {reason}"
        command = f"pip install 'tensorrt=={triton.tensorrt}'"
        built = usable_tensorrt(machine.packages)
        if built and not tensorrt_mismatch(builder, built):
            # Building with the same TensorRT would give the same plans.
            return [Finding(what, "problem", found, "build them with the server's version, install it first", command)]
        return [Finding(what, "problem", found, "build them with the server's version", can_build or command)]
    containers = fitting_containers(builder)
    if containers:
        tags = ", ".join(container.tag for container in containers)
        return [Finding("plans, Docker", "ok", f"fit the TensorRT of tritonserver {tags}", flag)]
    found = f"no tritonserver container without known holes is known to have TensorRT {builder.version}"
    advice = "build them inside the image that serves them, with its build_engines.py"
    return [Finding("plans, Docker", "problem", found, advice, _container_build(bundle))]


def _plans_in_process(machine: Machine, engines: EngineSet) -> list[Finding]:
    version = usable_tensorrt(machine.packages)
    wanted = engines.builder.version
    if version and not tensorrt_mismatch(engines.builder, version):
        return [Finding("plans, Python", "ok", f"fit TensorRT {version} of this Python")]
    found = f"this Python has TensorRT {version}" if version else "this Python has no usable TensorRT"
    advice = "only for verify and bench in this process"
    return [Finding("plans, Python", "missing", found, advice, f"pip install 'tensorrt=={shortened(wanted, 40)}'")]


def _server(bundle: Bundle, machine: Machine) -> Finding:
    target = bundle.manifest.target
    if target == "embedded":
        if machine.embedded.problem:
            command = _elsewhere(machine)
            return Finding("server", "problem", machine.embedded.problem, command=command)
        made = machine.embedded.perf_analyzer is not None
        return Finding("server", "ok", "the embedded one" + ("" if made else ", installed on first use (390 MB)"))
    triton, docker = machine.triton, machine.docker
    # onnxruntime runs the window graph of streams on both targets.
    lacking = [backend for backend in dict.fromkeys((target, "onnxruntime")) if backend not in triton.backends]
    if triton.path and not triton.problem and not lacking:
        return Finding("server", "ok", f"tritonserver on PATH, with the backend {target}")
    if docker.server and (docker.nvidia or target == "onnxruntime"):
        on = "" if docker.nvidia else ", on the CPU"
        return Finding("server", "ok", f"NVIDIA's container in Docker{on}")
    if triton.path and not triton.problem:
        found = f"the tritonserver on PATH has no backend {' and no backend '.join(lacking)}"
    elif docker.server:
        found = "Docker gives containers no GPU"
    else:
        found = "no tritonserver on PATH and no Docker that answers"
    advice = "mend what is said of the servers above, or export the checkpoint for another target"
    mended = first_command(docker_findings(docker, triton, gpu=bool(machine.gpus.devices)))
    return Finding("server", "problem", found, advice, mended or _elsewhere(machine))


def _in_process(bundle: Bundle, machine: Machine) -> Finding:
    package = machine.packages["onnxruntime"]
    if package.version is None:
        gpu = bool(machine.gpus.devices)
        advice = "only for predict --bundle, verify and bench in this process"
        command = install_command("gpu" if gpu else "runtime")
        return Finding("onnxruntime", "missing", package.problem or "not installed", advice, command)
    on_cuda = package.details.get("cuda") == "loads" and bool(machine.gpus.devices)
    return Finding("onnxruntime", "ok", f"runs the graphs in this process, on {'CUDA' if on_cuda else 'the CPU'}")


def _memory(bundle: Bundle, machine: Machine, engines: EngineSet | None) -> Finding:
    gpus = machine.gpus.devices
    target = bundle.manifest.target
    on_gpu = target == "tensorrt" or (target == "onnxruntime" and bool(gpus))
    needed = memory_bytes(bundle, engines, on_gpu=on_gpu)
    least = f"at least {gigabytes(needed)} for weights and a full batch's frames and activations, besides what the "
    least += "server and its libraries take"
    if on_gpu:
        available = min((gpu.memory_bytes for gpu in gpus), default=None)
        place = "on the GPU"
    else:
        available, place = machine.resources.available_bytes, "of memory"
    if available is not None and needed > available:
        found = f"{least}; there is {gigabytes(available)} {place}"
        advice, command = _smaller(bundle, machine)
        return Finding("memory", "problem", found, advice, command)
    return Finding("memory", "ok", f"{least}; there is {gigabytes(available)} {place}" if available else least)


def _smaller(bundle: Bundle, machine: Machine) -> tuple[str, str]:
    """Return an option that takes less memory, in words and as a command."""
    serving = bundle.manifest.serving
    configure = f"dfer-deploy configure {_path(bundle)}"
    if serving.instances > 1:
        return "serve it with one instance", f"{configure} --instances 1"
    if serving.max_batch_size == 1:
        return "serve it on a machine with more", ""
    largest = serving.max_batch_size // 2
    command = f"{configure} --max-batch-size {largest}"
    recorded = [batch for batch in serving.cuda_graph_batches if batch <= largest]
    if len(recorded) < len(serving.cuda_graph_batches):
        command += f" --cuda-graph-batches {','.join(map(str, recorded)) or 'none'}"
    if bundle.manifest.target == "tensorrt" and (build := _build_command(bundle, machine)):
        command += f" && {build}"
    return "serve it with smaller batches", command


def _size(path: Path) -> int:
    """Return the size of a file in bytes; 0 if it is missing or unreadable, which another finding reports."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _build_command(bundle: Bundle, machine: Machine) -> str:
    """Return the command that builds the engines here; empty if that is not possible."""
    if not machine.gpus.devices:
        return ""
    if usable_tensorrt(machine.packages):
        return f"dfer-deploy build {_path(bundle)}"
    return _container_build(bundle) if machine.docker.server and machine.docker.nvidia else ""


def _container_build(bundle: Bundle) -> str:
    return compose_command(bundle.path, "run", "--rm", "build")


def _elsewhere(machine: Machine, *, gpu: bool = False) -> str:
    """Return the export command for a target that this machine can serve."""
    if not gpu and not machine.embedded.problem:
        return "dfer-deploy export CHECKPOINT --target embedded"
    return "dfer-deploy export CHECKPOINT --target onnxruntime"


def _path(bundle: Bundle) -> str:
    return shlex.quote(str(bundle.path))
