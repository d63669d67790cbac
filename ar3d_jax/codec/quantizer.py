"""Nearest-code search and the training-time side of vector quantisation.

Inference needs `nearest_codes` only. Training (see `train_codec.py`) keeps the codebook
as an exponential moving average of the latents assigned to each code (van den Oord et
al., 2017, appendix A.1) and moves dead codes onto latents of the current batch.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def nearest_codes(
    latents: Float[Array, "*batch E"], codebook: Float[Array, "C E"]
) -> Int[Array, "*batch"]:
    """Index of the Euclidean nearest code; the first one on ties.

    The argmax of 2 z.e - |e|^2, in float32 at the highest matrix precision: a bfloat16
    product, the default on TPU, would flip codes.
    """
    z, e = latents.astype(jnp.float32), codebook.astype(jnp.float32)
    similarity = 2 * jnp.matmul(z, e.T, precision=jax.lax.Precision.HIGHEST)
    similarity -= jnp.sum(e * e, axis=-1).reshape((1,) * (z.ndim - 1) + (-1,))
    return jnp.argmax(similarity, axis=-1).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Codebook:
    """Codes and the moving averages that they are the ratio of.

    Attributes:
        codes: [C, E].
        counts: [C], latents per step assigned to a code.
        sums: [C, E], their sum per step.
    """

    codes: jax.Array
    counts: jax.Array
    sums: jax.Array

    @classmethod
    def of(cls, codes: Float[Array, "C E"]) -> "Codebook":
        """A codebook that starts at a copy of `codes`, each as if seen once a step."""
        return cls(jnp.array(codes), jnp.ones(codes.shape[0]), jnp.array(codes))


def update_codebook(
    codebook: Codebook, latents: Float[Array, "N E"], key: jax.Array, decay: float
) -> tuple[Codebook, Float[Array, ""]]:
    """The codebook after one step, and the share of codes used in it.

    A code that gets less than a hundredth of an even share on average is dead and
    restarts at a random latent of this step (our choice; Dhariwal et al., 2020, do so).
    """
    total = codebook.codes.shape[0]
    index = nearest_codes(latents, codebook.codes)
    counts = jnp.zeros(total).at[index].add(1.0)
    sums = jnp.zeros_like(codebook.sums).at[index].add(latents)
    average_counts = decay * codebook.counts + (1 - decay) * counts
    average_sums = decay * codebook.sums + (1 - decay) * sums

    share = latents.shape[0] / total
    dead = (average_counts < 0.01 * share)[:, None]
    drawn = latents[jax.random.randint(key, (total,), 0, latents.shape[0])]
    average_sums = jnp.where(dead, drawn * share, average_sums)
    average_counts = jnp.where(dead[:, 0], share, average_counts)
    codes = average_sums / average_counts[:, None]
    return Codebook(codes, average_counts, average_sums), jnp.mean(counts > 0)


def kmeans(
    latents: Float[Array, "N E"], count: int, key: jax.Array, iterations: int = 15
) -> Float[Array, "C E"]:
    """`count` centres of `latents` by Lloyd's algorithm, started at random latents."""
    order = jax.random.permutation(key, latents.shape[0])
    codebook = Codebook.of(latents[order[:count]])
    step = jax.jit(update_codebook, static_argnames="decay")
    for i in range(iterations):
        codebook, _ = step(codebook, latents, jax.random.fold_in(key, i), decay=0.0)
    return codebook.codes
