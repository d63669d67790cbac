"""Texts of an object: prompts and the two plans, from its name and what was measured.

Sentences are regular and short on purpose: the tiny policy writes them within 48 tokens
each. Sides are numbers in tenths of the longest, taken from the extents that are passed
in, so the same record gives true texts for a stretched copy.

* `classes.json` maps published names to clean nouns and some 70 classes, each with its
  usual parts;
* `measure` looks at the voxels: symmetry, legs, how full each third is, open front;
* `prompts`, `global_plan` and `local_plan` put it into words.

Colour and material come from `catalog.py`; shape comes first in every text, because
the tiny objects are drawn as grey geometry.
"""

import dataclasses
import functools
import itertools
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

Extents = Sequence[float] | np.ndarray  # sides along x, y, z
_TABLE_FILE = Path(__file__).parent / "classes.json"
SYMMETRIC = 0.97  # share of mirrored voxels that lie at most one cell beside a voxel
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}

# Reference colours in sRGB; a face takes the nearest after a rough eye weighting.
COLOURS = {
    "black": (0.08, 0.08, 0.08),
    "dark grey": (0.28, 0.28, 0.28),
    "grey": (0.55, 0.55, 0.55),
    "white": (0.93, 0.93, 0.93),
    "beige": (0.83, 0.75, 0.60),
    "brown": (0.45, 0.30, 0.17),
    "dark brown": (0.24, 0.15, 0.09),
    "red": (0.75, 0.12, 0.12),
    "orange": (0.90, 0.50, 0.12),
    "yellow": (0.92, 0.82, 0.25),
    "green": (0.25, 0.50, 0.20),
    "blue": (0.20, 0.32, 0.70),
    "purple": (0.50, 0.20, 0.55),
    "pink": (0.92, 0.60, 0.66),
}

# Words within material and texture names, in the languages their makers used.
MATERIALS = {
    "wood": "wood madera madeira fusta bois oak walnut cherry venge rattan rojiza",
    "metal": "metal chrom cromo steel inox alu brass iron gold silver acier",
    "glass": "glass cristal vidr mirror window_ pane",
    "fabric": "fabric cloth textil tela cushion pillow couch coixi towel mattress",
    "leather": "leather cuir cuero",
    "plastic": "plast rubber",
    "stone": "stone concrete marble rock brick tile granit",
    "ceramic": "ceramic porcel",
    "leaves": "leaf leaves feuille hoja branch grass vegetable",
    "paper": "paper cardboard",
    "skin": "skin",
}


# Where a published category says where the thing stands.
PLACES = {
    "Living room": "for the living room",
    "Kitchen": "for the kitchen",
    "Bedroom": "for the bedroom",
    "Bathroom": "for the bathroom",
    "Office": "for the office",
    "Exterior": "for outdoors",
}
UNDRESSED = ("figure", "plant", "food", "thing")  # one does not say of what it is made


@functools.cache
def table() -> dict[str, Any]:
    """The contents of `classes.json`."""
    return json.loads(_TABLE_FILE.read_text("utf-8"))


def noun(object_id: str, name: str) -> str:
    """A clean English noun for a published name, e.g. `TV 16:9` is a `television`."""
    renamed = table()["rename_ids"].get(object_id) or table()["renames"].get(name)
    if renamed:
        return renamed
    for pattern, replacement in table()["rename_patterns"]:
        if re.search(pattern, name, re.IGNORECASE):
            return replacement
    head = re.split(r",| with | on | under | - ", name, maxsplit=1)[0]
    plain = unicodedata.normalize("NFKD", head).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9' -]+", "", plain.lower()).strip()


@functools.cache
def classify(thing: str) -> str:
    """The class whose word stands nearest to the end of the noun; else `other`."""
    words = f" {thing} "
    best = (-1, 0, "other")
    for name, row in table()["classes"].items():
        for word in row["words"]:
            position = words.rfind(f" {word} ")
            if position >= 0:
                best = max(best, (position + len(word), len(word), name))
    return best[2]


