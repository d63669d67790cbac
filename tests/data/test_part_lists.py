"""Parts by a prompt's words and by file."""

import pytest

from ar3d_jax.data import part_lists
from ar3d_jax.errors import UserError


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        (
            "a wooden black chair with four legs and a round back",
            (("leg", 4), ("round back", 1)),
        ),
        ("a chair", (("chair", 1),)),
        ("A Red  Sofa.", (("red sofa", 1),)),
        (
            "a tall armchair with seat, back, arms and 4 legs",
            (("seat", 1), ("back", 1), ("arm", 2), ("leg", 4)),
        ),
        ("a bird with a pair of wings", (("wing", 2),)),
        ("A pepper mill with a crank on its lid", (("crank", 1),)),
        ("a case with a row of brass knobs", (("row of brass knobs", 1),)),
        ("a robot having two feet, both with five toes", (("foot", 2), ("toe", 5))),
        ("a cabinet with shelves, boxes", (("shelf", 2), ("box", 2))),
        ("a lamp with glass and cherries", (("glass", 1), ("cherry", 2))),
        ("a table with a leg, and the leg", (("leg", 1),)),
        ("a bus without wheels", (("bus", 1),)),
        ("a cactus", (("cactus", 1),)),
        ("with", (("with", 1),)),
        ("two", (("two", 1),)),
    ],
)
def test_noun_phrases(prompt, parts):
    assert part_lists.noun_phrases(prompt) == parts


def test_a_long_prompt_has_twelve_parts():
    names = [f"{colour} {thing}" for colour in ("red", "blue") for thing in "abcdefgh"]
    found = part_lists.noun_phrases("a thing with " + ", ".join(names))
    assert [name for name, _ in found] == names[: part_lists.MOST_PARTS]
    assert part_lists.MOST_PARTS == 12


def write(path, *lines):
    path.write_text("\n".join(lines), "utf-8")
    return path


def test_a_file_gives_its_lists(tmp_path):
    path = write(
        tmp_path / "parts.jsonl",
        '{"prompt": "a  chair", "parts": [{"name": "leg", "count": 4}]}',
        "",
        '{"prompt": "ein Stuhl mit Füßen", "parts": [], "judge": "x"}',
        '{"prompt": "a lamp", "parts": [{"name": " lamp  shade ", "count": 1},'
        ' {"name": "base", "count": 2}]}',
    )
    assert part_lists.read(path) == {
        "a chair": (("leg", 4),),
        "ein Stuhl mit Füßen": (),
        "a lamp": (("lamp shade", 1), ("base", 2)),
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: malformed JSON (Expecting property name"),
        ("[]", "line 2: expected a JSON object"),
        ('{"prompt": "a"}', "line 2: parts is null"),
        ('{"parts": []}', "line 2: prompt is null"),
        ('{"prompt": 3, "parts": []}', "line 2: prompt is 3"),
        ('{"prompt": "a", "parts": {"leg": 4}}', 'line 2: parts is {"leg": 4}'),
        ('{"prompt": "a", "parts": ["leg"]}', "line 2: name is null"),
        ('{"prompt": "a", "parts": [{"name": "leg"}]}', "line 2: count is null"),
        (
            '{"prompt": "a", "parts": [{"name": "leg", "count": true}]}',
            "line 2: count is true",
        ),
        (
            '{"prompt": "a", "parts": [{"name": "leg", "count": 0}]}',
            "line 2: a part is 'leg', 0 times",
        ),
        (
            '{"prompt": "a", "parts": [{"name": " ", "count": 1}]}',
            "line 2: a part is '', 1 times",
        ),
    ],
)
def test_a_malformed_row_is_one_line_with_its_number(tmp_path, line, message):
    path = write(tmp_path / "parts.jsonl", '{"prompt": "b", "parts": []}', line)
    with pytest.raises(UserError) as caught:
        part_lists.read(path)
    assert message in str(caught.value)
    assert "; expected " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "latin").write_bytes(b"{\xff\xfe")
    (tmp_path / "wide").write_bytes("{}".encode("utf-16"))
    for name, message in (
        ("none", "No such file.*leave rewards.part_lists empty"),
        ("latin", "not UTF-8"),
        ("wide", "is UTF-16"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            part_lists.read(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_prompt_has_one_list(tmp_path):
    legs = '{"prompt": "a", "parts": [{"name": "leg", "count": 1}]}'
    seat = legs.replace("leg", "seat")
    same = write(tmp_path / "same.jsonl", legs, legs.replace('"a"', '" a "'))
    assert part_lists.read(same) == {"a": (("leg", 1),)}
    with pytest.raises(UserError, match="line 2: 'a' has other parts in a line before"):
        part_lists.read(write(tmp_path / "other.jsonl", legs, seat))
