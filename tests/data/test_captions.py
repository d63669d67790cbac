"""Words for objects: nouns and classes, colours, measurements, and the three texts."""

import itertools
import re

import numpy as np
import pytest

from ar3d_jax.data import captions
from ar3d_jax.data.captions import (
    article,
    classify,
    colour_names,
    global_plan,
    local_plan,
    material_names,
    measure,
    noun,
    prompts,
    proportions,
    sides,
)


def table_voxels():
    """A plate on four posts, 16 x 12 x 10 cells in a 32-grid."""
    grid = np.zeros((32, 32, 32), bool)
    grid[8:24, 10:22, 20:22] = True
    for x in (8, 22):
        for y in (10, 20):
            grid[x : x + 2, y : y + 2, 12:20] = True
    return grid


def record(**changes):
    return {
        "noun": "coffee table",
        "class": "table",
        "group": "furniture",
        "category": "Living room",
        "tags": ["Glass", "Low", "Third"],
        "colours": ["brown", "black"],
        "materials": ["wood"],
        "measured": {
            "mirror": True,
            "lengthwise": True,
            "round": False,
            "feet": 4,
            "thirds": ["four posts", "four posts", "full"],
            "open_front": False,
        },
    } | changes


@pytest.mark.parametrize(
    ("name", "expected", "kind"),
    [
        ("Coffee table", "coffee table", "table"),
        ("Table lamp", "table lamp", "lamp"),
        ("Table with tablecloth", "table", "table"),
        ("TV 16:9", "television", "screen"),
        ("Wall RJ45 plug", "wall outlet", "wall outlet"),
        ("Double French window 3 panes", "french window", "window"),
        ("Beer glass", "beer glass", "cup"),
        ("Frame Hôi An", "picture frame", "book"),
        ("Thingamajig", "thingamajig", "other"),
    ],
)
def test_nouns_and_classes(name, expected, kind):
    assert noun("some-id", name) == expected
    assert classify(expected) == kind


def test_one_id_overrides_its_name():
    assert noun("scopia-chaussette", "Socket") == "sock"


def test_table_is_complete():
    table = captions.table()
    for row in table["classes"].values():
        assert set(row) == {"group", "material", "parts", "words"}
        assert row["parts"]
    for name in table["renames"].values():
        assert name == name.lower()
    assert 30 <= len(table["classes"]) <= 70


def test_colours_by_area():
    faces = np.array([[0.95, 0.95, 0.95], [0.8, 0.1, 0.1], [0.1, 0.1, 0.9]])
    assert colour_names(faces, np.array([1.0, 3.0, 0.1])) == ["red", "white"]


def test_materials_by_area():
    names = ["Oak_Wood", "chrome leg", "nameless"]
    faces = np.array([0, 1, 2])
    areas = np.array([2.0, 1.0, 1.0])
    assert material_names(names, faces, areas, "table") == ["wood", "metal"]
    assert material_names(["x"], np.array([0]), np.ones(1), "sofa") == ["fabric"]


def test_measure_a_table():
    found = measure(table_voxels())
    assert found.feet == 4
    assert found.mirror
    assert found.lengthwise
    assert not found.round
    assert found.thirds == ("four posts", "four posts", "full")


def test_measure_a_back_and_a_cylinder():
    grid = np.zeros((32, 32, 32), bool)
    grid[8:24, 8:24, 4:14] = True
    grid[8:24, 21:24, 14:28] = True  # y up is the back
    found = measure(grid)
    assert found.thirds[2] == "narrow at back"
    assert found.mirror
    assert not found.lengthwise

    x, y = np.mgrid[:32, :32] - 15.5
    cylinder = np.repeat((np.hypot(x, y) < 10)[:, :, None], 32, axis=2)
    assert measure(cylinder).round
    assert not measure(grid).round


def test_measure_an_open_box():
    grid = np.zeros((32, 32, 32), bool)
    grid[4:28, 4:28, 4:28] = True
    assert not measure(grid).open_front
    grid[6:26, :26, 6:26] = False
    assert measure(grid).open_front


def test_measure_holds_for_any_single_layer():
    grid = np.zeros((32, 32, 32), bool)
    grid[3, 4, 5] = True
    assert measure(grid).feet == 0


@pytest.mark.parametrize(
    ("extents", "expected"),
    [
        ((1.0, 0.6, 0.4), "low and wide"),
        ((0.3, 0.3, 1.0), "slender and square"),
        ((0.8, 0.2, 1.0), "tall and thin"),
        ((0.5, 1.0, 0.1), "flat and deep"),
        ((0.9, 0.9, 1.0), "medium and square"),
    ],
)
def test_proportions(extents, expected):
    assert proportions(extents) == expected


