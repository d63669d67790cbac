import numpy as np
import trimesh

from ar3d_jax.codec import surface


def as_trimesh(mesh):
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


def centres(resolution):
    axis = (np.arange(resolution) + 0.5) / resolution - 0.5
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)


def test_a_ball_is_closed_smooth_and_wound_outwards():
    distance = np.linalg.norm(centres(32) - [0.05, 0.1, -0.1], axis=-1)
    mesh = surface.extract((0.3 - distance).astype(np.float32))
    assert mesh.vertices.dtype == np.float32
    assert mesh.faces.dtype == np.int32
    ball = as_trimesh(mesh)
    assert ball.is_watertight
    # Positive volume means outward faces; 4/3 pi 0.3^3 = 0.1131.
    np.testing.assert_allclose(ball.volume, 0.1131, rtol=0.01)
    np.testing.assert_allclose(ball.center_mass, [0.05, 0.1, -0.1], atol=1e-3)
    # Sub-voxel: far below the voxel's 1/32 = 0.031.
    radius = np.linalg.norm(mesh.vertices - [0.05, 0.1, -0.1], axis=1)
    assert np.abs(radius - 0.3).max() < 0.002


def test_the_crossing_is_interpolated():
    logits = np.full((4, 4, 4), -3.0, np.float32)
    logits[1, 1, 1] = 1.0
    # Centres 0.25 apart at -0.125; 1 to -3 crosses 0 a quarter of the way.
    mesh = surface.extract(logits)
    extremes = [mesh.vertices.min(0), mesh.vertices.max(0)]
    np.testing.assert_allclose(extremes, [[-0.1875] * 3, [-0.0625] * 3], atol=1e-6)


def test_a_full_grid_fills_the_cube():
    mesh = as_trimesh(surface.extract(np.full((8, 8, 8), 3.0, np.float32)))
    assert mesh.is_watertight
    np.testing.assert_allclose(mesh.bounds, [[-0.5] * 3, [0.5] * 3], atol=1e-6)


def test_nothing_and_zeros_are_empty():
    for value in (-1.0, 0.0):
        mesh = surface.extract(np.full((4, 4, 4), value, np.float32))
        assert mesh.vertices.shape == (0, 3)
        assert mesh.faces.shape == (0, 3)


def test_glb_has_y_up(tmp_path):
    vertices = np.float32([[0, 0, 0], [0.1, 0, 0], [0, 0.2, 0], [0, 0, 0.3]])
    faces = np.int32([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])
    surface.to_glb(surface.Mesh(vertices, faces), tmp_path / "a.glb")
    loaded = trimesh.load(tmp_path / "a.glb", force="mesh")
    np.testing.assert_allclose(loaded.bounds, [[0, 0, -0.2], [0.1, 0.3, 0]], atol=1e-6)
    assert loaded.volume > 0


def test_an_empty_mesh_has_a_file(tmp_path):
    mesh = surface.extract(np.full((4, 4, 4), -1.0, np.float32))
    surface.to_glb(mesh, tmp_path / "a.glb")
    assert (tmp_path / "a.glb").read_bytes()[:4] == b"glTF"
