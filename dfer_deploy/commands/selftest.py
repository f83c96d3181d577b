"""``dfer-deploy selftest``"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from dfer_deploy import __version__
from dfer_deploy.api.serving import installation_for, served_bundle
from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.bundles.engine_records import SIDECAR
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.client.triton_predictor import TritonPredictor
from dfer_deploy.clips.drawn import drawn_clips
from dfer_deploy.commands.options import bundle_argument, data_root_option, host_code_option, json_option
from dfer_deploy.console import stdout, step, table
from dfer_deploy.doctor.gpu import Gpus, gpu_findings, probe_gpus
from dfer_deploy.doctor.selftest import (
    Outcome,
    Step,
    StepError,
    check_report,
    run_command,
    run_process,
    run_steps,
    write_selftest_report,
)
from dfer_deploy.errors import DferDeployError, EngineError, ExitCode, RuntimeUnavailableError
from dfer_deploy.files import write_json
from dfer_deploy.measurement.bench import machine
from dfer_deploy.runtimes.available import Runtime, open_predictor, usual_runtimes
from dfer_deploy.runtimes.predictor import Predictor
from dfer_deploy.triton.container import compose_command
from dfer_deploy.verification.limits import LIMITS
from dfer_deploy.verification.runtime_agreement import Agreement, agreement

_CLIPS = 3
"""Number of drawn clips."""


@click.command()
@bundle_argument
@click.option("--gpu", is_flag=True, help="Build, verify, serve and measure on this machine's GPU, and write a report.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="With --gpu and --data: verify against it.")
@click.option("--data", type=click.Path(path_type=Path), help="With --gpu and --checkpoint: list with labelled clips.")
@data_root_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("selftest.md"),
    show_default=True,
    help="With --gpu: the report.",
)
@host_code_option
@click.option("--url", help="Without --gpu: hold this server against this process.")
@json_option
@click.pass_context
def selftest(
    ctx: click.Context,
    bundle: Path,
    gpu: bool,
    checkpoint: Path | None,
    data: Path | None,
    data_root: str | None,
    output: Path,
    allow_host_code: bool,
    url: str | None,
    json_file: Path | None,
) -> None:
    """Let everything that can run BUNDLE on this machine answer the same drawn clips, and compare the answers.

    This needs neither the checkpoint nor data. With --gpu, all steps are tried on a GPU machine, one after the other,
    and one report shows what happened; attach it to an issue. The exit code is 1 if something failed.
    """
    if (checkpoint is None) != (data is None):
        raise click.UsageError("--checkpoint and --data belong together")
    if not gpu and checkpoint is not None:
        raise click.UsageError("--checkpoint and --data are for --gpu; without a GPU, use: dfer-deploy verify")
    if gpu and url:
        raise click.UsageError("--gpu starts a server of its own; omit --url")
    if not gpu:
        ctx.exit(_agreement(open_bundle(bundle), url, json_file, host_code_allowed=allow_host_code))
    comparison: list[str | Path] = ["selftest", bundle]
    if checkpoint is not None and data is not None:
        comparison = ["verify", bundle, "--checkpoint", checkpoint, "--data", data]
        comparison += ["--data-root", data_root] if data_root else []
    ctx.exit(_on_a_gpu(bundle, comparison, output, json_file, host_code_allowed=allow_host_code))


def _agreement(bundle: Bundle, url: str | None, json_file: Path | None, *, host_code_allowed: bool) -> ExitCode:
    """Compare onnxruntime on the CPU with the given server, or with all other runtimes of this process."""
    # The CPU comes first, because no driver can make it wrong.
    runtimes: list[Runtime] = ["onnxruntime-cpu"]
    absent = ""
    if not url:
        usual = usual_runtimes(bundle, host_code_allowed=host_code_allowed)
        runtimes += [runtime for runtime in usual.runtimes if runtime not in runtimes]
        absent = usual.no_tensorrt if bundle.manifest.target == "tensorrt" else ""
    with ExitStack() as stack:
        predictors: list[Predictor] = []
        for runtime in runtimes:
            with step(f"load the graphs in {runtime}"):
                predictor = open_predictor(runtime, bundle, host_code_allowed=host_code_allowed)
                predictors.append(stack.enter_context(predictor))
        if url:
            predictors.append(stack.enter_context(TritonPredictor(url, bundle.contract)))
        clips = drawn_clips(_CLIPS, bundle.spec.clip.vision.image_size)
        with step(f"ask {len(predictors)} about {_CLIPS} drawn clips"):
            found = agreement(predictors, clips, LIMITS[bundle.manifest.precision])
    _print(found)
    failures = [failure for one in found for failure in one.failures]
    for failure in failures:
        stdout.print(f"failed: {failure}", markup=False)
    if absent:
        stdout.print(f"not compared: TensorRT, since {absent}", markup=False)
    if failures:
        stdout.print("[red]they do not agree[/]")
    else:
        stdout.print("[green]they agree[/]" if len(found) > 1 else "its answers are finite; nothing else was compared")
    if json_file:
        write_json(json_file, {"passed": not failures, "predictors": [dataclasses.asdict(one) for one in found]})
    return ExitCode.GATE_FAILED if failures else ExitCode.DONE


def _print(found: list[Agreement]) -> None:
    def number(value: float | None) -> str:
        return "not finite" if value is None else f"{value:.2g}"

    table(
        f"drawn clips, against {found[0].name}",
        ("", "max |Δlogit| encoder", "head", "both", "features", "other answers"),
        [
            (
                one.name,
                *map(number, (one.encoder_logits, one.head_logits, one.logits, one.features)),
                one.answers_changed,
            )
            for one in found
        ],
    )


def _on_a_gpu(
    path: Path, comparison: list[str | Path], report: Path, json_file: Path | None, *, host_code_allowed: bool
) -> ExitCode:
    gpus = probe_gpus()
    if not gpus.devices:
        found = gpu_findings(gpus)[0]
        raise RuntimeUnavailableError(
            f"selftest --gpu needs an NVIDIA GPU, and CUDA has none here ({found.found}); {found.advice}"
        )
    bundle = open_bundle(path)
    about = _about(gpus)
    check_report(report)
    write_selftest_report(report, about, [], json_file)
    with ExitStack() as stack:
        steps = gpu_steps(bundle, comparison, stack, host_code_allowed=host_code_allowed)
        records = run_steps(steps, lambda so_far: write_selftest_report(report, about, so_far, json_file))
    failed = [record for record in records if record.state == "failed"]
    table(
        "selftest --gpu",
        ("", "", "seconds", ""),
        [(record.name, record.state, f"{record.seconds:.1f}", record.message) for record in records],
    )
    stdout.print(f"The report is {report}; look through it, and attach it to an issue.", markup=False)
    return ExitCode.GATE_FAILED if failed else ExitCode.DONE


def gpu_steps(
    bundle: Bundle, comparison: list[str | Path], stack: ExitStack, *, host_code_allowed: bool = False
) -> list[Step]:
    """Return all steps from the graphs to the measured server.

    Args:
        bundle: bundle of any target. Engines are built for the target tensorrt only.
        comparison: the command that compares answers, without the options that select runtimes.
        stack: keeps the server running until it is closed.
        host_code_allowed: let TensorRT execute the code that version-compatible engines carry.
    """
    path = bundle.path
    allowed = ["--allow-host-code"] if host_code_allowed else []
    comparison = [*comparison, *allowed]

    def with_new_engines() -> Bundle:
        # A bundle object caches its engines, and these were built after it was opened.
        return dataclasses.replace(bundle)

    def serve(done: Mapping[str, Outcome]) -> Outcome:
        built = with_new_engines()
        installation = installation_for(built, host_code_allowed=host_code_allowed)
        endpoints = stack.enter_context(served_bundle(built, installation))
        return Outcome({"server": installation.description, "grpc_url": endpoints.grpc_url})

    def url(done: Mapping[str, Outcome]) -> str:
        return str(done["serve"].result["grpc_url"])

    in_process = ["--in-process"] if comparison[0] == "verify" else []
    only_served = ["--runtime", "onnxruntime-cpu", "--runtime", "triton"] if comparison[0] == "verify" else []
    # 3: nothing failed, but there are too few clips to decide.
    undecided = (ExitCode.DONE, ExitCode.UNDECIDED)
    building = [
        Step("build", lambda done: _build(bundle)),
        Step("build in the container", lambda done: _build_in_container(path), unless="build"),
        Step("engines", lambda done: Outcome(engine_facts(with_new_engines()))),
    ]
    return [
        # 1: this machine cannot do what the bundle needs, for example because the engines are not built yet.
        Step("doctor", lambda done: run_command("doctor", path, accepted=(0, 1))),
        *(building if bundle.manifest.target == "tensorrt" else []),
        Step("verify in process", lambda done: run_command(*comparison, *in_process, accepted=undecided)),
        Step("serve", serve),
        Step(
            "verify served",
            lambda done: run_command(*comparison, "--url", url(done), *only_served, accepted=undecided),
            ("serve",),
        ),
        Step("bench", lambda done: run_command("bench", path, "--url", url(done), *allowed), ("serve",)),
    ]


def engine_facts(bundle: Bundle) -> dict[str, Any]:
    """Return what is known about the built engines: the build record, and the output types of the layers.

    Raises:
        DferDeployError: the engines are not built or do not belong to the bundle.
    """
    built = bundle.engines
    if built is None:
        raise EngineError(f"{bundle.path} has no engines")
    types = {}
    for graph in built.engines:
        layers = (bundle.path / SIDECAR).with_name(f"{graph}.layers.json")
        types[graph] = output_types(layers.read_text(encoding="utf-8")) if layers.is_file() else None
    return dataclasses.asdict(built) | {"layer_outputs": types}


def output_types(layers: str) -> dict[str, int]:
    """Count the outputs of an engine's layers by format and type, from the engine inspector's JSON.

    Source: TensorRT's Developer Guide, "Engine Inspector", with detailed profiling verbosity.
    """
    try:
        listed = json.loads(layers)["Layers"]
        outputs = [output for layer in listed if isinstance(layer, dict) for output in layer.get("Outputs", ())]
        return dict(Counter(str(output.get("Format/Datatype", output.get("Datatype"))) for output in outputs))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"what the engine inspector said is not understood ({error!r})") from error


def _build(bundle: Bundle) -> Outcome:
    """Build the engines. Existing ones may have been built with other options and are not replaced."""
    built = None
    with contextlib.suppress(DferDeployError):  # the engines are damaged, or for another largest batch
        built = bundle.engines
    if built is None:
        return run_command("build", bundle.path)
    kept = f"nothing was built: the bundle has engines of {built.builder.module} {built.builder.version}, which stay"
    return Outcome({"kept": dataclasses.asdict(built.builder)}, kept)


def _build_in_container(path: Path) -> Outcome:
    """Run the service ``build`` of the bundle's compose.yaml."""
    if shutil.which("docker") is None:
        raise StepError("docker is not on PATH, so the engines cannot be built in a container either")
    command = compose_command(path, "run", "--rm", "build")
    returncode, output = run_process(["sh", "-c", f"exec {command}"])
    if returncode != 0:
        raise StepError(f"{command} failed with exit code {returncode}", output)
    return Outcome(None, output)


def _about(gpus: Gpus) -> dict[str, Any]:
    return {
        "GPU": ", ".join(
            f"{gpu.name} (compute capability {gpu.compute_capability}, {gpu.memory_bytes / 1e9:.1f} GB)"
            for gpu in gpus.devices
        ),
        "driver": f"{gpus.driver or 'version unknown'}, CUDA up to {gpus.cuda or 'unknown'}",
        "CPU": machine(),
        "dfer-deploy": f"{__version__}, Python {platform.python_version()}",
    }
