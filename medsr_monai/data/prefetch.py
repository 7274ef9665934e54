"""Batches made in a thread while the network computes."""

from __future__ import annotations

from collections.abc import Iterator

from monai.data import DataLoader, ThreadBuffer, ThreadDataLoader

__all__ = ["PrefetchLoader"]


class PrefetchLoader(ThreadDataLoader):
    """MONAI's ``ThreadDataLoader``, whose thread's errors reach whoever iterates.

    MONAI's thread dies of an error and the epoch just ends, some batches earlier. ``repeats`` is left out: every batch
    comes once. As with every loader, a pass is in the order of its sampler at the time when iteration begins.

    Args:
        dataset, buffer_size, buffer_timeout, use_thread_workers, kwargs: see ``ThreadDataLoader``.
    """

    def __iter__(self) -> Iterator:
        batches = ThreadBuffer(_caught(DataLoader.__iter__(self)), self.buffer_size, self.buffer_timeout)
        for batch in batches:
            if isinstance(batch, _Failure):
                raise batch.error
            yield batch


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def _caught(batches: Iterator) -> Iterator:
    """Batches, and in the place of an error the error."""
    try:
        yield from batches
    except Exception as error:
        yield _Failure(error)
