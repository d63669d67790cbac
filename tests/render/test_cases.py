"""Files as other programs write them, each beside the plain file that it equals.

A chair of boxes, y up, 1.3 high: seat, back at -z, four legs; `coloured.ref.glb` has a
red seat and a blue back, `concave_polygon.ref.glb` is an L. What each file shows is its
name. A plain twin is what the format's specification says is the same object.
"""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from ar3d_jax.render import meshes
from ar3d_jax.render.geometry import surface_points

CASES = Path(__file__).parent / "cases"
TWINS = {
    "quantised_normalised.glb": "chair",
    "uv_ushort_normalised.glb": "coloured",
    "sparse_over_base.glb": "chair",
    "skinned_zup.glb": "chair",
    "morph_default_weights.glb": "chair",
    "mesh_and_camera.glb": "chair",
    "gpu_instancing.glb": "chair",
    "texture_transform.glb": "coloured",
    "second_uv_set.glb": "coloured",
    "invisible_part.glb": "chair",
    "box with spaces.gltf": "chair",
    "more_uv_no_mtl.obj": "chair",
    "mtl_latin1.obj": "coloured",
    "interleaved_negative.obj": "chair",
    "concave_polygon.obj": "concave_polygon",
    "bom.obj": "chair",
    "colour_diffuse.ply": "coloured",
}
POINTS = 20_000
# Of the longest side: how far a point's nearest one of so many others may be.
SPACING = 0.03


def looked_at(name):
    notes = []
    mesh = meshes.load(CASES / name, up="y", max_faces=1000, colours=True, notes=notes)
    return surface_points(mesh, POINTS, seed=0), mesh, notes


def area(mesh):
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    return np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2


def test_every_case_has_a_twin():
    files = {path.name for path in CASES.iterdir()}
    others = {f"{name}.ref.glb" for name in TWINS.values()}
    assert files == {*TWINS, *others, "box with spaces.bin", "mtl_latin1.mtl"}


@pytest.mark.parametrize("name", TWINS)
def test_a_case_is_its_twin(name):
    (points, colours), _, notes = looked_at(name)
    (others, other_colours), _, _ = looked_at(f"{TWINS[name]}.ref.glb")
    away, nearest = cKDTree(others).query(points)
    assert away.max() < SPACING
    if TWINS[name] != "concave_polygon":  # whose twin has a wall inside
        assert cKDTree(points).query(others)[0].max() < SPACING
    differ = np.abs(colours.astype(int) - other_colours[nearest]).max(1)
    assert (differ <= 12).mean() >= 0.95
    assert not notes


def test_a_concave_polygon_has_its_own_area():
    mesh = looked_at("concave_polygon.obj")[1]
    # Twice the L, 0.36, and its outline, 4 long and 0.3 high; its longest side is 1.
    np.testing.assert_allclose(area(mesh), 2 * 0.36 + 4 * 0.3, rtol=1e-6)


def test_texture_coordinates_without_a_texture_are_white():
    (_, colours), _, _ = looked_at("more_uv_no_mtl.obj")
    assert (colours == 255).all()
