import numpy as np

from ar3d_jax.codec import surface
from ar3d_jax.evaluation import measure
from tests.render import mesh_files


def quantised(path, mesh):
    """The mesh as normalised int16, which rounds to 1/65534 of its side."""
    vertices = mesh_files.y_up(mesh.vertices)
    steps = np.round(vertices * 2 * 32767).astype(np.int16)
    rows = np.zeros((len(steps), 4), np.int16)  # rows start at multiples of four bytes
    rows[:, :3] = steps
    corners = mesh.faces.astype(np.uint32).ravel()
    data = rows.tobytes() + corners.tobytes()
    views = [(0, rows.nbytes), (rows.nbytes, corners.nbytes)]
    tree = {
        "bufferViews": [
            {"buffer": 0, "byteOffset": first, "byteLength": length}
            for first, length in views
        ],
        "accessors": [
            {
                "bufferView": 0,
                "componentType": 5122,
                "normalized": True,
                "count": len(rows),
                "type": "VEC3",
            },
            {
                "bufferView": 1,
                "componentType": 5125,
                "count": len(corners),
                "type": "SCALAR",
            },
        ],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "nodes": [{"mesh": 0, "scale": [0.5, 0.5, 0.5]}],
        "scenes": [{"nodes": [0]}],
    }
    tree["bufferViews"][0]["byteStride"] = 8
    return mesh_files.glb(path, tree, data)


def test_rounding_of_a_voxel_surface_changes_no_voxel(tmp_path):
    """Its faces lie between voxels, where the last bit would decide."""
    solid = np.zeros((32, 32, 32), bool)
    solid[:, 10:20, 3:29] = np.random.default_rng(0).random((32, 10, 26)) < 0.6
    mesh = surface.extract(np.where(solid, 1.0, -1.0).astype(np.float32))
    surface.to_glb(mesh, tmp_path / "plain.glb")
    quantised(tmp_path / "quantised.glb", mesh)
    plain, other = (
        measure._look_at(tmp_path / name, "y", 1_000_000)
        for name in ("plain.glb", "quantised.glb")
    )
    np.testing.assert_array_equal(plain.packed, other.packed)
    assert plain.packed.any()
    assert plain.health == other.health
