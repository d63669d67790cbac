"""What a gain of the learning benchmark is, by hand."""

import math

import numpy as np
import pytest

from benchmarks.learning import gain, object_of


@pytest.mark.parametrize(
    ("prompt", "thing"),
    [
        ("scopia-round-table.1", "scopia-round-table"),
        ("scopia-little-lamp2.5.0", "scopia-little-lamp2.5"),
        ("prompts-17", "prompts-17"),
        ("a chair", "a chair"),
        ("v1.x", "v1.x"),
        (".3", ".3"),
    ],
)
def test_prompts_of_one_object_have_its_name(prompt, thing):
    assert object_of(prompt) == thing


def test_errors_are_over_objects():
    """Four prompts of object a that agree are one observation, not four."""
    prompts = ["a.0", "b.0", "a.1", "a.2", "a.3", "c.0"]
    before = np.zeros((6, 2))
    after = np.array([[1, 3], [5, 5], [2, 2], [2, 2], [0, 4], [8, np.nan]])
    found = gain(before, after, prompts)  # a: 2, b: 5, c: 8
    assert found == {
        "objects": 3,
        "before": 0.0,
        "after": 5.0,
        "gain": 5.0,
        "standard_error": round(3 / math.sqrt(3), 4),
        "gain_in_errors": round(5 / math.sqrt(3), 2),
    }
    # The same differences, spread over more prompts of each object, say no more.
    twice = gain(np.tile(before, (2, 1)), np.tile(after, (2, 1)), prompts * 2)
    assert twice == found
