"""Judges behind endpoints that fail in every way, as the trainer sees it.

Two judges answer from servers that follow a script, the embedded scorers from the
sidecar itself. Whatever happens to one judge: its numbers are right or missing with a
reason, in time, and all others have theirs.
"""

import contextlib
import pathlib
import time

import numpy as np
import pytest

from ar3d_jax.config import RenderConfig
from ar3d_jax.config_rewards import (
    CoarseWeights,
    JudgeConfig,
    RewardsConfig,
    ScorersConfig,
    WeightsConfig,
)
from ar3d_jax.rewards.client import Scoring
from tests.rewards.stand_in_endpoint import Endpoint, completion, running

ROOT = pathlib.Path(__file__).parents[2]
RENDER = RenderConfig(size=32, workers=1)
SIDE, OBJECTS = 8, 4
SHORT_S, LONG_S = 5.0, 120.0  # deadlines: that is waited for, and that is not
LATE_S = 6.0  # our own 5 s after a deadline, and a busy machine's second
YES = '{"match": 1}'
WORDS = "Alignment Score (1-5): 4\nCoherence Score (1-5): 3\nStyle Score (1-5): 2"
FINE = (200, {}, completion(YES))


class QuickScoring(Scoring):
    """No pictures; the sidecar is the real one."""

    worker_module = "tests.rewards.stand_in_worker"


def config(qwen, unified, **fields):
    """Preference by the embedded scorer, category and alignment by the endpoints."""

    def judge(name, urls):
        return JudgeConfig(model=name, endpoints=urls, request_s=2.0, **fields)

    return RewardsConfig(
        backend="openai",
        points=64,
        scorers=ScorersConfig(category="qwen_vl", alignment="unified_2"),
        weights=WeightsConfig(coarse=CoarseWeights()),
        qwen_vl=judge("qwen", qwen),
        unified_2=judge("unified", unified),
    )


class Bench:
    """A trainer's scoring with its judges' endpoints."""

    def __init__(self, scoring, qwen, call):
        self.scoring, self.qwen, self.call = scoring, qwen, call

    def submit(self, deadline_s=LONG_S):
        self.scoring._deadline_s = deadline_s
        random = np.random.default_rng(0)
        logits = random.normal(size=(OBJECTS,) + (SIDE,) * 3).astype(np.float32)
        prompts = [f"a chair with {number} legs" for number in range(OBJECTS)]
        return self.scoring.submit(logits, prompts, "coarse")

    def score(self, deadline_s=LONG_S):
        """Scores and reasons; they come by the deadline."""
        started = time.monotonic()
        found = self.scoring.collect(self.submit(deadline_s))
        assert time.monotonic() - started < deadline_s + LATE_S
        return found

    def recover(self):
        """The endpoint is well again, and has finished its rest."""
        self.qwen.script = [0.0]
        scores, reasons = self.score()
        assert scores["category"].tolist() == [1.0] * OBJECTS, reasons


