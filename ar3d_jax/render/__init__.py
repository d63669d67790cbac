"""Pictures of meshes: cameras, the drawing pass, worker processes, sheets.

Numpy and OpenGL; nothing here loads jax.
"""
