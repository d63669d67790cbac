"""ReCon++: the point encoder before ShapeLLM's language model. Plain torch.

Sizes and names are those of qizekun/ShapeLLM's ReConV2/models at f754b0d, mask type
`rand`, so that the published `best_lvis.pth` fits. A cloud of coloured points becomes
512 groups: centres far from each other, and the 32 points nearest to each. A small
PointNet makes one token of each group; transformer blocks let them attend to each other
("local") and 16 learned queries to them ("global"). The reconstruction decoder and the
projections to CLIP are published along and not needed.

Clouds and features are of one object, without a batch axis: N points, G groups of S
points, T tokens of D numbers, Q queries.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ar3d_jax.rewards.sidecar.features import files
from ar3d_jax.rewards.sidecar.scorers import torch_files

FIELD = "rewards.shapellm.encoder"
PUBLISHED = "zeroshot/large/best_lvis.pth"  # in the repository qizekun/ReConV2
EXPECTED = f"ReCon++ with colour, {PUBLISHED} of qizekun/ReConV2"
GROUPS, GROUP = 512, 32  # of all published sizes
HEAD = 64  # numbers of an attention head, in the sizes small, base and large
CHANNELS = 6  # x, y, z, red, green, blue
# pointnet2_ops' sampling, with which it was trained, never picks points this near to
# the origin, by squared distance; whether on purpose is not said.
CORE = 1e-3
UNUSED = (
    *("model.decoder.", "model.decoder_pos_embed.", "model.norm."),
    *("img_proj.", "text_proj."),
)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What differs between the published sizes.

    Attributes:
        width: Numbers of a token.
        depth: Local blocks, and as many global ones.
        queries: Global queries, of images and of texts.
    """

    width: int
    depth: int
    queries: int

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> "Sizes":
        """Those that the tensors have; KeyError or ValueError where they have none."""
        _, queries, width = tensors["model.global_query"].shape
        if width % HEAD:
            raise ValueError(f"tokens of {width} numbers, in heads of {HEAD}")
        blocks = {n.split(".")[4] for n in tensors if ".local_blocks." in n}
        return Sizes(width, len(blocks), queries)


LARGE = Sizes(width=1024, depth=24, queries=13 + 3)


def farthest(xyz: Float[Tensor, "N 3"], count: int) -> Int[Tensor, " {count}"]:
    """Indices of `count` points that are far from each other.

    The first point, then again and again the one whose nearest chosen point is the
    farthest away, as pointnet2_ops does it: see CORE. Where all points have been
    chosen, they come again.
    """
    distance = torch.full_like(xyz[:, 0], torch.inf)
    distance[xyz.square().sum(1) <= CORE] = -1
    last = torch.zeros(1, dtype=torch.long, device=xyz.device)
    chosen = [last]
    for _ in range(count - 1):
        new = (xyz - xyz.index_select(0, last)).square().sum(1)
        distance = torch.minimum(distance, new)
        # One index as a vector: a number would wait for the GPU in each of 511 turns.
        last = distance.argmax(0, keepdim=True)
        chosen.append(last)
    return torch.cat(chosen)


def nearest(
    xyz: Float[Tensor, "N 3"], centres: Float[Tensor, "G 3"], count: int
) -> Int[Tensor, "G {count}"]:
    """Of each centre, indices of the `count` points nearest to it, in any order."""
    exact = "donot_use_mm_for_euclid_dist"  # products of rows would cancel digits
    distances = torch.cdist(centres, xyz, compute_mode=exact)
    return distances.topk(count, dim=1, largest=False, sorted=False).indices


def groups(
    cloud: Float[Tensor, "N 6"],
) -> tuple[Float[Tensor, "G S 6"], Float[Tensor, "G 3"]]:
    """The cloud's groups, each around its own centre, and the centres."""
    xyz = cloud[:, :3].float()
    centres = xyz[farthest(xyz, GROUPS)].to(cloud.dtype)
    members = cloud[nearest(xyz, centres.float(), GROUP)]
    return torch.cat(
        [members[..., :3] - centres[:, None], members[..., 3:]], 2
    ), centres


