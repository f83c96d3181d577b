"""Results of planted verifications and benchmarks, and the report's page taken apart."""

from __future__ import annotations

import html.parser
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dfer_deploy.errors import ExitCode
from dfer_deploy.measurement.bench_result import BenchResult
from dfer_deploy.report.page import write_report
from dfer_deploy.verification.compared_answers import ComparedAnswers
from dfer_deploy.verification.comparison import Collected
from dfer_deploy.verification.limits import LIMITS, Rounding
from dfer_deploy.verification.provenance import Link, Provenance
from dfer_deploy.verification.verification_result import VerificationResult
from dfer_deploy.verification.verify import ShownClips

CLASSES = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=http://evil.example/x onerror=alert(1)>',
    "$\\frac{1}{$",
    "a & b]]>",
)
NOTE = "These are drawn faces for demonstrations and tests."


def planted_result(
    clips: int,
    flips: Sequence[int] = (0,),
    *,
    to_wrong: bool = False,
    names: Sequence[str] = CLASSES,
    absent: int | None = None,
    failures: Sequence[str] = (),
    synthetic: str | None = None,
    seed: int = 0,
) -> VerificationResult:
    """A verification of candidates that change so many answers each; ``to_wrong`` only right ones.

    What failed is ``failures``, whatever the limits say.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(clips) % len(names)
    if absent is not None:
        labels[labels == absent] = (absent + 1) % len(names)
    logits = rng.normal(0, 1, (clips, len(names))).astype(np.float32)
    logits[np.arange(clips), labels] += 3
    collected = {}
    for index, count in enumerate(flips):
        other = logits + rng.normal(0, 1e-3, logits.shape).astype(np.float32)
        right = logits.argmax(axis=1) == labels
        candidates = np.flatnonzero(right) if to_wrong else np.arange(clips)
        for row in rng.choice(candidates, count, replace=False):
            top = np.argsort(other[row])[-2:]
            other[row, top] = other[row, top[::-1]]
        name = f"candidate {index}"
        collected[name] = Collected(name, [other], encoder_logits=5e-4, head_logits=1e-4, errors=Rounding(4.75, 0.0))
    shown = ShownClips(
        truth="PyTorch fp32",
        answers=ComparedAnswers(
            class_names=tuple(names),
            clips=tuple(f"clips/{row:05d}" for row in range(clips)),
            clip_hashes=tuple(f"{row:064x}" for row in range(clips)),
            groups=None,
            labels=labels,
            reference=logits.argmax(axis=1),
            candidates={name: found.logits[0].argmax(axis=1) for name, found in collected.items()},
        ),
        frame_features=np.zeros((clips, 16, 1), np.float32),
        logits=logits,
        collected=collected,
        rounding={precision: Rounding(1.0, 1.0) for precision in LIMITS},
        unreadable={},
        lost_classes=(),
        first_clips=(),
    )
    comparisons = tuple(
        replace(found, failures=tuple(f"{found.name}: {failure}" for failure in failures))
        for found in shown.comparisons(LIMITS["fp32"])
    )
    return VerificationResult(
        class_names=tuple(names),
        answers=shown.answers,
        truth=shown.truth_score,
        comparisons=comparisons,
        limits=LIMITS["fp32"],
        rounding=shown.rounding,
        failures=tuple(failure for found in comparisons for failure in found.failures),
        undecided=tuple(sentence for found in comparisons for sentence in found.undecided),
        unreadable={},
        left_out={"the engines": "there is no GPU"},
        ensembles={},
        provenance=Provenance(
            chain=(Link("checkpoint", "", "ab" * 32), Link("manifest", "manifest.json", "cd" * 32)),
            name="dfer",
            version=1,
            target="embedded",
            precision="fp32",
            tools={"torch": "2.9"},
            synthetic=synthetic,
        ),
    )


def planted(clips: int, flips: Sequence[int] = (0,), **options: Any) -> dict[str, Any]:
    """``planted_result`` as ``verify --json`` writes it, to be altered."""
    return planted_result(clips, flips, **options).to_dict()


def result_of(content: Mapping[str, Any]) -> VerificationResult:
    """Read altered content, with the outcome that its failures and open questions make."""
    failed, undecided = bool(content["failures"]), bool(content["undecided"])
    code = ExitCode.GATE_FAILED if failed else ExitCode.UNDECIDED if undecided else ExitCode.DONE
    return VerificationResult.from_dict({**content, "passed": not failed, "exit_code": int(code)})


def bench_json() -> dict[str, Any]:
    def load(concurrency: int, factor: float) -> dict[str, Any]:
        times = {"p50_ms": 40.0 * concurrency, "p95_ms": 55.0 * concurrency, "p99_ms": 70.0 * concurrency}
        rest = ("avg_ms", "queue_ms", "compute_input_ms", "compute_infer_ms", "compute_output_ms")
        zeros = dict.fromkeys(rest, 1.0) | {"client_send_ms": None, "client_recv_ms": None}
        return {"concurrency": concurrency, "throughput": factor * (20 + concurrency)} | times | zeros

    return {
        "machine": "a machine, 2 cores",
        "subject": {"manifest_sha256": "cd" * 32, "checkpoint_sha256": "ab" * 32, "precision": "fp32"},
        "requests": 200,
        "in_process": [{"name": "onnxruntime fp32", "throughput": [25.0, 26.0], "latency_ms": [38.0, 40.0, 41.0]}],
        "served": [
            {"name": f"dfer served, {n} in flight", "concurrency": n, "rounds": [load(n, 1.0), load(n, 1.1)]}
            for n in (1, 2, 4)
        ],
        "left_out": {},
    }


class Page(html.parser.HTMLParser):
    """A page taken apart: ``tags`` with their attributes, the whole text, and what is not closed as it was opened."""

    VOID = ("meta", "img", "wbr")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.wrong: list[str] = []
        self._open: list[str] = []
        self._word_goes_on = False
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        self.wrong += self._open

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        self._word_goes_on = tag == "wbr"
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.wrong.append(f"/{tag} at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if self._word_goes_on:
            data = self.words.pop() + data
        self._word_goes_on = False
        self.words.append(data)


def page_of(folder: Path, content: Mapping[str, Any], bench: Mapping[str, Any] | None = None, **more: Any) -> Page:
    """Write the report of altered content and take it apart."""
    measured = None if bench is None else BenchResult.from_dict(bench)
    write_report(folder / "report.html", result_of(content), bench=measured, **more)
    return Page(folder / "report.html")
