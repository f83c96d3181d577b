"""Measurement of a served ensemble with NVIDIA's perf_analyzer."""

from __future__ import annotations

import base64
import csv
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dfer_deploy.errors import ServerError
from dfer_deploy.files import temporary_folder
from dfer_deploy.machine.children import WORKING_DIRECTORY
from dfer_deploy.runtimes.predictor import Frames
from dfer_deploy.triton.address import parse_url
from dfer_deploy.triton.environment import TritonEnvironment
from dfer_deploy.triton.statistics import queued

_WINDOWS = 3
"""Measurement windows of a run, the fewest with which perf_analyzer reports a result."""

_ANY_DIFFERENCE_PERCENT = 1_000_000
"""Accept windows that differ by any amount: a stall of half a second makes a short window fifty times as long. The
spread over the rounds is shown instead."""


@dataclass(frozen=True)
class LoadResult:
    """The result of one level of load. All times are milliseconds per request.

    Attributes:
        concurrency: number of requests that were kept in flight.
        throughput: inferences (clips) per second.
        p50_ms: median latency at the client.
        p95_ms: 95th percentile of the latency.
        p99_ms: 99th percentile of the latency.
        avg_ms: mean latency.
        queue_ms: mean time in the queues of the ensemble's steps, from Triton's statistics during the run.
        compute_input_ms: time to copy inputs, summed over the steps.
        compute_infer_ms: time to execute the models, summed over the steps.
        compute_output_ms: time to copy outputs, summed over the steps.
        client_send_ms: time to send the request; None if perf_analyzer does not report it.
        client_recv_ms: time to receive the response; None if perf_analyzer does not report it.
    """

    concurrency: int
    throughput: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    avg_ms: float
    queue_ms: float
    compute_input_ms: float
    compute_infer_ms: float
    compute_output_ms: float
    client_send_ms: float | None
    client_recv_ms: float | None


def measure_load(
    environment: TritonEnvironment,
    url: str,
    model: str,
    clips: Frames,
    concurrencies: Sequence[int],
    *,
    batch: int = 1,
    shared_memory: bool = False,
    requests: int = 20,
    timeout_s: float = 900.0,
) -> tuple[LoadResult, ...]:
    """Measure the server with real clips, at one level of load after the other.

    Every level is a separate run, because a sweep in one run may drop levels and still report success. The result of a
    level is the mean of three windows, whether they agree or not. perf_analyzer's own search for windows that agree
    fails on a machine with other load; instead, the caller repeats the measurement and shows the spread. (The option
    --request-count would make one window, but divides by whole seconds.)

    Args:
        environment: the private environment with perf_analyzer.
        url: address of the server, as in ``parse_url``.
        model: the ensemble's name.
        clips: uint8 [N, T, H, W, 3], sent in turn, ``batch`` in each request.
        concurrencies: numbers of requests to keep in flight, at least 1 each.
        batch: number of clips in one request.
        shared_memory: pass the tensors in the system's shared memory. The server must allow it, which by default it
            does not (``installation.RESTRICTED``).
        requests: number of requests to count at each level, at least; a third of them in each window.
        timeout_s: limit of the duration of one level, in seconds.

    Returns:
        One result for each of ``concurrencies``, in their order.

    Raises:
        DferDeployError: an argument is out of range, the server does not answer or refuses the clips, or a level takes
            too long.
    """
    _check_load(clips, concurrencies, batch)
    address = parse_url(url)
    results = []
    with temporary_folder("dfer-deploy-") as folder:
        data = folder / "clips.json"
        _write_input_data(data, clips)
        of_all_levels = [
            str(environment.perf_analyzer),
            *("-m", model, "-u", address.netloc, "-i", address.scheme, "-b", str(batch)),
            f"--shared-memory={'system' if shared_memory else 'none'}",
            f"--input-data={data}",
            "--measurement-mode=count_windows",
            f"--measurement-request-count={-(-requests // _WINDOWS)}",
            f"--stability-percentage={_ANY_DIFFERENCE_PERCENT}",
            f"--max-trials={_WINDOWS}",
        ]
        for concurrency in concurrencies:
            report = folder / f"{concurrency}.csv"
            before = queued(url, model)
            command = [*of_all_levels, "-f", str(report), f"--concurrency-range={concurrency}"]
            _run(command, environment, concurrency, timeout_s)
            waited = queued(url, model) - before
            results.append(_reported(report, concurrency, waited["ns"] / max(1, waited["requests"]) / 1e6))
    return tuple(results)