def colour_names(
    colours: Float[np.ndarray, "m 3"], areas: Float[np.ndarray, " m"]
) -> list[str]:
    """Up to two colours that cover at least a sixth of the area, largest first."""
    reference = np.array(list(COLOURS.values()))
    # Hue differences count more than brightness: split into grey and what is left.
    grey, base = colours.mean(axis=1), reference.mean(axis=1)
    hue = (colours - grey[:, None])[:, None] - (reference - base[:, None])[None]
    distance = (grey[:, None] - base[None]) ** 2 + 3 * (hue**2).sum(axis=-1)
    share = np.bincount(distance.argmin(axis=1), areas, len(COLOURS))
    return _largest(list(COLOURS), share, least=1 / 6)


def material_names(
    names: Sequence[str], faces: np.ndarray, areas: np.ndarray, thing: str
) -> list[str]:
    """Up to two materials by area, read from the names; else the class's usual one."""
    kinds = [*MATERIALS, ""]
    found = [
        next(
            (
                k
                for k, words in MATERIALS.items()
                if any(w in n.lower() for w in words.split())
            ),
            "",
        )
        for n in names
    ]
    kind = np.array([kinds.index(k) for k in found])
    share = np.bincount(kind[faces], areas, len(kinds))
    share[-1] = 0.0  # unknown
    usual = table()["classes"][thing]["material"]
    return _largest(kinds, share, least=1 / 6, of=areas.sum()) or [usual]


def _largest(
    names: list[str], share: np.ndarray, *, least: float, of: float = 0
) -> list[str]:
    part = share / max(of or share.sum(), 1e-12)
    return [names[i] for i in np.argsort(-part)[:2] if part[i] >= least]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What voxels say about a shape; holds under mirroring and stretching.

    Attributes:
        mirror: Left and right alike.
        lengthwise: Front and back alike.
        round: Unchanged by a quarter turn, with a round outline.
        feet: Separate pieces near the floor.
        thirds: Bottom, middle, top: one phrase each.
        open_front: Seen from the front, most of it lies deep inside.
    """

    mirror: bool
    lengthwise: bool
    round: bool
    feet: int
    thirds: tuple[str, str, str]
    open_front: bool


def measure(voxels: Bool[np.ndarray, "R R R"]) -> Measured:
    """Symmetry, feet, the thirds of the height and the front of one grid."""
    filled = np.argwhere(voxels)
    low, high = filled.min(axis=0), filled.max(axis=0) + 1
    body = voxels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    height = body.shape[2]
    cuts = [0, round(height / 3), round(2 * height / 3), height]
    slabs = [
        body[:, :, min(a, height - 1) : max(b, a + 1)]
        for a, b in itertools.pairwise(cuts)
    ]
    # The second layer: the first may be a rug-like base or a rounding of the floor.
    feet = _pieces(body[:, :, min(1, height - 1)])
    return Measured(
        mirror=_alike(voxels, voxels[::-1]),
        lengthwise=_alike(voxels, voxels[:, ::-1]),
        round=_is_round(body) and _alike(voxels, np.rot90(voxels)),
        feet=feet if height >= 6 else 0,
        thirds=(_third(slabs[0]), _third(slabs[1]), _third(slabs[2])),
        open_front=_open_front(body),
    )


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    near = ndimage.binary_dilation(a, np.ones((3, 3, 3), bool))
    return bool((b & near).sum() >= SYMMETRIC * b.sum())


def _is_round(body: np.ndarray) -> bool:
    """Whether the outline from above leaves the corners of its square empty."""
    outline = _outline(body, axis=2)
    width, depth = outline.shape
    square = max(width, depth) <= 1.15 * min(width, depth)
    return bool(square and outline.mean() < 0.86 and min(width, depth) >= 5)


def _outline(body: np.ndarray, axis: int) -> np.ndarray:
    """The shadow along an axis, holes filled."""
    return np.asarray(ndimage.binary_fill_holes(body.any(axis=axis)))


def _pieces(layer: np.ndarray) -> int:
    labels = np.empty(layer.shape, np.int32)
    ndimage.label(layer, np.ones((3, 3)), output=labels)
    return int(labels.max(initial=0))


def _third(slab: np.ndarray) -> str:
    """How a third of the height looks from above, against the whole's footprint."""
    outline = _outline(slab, axis=2)
    share = outline.mean()
    layers = [_pieces(slab[:, :, k]) for k in range(slab.shape[2])]
    pieces = int(np.median(layers))
    if share < 0.02:
        return "empty"
    if pieces >= 3:
        return f"{NUMBERS.get(pieces, 'many')} posts" if share < 0.5 else "open frame"
    rows = np.argwhere(outline)[:, 1].mean() / max(outline.shape[1] - 1, 1)
    place = " at back" if rows > 0.65 else " at front" if rows < 0.35 else ""
    if pieces == 2 and share < 0.5:
        return "two sides" + place
    sizes = (("full", 0.75), ("broad", 0.4), ("narrow", 0.15), ("thin", 0.0))
    return next(word for word, least in sizes if share >= least) + place


