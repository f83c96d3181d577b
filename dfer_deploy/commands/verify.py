"""``dfer-deploy verify``"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.client import Client
from dfer_deploy.client.triton_predictor import TritonPredictor
from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.clips.dataset import LabelledClips
from dfer_deploy.commands.localisation import bisected, blamed, localisation_as_json, localised, print_localisation
from dfer_deploy.commands.options import bundle_argument, data_root_option, json_option
from dfer_deploy.commands.policy_file import Policy, policy_from_toml
from dfer_deploy.commands.runtimes import TRITON, choose_contestants, host_code_option, open_predictors, runtime_option
from dfer_deploy.commands.serving import check_served, served_bundle
from dfer_deploy.commands.verification import outcome, print_verification, verification_as_json
from dfer_deploy.console import stdout, step, warn
from dfer_deploy.errors import DferDeployError, ExitCode
from dfer_deploy.files import check_outputs, write_json
from dfer_deploy.specs import PROMPT_POSITIONS, ModelSpec
from dfer_deploy.verification.baseline import PredictorTruth, Truth, load_baseline
from dfer_deploy.verification.ensembles import EnsembleAnswers, ensemble_answers
from dfer_deploy.verification.folds import earlier_from_json
from dfer_deploy.verification.limits import LIMITS
from dfer_deploy.verification.prompt_position import ReadingCheck, check_reading, is_own_test_list
from dfer_deploy.verification.provenance import provenance
from dfer_deploy.verification.verify import Verification
from dfer_deploy.verification.verify import verify as run_verification
from dfer_deploy.verification.verify_policy import LARGEST_LOGIT_ERROR, MOST_POINTS

if TYPE_CHECKING:
    from dfer_deploy.export.layers import Localisation
    from dfer_deploy.runtimes.torch_predictor import TorchPredictor


@click.command()
@bundle_argument
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Compare with this checkpoint in PyTorch.")
@click.option("--baseline", type=click.Path(path_type=Path), help="Compare with answers that PyTorch gave elsewhere.")
@click.option("--save-baseline", type=click.Path(path_type=Path), help="Save PyTorch's answers for --baseline.")
@click.option(
    "--data",
    "lists",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Annotation list with labelled clips; repeatable.",
)
@data_root_option
@click.option(
    "--url",
    "urls",
    multiple=True,
    help="Verify this server (grpc://… or http://…) instead of starting one; once for each protocol.",
)
@click.option("--in-process", is_flag=True, help="Leave the server away: only what runs in this process.")
@runtime_option
@host_code_option
@click.option("--batch-size", type=click.IntRange(1), default=4, show_default=True, help="Clips in one request.")
@click.option(
    "--max-logit-error",
    type=click.FloatRange(0, LARGEST_LOGIT_ERROR),
    help="Instead of the precision's limit (fp32 0.01, fp16 2.5).",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, MOST_POINTS, min_open=True),
    help="Points by which UAR and WAR may differ, fixed before you look.  [default: 0.5]",
)
@click.option(
    "--group-by",
    metavar="REGEX",
    help="What the first group matches in a clip's listed path is its source (a film, a person); clips of one source "
    "do not count as independent.",
)
@click.option(
    "--pool",
    "pool_files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Decide about the clips of this earlier --json FILE too, for example of another fold; repeatable.",
)
@click.option(
    "--policy", "policy_file", type=click.Path(path_type=Path), help="Take the limits from [verify] of this TOML file."
)
@click.option(
    "--report",
    "report_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write an HTML page that shows everything.",
)
@click.option(
    "--own-test-list/--other-list",
    default=None,
    help="Whether LIST is the one on which a reference checkpoint's best_acc was measured; by default this is taken "
    "to be so if best_acc is a whole number of hits out of its clips.",
)
@click.option(
    "--bisect",
    is_flag=True,
    help="Find out which blocks must stay fp32 in an fp16 export for these limits to hold, and print its command.",
)
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    bundle: Path,
    checkpoint: Path | None,
    baseline: Path | None,
    save_baseline: Path | None,
    lists: tuple[Path, ...],
    data_root: str | None,
    urls: tuple[str, ...],
    in_process: bool,
    chosen: tuple[str, ...],
    allow_host_code: bool,
    batch_size: int,
    max_logit_error: float | None,
    margin: float | None,
    group_by: str | None,
    pool_files: tuple[Path, ...],
    policy_file: Path | None,
    report_file: Path | None,
    own_test_list: bool | None,
    bisect: bool,
    json_file: Path | None,
) -> None:
    """Prove on labelled clips that BUNDLE answers like its checkpoint: in process and served.

    In process are onnxruntime, with CUDA where it can, and the TensorRT engines where they are built and run here.
    A server is asked over gRPC and over HTTP, and about the first clips as streams and as encoded images too. Exits
    with 0 if all that was compared answers alike and its UAR and WAR are equivalent, with 1 if something failed, and
    with 3 if nothing did but there are too few clips to tell.
    """
    if (checkpoint is None) == (baseline is None):
        raise click.UsageError("give either --checkpoint CKPT or --baseline FILE")
    if urls and in_process:
        raise click.UsageError("--url names a server and --in-process leaves it away; choose one")
    if save_baseline and baseline:
        raise click.UsageError("--save-baseline saves PyTorch's answers and needs --checkpoint")
    if bisect and checkpoint is None:
        raise click.UsageError("--bisect exports the checkpoint again and needs --checkpoint")
    if report_file:
        # Before the minutes of work: a package that it needs may be missing.
        from dfer_deploy.report.page import write_report
    opened = open_bundle(bundle)
    contestants = choose_contestants(
        opened, chosen, url=urls[0] if urls else None, in_process=in_process, host_code_allowed=allow_host_code
    )
    spec = opened.spec
    default = LIMITS[opened.manifest.precision]
    policy = policy_from_toml(policy_file) if policy_file else Policy()
    compared = (*contestants.runtimes, *((TRITON,) if contestants.served else ()))
    policy.verify.check_compared(compared, contestants.left_out.values())
    for option, given, written in (
        ("--margin", margin, policy.verify.margin),
        ("--max-logit-error", max_logit_error, policy.verify.max_logit_error),
    ):
        if given is not None and written is not None:
            raise click.UsageError(f"{option} {given:g}, but {policy_file} says {written:g}; give one of them")
    limits = policy.verify.limits(default)
    limits = replace(
        limits,
        points=limits.points if margin is None else margin,
        logits=limits.logits if max_logit_error is None else max_logit_error,
    )
    pool = [earlier_from_json(path) for path in pool_files]
    for earlier in pool:
        earlier.check_alike(limits, opened.manifest.target)
    clips = _labelled(lists, spec, data_root)
    groups = _groups(group_by, clips.annotations) if group_by else None
    outputs = {"--json": json_file, "--report": report_file, "--save-baseline": save_baseline}
    inputs = [checkpoint, baseline, policy_file, *lists, *pool_files]
    check_outputs(outputs, [*inputs, *(annotation.path for annotation in clips.annotations)], bundle)
    torch_predictor: TorchPredictor | None = None
    given_urls = urls
    with ExitStack() as stack:
        truth: Truth
        if checkpoint is not None:
            torch_predictor, truth = _torch_truth(checkpoint, opened)
        else:
            assert baseline is not None  # noqa: S101 - checked above, for mypy
            truth = load_baseline(baseline, spec)
        if truth.checkpoint_sha256 != opened.manifest.checkpoint.sha256:
            warn(
                f"{bundle} was exported from another checkpoint (SHA-256 {opened.manifest.checkpoint.sha256[:12]}…, "
                f"not {truth.checkpoint_sha256[:12]}…); the comparison tells whether that matters"
            )
        predictors = open_predictors(stack, opened, contestants, host_code_allowed=allow_host_code)
        served: list[str] = []
        on_the_cpu = [p.name for r, p in zip(contestants.runtimes, predictors, strict=True) if r == "onnxruntime-cpu"]
        if contestants.served:
            if not urls:
                endpoints = stack.enter_context(served_bundle(opened, host_code_allowed=allow_host_code))
                urls = endpoints.grpc_url, endpoints.http_url
            for url in urls:
                client = stack.enter_context(TritonPredictor(url, opened.contract))
                check_served(client, opened)
                if client.name in {predictor.name for predictor in predictors}:
                    raise DferDeployError(f"--url {url} is a second {client.name}; give one grpc://… and one http://…")
                predictors.append(client)
                served.append(client.name)
                if opened.manifest.target == "embedded":
                    on_the_cpu.append(client.name)
        result = run_verification(
            spec,
            truth,
            predictors,
            clips,
            limits,
            same_graphs=on_the_cpu,
            batch_size=batch_size,
            baseline_file=save_baseline,
            groups=groups,
            pool=pool,
        )
        ensembles = _ensembles(opened, urls[0], clips, result) if served else None
    found: dict[str, Any] = {}
    blocks: Localisation | None = None
    if torch_predictor is not None:
        try:
            blocks = localised(opened, torch_predictor.model, clips, result)
        except DferDeployError as error:  # the clips have been compared, and their results are to be written
            warn(f"the blocks of the graphs were not compared with PyTorch: {error}")
    if blocks is not None:
        found["localisation"] = localisation_as_json(blocks, blamed(blocks, result, served))
        result = replace(result, blocks=str(blocks) if blocks.failing else None)
    reading = _reading(opened, torch_predictor, result, own_test_list)
    print_verification(result, spec.prompts.class_names, reading, ensembles)
    if blocks is not None:
        print_localisation(opened, blocks, blamed(blocks, result, served))
    if bisect and checkpoint is not None and torch_predictor is not None:
        half = policy.verify.limits(LIMITS["fp16"])
        half = replace(half, points=limits.points, logits=half.logits if max_logit_error is None else max_logit_error)
        found["bisection"] = bisected(
            opened, checkpoint, torch_predictor.model, clips, result, half, groups, batch_size=batch_size
        )
    leaves_it_away = "--in-process" if in_process else "--runtime"
    left_out = ({} if served else {"Triton": f"{leaves_it_away} leaves it away"}) | contestants.left_out
    for what, reason in left_out.items():
        stdout.print(f"not verified: {what}, since {reason}", markup=False)
    if save_baseline:
        stdout.print(f"saved PyTorch's answers to {save_baseline}", markup=False)
    if json_file or report_file:
        paths = {annotation.name: annotation.path for annotation in clips.annotations}
        content = verification_as_json(result, spec.prompts.class_names, reading, ensembles) | {
            "checkpoint_sha256": opened.manifest.checkpoint.sha256,
            "left_out": left_out,
            "urls": list(given_urls),
            **found,
            "provenance": provenance(opened, truth, baseline, lists, paths.values(), pool_files),
        }
        if json_file:
            write_json(json_file, content)
        if report_file:
            write_report(report_file, content, clips=paths)
    code = outcome(result, reading, ensembles)
    if code != ExitCode.DONE:
        ctx.exit(code)


def _labelled(lists: Sequence[Path], spec: ModelSpec, data_root: str | None) -> LabelledClips:
    """The clips of all lists, one after the other."""
    size = spec.clip.vision.image_size
    read = [LabelledClips.from_list(path, spec.prompts.num_classes, size, data_root) for path in lists]
    seen: set[str] = set()
    for path, clips in zip(lists, read, strict=True):
        names = {annotation.name for annotation in clips.annotations}
        if seen & names:
            raise DferDeployError(f"the clip {min(seen & names)!r} of {path} is in an earlier list too; list it once")
        seen |= names
    return LabelledClips([annotation for clips in read for annotation in clips.annotations], size)


def _groups(pattern: str, annotations: Sequence[Annotation]) -> dict[str, str]:
    """The source of every clip by its name."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DferDeployError(f"--group-by {pattern!r} is no regular expression ({error})") from error
    if not compiled.groups:
        raise DferDeployError(f"--group-by {pattern!r} has no group; put what names the source in parentheses")
    found = {annotation.name: compiled.search(annotation.name) for annotation in annotations}
    for name, match in found.items():
        if match is None or match[1] is None:
            raise DferDeployError(f"--group-by {pattern!r} finds no source in {name!r}; it must in every listed path")
    return {name: match[1] for name, match in found.items() if match is not None}


