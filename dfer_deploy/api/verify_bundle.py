"""Verify a bundle on labelled clips, in process and served, against PyTorch or saved answers of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dfer_deploy.api.contestants import TRITON, Contestants, choose_contestants, open_predictors
from dfer_deploy.api.localisation import bisected, localised, worst_clips
from dfer_deploy.api.policy_file import Policy, policy_from_toml
from dfer_deploy.api.serving import check_served, served_bundle
from dfer_deploy.api.verify_options import VerifyOptions, labelled_clips, sources
from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.client import Client
from dfer_deploy.client.triton_predictor import TritonPredictor
from dfer_deploy.clips.dataset import LabelledClips, SpooledClips, temporary_file
from dfer_deploy.console import step, warn
from dfer_deploy.errors import DferDeployError, SettingError, extras_named, spelled
from dfer_deploy.files import check_outputs, sha256_of_file
from dfer_deploy.plain_data import checked_arguments
from dfer_deploy.runtimes.predictor import Predictor
from dfer_deploy.specs import PROMPT_POSITIONS
from dfer_deploy.verification.baseline import PredictorTruth, Truth, load_baseline, save_baseline
from dfer_deploy.verification.blocks import Bisection, BlockComparison
from dfer_deploy.verification.ensembles import EnsembleAnswers, ensemble_answers
from dfer_deploy.verification.folds import EarlierVerification, earlier_from_json
from dfer_deploy.verification.limits import LIMITS, Limits
from dfer_deploy.verification.prompt_position import ReadingCheck, check_reading, is_own_test_list
from dfer_deploy.verification.provenance import provenance
from dfer_deploy.verification.verification_result import Comparison, VerificationResult
from dfer_deploy.verification.verify import ShownClips, show_clips

if TYPE_CHECKING:
    from dfer_deploy.runtimes.torch_predictor import TorchPredictor


@extras_named("verifying a bundle")
@checked_arguments
def verify_bundle(
    bundle: Bundle | Path | str,
    data: LabelledClips | Path | str | Sequence[Path | str],
    options: VerifyOptions,
    *,
    data_root: str | None = None,
    compared: Callable[[VerificationResult], object] | None = None,
) -> VerificationResult:
    """Verify on labelled clips that a bundle answers like its checkpoint, in process and served.

    Args:
        bundle: an opened bundle, or its folder.
        data: an annotation list, or several; or the clips that ``labelled_clips`` read.
        options: what to compare with what, and the limits.
        data_root: where the listed clips are on this machine; see ``--data-root``.
        compared: called with the result of the comparison before a bisection begins, which takes minutes; without
            ``VerifyOptions.bisect``, it is called with the whole result.

    Returns:
        The result, whether or not it passed; see ``VerificationResult.exit_code``.

    Raises:
        DferDeployError: the bundle is damaged, no clip can be read, or a requested runtime cannot run here.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
    if isinstance(data, LabelledClips):
        clips = data
    else:
        lists = [data] if isinstance(data, Path | str) else data
        clips = labelled_clips(opened, [Path(path) for path in lists], data_root)
    check_outputs(
        {spelled("save_baseline"): Path(options.save_baseline) if options.save_baseline else None},
        [*options.files, *clips.lists, *(annotation.path for annotation in clips.annotations)],
        opened.path,
    )
    if not options.bisect:
        return _Verification(opened, clips, options, compared).result()
    with temporary_file() as spool:
        # Every trial of a bisection reads all clips again.
        spooled = SpooledClips(clips.annotations, clips.image_size, clips.lists, spool=spool)
        return _Verification(opened, spooled, options, compared).result()


