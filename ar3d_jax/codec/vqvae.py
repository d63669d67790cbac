"""The shape codec: a 3D VQ-VAE between voxel surfaces and shape tokens.

The architecture is the published one (ShapeLLM-Omni's VQVAE3D) at any size: residual
blocks of 3^3 convolutions with a LayerNorm over channels at every voxel, 2x changes of
resolution by a strided convolution and by a pixel shuffle. Attribute names follow the
published state dict, so that `torch_weights.py` maps names without a table.

Arrays are channels-last, [B, x, y, z, c], z up. Shape token t covers the four latent
cells (x, y, 4k..4k+3) with t = (x * n + y) * n / 4 + k for a latent grid of side n.
The search for the nearest code is in `quantizer.py`, training in `train_codec.py`,
voxels in `voxels.py`, the way back to meshes in `surface.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ar3d_jax.codec.quantizer import nearest_codes
from ar3d_jax.config import CodecConfig
from ar3d_jax.sharding import fold_in_name

Grid = Float[Array, "B x y z c"]
NewGrid = Float[Array, "B u v w o"]  # another resolution or width than the input's


class Conv(nnx.Module):
    """3^3 convolution, stride 1, zero padding."""

    def __init__(self, key: jax.Array, c_in: int, c_out: int, *, zero: bool = False):
        """Weights [3, 3, 3, c_in, c_out]: normal of fan_in**-0.5, or zeros."""
        scale = 0.0 if zero else (27 * c_in) ** -0.5
        self.weight = nnx.Param(scale * jax.random.normal(key, (3, 3, 3, c_in, c_out)))
        self.bias = nnx.Param(jnp.zeros(c_out))

    def __call__(self, x: Grid) -> NewGrid:
        """The convolved grid.

        On CPU as 2D convolutions: XLA runs those, and above all their gradients,
        several times faster there than one 3D convolution.
        """
        weight = self.weight.get_value()
        if jax.default_backend() != "cpu":
            y = jax.lax.conv_general_dilated(
                x,
                weight,
                (1, 1, 1),
                "SAME",
                dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
            )
        elif 1 in weight.shape[3:]:
            y = _conv_as_banded_2d(x, weight)
        else:
            y = _conv_as_three_2d(x, weight)
        return y + _per_channel(self.bias)


def _per_channel(parameter: nnx.Param) -> Array:
    """[c] as [1, 1, 1, 1, c]: shapes are never made to agree silently."""
    return parameter.get_value()[None, None, None, None]


def _conv_2d(x: Array, weight: Array) -> Array:
    return jax.lax.conv_general_dilated(
        x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _conv_as_three_2d(x: Grid, weight: Array) -> NewGrid:
    """The 3D convolution as the sum of one 2D convolution per offset in x."""
    b, n, height, depth, c = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    planes = (padded[:, i : i + n].reshape(b * n, height, depth, c) for i in range(3))
    summed = functools.reduce(jnp.add, map(_conv_2d, planes, weight))
    return summed.reshape(b, n, height, depth, -1)


def _conv_as_banded_2d(x: Grid, weight: Array) -> NewGrid:
    """The 3D convolution as one 2D convolution whose channels are (z, c).

    The kernel is zero but for a band around z_in = z_out: wasted arithmetic, but
    for a single input or output channel 2-3 times faster than thin convolutions.
    """
    b, n, height, depth, c = x.shape
    band = jnp.stack([jnp.eye(depth, k=1 - k, dtype=x.dtype) for k in range(3)])
    kernel = jnp.einsum("kzw,ijkco->ijzcwo", band, weight)
    kernel = kernel.reshape(3, 3, depth * c, -1)
    y = _conv_2d(x.reshape(b, n, height, depth * c), kernel)
    return y.reshape(b, n, height, depth, -1)


class Norm(nnx.Module):
    """LayerNorm over channels at every voxel, in float32, eps 1e-5 as published."""

    def __init__(self, c: int):
        """Weight ones [c], bias zeros [c]."""
        self.weight = nnx.Param(jnp.ones(c))
        self.bias = nnx.Param(jnp.zeros(c))

    def __call__(self, x: Grid) -> Grid:
        """The normalised grid."""
        y = jax.nn.standardize(x.astype(jnp.float32), axis=-1, epsilon=1e-5)
        y = y * _per_channel(self.weight) + _per_channel(self.bias)
        return y.astype(x.dtype)


class ResBlock(nnx.Module):
    """x + conv2(silu(norm2(conv1(silu(norm1(x)))))); conv2 starts at zero."""

    def __init__(self, key: jax.Array, c: int):
        """Two norms and two convolutions of width c."""
        k1, k2 = jax.random.split(key)
        self.norm1, self.norm2 = Norm(c), Norm(c)
        self.conv1, self.conv2 = Conv(k1, c, c), Conv(k2, c, c, zero=True)

    def __call__(self, x: Grid) -> Grid:
        """The grid plus its residual."""
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        return x + self.conv2(jax.nn.silu(self.norm2(h)))


class _DownConv(nnx.Module):
    def __init__(self, key: jax.Array, c_in: int, c_out: int):
        scale = (8 * c_in) ** -0.5
        self.weight = nnx.Param(scale * jax.random.normal(key, (2, 2, 2, c_in, c_out)))
        self.bias = nnx.Param(jnp.zeros(c_out))


class Down(nnx.Module):
    """Half the resolution: convolution of kernel 2 and stride 2."""

    def __init__(self, key: jax.Array, c_in: int, c_out: int):
        """Weights [2, 2, 2, c_in, c_out]."""
        self.conv = _DownConv(key, c_in, c_out)

    def __call__(self, x: Grid) -> NewGrid:
        """The coarser grid, as one matrix product over 2^3 cells."""
        b, n, _, _, c = x.shape
        cells = x.reshape(b, n // 2, 2, n // 2, 2, n // 2, 2, c)
        cells = cells.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, 8 * c)
        y = cells @ self.conv.weight.get_value().reshape(8 * c, -1)
        y = y.reshape(b, n // 2, n // 2, n // 2, -1)
        return y + _per_channel(self.conv.bias)


class Up(nnx.Module):
    """Twice the resolution: convolution to 8 c_out channels, then 3D pixel shuffle."""

    def __init__(self, key: jax.Array, c_in: int, c_out: int):
        """One convolution c_in -> 8 c_out."""
        self.conv = Conv(key, c_in, 8 * c_out)

    def __call__(self, x: Grid) -> NewGrid:
        """The finer grid; channel o*8 + i*4 + j*2 + k goes to (2x+i, 2y+j, 2z+k)."""
        y = self.conv(x)
        b, n, _, _, c = y.shape
        y = y.reshape(b, n, n, n, c // 8, 2, 2, 2).transpose(0, 1, 5, 2, 6, 3, 7, 4)
        return y.reshape(b, 2 * n, 2 * n, 2 * n, c // 8)


class Encoder(nnx.Module):
    """Voxels -> latent grid."""

    def __init__(self, key: jax.Array, config: CodecConfig):
        """Blocks from fine to coarse."""
        named = functools.partial(fold_in_name, key)
        widths = config.channels
        self.input_layer = Conv(named("input"), 1, widths[0])
        blocks: list[nnx.Module] = []
        for level, (c, count) in enumerate(zip(widths, config.blocks, strict=True)):
            blocks += [ResBlock(named(f"{level}.{i}"), c) for i in range(count)]
            if level + 1 < len(widths):
                blocks.append(Down(named(f"{level}.down"), c, widths[level + 1]))
        self.blocks = nnx.List(blocks)
        self.middle_block = nnx.List(
            ResBlock(named(f"middle.{i}"), widths[-1])
            for i in range(config.middle_blocks)
        )
        self.out_norm = Norm(widths[-1])
        # Half of the channels are the published model's unused log-variance.
        self.out_conv = Conv(named("out"), widths[-1], 2 * config.latent_channels)

    def __call__(self, voxels: Bool[Array | np.ndarray, "B R R R"]) -> NewGrid:
        """Latents [B, n, n, n, latent_channels]."""
        x = self.input_layer(jnp.asarray(voxels, jnp.float32)[..., None])
        for block in (*self.blocks, *self.middle_block):
            x = block(x)
        latents = self.out_conv(jax.nn.silu(self.out_norm(x)))
        return latents[..., : latents.shape[-1] // 2]


class Decoder(nnx.Module):
    """Latent grid -> occupancy logits."""

    def __init__(self, key: jax.Array, config: CodecConfig):
        """Blocks from coarse to fine."""
        named = functools.partial(fold_in_name, key)
        widths = config.channels[::-1]
        counts = config.blocks[::-1]
        self.input_layer = Conv(named("input"), config.latent_channels, widths[0])
        self.middle_block = nnx.List(
            ResBlock(named(f"middle.{i}"), widths[0])
            for i in range(config.middle_blocks)
        )
        blocks: list[nnx.Module] = []
        for level, (c, count) in enumerate(zip(widths, counts, strict=True)):
            blocks += [ResBlock(named(f"{level}.{i}"), c) for i in range(count)]
            if level + 1 < len(widths):
                blocks.append(Up(named(f"{level}.up"), c, widths[level + 1]))
        self.blocks = nnx.List(blocks)
        self.out_norm = Norm(widths[-1])
        self.out_conv = Conv(named("out"), widths[-1], 1)

    def __call__(self, latents: Grid) -> Float[Array, "B R R R"]:
        """Logits; a voxel is occupied where its logit is above 0."""
        x = self.input_layer(latents)
        for block in (*self.middle_block, *self.blocks):
            x = block(x)
        return self.out_conv(jax.nn.silu(self.out_norm(x)))[..., 0]


class Codec(nnx.Module):
    """The VQ-VAE: `encode` voxels to shape tokens, `decode` them to logits."""

    def __init__(self, config: CodecConfig, key: jax.Array):
        """Random weights; the codebook uniform in +-1/codes as published."""
        self.config = config
        self.encoder = Encoder(fold_in_name(key, "encoder"), config)
        self.decoder = Decoder(fold_in_name(key, "decoder"), config)
        shape = (config.codes, config.code_size)
        bound = 1 / config.codes
        codebook_key = fold_in_name(key, "codebook")
        self.codebook = nnx.Param(
            jax.random.uniform(codebook_key, shape, minval=-bound, maxval=bound)
        )

    def latents(
        self, voxels: Bool[Array | np.ndarray, "B R R R"]
    ) -> Float[Array, "B M E"]:
        """The encoder's output cut into code-sized strips of 4 cells along z."""
        grid = self.encoder(voxels)
        return grid.reshape(grid.shape[0], self.config.tokens, self.config.code_size)

    def decode_latents(self, latents: Float[Array, "B M E"]) -> Float[Array, "B R R R"]:
        """Logits of strips that need not be codes."""
        n = self.config.latent_resolution
        return self.decoder(latents.reshape(latents.shape[0], n, n, n, -1))

    def encode(self, voxels: Bool[Array | np.ndarray, "B R R R"]) -> Int[Array, "B M"]:
        """Shape tokens as codebook indices in [0, codes)."""
        return nearest_codes(self.latents(voxels), self.codebook.get_value())

    def decode(self, tokens: Int[Array | np.ndarray, "B M"]) -> Float[Array, "B R R R"]:
        """Occupancy logits; the surface is their zero level."""
        return self.decode_latents(self.codebook.get_value()[tokens])
