"""The policy: a Qwen2.5 text decoder as a pytree of parameters.

Tokens and positions in, logits out. Whole sequences (`__call__`, `hidden`) serve
training; `extend` appends tokens to a cache and serves rollouts. Attention itself is
in `attention.py`, the cache in `cache.py`, log-probabilities of sequences in
`sequence.py`, Hugging Face's names for these parameters in `hf.py`, thin trained
weights beside frozen ones in `lora.py`.

How this differs from the published code, none of it visible in the result:

1. The query, key and value projections are one parameter, grouped by key/value head
   (P = its Q query heads, its key, its value), and so are gate and up: one large
   product instead of three, which the head axis still splits over "tp".
2. Blocks are stacked on a leading axis. Training scans over them; decoding scans or, on
   CPU, unrolls them (a scan would copy the stacked weights for every token).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ar3d_jax import sharding
from ar3d_jax.config import PolicyConfig
from ar3d_jax.policy import attention
from ar3d_jax.policy.cache import Cache, LayerCache
from ar3d_jax.policy.lora import project
from ar3d_jax.policy.rope import Rotation, rotate, rotation
from ar3d_jax.sharding import ones, param, zeros


def rms_norm(
    x: Float[Array, "B T D"], weight: Float[Array, " D"], eps: float
) -> Float[Array, "B T D"]:
    """Returns x / sqrt(mean(x^2) + eps) * weight; statistics in float32."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype) * weight[None, None]


class Block(nnx.Module):
    """One layer: attention and SwiGLU, each after an RMSNorm and added to its input."""

    def __init__(self, cfg: PolicyConfig, key: jax.Array):
        D, K, H, F = cfg.width, cfg.kv_heads, cfg.head_size, cfg.mlp_width
        Q = cfg.heads // K
        dtype = cfg.dtype
        self.cfg = cfg
        self.attention_norm = ones((D,), sharding.NORM_D, dtype=dtype)
        self.qkv = param(key, "qkv", (D, K, Q + 2, H), sharding.QKV_DKPH, dtype=dtype)
        self.qkv_bias = zeros((K, Q + 2, H), sharding.QKVBIAS_KPH, dtype=dtype)
        self.out = param(key, "out", (K * Q * H, D), sharding.OUT_ID, dtype=dtype)
        self.mlp_norm = ones((D,), sharding.NORM_D, dtype=dtype)
        self.gate_up = param(
            key, "gate_up", (D, 2, F), sharding.GATEUP_DEF, dtype=dtype
        )
        self.down = param(key, "down", (F, D), sharding.DOWN_FD, dtype=dtype)

    def project(
        self, x: Float[Array, "B T D"], turn: Rotation
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, T, K, Q, H] and keys, both rotated, and values [B, T, K, H]."""
        x = rms_norm(x, self.attention_norm[...], self.cfg.rms_eps)
        qkv = project(x, self.qkv, sharding.ACT_BTKPH)
        qkv = qkv + self.qkv_bias[...][None, None]
        qk = rotate(qkv[..., :-1, :], turn)
        return qk[..., :-1, :], qk[..., -1, :], qkv[..., -1, :]

    def finish(
        self, x: Float[Array, "B T D"], attended: Float[Array, "B T K Q H"]
    ) -> Float[Array, "B T D"]:
        """The block's output from its input and what attention returned."""
        # One contracted axis: over three, XLA would transpose the weights every time.
        joined = (*attended.shape[:2], self.out.shape[0])
        attended = attended.reshape(joined, out_sharding=sharding.ACT_BTI)
        x = x + project(attended, self.out, sharding.ACT_BTD)
        y = rms_norm(x, self.mlp_norm[...], self.cfg.rms_eps)
        y = project(y, self.gate_up, sharding.ACT_BTEF)
        y = jax.nn.silu(y[:, :, 0]) * y[:, :, 1]
        return x + project(y, self.down, sharding.ACT_BTD)


Layers = Block | tuple[Block, ...]  # stacked, or one by one


