"""The published 3D VQ-VAE in torch, to compare with; module names are the file's.

Written from the description of the architecture, channels first, in torch's own
convolutions: nothing here is shared with the package. Used by `test_parity.py` and by
`benchmarks/codec_speed.py`.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of every voxel, in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float().movedim(1, -1)).movedim(-1, 1).to(x.dtype)


def conv(c_in: int, c_out: int) -> nn.Conv3d:
    return nn.Conv3d(c_in, c_out, kernel_size=3, padding=1)


class ResBlock(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(c), ChannelNorm(c)
        self.conv1, self.conv2 = conv(c, c), conv(c, c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        return x + self.conv2(functional.silu(self.norm2(h)))


class Down(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = nn.Conv3d(c_in, c_out, kernel_size=2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class Up(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = conv(c_in, 8 * c_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cells = self.conv(x).unflatten(1, (-1, 2, 2, 2))  # B c i j k x y z
        cells = cells.permute(0, 1, 5, 2, 6, 3, 7, 4)  # B c x i y j z k
        return cells.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def levels(widths: Sequence[int], count: int, change: type[nn.Module]) -> nn.ModuleList:
    """Residual blocks at every width, and a change of resolution between widths."""
    blocks: list[nn.Module] = []
    for i, c in enumerate(widths):
        blocks += [ResBlock(c) for _ in range(count)]
        if i + 1 < len(widths):
            blocks.append(change(c, widths[i + 1]))
    return nn.ModuleList(blocks)


def out_layer(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(ChannelNorm(c_in), nn.SiLU(), conv(c_in, c_out))


class Half(nn.Module):
    """What encoder and decoder share; `torso` may be of another type than the ends."""

    def torso(self, x: torch.Tensor, parts: Sequence[nn.ModuleList]) -> torch.Tensor:
        x = x.to(self.blocks[0].conv1.weight.dtype)
        for part in parts:
            for block in part:
                x = block(x)
        return x.float()


class Encoder(Half):
    def __init__(self, channels: Sequence[int], latent: int):
        super().__init__()
        self.input_layer = conv(1, channels[0])
        self.blocks = levels(channels, 2, Down)
        self.middle_block = levels(channels[-1:], 2, Down)
        self.out_layer = out_layer(channels[-1], 2 * latent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.torso(self.input_layer(x), (self.blocks, self.middle_block))
        mean, _ = self.out_layer(x).chunk(2, dim=1)
        return mean


class Decoder(Half):
    def __init__(self, channels: Sequence[int], latent: int):
        super().__init__()
        self.input_layer = conv(latent, channels[0])
        self.middle_block = levels(channels[:1], 2, Up)
        self.blocks = levels(channels, 2, Up)
        self.out_layer = out_layer(channels[-1], 1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.torso(self.input_layer(z), (self.middle_block, self.blocks))
        return self.out_layer(x)


class Quantizer(nn.Module):
    def __init__(self, codes: int, size: int):
        super().__init__()
        self.embeddings = nn.Embedding(codes, size)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Indices of the nearest rows, by the distances themselves."""
        return torch.cdist(z.double(), self.embeddings.weight.double()).argmin(-1)


class VQVAE3D(nn.Module):
    """Voxels [B, R, R, R] <-> tokens [B, M]; published: 64^3, 8,192 codes, 1,024."""

    def __init__(
        self,
        channels: Sequence[int] = (32, 128, 512),
        codes: int = 8192,
        latent: int = 8,
    ):
        super().__init__()
        self.Encoder = Encoder(channels, latent)
        self.Decoder = Decoder(channels[::-1], latent)
        self.vq = Quantizer(codes, 4 * latent)

    def half_torso(self) -> "VQVAE3D":
        """As published: float16 convolutions between float32 ends and norms."""
        for half in (self.Encoder, self.Decoder):
            for part in (half.blocks, half.middle_block):
                for name, module in part.named_modules():
                    if "conv" in name.split(".")[-1]:
                        module.half()
        return self

    def latents(self, voxels: torch.Tensor) -> torch.Tensor:
        """Strips of four cells along z, [B, M, 4 * latent]."""
        z = self.Encoder(voxels.float()[:, None]).permute(0, 2, 3, 4, 1)
        return z.reshape(len(z), -1, self.vq.embeddings.embedding_dim)

    def encode(self, voxels: torch.Tensor) -> torch.Tensor:
        return self.vq(self.latents(voxels))

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        z = self.vq.embeddings(tokens)
        side = round((z.numel() // len(z) // self.latent_channels) ** (1 / 3))
        z = z.reshape(len(z), side, side, side, -1).permute(0, 4, 1, 2, 3)
        return self.Decoder(z)[:, 0]

    @property
    def latent_channels(self) -> int:
        return self.vq.embeddings.embedding_dim // 4
