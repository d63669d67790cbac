"""ReCon++ against a plain implementation, and its files."""

import math

import numpy as np
import pytest
import torch
from scipy import special

from ar3d_jax.errors import UserError
from ar3d_jax.rewards.sidecar.scorers import recon
from tests.rewards.sidecar import published_shapellm as published

CPU = torch.device("cpu")


def cloud(count, seed=0):
    xyz, colours = published.points(count, seed)
    xyz = xyz - xyz.mean(0)
    xyz /= np.linalg.norm(xyz, axis=1).max()
    return torch.from_numpy(np.hstack([xyz, colours / 255]).astype(np.float32))


def test_farthest_points_are_those_of_brute_force():
    xyz = 0.3 * cloud(300)[:, :3]
    near = (xyz.square().sum(1) <= 1e-3).nonzero().flatten().tolist()
    assert near  # the rule for points near the origin has something to do
    rows = xyz.double().numpy()
    wanted = [0]
    while len(wanted) < 60:
        best = [
            -1.0 if i in near else min(math.dist(row, rows[j]) for j in wanted)
            for i, row in enumerate(rows)
        ]
        wanted.append(int(np.argmax(best)))
    assert recon.farthest(xyz, 60).tolist() == wanted


def test_by_hand_farthest_points_start_at_the_first_and_avoid_the_origin():
    xyz = torch.tensor(
        [[0.5, 0, 0], [0.03, 0, 0], [0.4, 0, 0], [-1.0, 0, 0], [0, 1, 0]]
    )
    # From 0.5: -1 is the farthest; then (0, 1), then 0.4; the origin's neighbour never.
    assert recon.farthest(xyz, 6).tolist() == [0, 3, 4, 2, 0, 0]


def test_nearest_points_are_those_of_brute_force():
    xyz = cloud(200)[:, :3]
    centres = xyz[:7]
    found = recon.nearest(xyz, centres, 9)
    for centre, row in zip(centres.double().numpy(), found.tolist(), strict=True):
        order = sorted(
            range(200), key=lambda i: math.dist(centre, xyz[i].double().numpy())
        )
        assert sorted(row) == sorted(order[:9])


def _gelu(x):
    return x * 0.5 * (1 + special.erf(x / math.sqrt(2)))


class Plain:
    """ReCon++ in float64 with loops, from the published tensors."""

    def __init__(self, tensors):
        self.t = {name: t.double().numpy() for name, t in tensors.items()}

    def layer(self, name, x):
        weight = self.t[f"{name}.weight"]
        return x @ weight.reshape(len(weight), -1).T + self.t[f"{name}.bias"]

    def norm(self, name, x):
        mean, spread = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        unit = (x - mean) / np.sqrt(spread + 1e-5)
        return unit * self.t[f"{name}.weight"] + self.t[f"{name}.bias"]

    def batch_norm(self, name, x):
        mean, spread = self.t[f"{name}.running_mean"], self.t[f"{name}.running_var"]
        unit = (x - mean) / np.sqrt(spread + 1e-5)
        return unit * self.t[f"{name}.weight"] + self.t[f"{name}.bias"]

    def token(self, group):
        def mlp(name, x):
            x = np.maximum(self.batch_norm(f"{name}.1", self.layer(f"{name}.0", x)), 0)
            return self.layer(f"{name}.3", x)

        each = mlp("model.embed.first_conv", group)
        of_all = np.tile(each.max(0), (len(each), 1))
        return mlp("model.embed.second_conv", np.hstack([of_all, each])).max(0)

    def attend(self, q, k, v):
        mixed = np.zeros_like(q)
        for first in range(0, q.shape[1], 64):
            own = slice(first, first + 64)
            logits = q[:, own] @ k[:, own].T / 8
            likely = np.exp(logits - logits.max(1, keepdims=True))
            mixed[:, own] = likely / likely.sum(1, keepdims=True) @ v[:, own]
        return mixed

    def rest(self, name, x, gathered):
        x = x + self.layer(f"{name}.attn.proj", gathered)
        hidden = self.layer(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", x))
        return x + self.layer(f"{name}.mlp.fc2", _gelu(hidden))

    def local(self, name, x):
        three = self.layer(f"{name}.attn.qkv", self.norm(f"{name}.norm1", x))
        return self.rest(name, x, self.attend(*np.split(three, 3, axis=1)))

    def of_all(self, name, queries, x):
        q = self.layer(f"{name}.attn.q", self.norm(f"{name}.norm1", queries))
        two = self.layer(f"{name}.attn.kv", self.norm(f"{name}.norm1", x))
        return self.rest(name, queries, self.attend(q, *np.split(two, 2, axis=1)))

    def __call__(self, points):
        points = points.double().numpy()
        xyz = points[:, :3]
        far = np.full(len(xyz), np.inf)
        far[(xyz**2).sum(1) <= 1e-3] = -1
        chosen = [0]
        while len(chosen) < 512:
            far = np.minimum(far, ((xyz - xyz[chosen[-1]]) ** 2).sum(1))
            chosen.append(int(far.argmax()))
        tokens = []
        for centre in xyz[chosen]:
            order = np.argsort(((xyz - centre) ** 2).sum(1))[:32]
            group = points[order].copy()
            group[:, :3] -= centre
            tokens.append(self.token(group))
        hidden = _gelu(self.layer("model.pos_embed.0", xyz[chosen]))
        positions = self.layer("model.pos_embed.2", hidden)
        x, queries = np.array(tokens), self.t["model.global_query"][0]
        for i in range(published.SMALL["depth"]):
            blocks = "model.encoder.blocks"
            x = self.local(f"{blocks}.local_blocks.{i}", x + positions)
            queries = self.of_all(f"{blocks}.global_blocks.{i}", queries, x)
        return (
            positions,
            self.norm("model.encoder.ln_f1", x),
            self.norm("model.encoder.ln_f2", queries),
        )


def test_the_encoder_is_that_of_a_plain_implementation(tmp_path):
    tensors = published.encoder(tmp_path / "best_lvis.pth")
    encoder = recon.load(tmp_path / "best_lvis.pth", CPU, torch.float32)
    points = cloud(700)
    with torch.inference_mode():
        found = encoder(points)
    wanted = Plain(tensors)(points)
    shapes = [(512, 128), (512, 128), (16, 128)]
    assert [tuple(part.shape) for part in found] == shapes
    for mine, theirs in zip(found, wanted, strict=True):
        assert theirs.std() > 0.1
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=0, atol=1e-5)


