"""MoCo v2 against a plain, separate implementation: loss, gradients, queue, key encoder, over several steps."""

import copy

import pytest
import torch
import torch.nn.functional as F

from eosin.core.errors import EosinError
from eosin.encoders import build_encoder
from eosin.methods import METHODS, MoCo, MoCoConfig

GRAY = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def build(architecture="test_resnet", *, seed=0, **fields):
    config = MoCoConfig(**{"queue_size": 24, "dim": 16, "norm_group": 4, **fields})
    return MoCo(config, lambda: build_encoder(architecture, size=32, **GRAY), seed=seed).double()


def batches(count, size=8):
    generator = torch.Generator().manual_seed(5)
    return [
        [torch.randn(size, 3, 32, 32, generator=generator, dtype=torch.float64) for _ in range(2)] for _ in range(count)
    ]


class PlainMoCo:
    """The published algorithm, one query and one negative at a time, with BN groups of four tiles."""

    def __init__(self, method):
        self.f_q = copy.deepcopy(method.query)
        self.f_k = copy.deepcopy(method.query)
        self.memory = [column.clone() for column in method.queue.T]
        self.m, self.t = method.config.momentum, method.config.temperature

    def network(self, f, images):
        parts = [f["head"](f["backbone"](images[i : i + 4])) for i in range(0, len(images), 4)]
        vectors = torch.cat(parts)
        return torch.stack([v / v.square().sum().sqrt() for v in vectors])

    def step(self, first, second, order, lr):
        q = self.network(self.f_q, first)
        with torch.no_grad():
            for slow, fast in zip(self.f_k.parameters(), self.f_q.parameters(), strict=True):
                slow.copy_(self.m * slow + (1 - self.m) * fast)
            shuffled = self.network(self.f_k, second[order])
            k = [None] * len(order)
            for place, source in enumerate(order):
                k[source] = shuffled[place]
        losses = []
        for query, key in zip(q, k, strict=True):
            positive = torch.exp(query @ key / self.t)
            negatives = sum(torch.exp(query @ old / self.t) for old in self.memory)
            losses.append(-torch.log(positive / (positive + negatives)))
        loss = sum(losses) / len(losses)
        for parameter in self.f_q.parameters():
            parameter.grad = None
        loss.backward()
        gradients = [p.grad.clone() for p in self.f_q.parameters()]
        with torch.no_grad():
            for parameter in self.f_q.parameters():
                parameter -= lr * parameter.grad
        self.memory = self.memory[len(k) :] + k  # oldest out, newest in
        return loss.detach(), gradients


