"""MTL, the materials of OBJ files: what they say of colour.

    http://paulbourke.net/dataformats/mtl/

Read are Kd, d, Tr, map_Kd and map_d with their options; how a surface shines, glows,
reflects or is bumpy is passed over on purpose, and anything else with a note.
"""

import dataclasses
import io
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ar3d_jax.render.parts import Notes
from ar3d_jax.render.pictures import Texture, Wrap, open_texture

# Of materials: what shines, glows, reflects, is bumpy, or says how to light it.
EFFECTS = {"Ka", "Ks", "Ns", "Ni", "Tf", "illum", "sharpness", "Pr", "Pm", "Ps", "Pc"}
EFFECTS |= {"Pcr", "aniso", "anisor", "norm", "bump", "refl", "decal", "Ke", "disp"}
EFFECTS |= {"map_Ka", "map_Ks", "map_Ns", "map_Ke", "map_bump", "map_Bump", "map_norm"}
EFFECTS |= {"map_Pr", "map_Pm", "map_Ps", "map_refl", "map_aat", "map_RMA", "map_ORM"}
# Of textures: how many values follow; 3: up to three numbers.
OPTIONS = {"-blendu": 1, "-blendv": 1, "-boost": 1, "-texres": 1, "-imfchan": 1}
OPTIONS |= {"-bm": 1, "-type": 1, "-clamp": 1, "-mm": 2, "-o": 3, "-s": 3, "-t": 3}
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


# --- Text ---------------------------------------------------------------------------


