"""Scorers side by side: who waits for whom, what is batched, what a failure costs."""

import asyncio
import math
import threading
import time

import numpy as np
import pytest

from ar3d_jax.config_rewards import RewardsConfig, ScorersConfig
from ar3d_jax.rewards.sidecar import panel, scorers

WHITE = np.full((1, 2, 2, 3), 255, np.uint8)
POINTS, COLOURS = np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8)
FILLS = {  # three scorers of three kinds
    "preference": "hps_v2_1",
    "category": "qwen_vl",
    "parts": "shapellm",
}


def subject(prompt, *roles):
    return scorers.Subject(prompt, WHITE, POINTS, COLOURS, roles)


class Batcher:
    """Scores in its thread, once it is let."""

    about = scorers.About("batcher", "1", "cuda:0")
    batch = 3

    def __init__(self):
        self.calls, self.moves = [], []
        self.open = threading.Event()
        self.open.set()
        self.began = threading.Event()

    def score(self, subjects):
        self.began.set()
        assert self.open.wait(30)
        self.calls.append([each.prompt for each in subjects])
        if any(each.prompt == "raise" for each in subjects):
            raise ValueError("as I\nwas told")
        return [dict.fromkeys(each.roles, self.number(each)) for each in subjects]

    def number(self, each):
        return (math.nan, "no idea") if each.prompt == "nan" else (1.0, None)

    def wake(self):
        self.moves.append("wake")

    def rest(self):
        self.moves.append("rest")

    def close(self):
        self.moves.append("close")


class Correspondent:
    """Answers when it is let, where it has mail to wait for."""

    about = scorers.About("elsewhere", "2", "there")

    def __init__(self):
        self.waiting = 0
        self.mail = None
        self.closed = False

    async def ask(self, subject, deadline, tell):
        self.waiting += 1
        if subject.prompt == "half":
            tell({subject.roles[0]: (0.25, None)})
        if self.mail:
            await self.mail.wait()
        self.waiting -= 1
        return dict.fromkeys(subject.roles, (0.5, None))

    async def close(self):
        self.closed = True


@pytest.fixture
def seated(monkeypatch):
    """A panel of two batchers and a correspondent: (make, its scorers)."""
    members = {"hps_v2_1": Batcher(), "qwen_vl": Correspondent(), "shapellm": Batcher()}
    members["embedded"] = Batcher()  # all other roles
    monkeypatch.setattr(scorers, "load", lambda name, config: members[name])

    def make(**changes):
        config = RewardsConfig(scorers=ScorersConfig(**FILLS), **changes)
        return panel.Panel(config)

    return make, members


def judge(seats, subjects, patience=30.0, then=None):
    """All answers of the subjects, in the order in which they came."""

    async def run():
        told = []
        deadline = time.monotonic() + patience
        async with asyncio.TaskGroup() as group:
            for each in subjects:

                def tell(found, prompt=each.prompt):
                    told.append((prompt, found))

                group.create_task(seats.judge(each, deadline, tell))
            if then:
                group.create_task(then(told))
        await seats.close()
        return told

    return asyncio.run(run())


