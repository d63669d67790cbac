import numpy as np
import pytest
import trimesh

from ar3d_jax.codec.voxels import voxelize
from ar3d_jax.evaluation import geometry
from ar3d_jax.evaluation.geometry import chamfer, diversity, f_score, health, voxel_iou


def grid(*cells):
    voxels = np.zeros((4, 4, 4), bool)
    for cell in cells:
        voxels[cell] = True
    return voxels


def ball(count, seed):
    """Points of the sphere of diameter 1."""
    points = np.random.default_rng(seed).standard_normal((count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True) / 2


def test_iou_counts_cells():
    a, b = grid((0, 0, 0), (1, 1, 1)), grid((1, 1, 1), (2, 2, 2), (3, 3, 3))
    assert voxel_iou(a, b) == 0.25
    assert voxel_iou(a, a) == 1
    assert voxel_iou(a, grid()) == 0
    assert voxel_iou(grid(), grid()) == 0


def test_iou_of_voxelised_meshes():
    """A box and the same box one cell further along x: shells of 8x8x8 cells. Both have
    7 planes in common, and of each the rim of 28 cells."""
    box = trimesh.creation.box(extents=[0.47] * 3)
    faces = np.asarray(box.faces)
    a = voxelize(np.asarray(box.vertices), faces, 16)
    b = voxelize(box.vertices + np.array([1 / 16, 0, 0]), faces, 16)
    shell = 8**3 - 6**3
    assert voxel_iou(a, b) == pytest.approx(7 * 28 / (2 * shell - 7 * 28))


def test_diversity_is_the_mean_over_pairs(monkeypatch):
    voxels = np.random.default_rng(0).random((5, 4, 4, 4)) < 0.4
    voxels[3] = False
    pairs = [voxel_iou(voxels[i], voxels[j]) for i in range(5) for j in range(i)]
    assert diversity(voxels) == pytest.approx(np.mean(pairs), rel=1e-12)
    monkeypatch.setattr(geometry, "CHUNK", 50)
    assert diversity(voxels) == pytest.approx(np.mean(pairs), rel=1e-12)
    assert diversity(voxels[[0, 0, 0]]) == 1
    assert np.isnan(diversity(voxels[:1]))


def test_chamfer_is_the_mean_of_both_ways_of_plain_distances():
    p = np.array([[0.0, 0, 0], [1.0, 0, 0]])
    q = np.array([[0.0, 0, 0], [1.0, 0, 0.3], [0.0, 0.2, 0]])
    # p to q: 0 and 0.3; q to p: 0, 0.3 and 0.2.
    assert chamfer(p, q) == pytest.approx((0.15 + 0.5 / 3) / 2)
    assert chamfer(q, p) == chamfer(p, q)
    assert chamfer(p, p) == 0


def test_f_score_is_of_precision_and_recall():
    p = np.array([[0.0, 0, 0], [1.0, 0, 0]])
    q = np.array([[0.0, 0, 0.01], [0.5, 0, 0], [0.0, 0.5, 0], [0.0, 0, 0.019]])
    # A half of p is near q, a half of q is near p; at 0.015 a quarter of q.
    assert f_score(p, q) == pytest.approx(0.5)
    assert f_score(p, q, 0.015) == pytest.approx(2 * 0.5 * 0.25 / 0.75)
    assert f_score(p, q, 0.001) == 0
    assert f_score(p, p) == 1


@pytest.mark.parametrize("count", [1024, 4096])
def test_f_score_of_one_surface_is_limited_by_its_points(count):
    expected = 1 - np.exp(-np.pi * count * 0.02**2 / np.pi)
    assert f_score(ball(count, 0), ball(count, 1)) == pytest.approx(expected, abs=0.02)


def test_distances_of_unusable_points_are_refused():
    with pytest.raises(ValueError, match="no points"):
        chamfer(np.zeros((0, 3)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="not finite"):
        f_score(np.full((1, 3), np.nan), np.zeros((2, 3)))


def split(mesh):
    """Every face with three vertices of its own, as files of flat shading have them."""
    vertices = np.asarray(mesh.vertices)[mesh.faces].reshape(-1, 3)
    return vertices.astype(np.float32), np.arange(len(vertices)).reshape(-1, 3)


def test_a_closed_ball_is_healthy_however_its_vertices_are_split():
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=0.5)
    healthy = {"components": 1, "watertight": 1, "degenerate_faces": 0}
    assert health(np.asarray(mesh.vertices), np.asarray(mesh.faces)) == healthy
    assert health(*split(mesh)) == healthy


def test_a_hole_opens_it():
    vertices, faces = split(trimesh.creation.box())
    assert health(vertices, faces)["watertight"] == 1
    assert health(vertices, faces[1:])["watertight"] == 0


def test_an_edge_of_three_faces_is_not_watertight():
    vertices, faces = split(trimesh.creation.box())
    fin = np.array([[-0.5, -0.5, -0.5], [-0.5, -0.5, 0.5], [-0.9, -0.9, 0]])
    vertices = np.concatenate([vertices, fin.astype(np.float32)])
    faces = np.concatenate([faces, [[36, 37, 38]]])
    assert health(vertices, faces)["watertight"] == 0


def test_components_are_counted_without_loose_vertices():
    boxes = [trimesh.creation.box(extents=[0.1] * 3) for _ in range(3)]
    for i, box in enumerate(boxes):
        box.apply_translation([0.3 * i, 0, 0])
    vertices, faces = split(trimesh.util.concatenate(boxes))
    vertices = np.concatenate([[[5.0, 5, 5]], vertices, [[9.0, 9, 9]]])
    found = health(vertices, faces + 1)
    assert found == {"components": 3, "watertight": 1, "degenerate_faces": 0}


def test_degenerate_faces_are_counted_and_make_no_hole():
    """Two slivers over an edge of a closed box, to a vertex beside one of its ends."""
    mesh = trimesh.creation.box()
    vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces)
    a, b = faces[0][:2]
    twin = len(vertices)
    vertices = np.concatenate([vertices, vertices[[a]] + 1e-9])
    faces = np.concatenate([faces, [[a, b, twin], [b, a, twin]]])
    found = health(vertices, faces)
    assert found["degenerate_faces"] == pytest.approx(2 / 14)
    assert (found["watertight"], found["components"]) == (1, 1)


def test_a_face_along_a_line_is_degenerate():
    line = np.array([[-0.5, -0.5, -0.5], [0, 0, 0], [0.5, 0.5, 0.5]])
    found = health(line, np.array([[0, 1, 2]]))
    assert found == {"components": 1, "watertight": 0, "degenerate_faces": 1}


def test_scale_and_place_change_nothing():
    vertices, faces = split(trimesh.creation.annulus(0.2, 0.5, 0.3))
    expected = health(vertices, faces)
    assert expected["watertight"] == 1
    assert health(vertices.astype(np.float64) * 1e-6 + 3, faces) == expected


def test_nothing_is_not_watertight():
    none = {"components": 0, "watertight": 0, "degenerate_faces": 0}
    assert health(np.zeros((0, 3)), np.zeros((0, 3), np.int32)) == none
    assert health(np.zeros((3, 3)), np.array([[0, 1, 2]])) == none | {
        "degenerate_faces": 1
    }


def test_a_vertex_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        health(np.full((3, 3), np.nan), np.array([[0, 1, 2]]))