def _open_front(body: np.ndarray) -> bool:
    """Whether over half of the lines from the front go past a third of the depth."""
    first = np.where(body.any(axis=1), body.argmax(axis=1), body.shape[1])
    silhouette = _outline(body, axis=1)
    return bool(
        (first[silhouette] > body.shape[1] / 3).mean() > 0.5 and body.shape[1] >= 5
    )


def sides(extents: Extents) -> tuple[int, int, int]:
    """Width, depth, height in tenths of the longest side, at least 1."""
    longest = max(extents)
    width, depth, height = (max(1, round(10 * float(e) / longest)) for e in extents)
    return width, depth, height


def proportions(extents: Extents, *, is_round: bool = False) -> str:
    """Two words on the shape of the bounding box, e.g. `low and wide`."""
    width, depth, height = map(float, extents)
    upright = height / max(width, depth)
    heights = (("slender", 3.0), ("tall", 1.25), ("medium", 0.75), ("low", 0.15))
    first = next((word for word, least in heights if upright >= least), "flat")
    if (
        upright >= 0.75
        and min(width, depth) < 0.25 * max(extents)
        and first != "slender"
    ):
        return f"{first} and thin"
    footprint = width / depth
    widths = (("long", 2.2), ("wide", 1.2), ("square", 1 / 1.2), ("deep", 0.0))
    second = next(word for word, least in widths if footprint >= least)
    return f"{first} and {'round' if is_round and second == 'square' else second}"


def article(phrase: str) -> str:
    """The phrase with `a` or `an`; plural nouns get none."""
    if re.search(r"(?<!s)s$", phrase) and not re.search(r"(bus|cactus)$", phrase):
        return phrase
    return f"{'an' if re.match('[aeio]|um|up|un', phrase) else 'a'} {phrase}"