class GroupEmbedding(nn.Module):
    """One token of each group: a PointNet that sees the group's maximum half-way."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_conv = _points_mlp(CHANNELS, 128, 256)
        self.second_conv = _points_mlp(512, 512, width)

    def forward(self, members: Float[Tensor, "G S 6"]) -> Float[Tensor, "G D"]:
        """The tokens."""
        each = self.first_conv(members.transpose(1, 2))
        of_all = each.amax(2, keepdim=True).expand_as(each)
        return self.second_conv(torch.cat([of_all, each], dim=1)).amax(2)


def _points_mlp(before: int, hidden: int, after: int) -> nn.Sequential:
    """Two layers over each point alone."""
    return nn.Sequential(
        nn.Conv1d(before, hidden, 1),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Conv1d(hidden, after, 1),
    )


def _split(x: Float[Tensor, "T D"]) -> Float[Tensor, "heads T H"]:
    return x.unflatten(1, (-1, HEAD)).transpose(0, 1)


def _attend(
    q: Float[Tensor, "T D"], k: Float[Tensor, "K D"], v: Float[Tensor, "K D"]
) -> Float[Tensor, "T D"]:
    """Attention in heads of HEAD numbers; nothing is masked."""
    mixed = functional.scaled_dot_product_attention(
        _split(q)[None], _split(k)[None], _split(v)[None]
    )
    return mixed[0].transpose(0, 1).flatten(1)


class SelfAttention(nn.Module):
    """Tokens attend to each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """What they gather."""
        return self.proj(_attend(*self.qkv(x).chunk(3, dim=1)))


class CrossAttention(nn.Module):
    """Queries attend to tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "Q D"], tokens: Float[Tensor, "T D"]
    ) -> Float[Tensor, "Q D"]:
        """What they gather."""
        return self.proj(_attend(self.q(x), *self.kv(tokens).chunk(2, dim=1)))


class Mlp(nn.Module):
    """Two layers, four times as wide between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Of each token alone."""
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block; one norm serves both sides of cross attention."""

    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = attention
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(
        self, x: Float[Tensor, "T D"], *others: Float[Tensor, "K D"]
    ) -> Float[Tensor, "T D"]:
        """`x` plus what it gathers from itself, or from the `others`."""
        x = x + self.attn(self.norm1(x), *(self.norm1(other) for other in others))
        return x + self.mlp(self.norm2(x))


class Blocks(nn.Module):
    """Local blocks over the tokens; after each, a global one for the queries."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, depth = sizes.width, range(sizes.depth)
        self.local_blocks = nn.ModuleList(
            Block(width, SelfAttention(width)) for _ in depth
        )
        self.global_blocks = nn.ModuleList(
            Block(width, CrossAttention(width)) for _ in depth
        )

    def forward(
        self,
        tokens: Float[Tensor, "G D"],
        positions: Float[Tensor, "G D"],
        queries: Float[Tensor, "Q D"],
    ) -> tuple[Float[Tensor, "G D"], Float[Tensor, "Q D"]]:
        """Tokens and queries; positions are added before every block."""
        for local, of_all in zip(self.local_blocks, self.global_blocks, strict=True):
            tokens = local(tokens + positions)
            queries = of_all(queries, tokens)
        return tokens, queries


class Trunk(nn.Module):
    """The blocks and a last norm for each of their results."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.blocks = Blocks(sizes)
        self.ln_f1 = nn.LayerNorm(sizes.width)
        self.ln_f2 = nn.LayerNorm(sizes.width)


class PointEncoder(nn.Module):
    """ReCon++ as ShapeLLM asks it."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.embed = GroupEmbedding(sizes.width)
        self.pos_embed = nn.Sequential(
            nn.Linear(3, 128), nn.GELU(), nn.Linear(128, sizes.width)
        )
        self.encoder = Trunk(sizes)
        self.global_query = nn.Parameter(torch.zeros(1, sizes.queries, sizes.width))

    def forward(
        self, cloud: Float[Tensor, "N 6"]
    ) -> tuple[Float[Tensor, "G D"], Float[Tensor, "G D"], Float[Tensor, "Q D"]]:
        """Features of the groups' positions, of the groups, and of the whole cloud.

        Args:
            cloud: GROUPS points or more, around the origin and within 1 of it; then
                their colours, 0 to 1.
        """
        members, centres = groups(cloud)
        positions = self.pos_embed(centres)
        tokens, queries = self.encoder.blocks(
            self.embed(members), positions, self.global_query[0]
        )
        return positions, self.encoder.ln_f1(tokens), self.encoder.ln_f2(queries)


def load(path: Path, place: torch.device, dtype: torch.dtype) -> PointEncoder:
    """The encoder of a published file.

    Raises:
        UserError: the file is missing, broken or another network's.
    """
    stored = files.read_tensors(path, FIELD, EXPECTED, key="base_model", mmap=True)
    # Distributed training wrote this prefix.
    tensors = {name.removeprefix("module."): t for name, t in stored.items()}
    try:
        sizes = Sizes.of(tensors)
    except (KeyError, ValueError, IndexError) as error:
        files.refuse(FIELD, path, f"is no ReCon++ ({error})", EXPECTED)
    with torch.device("meta"):
        encoder = PointEncoder(sizes)
    torch_files.fill(
        nn.ModuleDict({"model": encoder}),
        tensors,
        unused=UNUSED,
        place=place,
        dtype=dtype,
        refuse=(FIELD, path, EXPECTED),
    )
    return encoder
