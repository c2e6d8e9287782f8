"""The network: published sizes and counts, what each trunk gives, and what a frozen one leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eosin.core.errors import EosinError
from eosin.encoders import build_encoder, load_encoder
from eosin.nuclei.config import NetworkConfig
from eosin.nuclei.hovernet import HoverNet
from eosin.nuclei.model import build_network, window_maps
from eosin.nuclei.pyramid import PyramidTrunk
from eosin.nuclei.trunks import PreactResNet50, ResNetTrunk

WIDTH = 0.125


def small(encoder, geometry="fast", classes=2, **fields):
    config = NetworkConfig(encoder=encoder, geometry=geometry, width=WIDTH, **fields)
    return build_network(config, load_encoder(encoder), classes)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


class TestThePublishedNetwork:
    @pytest.mark.parametrize(
        ("geometry", "window", "output", "millions"), [("original", 270, 80, 54.74), ("fast", 256, 164, 37.64)]
    )
    def test_sizes_and_parameters(self, geometry, window, output, millions):
        with torch.device("meta"):
            network = HoverNet(PreactResNet50(geometry), geometry, classes=4).eval()
        assert (network.window, network.output) == (window, output)
        assert round(count(network) / 1e6, 2) == millions
        assert round((count(network.trunk) + count(network.bottom)) / 1e6, 1) == 25.6
        maps = network(torch.empty(2, 3, window, window, dtype=torch.uint8, device="meta"))
        assert {name: tuple(value.shape) for name, value in maps.items()} == {
            "tp": (2, 5, output, output),
            "np": (2, 2, output, output),
            "hv": (2, 2, output, output),
        }
        assert all(isinstance(lateral, nn.Identity) for lateral in network.laterals)

    def test_without_types_there_are_two_branches(self):
        with torch.device("meta"):
            network = HoverNet(PreactResNet50("fast"), "fast", classes=0)
        assert list(network.decoders) == ["np", "hv"]

    def test_weights_are_drawn_for_the_outputs_of_each_layer(self):
        torch.manual_seed(0)
        network = HoverNet(PreactResNet50("fast"), "fast", classes=0, width=0.5)
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
                fan = module.out_channels * module.kernel_size[0] ** 2
                assert module.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05), name

    def test_only_the_middle_matters(self):
        """The decoders see no border: a pixel put out is the same wherever in the window it lies."""
        torch.manual_seed(0)
        trunk = PreactResNet50("fast")
        trunk.forward = lambda images: [F.avg_pool2d(images, level).repeat(1, n, 1, 1) for level, n in LEVELS]
        LEVELS = [(1, 8), (2, 8), (4, 8), (8, 8)]
        trunk.channels = (24, 24, 24, 24)
        network = HoverNet(trunk, "fast", classes=0, width=WIDTH, window=136).eval()
        image = torch.randint(0, 255, (1, 3, 144, 144), dtype=torch.uint8)
        with torch.no_grad():
            first, second = (network(image[..., s : s + 136, s : s + 136].contiguous())["hv"] for s in (0, 8))
        # u1 is padded, as published: two pixels at the border know of it.
        assert torch.allclose(first[..., 10:-2, 10:-2], second[..., 2:-10, 2:-10], atol=1e-5)

    @pytest.mark.parametrize(("geometry", "window"), [("fast", 136), ("original", 222)])
    def test_a_pixel_is_answered_alike_by_every_window(self, geometry, window):
        """What is kept of windows that lie side by side has no seams."""
        torch.manual_seed(0)
        trunk = PreactResNet50(geometry)
        edge = 3 if geometry == "original" else 0
        trunk.forward = lambda images: [
            F.avg_pool2d(images[..., edge : window - edge, edge : window - edge], level).repeat(1, 8, 1, 1)
            for level in (1, 2, 4, 8)
        ]
        trunk.channels = (24, 24, 24, 24)
        network = HoverNet(trunk, geometry, classes=2, width=WIDTH, window=window)
        assert network.kept % 8 == 0
        image = torch.randint(0, 255, (1, 3, window + 8, window + 16), dtype=torch.uint8)
        one, other = (
            window_maps(network, image[..., y : y + window, x : x + window].contiguous(), "fp32")
            for y, x in ((0, 0), (8, 16))
        )
        assert one.np_prob.shape[1:] == (network.kept, network.kept)
        for name in ("np_prob", "hv", "tp_prob"):
            np.testing.assert_allclose(
                getattr(one, name)[..., 8:, 16:], getattr(other, name)[..., :-8, :-16], atol=1e-5
            )
        assert one.hv.std() > 1e-3

    @pytest.mark.parametrize(
        ("geometry", "window", "kept"),
        [("original", 270, 72), ("fast", 256, 160), ("original", 198, 4), ("fast", 104, 8)],
    )
    def test_what_is_kept_of_an_output(self, geometry, window, kept):
        trunk = PreactResNet50(geometry)
        assert HoverNet(trunk, geometry, classes=0, width=WIDTH, window=window).kept == kept


class TestTrunks:
    @pytest.mark.parametrize(
        ("architecture", "options", "kind", "geometry", "window"),
        [
            ("test_vit", {}, PyramidTrunk, "original", 198),
            ("test_vit", {"patch_size": 14}, PyramidTrunk, "fast", 104),
            ("test_convnext", {}, PyramidTrunk, "fast", 104),
            ("test_resnet", {}, ResNetTrunk, "original", 198),
        ],
    )
    def test_any_encoder_fits(self, architecture, options, kind, geometry, window):
        half = (0.5, 0.5, 0.5)
        encoder = build_encoder(architecture, size=112, mean=half, std=half, options=options)
        network = build_network(NetworkConfig(geometry=geometry, width=WIDTH, window=window), encoder, 2)
        assert isinstance(network.trunk, kind)
        levels = network.trunk(network.trunk.normalize(torch.zeros(1, 3, window, window, dtype=torch.uint8)))
        covered = window - (6 if geometry == "original" else 0)
        assert [level.shape[-1] for level in levels] == [covered, covered // 2, covered // 4, covered // 8]
        maps = network(torch.zeros(2, 3, window, window, dtype=torch.uint8))
        assert maps["tp"].shape == (2, 3, network.output, network.output)

    def test_the_weights_of_a_resnet_are_the_encoders_own(self):
        encoder = load_encoder("random:test_resnet")
        before = {name: value.clone() for name, value in encoder.backbone.state_dict().items()}
        network = build_network(NetworkConfig(width=WIDTH), encoder, 0)
        after = network.trunk.encoder.backbone.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_a_resnet_under_a_pyramid_stays_as_it_is(self):
        encoder = load_encoder("random:test_resnet").eval()
        images = torch.rand(1, 3, 128, 128)
        with torch.no_grad():
            alone = encoder.spatial(images)
        network = build_network(NetworkConfig(width=WIDTH, window=128, trunk="pyramid"), encoder, 0).eval()
        assert isinstance(network.trunk, PyramidTrunk)
        with torch.no_grad():
            inside = network.trunk.encoder.spatial(images)
            levels = network.trunk(images)
        assert all(torch.equal(one, other) for one, other in zip(alone, inside, strict=True))
        assert [level.shape[-1] for level in levels] == [128, 64, 32, 16]
        # What the encoder sees reaches every level.
        network.trunk.image = None
        with torch.no_grad():
            plain, changed = network.trunk(images), network.trunk(images.flip(2))
        assert all(not torch.allclose(one, other) for one, other in zip(plain, changed, strict=True))

    def test_a_stem_at_stride_1_holds_what_it_gave_at_stride_2(self):
        images = torch.rand(1, 3, 40, 40)
        encoders = [load_encoder("random:test_resnet") for _ in range(3)]
        with torch.no_grad():
            coarse = encoders[0].backbone.conv1[0](images)
            fine = ResNetTrunk(encoders[1], "fast").encoder.backbone.conv1[0](images)
            trunk = ResNetTrunk(encoders[2], "original")
            valid = trunk.encoder.backbone.conv1[0](images)
        assert torch.allclose(fine[..., ::2, ::2], coarse, atol=1e-5)
        assert torch.allclose(fine[..., 1:-1, 1:-1], valid, atol=1e-5)
        assert trunk(images)[0].shape[-1] == 34

    def test_maps_of_a_pyramid_lie_where_the_image_does(self):
        """A bright square moves the maps at its own place most, in both geometries."""
        for geometry, window, edge in (("fast", 112, 0), ("original", 198, 3)):
            network = small("random:test_vit", geometry, window=window).eval()
            dark = torch.zeros(1, 3, window, window, dtype=torch.uint8)
            bright = dark.clone()
            bright[..., edge + 64 : edge + 80, edge + 32 : edge + 48] = 255
            with torch.no_grad():
                levels = [network.trunk(network.trunk.normalize(image)) for image in (dark, bright)]
            for stride, one, other in zip((1, 2, 4, 8), *levels, strict=True):
                change = (one - other).abs().sum(dim=(0, 1))
                inside = change[64 // stride : 80 // stride, 32 // stride : 48 // stride]
                assert inside.mean() > 3 * change.mean()

    def test_the_papers_own_network_has_no_pyramid(self):
        with pytest.raises(EosinError, match="trunk pyramid: preact_resnet50 has maps of its own"):
            build_network(NetworkConfig(encoder="preact_resnet50", trunk="pyramid"), None, 0)

    def test_an_encoder_without_weights_is_refused(self):
        with pytest.raises(EosinError, match="color:stats"):
            small("color:stats")

    def test_an_encoder_of_one_size_says_which_to_ask_for(self):
        with pytest.raises(EosinError, match=r"\?size="):
            small("random:levit_128", window=104)

    def test_windows_of_another_size_are_refused(self):
        network = small("random:test_resnet", window=104)
        with pytest.raises(EosinError, match="104"):
            network(torch.zeros(1, 3, 96, 96, dtype=torch.uint8))

    def test_the_draw_of_the_weights_follows_the_seed_alone(self):
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = small("random:test_resnet", window=104)
        assert torch.equal(state, torch.get_rng_state())
        torch.manual_seed(2)
        second = small("random:test_resnet", window=104)
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


class TestFreezing:
    def learn(self, network):
        network.train()
        images = torch.randint(0, 255, (2, 3, network.window, network.window), dtype=torch.uint8)
        sum(value.square().mean() for value in network(images).values()).backward()

    @pytest.mark.parametrize("spec", ["random:test_resnet", "random:test_vit"])
    def test_frozen_in_full_is_left_as_it_is(self, spec):
        network = small(spec, window=104)
        network.trunk.set_freeze("full")
        before = {name: value.clone() for name, value in network.trunk.encoder.state_dict().items()}
        self.learn(network)
        assert all(torch.equal(before[name], value) for name, value in network.trunk.encoder.state_dict().items())
        for name, parameter in network.named_parameters():
            frozen = name.startswith("trunk.encoder.")
            assert (parameter.grad is None) == frozen, name

    def test_frozen_as_the_reference_lets_statistics_move(self):
        network = small("random:test_resnet", window=104)
        network.trunk.set_freeze("reference")
        before = network.trunk.encoder.backbone.bn1.running_mean.clone()
        self.learn(network)
        assert not torch.equal(before, network.trunk.encoder.backbone.bn1.running_mean)
        assert all(parameter.grad is None for parameter in network.trunk.encoder.parameters())

    def test_the_reference_trains_the_stem_and_the_ends_of_the_first_stage(self):
        torch.manual_seed(0)
        trunk = PreactResNet50("fast")
        trunk.set_freeze("reference")
        trunk.train()
        maps = trunk(torch.rand(1, 3, 16, 16))
        assert [level.requires_grad for level in maps] == [True, False, False, False]
        maps[0].square().mean().backward()
        learned = {name for name, parameter in trunk.named_parameters() if parameter.grad is not None}
        assert learned == {
            *("stem.0.weight", "stem.1.weight", "stem.1.bias"),
            *("stages.0.shortcut.weight", "stages.0.last.0.weight", "stages.0.last.0.bias"),
        }
        before = trunk.stages[3].last[0].running_mean.clone()
        trunk(torch.rand(1, 3, 16, 16))
        assert not torch.equal(before, trunk.stages[3].last[0].running_mean)

    def test_thawed_everything_that_is_used_learns(self):
        network = small("random:test_resnet", window=104)
        network.trunk.set_freeze("full")
        network.trunk.set_freeze(None)
        self.learn(network)
        assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("geometry", "window", "near"), [("fast", 250, 248), ("original", 256, 254), ("fast", 8, 104)])
def test_a_window_that_does_not_fit_names_one_that_does(geometry, window, near):
    with pytest.raises(EosinError, match=f"use {near}"):
        NetworkConfig.parse({"geometry": geometry, "window": window}, "network")