async def until(condition):
    """Lets the others work until it holds; the test's own limit ends a bug."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


def test_who_they_are(seated):
    make, _ = seated
    about = make().about
    assert about["hps_v2_1"] == {
        "roles": ("preference",),
        "model": "batcher",
        "revision": "1",
        "place": "cuda:0",
    }
    assert about["embedded"]["roles"] == ("alignment", "quality", "consistency")


def test_what_waits_is_scored_together(seated):
    make, members = seated
    first = members["shapellm"]
    first.open.clear()

    async def let_go(told):
        await until(first.began.is_set)
        first.open.set()

    prompts = [str(i) for i in range(8)]
    told = judge(make(), [subject(p, "parts") for p in prompts], then=let_go)
    # All were there before the first batch began, or came while it was scored.
    sizes = [len(call) for call in first.calls]
    assert sizes == [3, 3, 2]
    assert [prompt for call in first.calls for prompt in call] == prompts
    assert sorted(told) == [(p, {"parts": (1.0, None)}) for p in prompts]
    assert first.moves == ["wake", "close"]


def test_a_slow_scorer_holds_up_nobody_else(seated):
    make, members = seated
    slow = members["shapellm"]
    slow.open.clear()
    elsewhere = members["qwen_vl"]

    async def let_go(told):
        await until(lambda: elsewhere.waiting == 6)  # side by side
        elsewhere.mail.set()
        await until(lambda: len(told) == 12)  # both others' answers of all six
        slow.open.set()

    roles = ("preference", "category", "parts")
    elsewhere.mail = asyncio.Event()
    told = judge(make(), [subject(str(i), *roles) for i in range(6)], then=let_go)
    assert [set(found) for _, found in told[12:]] == [{"parts"}] * 6
    assert elsewhere.closed


def test_a_failure_stays_inside_its_scorer_and_its_object(seated, capfd):
    make, members = seated
    first = members["shapellm"]
    things = [subject(p, "preference", "parts") for p in ("a", "raise", "nan")]
    members["hps_v2_1"].score = lambda subjects: [
        dict.fromkeys(each.roles, (0.25, None)) for each in subjects
    ]
    found = {}
    for prompt, verdicts in judge(make(), things):
        found.setdefault(prompt, {}).update(verdicts)
    assert [found[p]["preference"] for p in ("a", "raise", "nan")] == [(0.25, None)] * 3
    assert found["a"]["parts"] == (1.0, None)
    assert found["raise"]["parts"] == (None, "ValueError: as I was told")
    assert found["nan"]["parts"] == (None, "no idea")
    # All together, then each of them alone; and one traceback.
    assert first.calls == [["a", "raise", "nan"], ["a"], ["raise"], ["nan"]]
    assert capfd.readouterr().err.count("Traceback") == 1


def test_a_scorer_that_cannot_come_to_its_device_says_so_at_once(seated, capfd):
    make, members = seated

    def wake():
        raise RuntimeError("out of memory")

    members["shapellm"].wake = wake
    told = judge(make(), [subject(p, "parts") for p in "ab"])
    reason = "RuntimeError: out of memory"
    assert sorted(told) == [(p, {"parts": (None, reason)}) for p in "ab"]
    assert members["shapellm"].moves == ["close"]


def test_part_of_an_answer_that_was_told_counts(seated, monkeypatch):
    make, members = seated
    monkeypatch.setattr(panel, "GRACE_S", 0.0)
    members["qwen_vl"].mail = asyncio.Event()  # never comes
    monkeypatch.setitem(FILLS, "consistency", "qwen_vl")
    things = [subject("half", "category", "consistency")]
    told = judge(make(), things, patience=0.2)
    assert told == [
        ("half", {"category": (0.25, None)}),
        ("half", {"consistency": (None, panel.TOO_LATE)}),
    ]


def test_a_correspondent_may_say_what_it_has_at_the_deadline(seated):
    make, members = seated
    elsewhere = members["qwen_vl"]

    async def ask(subject, deadline, tell):
        await asyncio.sleep(deadline - time.monotonic())
        return dict.fromkeys(subject.roles, (0.75, None))

    elsewhere.ask = ask
    told = judge(make(), [subject("a", "category")], patience=0.2)
    assert told == [("a", {"category": (0.75, None)})]


def test_what_is_taken_in_hand_is_said_before(seated):
    make, members = seated
    first, begun = members["shapellm"], []
    first.open.clear()
    seats = make()

    async def run():
        async with asyncio.TaskGroup() as group:
            for prompt in "abcd":

                def begin(roles, prompt=prompt):
                    begun.append((prompt, roles))

                coming = seats.judge(
                    subject(prompt, "parts", "category"),
                    time.monotonic() + 30,
                    lambda found: None,
                    begin,
                )
                group.create_task(coming)
            await until(first.began.is_set)
            assert begun == [(p, ("parts",)) for p in "abc"]  # a batch, and not d
            first.open.set()
        await seats.close()

    asyncio.run(run())
    assert begun[3:] == [("d", ("parts",))]


def test_a_role_nobody_fills_and_a_role_left_out_are_missing_with_a_reason(seated):
    make, members = seated
    members["hps_v2_1"].score = lambda subjects: [{} for _ in subjects]
    ((_, one), (_, other)) = judge(make(), [subject("a", "preference", "judge")])
    assert one | other == {
        "preference": (None, "the scorer gave no answer for this role"),
        "judge": (None, "no scorer is loaded that fills this role"),
    }


def test_nothing_is_waited_for_longer_than_the_deadline(seated):
    make, members = seated
    slow = members["shapellm"]
    slow.open.clear()

    async def let_go(told):
        await until(lambda: len(told) == 2)
        slow.open.set()  # its thread ends: otherwise closing would wait for it

    things = [subject("a", "parts", "preference")]
    told = judge(make(), things, patience=0.2, then=let_go)
    assert told[0] == ("a", {"preference": (1.0, None)})
    assert told[1] == ("a", {"parts": (None, panel.TOO_LATE)})


def test_what_is_too_late_is_not_scored_for_nobody(seated):
    make, members = seated
    slow = members["shapellm"]
    slow.batch = 1
    slow.open.clear()

    async def let_go(told):
        await until(lambda: len(told) == 3)
        slow.open.set()

    judge(make(), [subject(p, "parts") for p in "abc"], patience=0.2, then=let_go)
    assert slow.calls == [["a"]]  # b and c were given up while they waited


def test_a_scorer_that_never_returns_ends_the_process(seated, monkeypatch):
    make, members = seated
    slow, ended = members["shapellm"], []
    slow.open.clear()
    monkeypatch.setattr(panel, "STUCK_S", 0.0)
    monkeypatch.setattr(panel.os, "_exit", ended.append)

    async def let_go(told):
        await until(lambda: ended)
        slow.open.set()

    judge(make(), [subject("a", "parts")], patience=0.1, then=let_go)
    assert ended == [70]


def awake_at_a_time(members, names):
    """The most of these that are awake at one time, kept up to date in a list."""
    awake, most = set(names), [0]  # as they were loaded
    for name in names:

        def wake(name=name):
            awake.add(name)
            most[0] = max(most[0], len(awake))

        members[name].wake = wake
        members[name].rest = lambda name=name: awake.discard(name)
    return most


def test_in_turns_one_model_is_on_a_device_at_a_time(seated):
    make, members = seated
    names = ("hps_v2_1", "shapellm", "embedded")
    most = awake_at_a_time(members, names)
    things = [subject(str(i), "preference", "parts", "quality") for i in range(5)]
    assert len(judge(make(residency="turns"), things)) == 15
    assert most == [1]
    assert all(len(members[name].calls) == 2 for name in names)  # a queue per turn
    judge(make(residency="together"), things)
    assert most == [3]


def test_models_on_different_devices_do_not_wait_for_each_other(seated):
    make, members = seated
    members["hps_v2_1"].about = scorers.About("batcher", "1", "cuda:1")
    members["embedded"].about = scorers.About("batcher", "1", "cpu")
    slow = members["shapellm"]
    slow.open.clear()

    async def let_go(told):
        await until(lambda: len(told) == 2)
        slow.open.set()

    things = [subject("a", "preference", "parts", "quality")]
    told = judge(make(residency="turns"), things, then=let_go)
    assert [set(found) for _, found in told[2:]] == [{"parts"}]


def test_a_host_that_goes_ends_nothing(seated, monkeypatch):
    """Its objects are dropped, and nobody calls the scorer stuck for that."""
    make, members = seated
    slow, ended = members["shapellm"], []
    slow.open.clear()
    monkeypatch.setattr(panel, "STUCK_S", 0.0)
    monkeypatch.setattr(panel.os, "_exit", ended.append)
    seats = make()

    async def run():
        coming = seats.judge(subject("a", "parts"), time.monotonic() + 30, print)
        task = asyncio.create_task(coming)
        await until(slow.began.is_set)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for _ in range(10):
            await asyncio.sleep(0)
        slow.open.set()
        await seats.close()

    asyncio.run(run())
    assert not ended


class Tally:
    def line(self):
        return {"sent": 3.0}


def test_what_scorers_count_is_there_whoever_calls_them(seated):
    """At a desk of this process, or elsewhere; most do not count."""
    make, members = seated
    members["shapellm"].statistics = members["qwen_vl"].statistics = Tally()
    assert make().counters == {"qwen_vl/sent": 3.0, "shapellm/sent": 3.0}