def test_full_size_has_the_published_names_and_its_count_of_parameters():
    with torch.device("meta"):
        encoder = recon.PointEncoder(recon.LARGE)
    mine = {f"model.{n}": tuple(t.shape) for n, t in encoder.state_dict().items()}
    theirs = published.encoder_shapes(width=1024, depth=24, queries=16)
    assert mine == {
        name: shape
        for name, shape in theirs.items()
        if not any(piece in name for piece in recon.UNUSED)
    }
    # 48 blocks of 12 D^2 + 13 D, embedding, positions, two norms, queries.
    counted = sum(parameter.numel() for parameter in encoder.parameters())
    assert counted == 48 * 12_596_224 + 823_168 + 132_608 + 4_096 + 16_384


def _spoilt(path, change):
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("base_model"), "has no base_model"),
        (
            lambda state: state["base_model"].pop("module.model.global_query"),
            "is no ReCon.. .'model.global_query'",
        ),
        (
            lambda state: state["base_model"].update(
                {"module.model.encoder.ln_f1.bias": torch.zeros(5), "module.x": None}
            ),
            "holds something else than named tensors under base_model; expected",
        ),
        (
            lambda state: state["base_model"].update(
                {"module.model.global_query": torch.zeros(1, 16, 100)}
            ),
            "tokens of 100 numbers, in heads of 64",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, change, message):
    path = tmp_path / "best_lvis.pth"
    published.encoder(path)
    _spoilt(path, change)
    with pytest.raises(UserError, match=message) as caught:
        recon.load(path, CPU, torch.float32)
    assert "\n" not in str(caught.value)
    assert "--config.rewards.shapellm.encoder" in str(caught.value)


def test_all_tensors_that_do_not_fit_are_said_at_once(tmp_path):
    path = tmp_path / "best_lvis.pth"
    published.encoder(path)

    def change(state):
        for end in (
            "pos_embed.0.bias",
            *(f"embed.first_conv.{i}.bias" for i in (0, 1, 3)),
        ):
            del state["base_model"][f"module.model.{end}"]
        more = {"encoder.ln_f1.bias": torch.zeros(5), "cls_token": torch.zeros(1)}
        state["base_model"] |= {f"module.model.{n}": t for n, t in more.items()}

    _spoilt(path, change)
    with pytest.raises(UserError) as caught:
        recon.load(path, CPU, torch.float32)
    for piece in (
        "lacks model.embed.first_conv.0.bias, model.embed.first_conv.1.bias, ",
        " and 1 more; has model.encoder.ln_f1.bias of shape (5,), not (128,); ",
        "has besides model.cls_token; expected",
    ):
        assert piece in str(caught.value)
    assert "\n" not in str(caught.value)


def test_absent_and_truncated_files_are_one_line(tmp_path):
    path = tmp_path / "best_lvis.pth"
    published.encoder(path)
    path.write_bytes(path.read_bytes()[:9000])
    for place, message in ((path, "cannot be read"), (tmp_path / "no", "is no file")):
        with pytest.raises(UserError, match=message) as caught:
            recon.load(place, CPU, torch.float32)
        assert str(caught.value).startswith(f"rewards.shapellm.encoder: {place} ")
        assert f"expected {recon.EXPECTED}: " in str(caught.value)
        assert "\n" not in str(caught.value)
