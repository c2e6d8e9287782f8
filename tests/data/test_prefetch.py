"""Batches taken ahead in a thread: the same batches, in order, with what fails and what is left undone told."""

import threading

import numpy as np
import pytest
import torch

from eosin.data import Batch, pinned
from eosin.data.prefetch import ahead


def batches(count, seen=None):
    for step in range(count):
        if seen is not None:
            seen.append(step)
        yield Batch(torch.full((1, 3, 2, 2), step, dtype=torch.uint8), np.arange(1), step, np.arange(1))


def test_the_same_batches_in_order():
    assert [batch.step for batch in ahead(batches(20))] == list(range(20))
    assert [int(batch.images[0, 0, 0, 0]) for batch in ahead(batches(20))] == list(range(20))


def test_only_a_few_are_taken_ahead():
    seen = []
    taken = ahead(batches(50, seen))
    next(taken)
    for _ in range(100):
        threading.Event().wait(0.002)
    assert len(seen) <= 5
    taken.close()


def test_a_failure_is_raised_where_the_batches_are_used():
    def broken():
        yield from batches(3)
        raise OSError("the disk is gone")

    taken = ahead(broken())
    assert [next(taken).step for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(taken)


def test_a_consumer_that_stops_leaves_no_thread_behind():
    before = threading.active_count()
    taken = ahead(batches(50))
    next(taken)
    taken.close()
    assert threading.active_count() == before


def test_a_cpu_gets_the_batches_as_they_are():
    given = list(batches(3))
    assert all(one is other for one, other in zip(pinned(given, torch.device("cpu")), given, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gets_page_locked_images():
    for batch in pinned(batches(3), torch.device("cuda")):
        assert batch.images.is_pinned()