def text_of(data: bytes) -> str:
    """The text of an OBJ or MTL file: UTF-8, or else Latin-1.

    Raises:
        ValueError: it is UTF-16 or UTF-32.
    """
    start = data[:4096]
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or start.count(0) * 3 > len(start):
        raise ValueError("is UTF-16 or no text; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"\\[ \t]*\n", " ", text) if "\\" in text else text


def uncommented(text: str) -> str:
    """Without a comment behind it; "#" inside a word is part of the word."""
    return re.split(r"(?:^|\s)#", text, maxsplit=1)[0].strip()


def rest(line: str) -> str:
    """All behind a line's first word, comments too: names may have a "#"."""
    return line.partition(line.split()[0])[2].strip()


# --- Materials ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Map:
    """A texture of a material, and how it lies on the surface.

    Attributes:
        name: of the picture's file, as the material has it.
        texture: the picture.
        scale, offset: of places in it, along u and v (-s and -o).
    """

    name: str
    texture: Texture
    scale: tuple[float, float]
    offset: tuple[float, float]

    def places(self, uv: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Of the file's vt, whose v runs upwards: in the picture, float32."""
        moved = np.nan_to_num(uv) * self.scale + self.offset
        moved[:, 1] = 1 - moved[:, 1]
        return moved.astype(np.float32)


@dataclasses.dataclass
class Material:
    """What a material says of colour: Kd, d or 1 - Tr, map_Kd, map_d."""

    colour: tuple[float, ...] = (1.0, 1.0, 1.0)
    alpha: float = 1.0
    picture: Map | None = None
    cover: Map | None = None


def read_materials(
    libraries: Sequence[str], folder: pathlib.Path, notes: Notes
) -> dict[str, Material]:
    """The materials of all libraries, by name, with and without a comment in it."""
    found: dict[str, Material] = {}
    textures: dict[Any, Texture | None] = {}
    for line in libraries:
        # One name with blanks, or several names.
        whole = _beside(folder, line) or _beside(folder, uncommented(line))
        names = uncommented(line).split()
        for path in [whole] if whole else [_beside(folder, name) for name in names]:
            if path is None:
                notes.add(f"{line[:100]} is not there; drawn without its materials")
                continue
            _read_library(path, found, textures, notes)
    for name in list(found):
        found.setdefault(uncommented(name), found[name])
    return found


def _read_library(
    path: pathlib.Path,
    found: dict[str, Material],
    textures: dict[Any, Texture | None],
    notes: Notes,
) -> None:
    material, dissolved = Material(), False
    try:
        text = text_of(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"has a library {path.name} that {error}") from error
    for line in io.StringIO(text):
        words = uncommented(line).split()
        match words:
            case []:
                pass
            case ["newmtl", *_]:
                material, dissolved = Material(), False
                found.setdefault(rest(line), material)
            case ["Kd", "spectral" | "xyz", *_]:
                raise ValueError(f"has a material with Kd {words[1]}; expected r g b")
            case ["Kd", *numbers]:
                rgb = [float(number) for number in numbers[:3]]
                material.colour = tuple(
                    min(max(rgb[min(k, len(rgb) - 1)], 0.0), 1.0) for k in range(3)
                )
            case ["d", *numbers]:  # d -halo 0.5
                material.alpha, dissolved = float(numbers[-1]), True
            case ["Tr", number, *_] if not dissolved:  # programs disagree about Tr
                material.alpha = 1 - float(number)
            case ["map_Kd" | "map_kd", *_]:
                material.picture = _map(rest(line), path.parent, textures, notes)
            case ["map_d" | "map_D", *_]:
                material.cover = _map(rest(line), path.parent, textures, notes)
            case [word, *_] if word not in EFFECTS | {"Tr"}:
                notes.add(f"has materials with {word[:20]!r}, which is not read")


def _map(
    text: str,
    folder: pathlib.Path,
    textures: dict[Any, Texture | None],
    notes: Notes,
) -> Map | None:
    """What stands behind map_Kd or map_d: options and a file's name."""
    options: dict[str, list[str]] = {}
    while text.startswith("-"):
        option, _, rest = text.partition(" ")
        count = OPTIONS.get(option)
        if count is None:
            raise ValueError(f"has a texture with {option[:20]}, which is not read")
        pattern = (
            rf"\s*((?:{NUMBER}\s+){{1,3}})"
            if count == 3
            else rf"\s*((?:\S+\s+){{{count}}})"
        )
        values = re.match(pattern, rest)
        if values is None:
            raise ValueError(f"has a texture with {option} and no file's name")
        options[option] = values[1].split()
        text = rest[values.end() :]
    if any(float(number) for number in options.get("-t", [])):
        raise ValueError("has a turbulent texture (-t), which is not read")
    path = _beside(folder, text) or _beside(folder, uncommented(text))
    wrap: Wrap = "clamp" if options.get("-clamp") == ["on"] else "repeat"
    base, gain = (float(number) for number in options.get("-mm", ("0", "1")))
    key = path, wrap, base, gain
    if key not in textures:
        image = None
        if path is None:
            notes.add(f"{text[:100]} is not there; drawn without this texture")
        elif (image := open_texture(path.read_bytes())) is None:
            notes.add(f"{path.name} is no known picture; drawn without this texture")
        textures[key] = image and Texture(image, (wrap, wrap), base, gain)
    texture = textures[key]
    if texture is None:
        return None
    scale = [*map(float, options.get("-s", ())), 1.0, 1.0]
    offset = [*map(float, options.get("-o", ())), 0.0, 0.0]
    return Map(text, texture, (scale[0], scale[1]), (offset[0], offset[1]))


def _beside(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """The file that a line names, as seen from the folder of the line's own file.

    Written on Windows, in other letters' cases, or with a path of the writer's own
    machine, whose last part lies here.
    """
    name = name.strip().strip('"')
    if not name:
        return None
    slashed = name.replace("\\", "/")
    last = slashed.rpartition("/")[2]
    raw = os.fsdecode(slashed.encode("latin-1", "ignore"))
    for wanted in dict.fromkeys((name, slashed, raw, last)):
        if (folder / wanted).is_file():
            return folder / wanted
    alike = [path for path in folder.iterdir() if path.name.lower() == last.lower()]
    return alike[0] if len(alike) == 1 and alike[0].is_file() else None