def _torch_truth(path: Path, bundle: Bundle) -> tuple[TorchPredictor, Truth]:
    from dfer_deploy.checkpoints.checkpoint import load_checkpoint
    from dfer_deploy.files import sha256_of_file
    from dfer_deploy.runtimes.torch_predictor import TorchPredictor

    with step(f"read {path}"):
        prompts = bundle.spec.prompts
        loaded = load_checkpoint(path)
        if loaded.spec.prompts.num_classes != prompts.num_classes or loaded.spec.clip != bundle.spec.clip:
            raise DferDeployError(
                f"{path} has other sizes or classes than {bundle.path}; verify with its own checkpoint"
            )
        if loaded.format != "reference" and loaded.spec.prompts.class_names != prompts.class_names:
            raise DferDeployError(
                f"{path} names the classes {', '.join(loaded.spec.prompts.class_names)}, {bundle.path} "
                f"{', '.join(prompts.class_names)}; export it again"
            )
        if loaded.format == "reference":
            # What the file does not say is taken as it was at the export, so that the same reading is compared.
            assumed = replace(loaded.spec.prompts, position=prompts.position, class_names=prompts.class_names)
            loaded = replace(loaded, spec=replace(loaded.spec, prompts=assumed))
        predictor = TorchPredictor(loaded.build_model())
    return predictor, PredictorTruth(predictor, sha256_of_file(path))


