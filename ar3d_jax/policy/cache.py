"""What decoding remembers: keys, values and which slots hold a token.

A cache is a value: writing returns a new one, and inside a jitted loop XLA writes in
place. Slots are the indices of the padded sequence layout (`sequence.py`), the same for
all rows, so that a write is one slice; slots of padding are there and not valid. Keys
are stored transposed, [B, K, H, S]: on CPU the scores of one query are then a product
over contiguous memory (measured 2x faster). Who reads it is `attention.py`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ar3d_jax.config import PolicyConfig
from ar3d_jax.sharding import KEYS_BKHS, ROWS_B, TOKENS_BT, VALUES_BKSH

Change = Callable[[jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """One layer's keys and values; with a leading L where layers are stacked."""

    keys: jax.Array  # B K H S
    values: jax.Array  # B K S H

    def write(
        self, keys: jax.Array, values: jax.Array, slot: jax.Array
    ) -> "LayerCache":
        """With [B, T, K, H] keys and values in the slots from `slot` on."""
        keys = jnp.transpose(keys, (0, 2, 3, 1))
        values = jnp.transpose(values, (0, 2, 1, 3))
        update = jax.lax.dynamic_update_slice_in_dim
        return dataclasses.replace(
            self,
            keys=update(self.keys, keys, slot, axis=3),
            values=update(self.values, values, slot, axis=2),
        )


Layers = tuple[LayerCache, ...] | LayerCache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """All layers' keys and values.

    Attributes:
        layers: a tuple, one per layer (unrolled decoding), or one `LayerCache` whose
            arrays have a leading layer axis (`policy.scan_decode`).
        valid: which slots hold a token.
        lengths: tokens held per row: the position of the next one.
    """

    layers: Layers
    valid: jax.Array  # B S
    lengths: jax.Array  # B

    @classmethod
    def empty(cls, cfg: PolicyConfig, *, rows: int, slots: int) -> "Cache":
        """A cache of `slots` free slots for each of `rows`."""

        def layer(*stack: int) -> LayerCache:
            shapes = (cfg.head_size, slots), (slots, cfg.head_size)
            specs = KEYS_BKHS, VALUES_BKSH
            return LayerCache(
                *(
                    jnp.zeros(
                        (*stack, rows, cfg.kv_heads, *shape),
                        cfg.dtype,
                        out_sharding=P(*(None for _ in stack), *spec),
                    )
                    for shape, spec in zip(shapes, specs, strict=True)
                )
            )

        if cfg.scan_decode:
            layers = layer(cfg.layers)
        else:
            layers = tuple(layer() for _ in range(cfg.layers))
        return cls(
            layers,
            valid=jnp.zeros((rows, slots), bool, out_sharding=TOKENS_BT),
            lengths=jnp.zeros(rows, jnp.int32, out_sharding=ROWS_B),
        )

    @property
    def slots(self) -> int:
        """Slots per row, free or not."""
        return self.valid.shape[1]

    @property
    def rows(self) -> int:
        """Rows."""
        return self.valid.shape[0]

    def grown(self, slots: int) -> "Cache":
        """With free slots added at the end, `slots` in all."""
        more = slots - self.slots

        def pad(x: jax.Array, axis: int) -> jax.Array:
            return jnp.pad(x, [(0, more * (i == axis % x.ndim)) for i in range(x.ndim)])

        layers = self._map(lambda keys: pad(keys, -1), lambda values: pad(values, -2))
        return dataclasses.replace(self, layers=layers, valid=pad(self.valid, 1))

    def repeated(self, times: int) -> "Cache":
        """Every row `times` times, the copies side by side: prompts to groups."""

        def repeat(x: jax.Array, axis: int) -> jax.Array:
            spec = jax.typeof(x).sharding.spec
            return jnp.repeat(x, times, axis=axis, out_sharding=spec)

        return Cache(
            self._map(*(lambda x: repeat(x, x.ndim - 4),) * 2),
            valid=repeat(self.valid, 0),
            lengths=repeat(self.lengths, 0),
        )

    def _map(self, on_keys: Change, on_values: Change) -> Layers:
        return jax.tree.map(
            lambda layer: LayerCache(on_keys(layer.keys), on_values(layer.values)),
            self.layers,
            is_leaf=lambda node: isinstance(node, LayerCache),
        )
