"""How long a child may take to get ready."""

import socket
import time

import numpy as np
import pytest

from ar3d_jax.config_rewards import RewardsConfig
from ar3d_jax.errors import UserError
from ar3d_jax.rewards import wire
from ar3d_jax.rewards.child import START_S, Child
from ar3d_jax.rewards.courier import Courier
from ar3d_jax.rewards.ticket import Item, Scores
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


NONSENSE = [
    {},
    {"unheard of": 1},
    {"hello": {}},
    {"hello": 3},
    {"begun": 0, "sequence": 1, "roles": None},
    {"begun": [], "sequence": {}, "roles": []},
    {"scored": 0, "sequence": 1},
    {"scored": 0, "sequence": 1, "seconds": "long", "scores": {}},
    {"scored": 0, "sequence": 1, "seconds": 1.0, "scores": None},
    {"scored": 0, "sequence": 1, "seconds": 1.0, "scores": {"parts": 7}},
    {"scored": 0, "sequence": 1, "seconds": 1.0, "scores": {"parts": ["x", None]}},
    {"scored": 0, "sequence": 1, "seconds": 1.0, "scores": {"quality": [1, None]}},
    {"scored": 9, "sequence": 1, "seconds": 1.0, "scores": {}},
    {"drawn": 0, "sequence": 1},
]


class Listening(Courier):
    """Hears one sidecar, and writes down why it is replaced."""

    def __init__(self, sidecar, ring):
        self._sidecars, self._workers, self._ring = [sidecar], [], ring
        self.replaced = []

    def _replace(self, child, how, *, blame=True):
        self.replaced.append(how)


@pytest.mark.parametrize("message", NONSENSE)
def test_a_sidecar_that_talks_nonsense_is_replaced(tmp_path, message):
    """Of an object in slot 0, which it was asked to score for its parts."""
    ticket = Scores(("parts",), 1, time.monotonic() + 60, None)
    ring = object.__new__(wire.Ring)
    child = Child("sidecar", "none", {}, ring, tmp_path / "log")
    child.outstanding.append(
        Item(ticket, 0, np.zeros(1), "a chair", slot=0, sequence=1)
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child.channel = wire.Channel(ours)
        wire.Channel(theirs).send(message)
        courier = Listening(child, ring)
        courier._listen(child)
    (how,) = courier.replaced
    assert how.startswith("sent what was not asked ({")