def test_five_steps_equal_the_plain_implementation():
    method = build(momentum=0.9)
    plain = PlainMoCo(method)
    for first, second in batches(5):
        order = method._order(8).tolist()
        output = method([first, second])
        method.zero_grad()
        output.loss.backward()
        gradients = [p.grad.clone() for p in method.query.parameters()]
        with torch.no_grad():
            for parameter in method.query.parameters():
                parameter -= 0.05 * parameter.grad
        method.after_step()

        loss, expected = plain.step(first, second, order, lr=0.05)
        torch.testing.assert_close(output.loss.detach(), loss, rtol=1e-10, atol=0)
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)
        for ours, theirs in zip(method.key.parameters(), plain.f_k.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
        # The queue is a ring: rotated to its pointer it is the plain list, oldest first.
        torch.testing.assert_close(
            torch.roll(method.queue, -method.pointer, dims=1).T, torch.stack(plain.memory), rtol=1e-10, atol=1e-12
        )


def test_contrast_equals_the_formula_in_double():
    method = build()
    generator = torch.Generator().manual_seed(0)
    q, k = (F.normalize(torch.randn(6, 16, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    q.requires_grad_()
    loss, _ = method.contrast(q, k)
    (gradient,) = torch.autograd.grad(loss, q)

    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ method.queue], 1) / 0.2
    expected = (torch.logsumexp(logits, 1) - logits[:, 0]).mean()
    (expected_gradient,) = torch.autograd.grad(expected, q)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-14)


def test_contrast_equals_lightly():
    loss_module = pytest.importorskip("lightly.loss", reason="lightly is not installed: pip install eosin[bench]")
    method = build(queue_size=32).float()
    peer = loss_module.NTXentLoss(temperature=0.2, memory_bank_size=(32, 16))
    generator = torch.Generator().manual_seed(1)
    q, k = (F.normalize(torch.randn(8, 16, generator=generator), dim=1) for _ in range(2))
    peer(q, k)  # fills its bank at the first call
    peer.memory_bank.bank = method.queue.T.clone()
    torch.testing.assert_close(method.contrast(q, k)[0], peer(q, k), rtol=1e-6, atol=1e-6)


def test_head_has_no_batch_norm_and_the_key_starts_as_a_copy_without_gradients():
    method = build()
    names = [type(module).__name__ for module in method.query["head"]]
    assert names == ["Linear", "ReLU", "Linear"]
    for q, k in zip(method.query.parameters(), method.key.parameters(), strict=True):
        torch.testing.assert_close(q, k, rtol=0, atol=0)
        assert q.requires_grad
        assert not k.requires_grad
    torch.testing.assert_close(method.queue.norm(dim=0), torch.ones(24, dtype=torch.float64))
    trained = {id(p) for p in method.parameters() if p.requires_grad}
    assert trained == {id(p) for p in method.query.parameters()}


def test_the_query_encoder_is_evaluated():
    method = build()
    assert method.encoder is method.query["backbone"]


def test_authors_defaults():
    config = MoCoConfig()
    assert (config.queue_size, config.momentum, config.temperature, config.dim) == (65536, 0.999, 0.2, 128)
    assert METHODS["mocov2"] is MoCo


def test_batch_norm_sees_one_group_at_a_time():
    """A tile's projection depends on the tiles of its group and on no others."""
    method = build(norm_group=4).train()
    images = batches(1)[0][0].requires_grad_()
    out = method._in_groups(method.query["backbone"], images)
    out[0].sum().backward()
    touched = images.grad.flatten(1).abs().sum(1) > 0
    assert touched.tolist() == [True] * 4 + [False] * 4


def test_keys_are_shuffled_and_come_back_in_order():
    """In eval mode batch norm does not couple tiles, so shuffling must leave the keys as they are."""
    method = build().eval()
    view = batches(1)[0][1]
    keys = method._encode_keys(view)
    torch.testing.assert_close(
        keys, F.normalize(method.key["head"](method.key["backbone"](view)), dim=1).to(keys.dtype)
    )
    first = method._order(64)
    method.steps += 1
    assert not torch.equal(first, method._order(64))


def test_loss_is_one_sided():
    """Only the first view reaches the query: swapping the views changes the loss."""
    (first, second) = batches(1)[0]
    assert build()([first, second]).loss != build()([second, first]).loss


def test_accumulation_follows_the_query_once_and_enqueues_all():
    method = build(momentum=0.5)
    start = [p.clone() for p in method.key.parameters()]
    with torch.no_grad():
        for parameter in method.query.parameters():
            parameter += 1.0
    (first, second) = batches(1)[0]
    for half in (slice(0, 4), slice(4, 8)):
        method([first[half], second[half]]).loss.backward()
    for before, q, k in zip(start, method.query.parameters(), method.key.parameters(), strict=True):
        torch.testing.assert_close(k, 0.5 * before + 0.5 * q)
    untouched = method.queue.clone()
    method.after_step()
    assert method.pointer == 8
    assert (method.queue != untouched).any(dim=0).tolist() == [True] * 8 + [False] * 16


def test_state_carries_queue_pointer_and_shuffling():
    method, other = build(), build(seed=1)
    for views in batches(2):
        method(views).loss.backward()
        method.after_step()
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    assert (other.pointer, other.steps) == (16, 2)
    torch.testing.assert_close(other.queue, method.queue, rtol=0, atol=0)


def test_vision_transformers_need_no_shuffling():
    method = build("test_vit", norm_group=2)
    (first, second) = batches(1)[0]
    output = method([first, second])
    output.loss.backward()
    assert not method._has_batch_norm
    assert output.features.shape == (8, method.encoder.width)


def test_a_queue_that_does_not_fit_the_batch_is_refused():
    with pytest.raises(
        EosinError, match=r"queue_size 24 is not a multiple of the batch of 9; use --method.queue_size 18"
    ):
        build().prepare(9, 100)
    with pytest.raises(EosinError, match=r"use --method.queue_size 32"):
        build().prepare(32, 100)
    build().prepare(12, 100)


@pytest.mark.parametrize(("group", "warned"), [(4, False), (8, True)])
def test_one_batch_norm_group_for_the_whole_batch_is_warned_of(capsys, group, warned):
    method = build(norm_group=group)
    for views in batches(2):
        method(views)
        method.after_step()
    assert capsys.readouterr().err.count("batch norm sees all 8 tiles") == warned
