"""From picks to batches: gathering rows, and a thread that does so ahead of the device."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from unimix_jax.batch import Batch, Picks


def gather(images, labels, picks: Picks) -> Batch:
    """Collect the rows that `picks` names; numpy in the host's memory and traced arrays alike.

    Args:
      images: uint8[N, H, W, C].
      labels: int32[N].
      picks: positions below N.
    """
    batch = Batch(images[picks.index], labels[picks.index], picks.view)
    if picks.partner is None:
        return batch
    return batch._replace(
        partner_image=images[picks.partner], partner_label=labels[picks.partner], partner_view=picks.partner_view
    )


def prefetch(make: Callable, items: Iterable, depth: int = 2) -> Iterator:
    """Yield make(item) for each item in order, made by one thread up to `depth` items ahead.

    An exception in `make` comes out at its item's turn. Closing the iterator ends the thread.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        ahead = collections.deque()
        try:
            for item in items:
                ahead.append(pool.submit(make, item))
                if len(ahead) > depth:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
