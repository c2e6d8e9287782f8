"""Times by part, operations counted, and the chip's peak."""

import time

import pytest
import torch
import torch.nn.functional as F

from eosin.training.throughput import Stopwatch, count_flops, measure_peak

CPU = torch.device("cpu")


def test_a_product_is_counted_forward_and_backward():
    """2 n m k each for the product and for the gradients of its two factors."""
    left = torch.randn(8, 16, requires_grad=True)
    right = torch.randn(16, 32, requires_grad=True)
    assert count_flops(lambda: (left @ right).sum()) == 3 * 2 * 8 * 16 * 32


def test_a_convolution_is_counted():
    images, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3, requires_grad=True)
    once = 2 * 2 * 4 * 8 * 8 * 3 * 9  # images, outputs, height, width, inputs, taps
    assert count_flops(lambda: F.conv2d(images, weight, padding=1).sum()) == 2 * once


def test_parts_are_added_up_and_begin_anew():
    clock = Stopwatch(CPU)
    for _ in range(2):
        clock.start()
        time.sleep(0.002)
        clock.lap("first")
        clock.lap("second")
    seconds = clock.seconds()
    assert list(seconds) == ["first", "second"]
    assert seconds["first"] >= 0.004
    assert clock.seconds() == {}


def test_what_lies_between_steps_counts_for_none():
    clock = Stopwatch(CPU)
    clock.start()
    clock.lap("step")
    before = clock.seconds()["step"]
    time.sleep(0.01)
    clock.start()
    clock.lap("step")
    assert clock.seconds()["step"] < 0.01 + before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_chip_does_more_than_a_million_operations_a_second(dtype):
    assert measure_peak(CPU, dtype) > 1e6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpus_time_is_read_from_its_stream():
    device = torch.device("cuda")
    clock = Stopwatch(device)
    clock.start()
    torch.randn(1024, 1024, device=device) @ torch.randn(1024, 1024, device=device)
    clock.lap("product")
    assert clock.seconds()["product"] > 0
