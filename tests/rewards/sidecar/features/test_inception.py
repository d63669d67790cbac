"""The FID Inception against pytorch-fid's own code.

The golden numbers are `InceptionV3().eval()` of pytorch-fid 0.3.0 (its inception.py, on
torchvision 0.29.1, torch 2.13 on a CPU), its weights replaced by those
of `published.inception`, on `VIEWS / 255`: every 128th of the 2048 numbers per picture,
their sum and the sum of their squares.
"""

import numpy as np
import pytest
import torch

from ar3d_jax.errors import UserError
from ar3d_jax.rewards.feature_sets import FEATURE_SETS
from ar3d_jax.rewards.sidecar.features import inception
from ar3d_jax.rewards.sidecar.features.pictures import Pictures
from tests.rewards.sidecar.features import published

VIEWS = np.kron(
    np.random.default_rng(7).integers(0, 256, (2, 7, 7, 3), np.uint8),
    np.ones((1, 8, 8, 1), np.uint8),
)
GOLDEN = [
    [
        0.0594477,
        2.6181116,
        0.0022947,
        0.0,
        0.0104324,
        0.0279116,
        2.8368874,
        0.0,
        0.2010949,
        1.663783,
        0.1148491,
        0.2806697,
        0.0,
        0.6884263,
        0.0287703,
        0.0914733,
    ],
    [
        0.0796831,
        2.6852584,
        0.0,
        0.0089766,
        0.0106705,
        0.033013,
        2.8847787,
        0.0,
        0.2428285,
        1.706581,
        0.1308451,
        0.284143,
        0.0,
        0.6713775,
        0.0348426,
        0.0424575,
    ],
]
SUMS = [1430.1852089604945, 1459.8003298872209]
SQUARES = [2748.433513974935, 2862.5355239499936]


def load(path):
    field = "features.weights.inception"
    return inception.load(path, FEATURE_SETS["inception"], field, "cpu")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    published.inception(path)
    return path


def test_features_are_pytorch_fids(file):
    found = load(file).embed_views(Pictures(VIEWS))
    assert found.shape == (2, 2048)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, ::128], GOLDEN, rtol=0, atol=1e-5)
    numbers = found.astype(np.float64)
    np.testing.assert_allclose(numbers.sum(1), SUMS, rtol=1e-6)
    np.testing.assert_allclose((numbers**2).sum(1), SQUARES, rtol=1e-6)


def test_what_is_wrong_with_a_file_is_one_line(file, tmp_path):
    state = torch.load(file, weights_only=True)
    path = tmp_path / "other.pth"
    name = "Mixed_7c.branch_pool.conv.weight"
    for changes, message in (
        (
            {name: torch.zeros(192, 2048, 1, 3)},
            rf"has {name} of shape \(192, 2048, 1, 3",
        ),
        ({name: state[name] * 0}, f"has a tensor {name} that is all zeros"),
        (
            {name: state[name] / 0},
            f"has a tensor {name} with numbers that are not finite",
        ),
        (
            {"Mixed_7c.branch_pool.bn.bias": None},
            r"lacks Mixed_7c\.branch_pool\.bn\.bi",
        ),
    ):
        changed = state | changes
        torch.save({n: t for n, t in changed.items() if t is not None}, path)
        with pytest.raises(UserError, match=message) as caught:
            load(path)
        assert "\n" not in str(caught.value)
    content = file.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be read") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert "pt_inception-2015-12-05-6726825d.pth" in str(caught.value)
    with pytest.raises(UserError, match="is no file"):
        load(tmp_path)
