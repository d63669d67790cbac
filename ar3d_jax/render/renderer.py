"""A mesh to its views, through OpenGL: a window-less EGL context and one drawing pass.

pyrender opens the context, on a GPU or on Mesa's software rasteriser. Its own drawing
pass is not used: per view it resolves four samples a pixel, reads colours and depths
back and turns both around in numpy. Here all views of an object lie below each other in
one framebuffer: the mesh goes up once, and one read-back puts finished pictures where
the caller wants them (`benchmarks/render.py` measures both).

Cameras are in `cameras.py`; which process draws what, in `workers.py`. The process that
draws imports this file and must not load jax.
"""

import ctypes
import os
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ar3d_jax.codec.surface import Mesh
from ar3d_jax.config import RenderConfig
from ar3d_jax.errors import UserError
from ar3d_jax.render import cameras
from ar3d_jax.render.geometry import vertex_normals

# Pictures are drawn twice as wide and high and averaged 2x2: smooth edges and shading,
# at a third of the cost of four samples per pixel in Mesa's software rasteriser.
OVERSAMPLE = 2

# Light comes from above the camera's left shoulder, fixed to the camera; a surface that
# faces away from it keeps the ambient part. Light grey on white: shape is all there is.
VERTEX_SHADER = """
#version 330 core
layout(location = 0) in vec3 position;
layout(location = 1) in vec3 normal;
uniform mat4 world_to_picture;
uniform mat3 world_to_camera;
out vec3 camera_normal;
void main() {
    gl_Position = world_to_picture * vec4(position, 1.0);
    camera_normal = world_to_camera * normal;
}
"""
FRAGMENT_SHADER = """
#version 330 core
in vec3 camera_normal;
out vec4 colour;
const vec3 light = normalize(vec3(-0.35, 0.6, 1.0));
void main() {
    vec3 normal = normalize(camera_normal);
    float diffuse = max(dot(gl_FrontFacing ? normal : -normal, light), 0.0);
    colour = vec4(vec3(0.27 + 0.6 * diffuse), 1.0);
}
"""


def open_context() -> tuple[Any, Any]:
    """An EGL context that is current in this thread, and the module OpenGL.GL.

    Raises:
        UserError: no device of this machine gives one.
    """
    os.environ["PYOPENGL_PLATFORM"] = "egl"  # read when OpenGL is first imported
    # pyrender imports its window library, which wants X11 unless it is told.
    os.environ.setdefault("PYGLET_HEADLESS", "true")
    try:
        from OpenGL import GL
        from pyrender.platforms import egl

        failure: Exception = RuntimeError("EGL lists no device")
        for device in egl.query_devices():
            try:
                platform = egl.EGLPlatform(1, 1, device=device)
                platform.init_context()
                return platform, GL
            # PyOpenGL raises its own errors, pyrender asserts: any of them means that
            # this device does not draw, and the next one may.
            except Exception as error:
                failure = error
        raise failure
    except Exception as error:
        what = " ".join(str(error).split())[:200] or "no reason given"
        raise UserError(
            f"cannot draw: no OpenGL through EGL ({type(error).__name__}: {what}); "
            "expected a GPU driver with EGL, or Mesa: "
            "apt-get install libegl1 libgl1 libgl1-mesa-dri"
        ) from error


