"""The choice of serving options on constructed measurements."""

import dataclasses
from collections.abc import Callable, Sequence

import pytest

from dfer_deploy.bundles.bundle import ServingOptions, Target
from dfer_deploy.errors import ServerError
from dfer_deploy.measurement.proposal import (
    Proposal,
    choose,
    graph_batches,
    operating_point,
    propose,
    usual_batch,
    wins,
)
from dfer_deploy.measurement.trials import Candidate, Load
from dfer_deploy.triton.perf_analyzer import LoadResult

LEAST = ServingOptions(max_batch_size=16)


def load_of(
    throughput: Sequence[float], *, p99_ms: float = 10.0, concurrency: int = 4, batches: dict[int, int] | None = None
) -> Load:
    times = dict.fromkeys([f.name for f in dataclasses.fields(LoadResult)], 1.0) | {"p99_ms": p99_ms}
    rounds = tuple(LoadResult(**times | {"concurrency": concurrency, "throughput": value}) for value in throughput)
    counts = batches or {1: 90, 2: 10}
    return Load(concurrency, rounds, {"encoder": counts, "head": counts})


def candidate(*loads: Load, **options: int) -> Candidate:
    return Candidate(dataclasses.replace(LEAST, **options), loads)


@pytest.mark.parametrize(
    ("challenger", "incumbent", "decided"),
    [
        ([110, 111, 112], [100, 100, 100], True),
        ([110, 100, 120], [100, 100, 100], False),  # once not faster
        ([102, 120, 103], [100, 100, 100], False),  # always faster, by less than the rounds differ
        ([90, 90, 90], [100, 100, 100], False),
        ([100, 100, 100], [100, 100, 100], False),
        ([110, 55, 22], [100, 50, 20], True),  # the machine slowed down for both
    ],
)
def test_a_gain_counts_if_it_is_larger_than_the_range_of_the_ratios(
    challenger: list[float], incumbent: list[float], decided: bool
) -> None:
    assert (wins(load_of(challenger), load_of(incumbent)) is not None) == decided


def test_a_more_complicated_candidate_has_to_win() -> None:
    plain = candidate(load_of([100, 100, 100]))
    noisy = candidate(load_of([90, 130, 140]), instances=2)
    faster = candidate(load_of([120, 121, 122]), instances=4)
    assert choose([plain, noisy], None)[0] == 0
    assert choose([plain, noisy, faster], None)[0] == 2
    best, reason = choose([plain, faster], None)
    assert best == 1
    assert "1.21 (1.2–1.22)" in reason
    little_more = candidate(load_of([121, 121, 123]), instances=8)
    assert choose([plain, faster, little_more], None)[0] == 1


def test_the_budget_excludes_loads_and_candidates() -> None:
    quick, slow = load_of([50, 50, 50], p99_ms=5, concurrency=1), load_of([80, 80, 80], p99_ms=20)
    both = candidate(quick, slow)
    assert operating_point(both, None) == slow
    assert operating_point(both, 10) == quick
    assert operating_point(both, 5) == quick
    assert operating_point(both, 4) is None
    batching = candidate(load_of([90, 90, 90], p99_ms=30), queue_delay_us=500)
    assert choose([both, batching], None)[0] == 1
    assert choose([both, batching], 10)[0] == 0
    assert choose([batching, candidate(quick, instances=2)], 10)[0] == 1, "slower, but it keeps the budget"
    index, reason = choose([batching, both], 1)
    assert (index, "the lowest is 5 ms" in reason) == (1, True)


def test_what_could_not_be_served_is_left_out_but_never_what_the_others_are_held_against() -> None:
    failed = Candidate(dataclasses.replace(LEAST, instances=2), (), "out of memory")
    assert choose([candidate(load_of([1, 1, 1])), failed], None)[0] == 0
    for others in ([], [candidate(load_of([1, 1, 1]))]):
        with pytest.raises(ServerError, match=r"simplest configuration could not be measured \(out of memory\)"):
            choose([failed, *others], None)


def test_graphs_are_for_the_batches_that_occur_often() -> None:
    alone = load_of([1], concurrency=1, batches={1: 100_000})
    many = load_of([1], concurrency=8, batches={1: 1, 4: 20, 8: 79})
    # Shares: 1: 0.505, 8: 0.395, 4: 0.1, though the lone requests were a thousand times more.
    assert graph_batches([alone, many]) == (1, 4, 8)
    assert graph_batches([load_of([1], batches={1: 1, 4: 20, 8: 79})]) == (4, 8)
    assert graph_batches([alone]) == (1,)
    assert graph_batches([load_of([1], batches=dict.fromkeys(range(1, 41), 5))]) == tuple(range(1, 9))


