import threading
import time
from collections.abc import Iterator

import pytest

from dfer_deploy.clips.prefetch import prefetched


class Counter:
    """An iterator that knows how far it came and whether it was closed."""

    def __init__(self, error: Exception | None = None) -> None:
        self.made, self.closed, self.error = 0, False, error

    def __iter__(self) -> Iterator[int]:
        try:
            while self.made < 100:
                self.made += 1
                yield self.made
                if self.error and self.made == 5:
                    raise self.error
        finally:
            self.closed = True


def test_everything_comes_in_order() -> None:
    with prefetched(iter(Counter()), 3) as items:
        assert list(items) == list(range(1, 101))


def test_it_works_ahead_by_a_bounded_number_and_no_more() -> None:
    counter = Counter()
    with prefetched(iter(counter), 3) as items:
        assert next(items) == 1
        while counter.made < 5:  # one taken, three that wait, one in the hand of the thread
            time.sleep(0.001)
        time.sleep(0.05)
        assert counter.made == 5


def test_an_error_comes_after_the_items_before_it_and_only_then() -> None:
    with prefetched(iter(Counter(ValueError("five"))), 2) as items:
        assert [next(items) for _ in range(5)] == [1, 2, 3, 4, 5]
        with pytest.raises(ValueError, match="five"):
            next(items)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_leaving_ends_the_threads_and_closes_what_they_read(error: type[BaseException]) -> None:
    before = threading.active_count()
    counter = Counter()

    def doubled(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            yield 2 * item

    with pytest.raises(error), prefetched(iter(counter), 1) as first, prefetched(doubled(first), 1) as second:
        assert next(second) == 2
        raise error
    assert counter.closed
    assert counter.made < 10
    assert threading.active_count() == before