class Renderer:
    """Draws meshes as shaded grey geometry on white, from a ring of cameras.

    Belongs to the thread that made it. The same mesh gives the same bits on the same
    machine, whatever was drawn before.
    """

    def __init__(self, config: RenderConfig) -> None:
        """Opens the context and makes all that does not depend on the mesh.

        Raises:
            UserError: there is no OpenGL through EGL.
        """
        self.config = config
        self._platform, self._gl = open_context()
        gl = self._gl
        poses = cameras.camera_poses(
            config.views, pitch_deg=config.pitch_deg, radius=config.radius
        )
        world_to_camera = np.linalg.inv(poses)
        # The object lies within sqrt(3)/2 of the origin; the planes are just outside.
        lens = cameras.projection(
            config.fov_deg, near=max(0.05, config.radius - 1), far=config.radius + 1
        )
        lens[1] *= -1  # OpenGL's first row is the lowest; ours is the top one
        self._to_picture = (lens @ world_to_camera).astype(np.float32)
        self._to_camera = world_to_camera[:, :3, :3].astype(np.float32)

        limit = int(gl.glGetIntegerv(gl.GL_MAX_RENDERBUFFER_SIZE))
        self._views_per_pass = min(config.views, limit // (OVERSAMPLE * config.size))
        width, height = config.size, config.size * self._views_per_pass
        self._large = self._framebuffer(width * OVERSAMPLE, height * OVERSAMPLE)
        self._small = self._framebuffer(width, height)
        self._program = self._compile()
        self._describe_vertices()

    def _framebuffer(self, width: int, height: int) -> int:
        gl = self._gl
        colour, depth = gl.glGenRenderbuffers(2)
        framebuffer = gl.glGenFramebuffers(1)
        gl.glBindFramebuffer(gl.GL_FRAMEBUFFER, framebuffer)
        for buffer, kind, role in (
            (colour, gl.GL_RGBA8, gl.GL_COLOR_ATTACHMENT0),
            (depth, gl.GL_DEPTH_COMPONENT24, gl.GL_DEPTH_ATTACHMENT),
        ):
            gl.glBindRenderbuffer(gl.GL_RENDERBUFFER, buffer)
            gl.glRenderbufferStorage(gl.GL_RENDERBUFFER, kind, width, height)
            gl.glFramebufferRenderbuffer(
                gl.GL_FRAMEBUFFER, role, gl.GL_RENDERBUFFER, buffer
            )
        assert gl.glCheckFramebufferStatus(gl.GL_FRAMEBUFFER) == (
            gl.GL_FRAMEBUFFER_COMPLETE
        )
        return int(framebuffer)

    def _compile(self) -> int:
        from OpenGL.GL import shaders

        gl = self._gl
        # A core-profile context validates a program against the bound vertex array.
        gl.glBindVertexArray(gl.glGenVertexArrays(1))
        program = shaders.compileProgram(
            shaders.compileShader(VERTEX_SHADER.strip(), gl.GL_VERTEX_SHADER),
            shaders.compileShader(FRAGMENT_SHADER.strip(), gl.GL_FRAGMENT_SHADER),
        )
        return int(program)

    def _describe_vertices(self) -> None:
        """Binds buffers for vertices (position, normal: 6 floats) and for corners."""
        gl = self._gl
        vertices, corners = gl.glGenBuffers(2)
        gl.glBindBuffer(gl.GL_ARRAY_BUFFER, vertices)
        gl.glBindBuffer(gl.GL_ELEMENT_ARRAY_BUFFER, corners)
        for location, offset in ((0, 0), (1, 12)):
            gl.glEnableVertexAttribArray(location)
            gl.glVertexAttribPointer(
                location, 3, gl.GL_FLOAT, False, 24, ctypes.c_void_p(offset)
            )

    def draw(
        self,
        mesh: Mesh,
        out: UInt8[np.ndarray, "V H W 3"] | None = None,
        *,
        two_sided: bool = False,
    ) -> UInt8[np.ndarray, "V H W 3"]:
        """The views of `mesh`, written into `out` where that is given.

        Triangles are seen from outside only (`Mesh` says which side that is), which
        halves the work for the closed surfaces of `surface.extract`; `two_sided` shows
        both sides, for meshes from elsewhere.
        """
        gl, size, views = self._gl, self.config.size, self.config.views
        if out is None:
            out = np.empty((views, size, size, 3), np.uint8)
        self._platform.make_current()
        vertices = np.hstack([mesh.vertices, vertex_normals(mesh)]).astype(np.float32)
        corners = mesh.faces.astype(np.uint32)
        for kind, array in (
            (gl.GL_ARRAY_BUFFER, vertices),
            (gl.GL_ELEMENT_ARRAY_BUFFER, corners),
        ):
            gl.glBufferData(kind, array.nbytes, array, gl.GL_STREAM_DRAW)
        gl.glUseProgram(self._program)
        gl.glEnable(gl.GL_DEPTH_TEST)
        gl.glFrontFace(gl.GL_CW)  # upside down: see `lens` above
        (gl.glDisable if two_sided else gl.glEnable)(gl.GL_CULL_FACE)
        gl.glPixelStorei(gl.GL_PACK_ALIGNMENT, 1)
        for first in range(0, views, self._views_per_pass):
            self._draw_pass(
                corners.size, first, out[first : first + self._views_per_pass]
            )
        return out

    def _draw_pass(
        self, corners: int, first: int, out: UInt8[np.ndarray, "V H W 3"]
    ) -> None:
        """Draws views `first`... of the uploaded mesh and reads them into `out`."""
        gl, size, large = self._gl, self.config.size, self.config.size * OVERSAMPLE
        gl.glBindFramebuffer(gl.GL_FRAMEBUFFER, self._large)
        gl.glClearColor(1.0, 1.0, 1.0, 1.0)
        gl.glClear(gl.GL_COLOR_BUFFER_BIT | gl.GL_DEPTH_BUFFER_BIT)
        to_picture = gl.glGetUniformLocation(self._program, "world_to_picture")
        to_camera = gl.glGetUniformLocation(self._program, "world_to_camera")
        for row in range(len(out) if corners else 0):
            gl.glViewport(0, row * large, large, large)
            gl.glUniformMatrix4fv(to_picture, 1, True, self._to_picture[first + row])
            gl.glUniformMatrix3fv(to_camera, 1, True, self._to_camera[first + row])
            gl.glDrawElements(
                gl.GL_TRIANGLES, corners, gl.GL_UNSIGNED_INT, ctypes.c_void_p(0)
            )
        gl.glBindFramebuffer(gl.GL_READ_FRAMEBUFFER, self._large)
        gl.glBindFramebuffer(gl.GL_DRAW_FRAMEBUFFER, self._small)
        # Halving with linear filtering is the mean of 2x2 pixels.
        target = (size, size * len(out))
        source = (large, large * len(out))
        gl.glBlitFramebuffer(
            0, 0, *source, 0, 0, *target, gl.GL_COLOR_BUFFER_BIT, gl.GL_LINEAR
        )
        gl.glBindFramebuffer(gl.GL_READ_FRAMEBUFFER, self._small)
        gl.glReadPixels(0, 0, *target, gl.GL_RGB, gl.GL_UNSIGNED_BYTE, out)

    def close(self) -> None:
        """Gives the context back, and with it all that is in it."""
        from OpenGL import EGL

        # Not pyrender's `delete_context`: that ends the display, which all renderers of
        # a process share.
        display, context = self._platform._egl_display, self._platform._egl_context
        none = EGL.EGL_NO_SURFACE
        EGL.eglMakeCurrent(display, none, none, EGL.EGL_NO_CONTEXT)
        EGL.eglDestroyContext(display, context)

    def __enter__(self) -> "Renderer":
        """Itself; closed at the end of the block."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes it."""
        self.close()
