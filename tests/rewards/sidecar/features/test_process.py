"""The networks' process with real networks, small, and one that is killed."""

import contextlib
import dataclasses
import os
import signal
import sys
import types

import numpy as np
import pytest

from ar3d_jax.config import FeaturesConfig, RenderConfig
from ar3d_jax.errors import UserError
from ar3d_jax.rewards.feature_sets import FEATURE_SETS
from ar3d_jax.rewards.measuring import Measuring
from ar3d_jax.rewards.sidecar.features import __main__ as process
from ar3d_jax.rewards.sidecar.features import networks
from ar3d_jax.rewards.sidecar.features.pictures import Pictures
from tests.rewards.sidecar.features import published
from tests.rewards.test_client import prepare_stand_ins
from tests.rewards.test_measuring import assert_same, files

RENDER = RenderConfig(views=2, size=48, workers=1)
CAPTIONS = ["a chair", "a chair " * 40, "two of chairs", "chair"]


class DrawnByStandIn(Measuring):
    """Real networks, pictures that are noise."""

    worker_module = "tests.rewards.stand_in_drawer"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    published.clip(folder / "clip", dim=512)
    published.dinov2(folder / "dinov2", dim=768, layers=1)
    return {"clip_b32": str(folder / "clip"), "dinov2_b14": str(folder / "dinov2")}


@contextlib.contextmanager
def measuring(folder, places, monkeypatch, **features):
    (folder / "marks").mkdir(exist_ok=True)
    prepare_stand_ins(folder / "marks", monkeypatch)
    config = FeaturesConfig(sets=tuple(places), threads=1, points=3, **features)
    with DrawnByStandIn(RENDER, config, places, 4, folder / "logs") as one:
        yield one


def test_vectors_are_the_networks_own_before_and_after_a_kill(
    tmp_path, places, monkeypatch
):
    with measuring(tmp_path, places, monkeypatch, device="cpu") as one:
        assert one.processes["sidecar"]["imported"] == ["torch"]  # no jax
        paths = files(tmp_path)[:4]
        ticket = one.submit(paths, CAPTIONS, keep_views=True)
        before = one.collect(ticket)
        ticket = one.submit(paths, CAPTIONS)
        os.kill(one.processes["sidecar"]["pid"], signal.SIGKILL)
        after = one.collect(ticket)
        assert one.restarts == 1
    for name, path in places.items():
        network = networks.load(name, path, "cpu")
        for own, caption in zip(before, CAPTIONS, strict=True):
            wanted = network.embed_views(Pictures(own.views))
            # To rounding: this process has more threads.
            np.testing.assert_allclose(own.vectors[name], wanted, rtol=0, atol=1e-5)
            if FEATURE_SETS[name].text_dim:
                wanted, _ = network.embed_text(caption)
                np.testing.assert_allclose(own.texts[name], wanted, rtol=0, atol=1e-5)
    assert [own.truncated for own in before] == [(), ("clip_b32",), (), ()]
    assert set(before[0].texts) == {"clip_b32"}
    for calm, disturbed in zip(before, after, strict=True):
        assert calm.truncated == disturbed.truncated
        own = [dataclasses.replace(each, truncated=()) for each in (calm, disturbed)]
        assert_same(*own)


def test_what_the_process_cannot_load_is_its_one_line(tmp_path, places, monkeypatch):
    wrong = {"dinov2_b14": places["clip_b32"]}
    with (
        pytest.raises(
            UserError, match=r"sidecar does not start: .*type 'clip', not di"
        ),
        measuring(tmp_path, wrong, monkeypatch),
    ):
        pass


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr("os.environ", dict(os.environ))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=r"no GPU; pass --config.features.device=auto"):
        process.start_torch(FeaturesConfig(device="cuda"))


def test_the_embedded_set_is_the_judge(monkeypatch, tmp_path):
    class Judge:
        @staticmethod
        def load(path):
            assert path == tmp_path
            return Judge()

        def embed_views(self, views):
            return views.reshape(len(views), -1)[:, :128].astype(np.float32)

        def embed_text(self, text):
            return np.full(128, len(text), np.float32)

    module = types.ModuleType("judge")
    module.Judge = Judge
    monkeypatch.setitem(sys.modules, "ar3d_jax.rewards.sidecar.judge", module)
    loaded = {"embedded": networks.load("embedded", str(tmp_path), "cpu")}
    views, row = published.views(2, 48), np.zeros(3 * 128, np.float32)
    assert process.measure_object(loaded, "four", views, row, ("embedded",)) == (
        {"embedded": None},
        [],
    )
    np.testing.assert_array_equal(row[:256], views.reshape(2, -1)[:, :128].ravel())
    np.testing.assert_array_equal(row[256:], np.full(128, 4.0))
