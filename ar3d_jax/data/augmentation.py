"""Random variants of a mesh: turned about z, mirrored, stretched; and their voxels.

`python -m ar3d_jax.data.augmentation --catalog=DIR` voxelises many variants of every
training object once, because the codec's and the policy's trainings read them for many
epochs. The catalog itself is `catalog.py`; the voxeliser is `codec/voxels.py`.
"""

import dataclasses
import functools
import multiprocessing
from pathlib import Path

import numpy as np
from absl import flags
from jaxtyping import Float, UInt8

from ar3d_jax.codec.voxels import pack, unpack, voxelize
from ar3d_jax.command import run
from ar3d_jax.data.catalog import load_catalog
from ar3d_jax.data.parallel import map_objects
from ar3d_jax.data.sh3f import normalise
from ar3d_jax.errors import UserError, reading, whole_file

STRETCH = (
    1.25  # each side by up to this factor either way; our choice: still the object
)
TILT_DEG = 45.0  # free turns on top of a quarter turn cover the circle


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """One change of a mesh, applied in this order.

    Attributes:
        mirror: Left and right exchanged.
        stretch: Factor along x, y, z; then the longest side is 1 again.
        quarter: Turns by 90 degrees about z, counterclockwise from above.
        angle_deg: A further turn about z.
    """

    mirror: bool = False
    stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)
    quarter: int = 0
    angle_deg: float = 0.0

    def apply(self, vertices: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """The changed points, centred, longest side 1."""
        flip = np.array([-1.0 if self.mirror else 1.0, 1.0, 1.0])
        points = np.asarray(vertices, np.float64) * flip * np.array(self.stretch)
        for _ in range(self.quarter % 4):  # exact, unlike cos(90 degrees)
            points = np.stack([-points[:, 1], points[:, 0], points[:, 2]], axis=1)
        if self.angle_deg:
            angle = np.deg2rad(self.angle_deg)
            x, y, z = points.T
            cos, sin = np.cos(angle), np.sin(angle)
            points = np.stack([cos * x - sin * y, sin * x + cos * y, z], axis=1)
        return normalise(points)


def draw(rng: np.random.Generator, *, front: bool = False) -> Augmentation:
    """A random change; with `front` the object keeps facing -y (no turn).

    Turns are whole quarters half of the time, because furniture stands along walls.
    """
    x, y, z = np.exp(rng.uniform(-np.log(STRETCH), np.log(STRETCH), 3)).tolist()
    mirror = bool(rng.integers(2))
    quarter = int(rng.integers(4))
    angle = float(rng.uniform(-TILT_DEG, TILT_DEG)) if rng.integers(2) else 0.0
    if front:
        quarter, angle = 0, 0.0
    return Augmentation(mirror, (x, y, z), quarter, angle)


def augment(
    vertices: Float[np.ndarray, "n 3"], rng: np.random.Generator
) -> Float[np.ndarray, "n 3"]:
    """`vertices` under a random change."""
    return draw(rng).apply(vertices)


@dataclasses.dataclass(frozen=True)
class AugmentedVoxels:
    """Voxel grids of changed training objects, `copies` for each, object by object.

    Attributes:
        packed: uint8 [rows, R^3 / 8].
        object: int32 [rows], index into the catalog.
        extents: float32 [rows, 3], sides along x, y, z after the change.
        mirror: bool [rows].
        quarter: int8 [rows].
        angle_deg: float32 [rows].
        resolution: Voxels along one side.
    """

    packed: np.ndarray
    object: np.ndarray
    extents: np.ndarray
    mirror: np.ndarray
    quarter: np.ndarray
    angle_deg: np.ndarray
    resolution: int

    @property
    def front(self) -> np.ndarray:
        """Rows whose object still faces -y: every second one."""
        return (self.quarter == 0) & (self.angle_deg == 0)

    def voxels(self, rows: np.ndarray) -> np.ndarray:
        """Bool grids [len(rows), R, R, R]."""
        return unpack(self.packed[rows], self.resolution)

    def save(self, path: Path) -> None:
        """Writes one .npz; `load_augmented` reads it.

        Raises:
            UserError: The file cannot be written.
        """
        columns = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        columns["voxels"] = columns.pop("packed")
        with whole_file(path) as partial, partial.open("wb") as file:
            np.savez(file, **columns)


def load_augmented(path: Path | str) -> AugmentedVoxels:
    """What the command of this file wrote.

    Raises:
        UserError: There is no such file.
    """
    if not Path(path).is_file():
        raise UserError(
            f"no file {path}; expected the output of python -m "
            "ar3d_jax.data.augmentation --catalog=DIR"
        )
    remedy = "python -m ar3d_jax.data.augmentation --catalog=DIR"
    with reading(Path(path), remedy), np.load(path) as arrays:
        return AugmentedVoxels(
            packed=arrays["voxels"],
            object=arrays["object"],
            extents=arrays["extents"],
            mirror=arrays["mirror"],
            quarter=arrays["quarter"],
            angle_deg=arrays["angle_deg"],
            resolution=int(arrays["resolution"]),
        )


_catalog_of = functools.cache(load_catalog)  # each process reads it once


def _vary(
    job: tuple[str, int, int, int, int],
) -> tuple[UInt8[np.ndarray, "copies bytes"], np.ndarray, list[Augmentation]]:
    """Packed grids, extents and changes of one object's copies."""
    folder, index, copies, seed, resolution = job
    vertices, faces = _catalog_of(folder).mesh(index)
    grids, extents, changes = [], [], []
    for copy in range(copies):
        # Seeded by the object, not by the order of work.
        change = draw(np.random.default_rng((seed, index, copy)), front=copy % 2 == 0)
        points = change.apply(vertices)
        grids.append(pack(voxelize(points, faces, resolution)))
        extents.append(np.ptp(points, axis=0))
        changes.append(change)
    return np.stack(grids), np.array(extents, np.float32), changes


def augmented_voxels(
    folder: Path | str, *, copies: int, seed: int, resolution: int, processes: int
) -> AugmentedVoxels:
    """`copies` changed grids of every training object of the catalog in `folder`.

    Even copies keep the object's front towards -y (for the policy, which should learn
    one pose); odd copies are turned too (for the codec).
    """
    catalog = _catalog_of(str(folder))
    training = [i for i, thing in enumerate(catalog.objects) if not thing["held_out"]]
    jobs = [(str(folder), i, copies, seed, resolution) for i in training]
    varied = map_objects(_vary, jobs, processes=processes, title="augmentation")
    grids, extents, changes = zip(*varied, strict=True)
    flat = [change for group in changes for change in group]
    return AugmentedVoxels(
        packed=np.concatenate(grids),
        object=np.repeat(np.array(training, np.int32), copies),
        extents=np.concatenate(extents),
        mirror=np.array([change.mirror for change in flat]),
        quarter=np.array([change.quarter for change in flat], np.int8),
        angle_deg=np.array([change.angle_deg for change in flat], np.float32),
        resolution=resolution,
    )


def _define_flags() -> None:
    flags.DEFINE_string("catalog", None, "folder of the catalog", required=True)
    flags.DEFINE_string("out", "", "file; default: augmented.npz in the catalog")
    flags.DEFINE_integer("copies", 24, "changed grids per training object", 1)
    flags.DEFINE_integer("seed", 0, "of the random changes", 0)
    flags.DEFINE_integer("processes", multiprocessing.cpu_count(), "workers", 1)


def main(_: list[str]) -> None:
    """Writes the grids and says how many."""
    folder = Path(flags.FLAGS.catalog)
    path = Path(flags.FLAGS.out or folder / "augmented.npz")
    rows = augmented_voxels(
        folder,
        copies=flags.FLAGS.copies,
        seed=flags.FLAGS.seed,
        resolution=load_catalog(folder).resolution,
        processes=flags.FLAGS.processes,
    )
    rows.save(path)
    print(f"{path}: {len(rows.object)} grids of {rows.resolution}^3")


if __name__ == "__main__":
    _define_flags()
    run(main)