def _ensembles(bundle: Bundle, url: str, clips: LabelledClips, result: Verification) -> EnsembleAnswers:
    """Streams and encoded images, on the first clips; that the server refuses to answer is a failure."""
    by_name = {annotation.name: annotation for annotation in clips.annotations}
    few = [(by_name[name], clip) for name, clip in zip(result.clip_names, result.first_clips, strict=False)]
    same_runtime, contract = bundle.manifest.target == "embedded", bundle.contract
    try:
        with (
            step("ask for streams and encoded images"),
            Client(url, contract.ensemble.name, retries=0) as client,
        ):
            rounding = result.rounding[result.limits.precision]
            return ensemble_answers(client, contract, few, result.limits, rounding, same_runtime=same_runtime)
    except DferDeployError as error:  # the clips have been compared, and their results are to be written
        unanswered = dict.fromkeys(
            (contract.stream.name, contract.encoded.name, contract.encoded_stream.name), math.inf
        )
        return EnsembleAnswers(contract.ensemble.name, unanswered, (f"streams or encoded images: {error}",))


def _reading(
    bundle: Bundle, predictor: TorchPredictor | None, result: Verification, own_test_list: bool | None
) -> ReadingCheck | None:
    """Checks how the reference checkpoint was read, where its own test list is at hand."""
    best_acc = bundle.manifest.checkpoint.best_acc
    if best_acc is None or own_test_list is False:
        return None
    clips = len(result.labels)
    skipped = ""
    if result.unreadable:
        skipped = f"{len(result.unreadable)} clips of the list are missing"
    elif own_test_list is None and not is_own_test_list(best_acc, clips):
        skipped = f"that is no whole number of {clips} clips, so this is not its own test list"
    if skipped:
        stdout.print(f"reading of the checkpoint: not checked; it states {best_acc:.2f} % WAR, but {skipped}")
        return None
    logits = {bundle.spec.prompts.position: result.logits}
    if predictor is not None:
        logits = {p: predictor.classify(result.frame_features, p).logits for p in PROMPT_POSITIONS}
    return check_reading(logits, result.labels, best_acc, bundle.spec.prompts.position)