def test_the_usual_batch_is_that_of_the_median_clip() -> None:
    assert usual_batch(load_of([1], batches={1: 50, 2: 10, 8: 5})) == 2  # 50, 20 and 40 clips
    assert usual_batch(load_of([1], batches={1: 10, 8: 5})) == 8
    assert usual_batch(load_of([1], batches={3: 1})) == 3


class Machine:
    """Gives every configuration the throughput that a formula says, with a little noise, and keeps what was asked."""

    def __init__(
        self, speed: Callable[[ServingOptions], float], batches: dict[int, int], concurrencies: Sequence[int]
    ) -> None:
        self.speed, self.batches, self.concurrencies = speed, batches, concurrencies
        self.asked: list[tuple[str, list[ServingOptions]]] = []

    def __call__(self, what: str, options: Sequence[ServingOptions]) -> list[Candidate]:
        self.asked.append((what, list(options)))
        return [
            Candidate(
                serving,
                tuple(
                    load_of(
                        [self.speed(serving) * noise for noise in (0.99, 1.0, 1.01)],
                        concurrency=concurrency,
                        batches=self.batches,
                    )
                    for concurrency in self.concurrencies
                ),
            )
            for serving in options
        ]


def proposal_on(
    machine: Machine, target: Target, current: ServingOptions = LEAST, *, most_instances: int = 8
) -> tuple[Proposal, list[str]]:
    result = propose(current, target, machine.concurrencies, machine, most_instances=most_instances)
    return result, [what for what, _ in machine.asked]


def test_instances_double_while_it_wins() -> None:
    machine = Machine(lambda serving: min(serving.instances, 4), {1: 1}, [1])
    result, stages = proposal_on(machine, "embedded")
    assert result.serving == dataclasses.replace(LEAST, instances=4)
    assert stages == ["instances"] * 3, "8 is tried and lost; a single request in flight makes no batch"
    assert [[s.instances for s in options] for _, options in machine.asked] == [[1, 2], [2, 4], [4, 8]]
    capped = Machine(lambda serving: serving.instances, {1: 1}, [1])
    assert proposal_on(capped, "embedded", most_instances=3)[0].serving.instances == 3
    single = Machine(lambda serving: serving.instances, {1: 1}, [1])
    assert proposal_on(single, "embedded", most_instances=1)[0].serving.instances == 1


def test_the_present_configuration_takes_part() -> None:
    current = dataclasses.replace(LEAST, instances=3, queue_delay_us=700)
    machine = Machine(lambda serving: 2 if serving == current else 1, {1: 1}, [1])
    assert proposal_on(machine, "embedded", current)[0].serving == current
    machine = Machine(lambda serving: 1, {1: 1}, [1])
    assert proposal_on(machine, "embedded", current)[0].serving == LEAST


def test_delays_and_smaller_batches_are_tried_under_load() -> None:
    machine = Machine(lambda s: (1.5 if s.queue_delay_us == 500 else 1) / s.max_batch_size, {1: 5, 4: 20}, [1, 4])
    result, stages = proposal_on(machine, "onnxruntime")
    assert stages == ["instances", "queue delay", "largest batch"]
    assert [s.queue_delay_us for s in machine.asked[1][1]] == [0, 100, 500, 2000]
    assert [s.max_batch_size for s in machine.asked[2][1]] == [16, 1, 2]
    assert result.serving == dataclasses.replace(LEAST, queue_delay_us=500, max_batch_size=1)
    assert result.opt_batch == 4


def test_the_largest_batch_grows_where_it_was_the_limit() -> None:
    machine = Machine(lambda serving: serving.max_batch_size, {16: 20}, [1, 64])
    result, _ = proposal_on(machine, "onnxruntime")
    assert [s.max_batch_size for s in machine.asked[2][1]] == [16, 4, 8, 32]
    assert result.serving.max_batch_size == 32


def test_engines_keep_their_largest_batch_and_graphs_have_to_win() -> None:
    occurring = {1: 10, 8: 80, 16: 10}
    machine = Machine(lambda serving: len(serving.cuda_graph_batches), occurring, [1, 32])
    result, stages = proposal_on(machine, "tensorrt")
    assert stages == ["instances", "queue delay", "CUDA graphs"]
    assert result.serving == dataclasses.replace(LEAST, cuda_graph_batches=(1, 8, 16))
    useless = Machine(lambda serving: 1, occurring, [1, 32])
    assert proposal_on(useless, "tensorrt")[0].serving == LEAST


def test_nothing_within_the_budget_is_said() -> None:
    machine = Machine(lambda serving: 1, {1: 1}, [1])
    result = propose(LEAST, "embedded", [1], machine, most_instances=2, p99_ms=9)
    assert not result.within_budget
    assert propose(LEAST, "embedded", [1], machine, most_instances=2, p99_ms=10).within_budget
