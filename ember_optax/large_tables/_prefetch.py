"""The rows of the next batch, gathered in a thread while a step runs."""

import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from ._fetched import FetchedRows
from ._gather import Gathered, gather, refresh
from ._layouts.batch_ids import BatchIds

if TYPE_CHECKING:
    from ._host_table import HostTable

Batch = TypeVar("Batch")


def prefetched(
    table: "HostTable", batches: Iterable[Batch], ids_of: Callable[[Batch], Any]
) -> Iterator[tuple[Batch, FetchedRows]]:
    """Each batch with its rows, as `HostTable.prefetch` describes.

    The thread reads batches and copies records. What processes tell each other is told in the main thread, before the step of the
    batch before, so that all of them communicate in the same order.
    """
    remaining, layout, num_rows = iter(batches), table._layout, table.shape[0]

    def read_next() -> tuple[Batch, Any] | None:
        for batch in remaining:
            return batch, layout.requests(ids_of(batch), num_rows)
        return None

    def gather_next(ids: BatchIds, newest: int) -> Gathered:
        with table._lock:  # `write` changes no record while it is copied
            return gather(table._open_records(), ids, layout, newest)

    thread = concurrent.futures.ThreadPoolExecutor(1)
    try:
        reading = thread.submit(read_next)
        ready: tuple[Batch, Gathered] | None = None
        while True:
            found, failed = _finished(reading)
            steps, newest = table.count + table.total_notfinite, table.count + 1  # the thread may see the step that runs
            ids = layout.agreed(None if found is None else found[1], steps, num_rows)
            gathering = None if ids is None else thread.submit(gather_next, ids, newest)
            reading = thread.submit(read_next)
            if ready is not None:
                yield ready[0], table._on_device(ready[1])
                if table.count + table.total_notfinite != steps + 1:
                    raise ValueError("the step of the last batch was not written: call write once for each batch of prefetch.")
            if failed is not None:
                raise failed
            if found is None or gathering is None:
                return
            following = gathering.result()
            refresh(following, table._open_records(), table._written, layout, table.count)
            ready = found[0], following
    finally:  # an iterator that waits for ever does not keep the loop from ending
        thread.shutdown(wait=False, cancel_futures=True)


def _finished(reading: concurrent.futures.Future) -> tuple[Any, Exception | None]:
    """The next batch, or what its iterator raised, which is told after the step of the batch before."""
    try:
        return reading.result(), None
    except Exception as error:
        return None, error
