"""How long a child may take to get ready."""

import time

import pytest

from ar3d_jax.config_rewards import RewardsConfig
from ar3d_jax.errors import UserError
from ar3d_jax.rewards.child import START_S
from tests.rewards.test_client import prepare_stand_ins, quick


@pytest.fixture(autouse=True)
def stand_ins(tmp_path, monkeypatch):
    prepare_stand_ins(tmp_path, monkeypatch)


def test_the_sidecar_may_load_for_long_and_workers_may_not(tmp_path):
    rewards = RewardsConfig(points=8, start_s=1000.0)
    before = time.monotonic()
    with quick(tmp_path, rewards=rewards) as scoring:
        after = time.monotonic()
        *workers, sidecar = (child.deadline for child in scoring._children)
    assert before + 1000 <= sidecar <= after + 1000
    assert all(before + START_S <= worker <= after + START_S for worker in workers)


def test_a_sidecar_that_takes_longer_ends_the_run(tmp_path):
    hasty = RewardsConfig(points=8, start_s=0.01)  # no interpreter starts as fast
    with (
        pytest.raises(UserError, match="the sidecar does not start: it did not get"),
        quick(tmp_path, rewards=hasty),
    ):
        pass
