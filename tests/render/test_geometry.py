import numpy as np
import pytest

from ar3d_jax.codec.surface import Mesh, extract
from ar3d_jax.render.geometry import surface_points, vertex_normals
from ar3d_jax.render.meshes import PaintedMesh

# Two triangles in the plane z = 0, one three times as large; and an unused vertex.
FLAT = Mesh(
    np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [-3, 0, 0], [9, 9, 9]]),
    np.int32([[0, 1, 2], [0, 2, 3]]),
)


def test_normals_of_a_plane():
    normals = vertex_normals(FLAT)
    np.testing.assert_array_equal(normals[:4], [[0, 0, 1]] * 4)
    np.testing.assert_array_equal(normals[4], [0, 0, 0])


def test_normals_of_a_ball_point_outwards():
    axes = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 24)] * 3, indexing="ij"), -1)
    mesh = extract((0.3 - np.linalg.norm(axes, axis=-1)).astype(np.float32))
    outwards = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
    assert (vertex_normals(mesh) * outwards).sum(1).min() > 0.99


def test_points_are_spread_by_area():
    points, _ = surface_points(FLAT, 8000, seed=0)
    assert points.shape == (8000, 3)
    assert (points[:, 2] == 0).all()
    x, y = points[:, 0], points[:, 1]
    assert (y >= 0).all()
    assert (np.where(x > 0, x + y, y - x / 3) <= 1 + 1e-6).all()  # inside
    # Three quarters of the area have x < 0; the standard error is 0.005.
    assert np.isclose((x < 0).mean(), 0.75, atol=0.02)
    # Centroids: the mean of the corners, 1/3 and -1.
    assert np.isclose(x[x > 0].mean(), 1 / 3, atol=0.02)
    assert np.isclose(x[x < 0].mean(), -1, atol=0.05)


def test_points_depend_on_the_seed_alone():
    first, _ = surface_points(FLAT, 10, seed=5)
    np.testing.assert_array_equal(first, surface_points(FLAT, 10, seed=5)[0])
    assert (first != surface_points(FLAT, 10, seed=6)[0]).any()


def test_points_without_colours_are_neutral():
    _, colours = surface_points(FLAT, 7, seed=0)
    assert (colours == 102).all()  # 0.4 of 255
    assert colours.shape == (7, 3)


def test_points_have_the_colours_of_their_places():
    # Two triangles of a square: the left column of the texture is red, the right blue;
    # the vertices are half as bright. A third one, far off, has no texture.
    corners = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    vertices = np.float32([*corners, [5, 0, 0], [6, 0, 0], [5, 1, 0]])
    faces = np.int32([[0, 1, 2], [0, 2, 3], [4, 5, 6]])
    shades = np.uint8([[128] * 3] * 4 + [[255, 0, 0], [0, 255, 0], [0, 0, 255]])
    uv = np.float32([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0], [0, 0], [0, 0]]) * 0.999
    texture = np.uint8([[[255, 0, 0], [0, 0, 255]]] * 2)
    mesh = PaintedMesh(vertices, faces, shades, uv, textures=((2, texture), (1, None)))
    points, colours = surface_points(mesh, 500, seed=1)
    square, left = points[:, 0] < 2, points[:, 0] < 0.5
    assert (colours[square & left] == [128, 0, 0]).all()
    assert (colours[square & ~left] == [0, 0, 128]).all()
    # In the third the colour is the weight of each corner.
    weights = np.stack(
        [6 - points[:, 0] - points[:, 1], points[:, 0] - 5, points[:, 1]]
    )
    np.testing.assert_allclose(
        colours[~square] / 255, weights.T[~square], atol=0.5 / 255 + 1e-6
    )


def test_nothing_to_put_points_on():
    empty = Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32))
    line = Mesh(np.zeros((3, 3), np.float32), np.int32([[0, 1, 2]]))
    for mesh in (empty, line):
        with pytest.raises(ValueError, match="without area"):
            surface_points(mesh, 3, seed=0)


def test_points_of_an_object_that_was_rounded_otherwise():
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, 65), np.linspace(-0.5, 0.5, 65))
    flat = np.stack([x.ravel(), y.ravel(), np.zeros(65**2)], 1).astype(np.float32)
    corner = np.arange(65**2).reshape(65, 65)
    a, b, c = (k.ravel() for k in (corner[:-1, :-1], corner[:-1, 1:], corner[1:, 1:]))
    faces = np.stack([a, b, c], 1).astype(np.int32)
    noise = np.random.default_rng(0).uniform(-7e-6, 7e-6, flat.shape)
    mesh = Mesh(flat, faces)
    other = Mesh((flat + noise).astype(np.float32), faces)
    near = [surface_points(each, 20_000, 0, alike=True)[0] for each in (mesh, other)]
    assert np.linalg.norm(near[0] - near[1], axis=1).max() < 1e-4
    # Without it, some points lie on another triangle.
    far = [surface_points(each, 20_000, 0)[0] for each in (mesh, other)]
    assert (np.linalg.norm(far[0] - far[1], axis=1) > 1e-3).sum() > 10
    np.testing.assert_allclose(near[0].mean(0), flat[faces].mean((0, 1)), atol=0.01)