def parts(record: Mapping[str, Any]) -> list[str]:
    """The class's parts, with the feet counted where legs are expected."""
    feet = record["measured"]["feet"]
    named = []
    usual = table()["classes"][record["class"]]["parts"]
    for part in table()["noun_parts"].get(record["noun"], usual):
        if part == "legs" and record["group"] == "furniture":
            named.append(
                {1: "foot", 2: "two legs", 3: "three legs", 4: "four legs"}.get(
                    feet, "legs"
                )
            )
        else:
            named.append(part)
    return named


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def prompts(record: Mapping[str, Any], extents: Extents) -> list[str]:
    """Requests for this object, from bare to detailed; the first four are shipped."""
    thing, kind = record["noun"], record["class"]
    shape = proportions(extents, is_round=record["measured"]["round"])
    shaped = article(_shaped(shape, thing))
    width, depth, height = sides(extents)
    named = _listed([part.replace("foot", "one foot") for part in parts(record)])
    place = PLACES.get(record["category"], "")
    new = [tag.lower() for tag in record["tags"] if tag.lower() not in thing]
    tags = ", ".join(new[:2])
    texts = [
        article(thing),
        shaped,
        f"{shaped} with {named}",
        f"{article(thing)} with {named}",
        ", ".join([article(_dressed(record)), *_both(_unsaid(shape, thing))]),
        f"{article(thing)}, width {width}, depth {depth}, height {height}",
    ]
    if place:
        texts.append(f"{shaped} {place}")
    if tags:
        texts.append(f"{article(thing)} ({tags})")
    if kind not in thing and kind != "other":
        like = " ".join([*_unsaid(shape.replace("medium and ", ""), thing), kind])
        texts.append(f"{article(like)} like {article(thing)}")
    return texts


def _unsaid(shape: str, thing: str) -> list[str]:
    """The words of `low and round` that the noun has not: `low` of a `round table`."""
    return [word for word in shape.split(" and ") if word not in _words(thing)]


def _words(phrase: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", phrase)


def _both(words: list[str]) -> list[str]:
    """`low and round`, `low` or nothing."""
    return [" and ".join(words)] if words else []


def _shaped(shape: str, thing: str) -> str:
    """`low wide table` of `low and wide`: no word twice, and `medium` unsaid.

    Where the noun has one of the words, a comma sets the other apart: a `low, round
    table` is no `low round` table, whose name is another, and prompts stay different.
    """
    words = _unsaid(shape, thing)
    if len(words) < 2:
        return ", ".join([*words, thing])
    return " ".join([*(word for word in words if word != "medium"), thing])


def _dressed(record: Mapping[str, Any]) -> str:
    """The noun with its main colour, and material where one would say it."""
    thing, material = record["noun"], record["materials"][0]
    own = _words(thing)  # a brown bread is not said to be dark brown
    words = [name for name in record["colours"][:1] if name.split()[-1] not in own]
    if record["group"] not in UNDRESSED and material not in thing:
        words = [*words, {"wood": "wooden", "leaves": "leafy"}.get(material, material)]
    return " ".join([*words, thing])


def global_plan(record: Mapping[str, Any], extents: Extents) -> str:
    """What it is, proportions, parts, symmetry."""
    measured = record["measured"]
    width, depth, height = sides(extents)
    thing, kind = record["noun"], record["class"]
    if kind == "other":
        kind = record["group"]
    subject = article(thing) + ("" if kind in thing else f", {article(kind)}")
    shape = proportions(extents, is_round=measured["round"])
    alike = (measured["mirror"], measured["lengthwise"])
    symmetry = {
        (True, True): "both ways",
        (True, False): "left to right",
        (False, True): "front to back",
        (False, False): "none",
    }[alike]
    text = (
        f"{subject}. {shape}: width {width}, depth {depth}, height {height}. "
        f"parts: {', '.join(parts(record))}. "
        f"symmetry: {'all around' if measured['round'] else symmetry}."
    )
    return _sentences(text)


def local_plan(record: Mapping[str, Any], extents: Extents) -> str:
    """Colours, materials, and how each third looks; the sides again, in short.

    The sides are repeated because the refined shape is written after this plan alone.
    """
    measured = record["measured"]
    width, depth, height = sides(extents)
    bottom, middle, top = measured["thirds"]
    look = f"{_listed(record['colours'] or ['grey'])} {_listed(record['materials'])}"
    front = "open" if measured["open_front"] else "closed"
    text = (
        f"{look}, {width} by {depth} by {height}. bottom: {bottom}. "
        f"middle: {middle}. top: {top}. front: {front}."
    )
    return _sentences(text)


def _sentences(text: str) -> str:
    return re.sub(r"(^|\. )([a-z])", lambda m: m[1] + m[2].upper(), text)
