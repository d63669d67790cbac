"""The cache is a value: writes, growth and repetition leave the original alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ar3d_jax.policy.cache import Cache
from tests.policy.small_policy import CFG


@pytest.fixture(params=[False, True], ids=["unrolled", "scan"])
def cache(request) -> Cache:
    cfg = dataclasses.replace(CFG, scan_decode=request.param)
    return Cache.empty(cfg, rows=2, slots=3)


def layers(cache: Cache) -> list:
    """One LayerCache per layer, however they are kept."""
    if isinstance(cache.layers, tuple):
        return list(cache.layers)
    stacked = cache.layers
    return [
        dataclasses.replace(stacked, keys=stacked.keys[i], values=stacked.values[i])
        for i in range(CFG.layers)
    ]


def test_an_empty_cache_has_room_and_holds_nothing(cache):
    assert (cache.rows, cache.slots) == (2, 3)
    assert not np.asarray(cache.valid).any()
    assert np.asarray(cache.lengths).tolist() == [0, 0]
    for layer in layers(cache):
        assert layer.keys.shape == (2, CFG.kv_heads, CFG.head_size, 3)
        assert layer.values.shape == (2, CFG.kv_heads, 3, CFG.head_size)


def test_a_write_goes_to_its_slots_alone(cache):
    layer = layers(cache)[0]
    rng = np.random.default_rng(0)
    keys, values = rng.normal(size=(2, 2, 2, CFG.kv_heads, CFG.head_size))
    layout = P(("data", "fsdp"), None, "tp", None)
    keys, values = (
        jax.device_put(x.astype(np.float32), layout) for x in (keys, values)
    )
    written = layer.write(keys, values, jnp.int32(1))
    np.testing.assert_array_equal(
        written.keys[..., 1:], jnp.transpose(keys, (0, 2, 3, 1))
    )
    np.testing.assert_array_equal(
        written.values[:, :, 1:], jnp.transpose(values, (0, 2, 1, 3))
    )
    assert not np.asarray(written.keys[..., 0]).any()
    assert not np.asarray(layer.keys).any()


def test_growth_adds_free_slots_at_the_end(cache):
    held = dataclasses.replace(cache, valid=~cache.valid)
    grown = held.grown(5)
    assert grown.slots == 5
    assert np.asarray(grown.valid).tolist() == [[True] * 3 + [False] * 2] * 2
    assert layers(grown)[1].keys.shape[-1] == 5
    assert layers(grown)[1].values.shape[-2] == 5


def test_repetition_puts_copies_side_by_side(cache):
    held = dataclasses.replace(cache, lengths=jnp.array([4, 7], jnp.int32))
    repeated = held.repeated(2)
    assert np.asarray(repeated.lengths).tolist() == [4, 4, 7, 7]
    assert repeated.rows == 4
    assert layers(repeated)[0].keys.shape[0] == 4