@contextlib.contextmanager
def bench(folder, *qwen, **fields):
    """With these endpoints of Qwen2.5-VL."""
    unified = Endpoint(model="unified", text=WORDS)
    with running(*qwen, unified) as call, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        rewards = config(tuple(each.url for each in qwen), (unified.url,), **fields)
        with QuickScoring(RENDER, rewards, SIDE, 8, folder) as scoring:
            yield Bench(scoring, qwen[0], call)
            assert scoring.restarts == 0


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One for all tests of a single endpoint: each leaves it well."""
    folder = tmp_path_factory.mktemp("faults")
    with bench(folder, Endpoint(model="qwen", text=YES)) as found:
        yield found


@pytest.fixture(scope="module")
def preference(shared):
    """What the embedded scorer gives where all is well."""
    scores, reasons = shared.score()
    assert reasons == {role: [None] * OBJECTS for role in scores}
    return scores["preference"]


def assert_others_have_their_numbers(found, preference):
    scores, reasons = found
    np.testing.assert_array_equal(scores["preference"], preference)
    assert scores["alignment"].tolist() == [4.0] * OBJECTS
    assert reasons["preference"] == reasons["alignment"] == [None] * OBJECTS


def assert_missing(found, preference, reason):
    scores, reasons = found
    assert np.isnan(scores["category"]).all()
    for each in reasons["category"]:
        assert reason in each
    assert_others_have_their_numbers(found, preference)


ERROR = {"error": {"message": "out of memory"}}
FOR_EVER = [
    ("drop", "RemoteProtocolError: Server disconnected"),
    ("half", "RemoteProtocolError: peer closed connection without sending complete"),
    ("wait", "no answer by the deadline"),
    ((500, {}, ERROR), "status 500: http://127.0.0.1:"),
    ((400, {}, ERROR), "status 400: http://127.0.0.1:"),
    ((429, {"retry-after": "8"}, ""), "no answer by the deadline; before that,"),
    ((200, {}, "{garbage"), "expected one choice with text, got '{garbage'"),
    ((200, {}, ERROR), "expected one choice with text, got \"{'message': 'out of"),
    ((200, {}, completion(YES, choices=2)), "expected one choice with text"),
    ((200, {}, completion(YES, choices=0)), "expected one choice with text"),
    ((200, {}, completion("It is a chair.")), "no JSON object with match; it answered"),
    ((200, {}, completion('{"match": 7}')), "match is 7, not 0 to 1"),
]


@pytest.mark.parametrize(("fault", "reason"), FOR_EVER)
def test_a_fault_that_stays_is_a_reason_by_the_deadline(
    shared, preference, fault, reason
):
    shared.qwen.script = [fault]
    found = shared.score(SHORT_S)
    shared.recover()
    assert_missing(found, preference, reason)


FOR_A_WHILE = [
    ["drop"] * 2,
    ["half"] * 2,
    ["wait"],
    [(500, {}, ERROR)] * 5,
    [(429, {}, "")] * 6,
    [(200, {}, "{garbage")],
    [(200, {}, completion(YES, choices=2))],
    [(200, {}, ERROR)],
]


@pytest.mark.parametrize("faults", FOR_A_WHILE, ids=lambda faults: str(faults[0])[:16])
def test_a_fault_that_passes_changes_nothing(shared, preference, faults):
    shared.qwen.script = [*faults, FINE]
    found = shared.score()
    assert found[0]["category"].tolist() == [1.0] * OBJECTS, found[1]["category"]
    assert_others_have_their_numbers(found, preference)
    assert len(shared.qwen.script) == 1  # all faults were met
    shared.recover()


def test_retry_after_is_waited_for(shared, preference):
    shared.qwen.script = [(429, {"retry-after": "2"}, ""), FINE]
    shared.qwen.times.clear()
    found = shared.score()
    assert found[0]["category"].tolist() == [1.0] * OBJECTS
    assert_others_have_their_numbers(found, preference)
    # The other objects' questions went off before the first was answered.
    times = np.array(shared.qwen.times)
    again = times[np.argmax(np.diff(times)) + 1]
    assert again - times[0] >= 2


def test_an_answer_after_the_deadline_is_of_no_later_ticket(shared, preference):
    """Not of the next one, which has the same slots and asks about other objects."""
    shared.qwen.script = [*[1.5] * OBJECTS, (200, {}, completion('{"match": 0}'))]
    missing = shared.score(1.0)
    assert_missing(missing, preference, "no answer by the deadline")
    scores, _ = shared.score()
    assert scores["category"].tolist() == [0.0] * OBJECTS
    shared.recover()


def test_the_only_endpoint_dies(tmp_path, preference):
    with bench(tmp_path, Endpoint("wait", model="qwen"), retries=1) as alone:
        ticket = alone.submit(2 * SHORT_S)
        while len(alone.qwen.bodies) < OBJECTS:
            assert not ticket.done.wait(0.01)
        alone.call(alone.qwen.die())
        found = alone.scoring.collect(ticket)
    # One question looks whether it is back, and the others wait for that.
    assert_missing(found, preference, f"{alone.qwen.url}: ")
    refused = "ConnectError: All connection attempts failed"
    assert any(refused in each for each in found[1]["category"])


def test_one_endpoint_dies_for_good_while_another_lives(tmp_path, preference):
    dying = Endpoint("wait", model="qwen")
    living = Endpoint(model="qwen", text=YES)
    with bench(tmp_path, dying, living) as both:
        ticket = both.submit()
        while not dying.bodies:
            assert not ticket.done.wait(0.01)
        both.call(dying.die())
        for found in (both.scoring.collect(ticket), both.score(), both.score()):
            assert found[0]["category"].tolist() == [1.0] * OBJECTS, found[1]
            assert_others_have_their_numbers(found, preference)
    assert len(living.bodies) == 3 * OBJECTS