class _Verification:
    """One verification. Everything that can be refused is refused before the first clip is read."""

    def __init__(
        self,
        bundle: Bundle,
        clips: LabelledClips,
        options: VerifyOptions,
        compared: Callable[[VerificationResult], object] | None,
    ) -> None:
        self.bundle, self.clips, self.options, self.compared = bundle, clips, options, compared
        self.contestants: Contestants = choose_contestants(
            bundle,
            options.runtimes,
            url=options.urls[0] if options.urls else None,
            in_process=options.in_process,
            host_code_allowed=options.allow_host_code,
        )
        self.policy = policy_from_toml(Path(options.policy)) if options.policy else Policy()
        ways = (*self.contestants.runtimes, *((TRITON,) if self.contestants.served else ()))
        self.policy.verify.check_compared(ways, self.contestants.left_out.values())
        self.limits = self._limits(LIMITS[bundle.manifest.precision])
        self.pool: list[EarlierVerification] = [earlier_from_json(Path(path)) for path in options.pool]
        for earlier in self.pool:
            earlier.check_alike(self.limits, bundle.manifest.target)
        self.groups = sources(options.group_by, clips.annotations) if options.group_by else None
        self.served: list[str] = []

    def _limits(self, default: Limits) -> Limits:
        """Return the precision's limits, replaced by those of the policy or the options, which must not disagree."""
        options, policy = self.options, self.policy.verify
        for option, given, written in (
            (spelled("margin"), options.margin, policy.margin),
            (spelled("max_logit_error"), options.max_logit_error, policy.max_logit_error),
        ):
            if given is not None and written is not None:
                raise SettingError(f"{option} {given:g}, but {options.policy} says {written:g}; give one of them")
        limits = policy.limits(default)
        return replace(
            limits,
            points=limits.points if options.margin is None else options.margin,
            logits=limits.logits if options.max_logit_error is None else options.max_logit_error,
        )

    def result(self) -> VerificationResult:
        """Compare, report the result to ``compared``, and then search for the blocks that must stay fp32 if asked."""
        truth, predictor = self._truth()
        ensembles: EnsembleAnswers | None = None
        with ExitStack() as stack:
            predictors, same_graphs, url = self._predictors(stack)
            shown = show_clips(
                self.bundle.spec.prompts.class_names,
                truth,
                predictors,
                self.clips,
                same_graphs=same_graphs,
                batch_size=self.options.batch_size,
                groups=self.groups,
                pool=self.pool,
            )
            comparisons = shown.comparisons(self.limits, self.pool)
            if url is not None:
                ensembles = self._ensembles(url, shown)
        if self.options.save_baseline:
            save_baseline(Path(self.options.save_baseline), shown.baseline(truth.checkpoint_sha256, self.bundle.spec))
        result = self._judged(truth, predictor, shown, comparisons, ensembles)
        if self.compared is not None:
            self.compared(result)
        if predictor is None or not self.options.bisect:
            return result
        try:
            return replace(result, bisection=self._bisected(predictor, shown, comparisons))
        except DferDeployError as error:  # the clips have been compared, and their results are to be kept
            warn(f"the blocks that must stay fp32 were not found: {error}")
            return result

    def _judged(
        self,
        truth: Truth,
        predictor: TorchPredictor | None,
        shown: ShownClips,
        comparisons: tuple[Comparison, ...],
        ensembles: EnsembleAnswers | None,
    ) -> VerificationResult:
        options = self.options
        blocks = None if predictor is None else self._blocks(predictor, shown, comparisons)
        reading, not_checked = self._reading(predictor, shown)
        omitted_by = spelled("in_process") if options.in_process else spelled("runtimes")
        left_out = {} if self.served else {"Triton": f"{omitted_by} omits it"}
        failures = [
            *([] if blocks is None or not blocks.failing else [str(blocks)]),
            *(failure for comparison in comparisons for failure in comparison.failures),
            *(earlier.failure for earlier in self.pool if earlier.failure is not None),
            *shown.list_failures(self.limits),
            *([] if ensembles is None else ensembles.failures),
            *([] if reading is None or reading.passed else [f"reading of the checkpoint: {reading}"]),
        ]
        return VerificationResult(
            class_names=shown.answers.class_names,
            answers=shown.answers,
            truth=shown.truth_score,
            comparisons=comparisons,
            limits=self.limits,
            rounding=shown.rounding,
            failures=tuple(failures),
            undecided=tuple(sentence for comparison in comparisons for sentence in comparison.undecided),
            unreadable=shown.unreadable,
            left_out=left_out | self.contestants.left_out | not_checked,
            ensembles={} if ensembles is None else ensembles.differences,
            provenance=provenance(
                self.bundle,
                truth,
                None if options.baseline is None else Path(options.baseline),
                self.clips.lists,
                [annotation.path for annotation in self.clips.annotations],
                [Path(path) for path in options.pool],
            ),
            urls=options.urls,
            reading=reading,
            localisation=blocks,
        )

    def _bisected(self, predictor: TorchPredictor, shown: ShownClips, comparisons: Sequence[Comparison]) -> Bisection:
        assert self.options.checkpoint is not None  # noqa: S101 - checked by VerifyOptions, for mypy
        return bisected(
            self.bundle,
            Path(self.options.checkpoint),
            predictor.model,
            self.clips,
            shown,
            worst_clips(shown, comparisons),
            self._limits(LIMITS["fp16"]),
            self.groups,
            batch_size=self.options.batch_size,
        )

    def _truth(self) -> tuple[Truth, TorchPredictor | None]:
        """Return the truth that the bundle is compared with, and PyTorch's model if there is a checkpoint."""
        predictor: TorchPredictor | None = None
        truth: Truth
        if self.options.checkpoint is not None:
            predictor = _torch_predictor(Path(self.options.checkpoint), self.bundle)
            truth = PredictorTruth(predictor, sha256_of_file(Path(self.options.checkpoint)))
        else:
            assert self.options.baseline is not None  # noqa: S101 - checked by VerifyOptions, for mypy
            truth = load_baseline(Path(self.options.baseline), self.bundle.spec)
        exported = self.bundle.manifest.checkpoint.sha256
        if truth.checkpoint_sha256 != exported:
            warn(
                f"{self.bundle.path} was exported from another checkpoint (SHA-256 {exported[:12]}…, not "
                f"{truth.checkpoint_sha256[:12]}…); the comparison shows whether that matters"
            )
        return truth, predictor

    def _predictors(self, stack: ExitStack) -> tuple[list[Predictor], list[str], str | None]:
        """Open everything that is compared.

        Returns:
            The predictors; the names of those that run the same graphs with onnxruntime on a CPU; the server's address.
        """
        options, bundle = self.options, self.bundle
        predictors = open_predictors(stack, bundle, self.contestants, host_code_allowed=options.allow_host_code)
        runtimes = zip(self.contestants.runtimes, predictors, strict=True)
        same_graphs = [predictor.name for runtime, predictor in runtimes if runtime == "onnxruntime-cpu"]
        if not self.contestants.served:
            return predictors, same_graphs, None
        urls = options.urls
        if not urls:
            endpoints = stack.enter_context(served_bundle(bundle, host_code_allowed=options.allow_host_code))
            urls = endpoints.grpc_url, endpoints.http_url
        for url in urls:
            client = stack.enter_context(TritonPredictor(url, bundle.contract))
            check_served(client, bundle)
            if client.name in {predictor.name for predictor in predictors}:
                raise SettingError(f"{spelled('urls')} name two of {client.name}; give one grpc://… and one http://…")
            predictors.append(client)
            self.served.append(client.name)
            if bundle.manifest.target == "embedded":
                same_graphs.append(client.name)
        return predictors, same_graphs, urls[0]

    def _ensembles(self, url: str, shown: ShownClips) -> EnsembleAnswers:
        """Ask for streams and encoded images on the first clips. A refusal of the server counts as a failure."""
        contract = self.bundle.contract
        try:
            with step("ask for streams and encoded images"), Client(url, contract.ensemble.name, retries=0) as client:
                return ensemble_answers(
                    client,
                    contract,
                    shown.first_clips,
                    self.limits,
                    shown.rounding[self.limits.precision],
                    same_runtime=self.bundle.manifest.target == "embedded",
                )
        except DferDeployError as error:  # the clips have been compared, and their results must be kept
            unanswered = (contract.stream.name, contract.encoded.name, contract.encoded_stream.name)
            return EnsembleAnswers(dict.fromkeys(unanswered, math.inf), (f"streams or encoded images: {error}",))

    def _blocks(
        self, predictor: TorchPredictor, shown: ShownClips, comparisons: Sequence[Comparison]
    ) -> BlockComparison | None:
        try:
            return localised(self.bundle, predictor.model, shown, comparisons, self.served)
        except DferDeployError as error:  # the clips have been compared, and their results must be kept
            warn(f"the blocks of the graphs were not compared with PyTorch: {error}")
            return None

    def _reading(
        self, predictor: TorchPredictor | None, shown: ShownClips
    ) -> tuple[ReadingCheck | None, dict[str, str]]:
        """Check how the reference checkpoint was read, on its own test list; or return the reason for omitting that."""
        best_acc, own_test_list = self.bundle.manifest.checkpoint.best_acc, self.options.own_test_list
        if best_acc is None or own_test_list is False:
            return None, {}
        clips, position = len(shown.answers.clips), self.bundle.spec.prompts.position
        skipped = ""
        if shown.unreadable:
            skipped = f"{len(shown.unreadable)} clips of the list are missing"
        elif own_test_list is None and not is_own_test_list(best_acc, clips):
            skipped = f"that is not a whole number of {clips} clips, so this is not its own test list"
        if skipped:
            return None, {"reading of the checkpoint": f"it states {best_acc:.2f} % WAR, but {skipped}"}
        logits = {position: shown.logits}
        if predictor is not None:
            logits = {p: predictor.classify(shown.frame_features, p).logits for p in PROMPT_POSITIONS}
        return check_reading(logits, shown.answers.labels, best_acc, position), {}


def _torch_predictor(path: Path, bundle: Bundle) -> TorchPredictor:
    from dfer_deploy.checkpoints.checkpoint import load_checkpoint
    from dfer_deploy.runtimes.torch_predictor import TorchPredictor

    with step(f"read {path}"):
        prompts = bundle.spec.prompts
        loaded = load_checkpoint(path)
        if loaded.spec.prompts.num_classes != prompts.num_classes or loaded.spec.clip != bundle.spec.clip:
            raise SettingError(f"{path} has other sizes or classes than {bundle.path}; verify with its own checkpoint")
        if loaded.format != "reference" and loaded.spec.prompts.class_names != prompts.class_names:
            raise SettingError(
                f"{path} names the classes {', '.join(loaded.spec.prompts.class_names)}, {bundle.path} "
                f"{', '.join(prompts.class_names)}; export it again"
            )
        if loaded.format == "reference":
            # What the file does not contain is taken from the export, so that both models are read in the same way.
            assumed = replace(loaded.spec.prompts, position=prompts.position, class_names=prompts.class_names)
            loaded = replace(loaded, spec=replace(loaded.spec, prompts=assumed))
        return TorchPredictor(loaded.build_model())