class Decoder(nnx.Module):
    """Embedding, blocks, final norm and head.

    Attributes:
        embed: [V, D].
        blocks: one `Block` whose parameters have a leading layer axis.
        norm: [D], before the head.
        head: [D, V]; None where the embedding serves as head (`policy.tied`).
    """

    def __init__(self, cfg: PolicyConfig, key: jax.Array):
        D, V = cfg.width, cfg.vocab_size
        self.cfg = cfg
        self.embed = param(
            key, "embed", (V, D), sharding.EMBED_VD, dtype=cfg.dtype, scale=0.02
        )
        keys = jax.random.split(sharding.fold_in_name(key, "blocks"), cfg.layers)
        self.blocks = jax.vmap(lambda key: Block(cfg, key))(keys)
        self.norm = ones((D,), sharding.NORM_D, dtype=cfg.dtype)
        self.head = (
            None
            if cfg.tied
            else param(key, "head", (D, V), sharding.HEAD_DV, dtype=cfg.dtype)
        )

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        valid: Bool[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits, float32, of the token after each one.

        Args:
            tokens: ids.
            positions: of each token among its row's valid ones, from 0.
            valid: False for padding, which is not attended to; by default none is.
        """
        hidden = self.hidden(tokens, positions, valid)
        head = self.head_weights()
        return sharding.project(hidden, head, sharding.LOGITS_BTV, jnp.float32)

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        valid: Bool[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """What the head is applied to; arguments as in `__call__`."""
        real = jnp.ones_like(tokens, bool) if valid is None else valid
        tokens, positions, real = (
            jax.sharding.reshard(x, sharding.TOKENS_BT)
            for x in (tokens, positions, real)
        )
        turn = self._rotation(positions)

        def layer(x: jax.Array, block: Block) -> tuple[jax.Array, None]:
            attended = attention.causal_attention(
                *block.project(x, turn), real, self.cfg.attention
            )
            return block.finish(x, attended), None

        if self.cfg.remat != "off":
            # Attention's result is small and dear.
            kept = (attention.SAVED,) if self.cfg.remat == "attention" else ()
            policy = jax.checkpoint_policies.save_only_these_names(*kept)
            layer = jax.checkpoint(layer, policy=policy)
        x, _ = jax.lax.scan(layer, self._embedded(tokens), self.blocks)
        return rms_norm(x, self.norm[...], self.cfg.rms_eps)

    def layers(self) -> Layers:
        """The blocks as `extend` takes them, as `policy.scan_decode` says."""
        if self.cfg.scan_decode:
            return self.blocks
        layers = range(self.cfg.layers)
        return tuple(jax.tree.map(lambda x, i=i: x[i], self.blocks) for i in layers)

    def extend(
        self,
        layers: Any,
        cache: Cache,
        slot: Int[Array, ""] | int,
        tokens: Int[Array, "B T"],
        valid: Bool[Array, "B T"],
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Hidden states of `tokens` after the cache's, and the cache with them.

        `tokens` go to the slots from `slot` on. Their positions count the valid tokens
        before them. `layers` is `self.layers()`: a loop makes it once, outside.
        """
        tokens, valid = (
            jax.sharding.reshard(x, sharding.TOKENS_BT) for x in (tokens, valid)
        )
        positions = cache.lengths[:, None] + jnp.cumsum(valid, axis=1) - 1
        held = jax.lax.dynamic_update_slice_in_dim(cache.valid, valid, slot, axis=1)
        query = slot + jnp.arange(tokens.shape[1])[:, None]
        causal = jnp.arange(cache.slots)[None] <= query
        mask = held[:, None] & causal[None]
        turn = self._rotation(positions)

        def layer(
            x: jax.Array, block_and_cache: tuple[Block, LayerCache]
        ) -> tuple[jax.Array, LayerCache]:
            block, kept = block_and_cache
            q, k, v = block.project(x, turn)
            kept = kept.write(k, v, jnp.asarray(slot))
            attended = attention.cached_attention(q, kept.keys, kept.values, mask)
            return block.finish(x, attended), kept

        x, kept_layers = self._embedded(tokens), cache.layers
        if isinstance(kept_layers, LayerCache):
            x, kept = jax.lax.scan(layer, x, (layers, kept_layers))
        else:
            kept = []
            for block_and_cache in zip(layers, kept_layers, strict=True):
                x, layer_cache = layer(x, block_and_cache)
                kept.append(layer_cache)
            kept = tuple(kept)
        return rms_norm(x, self.norm[...], self.cfg.rms_eps), Cache(
            kept, held, cache.lengths + valid.sum(axis=1, dtype=jnp.int32)
        )

    def head_weights(self) -> Float[Array, "D V"]:
        """The matrix from hidden states to logits."""
        return self.embed[...].T if self.head is None else self.head[...]

    def _embedded(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return self.embed[...].at[tokens].get(out_sharding=sharding.ACT_BTD)

    def _rotation(self, positions: Int[Array, "B T"]) -> Rotation:
        return rotation(
            positions, head_size=self.cfg.head_size, theta=self.cfg.rope_theta
        )
