"""A short soak: `benchmarks/rewards.py` has the long one."""

import pathlib

from benchmarks import rewards

ROOT = pathlib.Path(__file__).parents[2]


def test_faults_and_deaths_leave_nothing_behind(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    found = rewards.soak(60, early=20, faults=0.06)
    assert found["restarts"] == 1
    assert 0 < found["missing"] < 48
    early, late = found["at_20"], found["at_60"]
    assert early.keys() == late.keys() == {"trainer", "render worker 0", "sidecar"}
    for name, before in early.items():
        after = late[name]
        assert after["rings"] == before["rings"] == 1, name
        # Of the sidecar's connections to its judge, one per request under way.
        assert after["files"] <= before["files"] + (16 if name == "sidecar" else 0)
        assert after["mib"] < before["mib"] + 20, name