def test_sides_are_tenths_of_the_longest():
    assert sides([2.0, 1.3, 0.02]) == (10, 6, 1)
    assert sides(np.array([0.5, 0.25, 0.46])) == (10, 5, 9)


def test_articles():
    phrases = [
        "armchair",
        "umbrella",
        "urinal",
        "upper cabinet",
        "glass",
        "keys",
        "bus",
    ]
    assert [article(phrase) for phrase in phrases] == [
        "an armchair",
        "an umbrella",
        "a urinal",
        "an upper cabinet",
        "a glass",
        "keys",
        "a bus",
    ]


def test_texts_of_a_table():
    extents = (1.0, 0.6, 0.4)
    assert prompts(record(), extents) == [
        "a coffee table",
        "a low wide coffee table",
        "a low wide coffee table with top and four legs",
        "a coffee table with top and four legs",
        "a brown wooden coffee table, low and wide",
        "a coffee table, width 10, depth 6, height 4",
        "a low wide coffee table for the living room",
        "a coffee table (glass, low)",
    ]
    assert global_plan(record(), extents) == (
        "A coffee table. Low and wide: width 10, depth 6, height 4. "
        "Parts: top, four legs. Symmetry: both ways."
    )
    assert local_plan(record(), extents) == (
        "Brown and black wood, 10 by 6 by 4. Bottom: four posts. "
        "Middle: four posts. Top: full. Front: closed."
    )


def test_texts_follow_the_extents():
    stretched = (0.6, 0.6, 1.0)
    assert "tall square coffee table" in prompts(record(), stretched)[1]
    assert "width 6, depth 6, height 10" in global_plan(record(), stretched)
    assert "6 by 6 by 10" in local_plan(record(), stretched)


def test_class_is_named_where_the_noun_does_not_say_it():
    dog = record(
        **{"class": "animal", "noun": "dog", "group": "figure", "category": "Exterior"}
    )
    assert global_plan(dog, (0.5, 1.0, 0.8)).startswith("A dog, an animal. ")
    assert prompts(dog, (0.5, 1.0, 0.8))[-1] == "a deep animal like a dog"
    # One does not say of what a dog is made.
    assert "a brown dog, medium and deep" in prompts(dog, (0.5, 1.0, 0.8))


def doubled(text):
    """Words of a text that stand twice in a row, whatever is between them."""
    words = re.findall(r"[^\W_]+", text.lower())
    return [one for one, other in itertools.pairwise(words) if one == other]


@pytest.mark.parametrize(
    ("extents", "expected"),
    [
        (
            (1.0, 1.0, 0.4),
            (
                "a low, round table",
                "a low, round table with top and four legs",
                "a brown wooden round table, low",
            ),
        ),
        (
            (1.0, 1.0, 1.0),
            (
                "a medium, round table",
                "a medium, round table with top and four legs",
                "a brown wooden round table, medium",
            ),
        ),
        (
            (1.0, 0.5, 0.4),  # a quarter turn changes it: not round as measured
            (
                "a low wide round table",
                "a low wide round table with top and four legs",
                "a brown wooden round table, low and wide",
            ),
        ),
    ],
)
def test_what_the_noun_says_already_is_not_said_again(extents, expected):
    measured = record()["measured"] | {"round": True}
    texts = prompts(record(noun="round table", measured=measured, tags=[]), extents)
    assert (texts[1], texts[2], texts[4]) == expected
    assert texts[0] == "a round table"
    assert len(set(texts)) == len(texts)


NOUNS = ["table", "round table", "low table", "wide bench", "brown bread", "tall lamp"]
NOUNS += ["flat round mat", "medium box", "orange", "thin wall", "dark brown rug"]
SIZES = (0.02, 0.3, 0.5, 0.9, 1.0)


@pytest.mark.parametrize("is_round", [False, True])
@pytest.mark.parametrize("colour", ["brown", "orange", "dark brown"])
@pytest.mark.parametrize("noun", NOUNS)
@pytest.mark.parametrize("group", ["furniture", "food"])
def test_no_prompt_doubles_a_word(noun, colour, is_round, group):
    measured = record()["measured"] | {"round": is_round}
    thing = record(noun=noun, colours=[colour], measured=measured, group=group)
    for extents in itertools.product(SIZES, repeat=3):
        for text in prompts(thing, extents):
            assert not doubled(text), text
