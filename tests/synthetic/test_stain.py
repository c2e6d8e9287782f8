import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosin.synthetic import TISSUES, beer_lambert, render_tile, slide_stain
from eosin.synthetic.frame import Frame
from eosin.synthetic.tiles import draw_tissue


def test_light_follows_the_law():
    stain = slide_stain(0, 4)
    rng = np.random.default_rng(0)
    h, e = rng.random((2, 5, 7)).astype(np.float32) * 2
    light = beer_lambert(h, e, stain)
    assert light.shape == (3, 5, 7)
    for channel in range(3):
        for row in range(5):
            for column in range(7):
                density = h[row, column] * stain.hematoxylin * stain.vectors[0][channel]
                density += e[row, column] * stain.eosin * stain.vectors[1][channel]
                assert light[channel, row, column] == pytest.approx(
                    stain.white[channel] * 10 ** (-density / np.log(10)), rel=1e-4
                )


@pytest.mark.parametrize("tissue", TISSUES)
def test_density_lies_in_the_plane_of_the_two_stains(tissue):
    stain = slide_stain(7, 1)
    drawn = draw_tissue(Frame(96, 0.5, 12345), tissue)
    light = beer_lambert(drawn.hematoxylin, drawn.eosin, stain)
    density = -np.log(light / np.array(stain.white, np.float32)[:, None, None]).reshape(3, -1)
    normal = np.cross(stain.vectors[0], stain.vectors[1])
    assert np.abs(normal / np.linalg.norm(normal) @ density).max() < 1e-4
    assert drawn.hematoxylin.min() >= 0
    assert drawn.eosin.min() >= 0


@pytest.mark.parametrize("slide", range(4))
def test_a_scanned_tile_still_shows_the_plane(slide):
    stain = slide_stain(0, slide)
    image = render_tile("tumor", slide=slide).image.astype(float).reshape(3, 32, 4, 32, 4).mean((2, 4))
    density = -np.log(image / np.array(stain.white)[:, None, None]).reshape(3, -1)
    normal = np.cross(stain.vectors[0], stain.vectors[1])
    out_of_plane = normal / np.linalg.norm(normal) @ density
    assert np.sqrt(np.mean(out_of_plane**2)) < 0.03 < np.sqrt(np.mean(density**2))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), slide=st.integers(0, 2**63 - 1))
def test_every_slide_is_plausible(seed, slide):
    stain = slide_stain(seed, slide)
    assert stain == slide_stain(seed, slide)
    vectors = np.array(stain.vectors)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert (vectors > 0).all()
    # Hematoxylin takes the red light, eosin the green, and eosin lets more red through than hematoxylin does.
    assert vectors[0, 0] > vectors[0, 2]
    assert vectors[1].argmax() == 1
    assert vectors[0, 0] > vectors[1, 0] + 0.05
    assert all(190 <= level <= 255 for level in stain.white)


def test_slides_differ_in_hue_strength_and_white():
    stains = [slide_stain(0, slide) for slide in range(60)]
    strengths = np.array([(s.hematoxylin, s.eosin) for s in stains])
    assert (strengths.max(0) / strengths.min(0) > 2).all()
    assert np.array([s.vectors for s in stains]).std(0).max() > 0.04
    assert np.array([s.white for s in stains]).std(0).min() > 5
