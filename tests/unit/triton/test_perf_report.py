"""perf_analyzer's CSV, read by the names of its columns."""

from __future__ import annotations

import pytest

from dfer_deploy.errors import ServerError
from dfer_deploy.triton.perf_analyzer import parse_report

# Printed by perf_analyzer 2.50 for an ensemble over gRPC.
REPORT = """\
Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,\
Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency
1,2.33003,232,1750,4,208,422715,2192,5,422392,436526,436526,518864
2,2.5,200,1000,400000,200,400000,2000,4,800000,810000,820000,830000
"""


def test_microseconds_become_milliseconds() -> None:
    rows = parse_report(REPORT)
    assert list(rows) == [1, 2]
    row = rows[1]
    assert row.throughput == pytest.approx(2.33003)
    assert (row.p50_ms, row.p95_ms, row.p99_ms) == (422.392, 436.526, 518.864)
    assert row.avg_ms == pytest.approx(427.106)
    assert row.queue_ms == 0.004
    assert (row.compute_input_ms, row.compute_infer_ms, row.compute_output_ms) == (0.208, 422.715, 2.192)
    assert (row.client_send_ms, row.client_recv_ms) == (0.232, 0.005)


def test_the_order_of_the_columns_does_not_matter() -> None:
    lines = [line.split(",") for line in REPORT.splitlines()]
    assert parse_report("\n".join(",".join(reversed(line)) for line in lines)) == parse_report(REPORT)


def test_a_reported_mean_is_preferred() -> None:
    header, first, _ = REPORT.splitlines()
    assert parse_report(f"{header},Avg latency\n{first},500000")[1].avg_ms == 500


def test_client_columns_may_be_missing() -> None:
    lines = [line.split(",") for line in REPORT.splitlines()]
    without = "\n".join(",".join(line[:2] + line[3:8] + line[9:]) for line in lines)
    row = parse_report(without)[1]
    assert (row.client_send_ms, row.client_recv_ms) == (None, None)


def test_no_report_has_no_rows() -> None:
    assert parse_report("") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (REPORT.replace("p95 latency", "p96 latency"), "has no column 'p95 latency'"),
        (REPORT.replace("2.33003", "fast"), "has a damaged row"),
        (REPORT.rpartition(",")[0], "has a damaged row"),
    ],
)
def test_damaged_reports(text: str, said: str) -> None:
    with pytest.raises(ServerError, match=said):
        parse_report(text)