def _check_load(clips: Frames, concurrencies: Sequence[int], batch: int) -> None:
    if clips.dtype != np.uint8 or clips.ndim != 5 or len(clips) == 0:
        raise ServerError(f"clips are {clips.dtype} {list(clips.shape)}, expected uint8 [N, T, H, W, 3] with N ≥ 1")
    for concurrency in concurrencies:
        if concurrency < 1:
            raise ServerError(f"the concurrency {concurrency} is too small, expected at least 1")
    if batch < 1:
        raise ServerError(f"the batch {batch} is too small, expected at least 1")


def _reported(report: Path, concurrency: int, queue_ms: float) -> LoadResult:
    """Return the result of one level of load from perf_analyzer's report, with the mean time in the queue."""
    rows = parse_report(report.read_text(encoding="utf-8") if report.exists() else "")
    if concurrency not in rows:
        raise ServerError(
            f"perf_analyzer reported nothing for concurrency {concurrency}; measure it again with more requests"
        )
    return replace(rows[concurrency], queue_ms=queue_ms)


def parse_report(text: str) -> dict[int, LoadResult]:
    """Parse perf_analyzer's CSV, whose times are microseconds, into results by concurrency.

    Raises:
        DferDeployError: a column is missing, or a value is not a number.
    """
    results: dict[int, LoadResult] = {}
    for row in csv.DictReader(text.splitlines()):
        try:
            result = _result(row)
        except KeyError as error:
            raise ServerError(
                f"perf_analyzer's report has no column {error.args[0]!r} (it has {', '.join(row)}); "
                "it comes from another version, use the one of the private environment"
            ) from error
        except (TypeError, ValueError) as error:
            raise ServerError(f"perf_analyzer's report has a damaged row {row}; measure again") from error
        results[result.concurrency] = result
    return results


def _result(row: dict[str, str]) -> LoadResult:
    def milliseconds(column: str) -> float:
        return float(row[column]) / 1000

    parts = ("Network+Server Send/Recv", "Server Queue", "Server Compute Input", "Server Compute Infer",
             "Server Compute Output")  # fmt: skip
    client = {name: milliseconds(name) if name in row else None for name in ("Client Send", "Client Recv")}
    # Without a column for the mean latency, it is the sum of the means of all parts.
    mean = sum(map(milliseconds, parts)) + sum(value or 0.0 for value in client.values())
    return LoadResult(
        concurrency=int(row["Concurrency"]),
        throughput=float(row["Inferences/Second"]),
        p50_ms=milliseconds("p50 latency"),
        p95_ms=milliseconds("p95 latency"),
        p99_ms=milliseconds("p99 latency"),
        avg_ms=milliseconds("Avg latency") if "Avg latency" in row else mean,
        queue_ms=milliseconds("Server Queue"),
        compute_input_ms=milliseconds("Server Compute Input"),
        compute_infer_ms=milliseconds("Server Compute Infer"),
        compute_output_ms=milliseconds("Server Compute Output"),
        client_send_ms=client["Client Send"],
        client_recv_ms=client["Client Recv"],
    )


def _write_input_data(path: Path, clips: Frames) -> None:
    steps = [
        {
            "frames": {
                "content": {"b64": base64.b64encode(np.ascontiguousarray(clip).tobytes()).decode("ascii")},
                "shape": list(clip.shape),
            }
        }
        for clip in clips
    ]
    path.write_text(json.dumps({"data": steps}), encoding="utf-8")


def _run(command: list[str], environment: TritonEnvironment, concurrency: int, timeout_s: float) -> None:
    variables = environment.process_environment()  # without proxies, which would be measured too
    try:
        done = subprocess.run(
            command, env=variables, cwd=WORKING_DIRECTORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ServerError(
            f"perf_analyzer did not finish concurrency {concurrency} within {timeout_s:g} s; "
            "ask for fewer requests or allow more time"
        ) from error
    if done.returncode != 0:
        raise ServerError(
            f"perf_analyzer failed at concurrency {concurrency} (exit code {done.returncode}): {_reason(done.stdout)}"
        )


def _reason(output: str) -> str:
    """The line of perf_analyzer's output that states the error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for line in lines:
        if " had error: " in line:
            return line.partition(" had error: ")[2]
    errors = [line for line in lines if "error" in line.lower() or line.startswith("Failed")]
    return (errors or lines or ["it wrote nothing"])[-1].removeprefix("error: ")
