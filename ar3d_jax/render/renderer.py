"""A mesh to its views, through OpenGL: a window-less EGL context and one drawing pass.

pyrender opens the context, on a GPU or on Mesa's software rasteriser. Its own drawing
pass is not used: per view it resolves four samples a pixel, reads colours and depths
back and turns both around in numpy. Here all views of an object lie below each other in
one framebuffer: the mesh goes up once, and one read-back puts finished pictures where
the caller wants them (`benchmarks/render.py` measures both).

Cameras are in `cameras.py`; which process draws what, in `workers.py`. The process that
draws imports this file and must not load jax.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from ar3d_jax.codec.surface import Mesh
from ar3d_jax.config import RenderConfig
from ar3d_jax.errors import UserError
from ar3d_jax.render import cameras
from ar3d_jax.render.geometry import vertex_normals
from ar3d_jax.render.meshes import PaintedMesh
from ar3d_jax.render.pictures import REPEAT, Wrap

# Pictures are drawn twice as wide and high and averaged 2x2: smooth edges and shading,
# at a third of the cost of four samples per pixel in Mesa's software rasteriser.
OVERSAMPLE = 2

# Directions to the light as the camera sees them. `shoulder`, our choice, shows shape:
# it comes from above the camera's left shoulder. A surface that faces away keeps the
# ambient part. Without colours all is light grey: shape is all there is.
LIGHTS = {"shoulder": "vec3(-0.35, 0.6, 1.0)", "camera": "vec3(0.0, 0.0, 1.0)"}
BACKGROUNDS = {"white": 1.0, "black": 0.0}
VERTEX_SHADER = """
layout(location = 0) in vec3 position;
layout(location = 1) in vec3 normal;
uniform mat4 world_to_picture;
uniform mat3 world_to_camera;
out vec3 camera_normal;
#ifdef PAINTED
layout(location = 2) in vec3 colour;
layout(location = 3) in vec2 uv;
out vec3 vertex_colour;
out vec2 vertex_uv;
#endif
void main() {
    gl_Position = world_to_picture * vec4(position, 1.0);
    camera_normal = world_to_camera * normal;
#ifdef PAINTED
    vertex_colour = colour;
    vertex_uv = uv;
#endif
}
"""
FRAGMENT_SHADER = """
in vec3 camera_normal;
out vec4 colour;
const vec3 light = normalize(LIGHT);
#ifdef PAINTED
in vec3 vertex_colour;
in vec2 vertex_uv;
uniform sampler2D picture;
#endif
void main() {
    vec3 normal = normalize(camera_normal);
    float diffuse = max(dot(gl_FrontFacing ? normal : -normal, light), 0.0);
    colour = vec4(vec3(0.27 + 0.6 * diffuse), 1.0);
#ifdef PAINTED
    colour.rgb *= vertex_colour * texture(picture, vertex_uv).rgb;
#endif
}
"""


class Pipeline(NamedTuple):
    """OpenGL's names of what draws one kind of mesh."""

    program: int
    array: int  # what the buffers mean
    vertices: int
    corners: int


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
    """Draws meshes as the config says: by default grey on white, from a ring.

    Belongs to the thread that made it. The same mesh gives the same bits on the same
    machine, whatever was drawn before.
    """

    def __init__(self, config: RenderConfig) -> None:
        """Opens the context and makes all that does not depend on the mesh.

        Raises:
            UserError: there is no OpenGL through EGL, or no file of such cameras.
        """
        self.config = config
        placed = cameras.placed(config)
        self._platform, self._gl = open_context()
        gl = self._gl
        world_to_camera = np.linalg.inv(placed.poses)
        lenses = np.stack(
            [
                cameras.lens(*camera)
                for camera in zip(placed.poses, placed.fov_deg, strict=True)
            ]
        )
        lenses[:, 1] *= -1  # OpenGL's first row is the lowest; ours is the top one
        self._to_picture = (lenses @ world_to_camera).astype(np.float32)
        self._to_camera = world_to_camera[:, :3, :3].astype(np.float32)

        limit = int(gl.glGetIntegerv(gl.GL_MAX_RENDERBUFFER_SIZE))
        self._views_per_pass = min(config.views, limit // (OVERSAMPLE * config.size))
        width, height = config.size, config.size * self._views_per_pass
        self._large = self._framebuffer(width * OVERSAMPLE, height * OVERSAMPLE)
        self._small = self._framebuffer(width, height)
        self._plain = self._pipeline()
        self._painted = self._pipeline(painted=True) if config.colours else None

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

    def _pipeline(self, *, painted: bool = False) -> Pipeline:
        """Shaders, and buffers of vertices (6 or, painted, 11 floats) and corners."""
        from OpenGL.GL import shaders

        gl = self._gl
        # A core-profile context validates a program against the bound vertex array.
        array = gl.glGenVertexArrays(1)
        gl.glBindVertexArray(array)
        vertices, corners = gl.glGenBuffers(2)
        gl.glBindBuffer(gl.GL_ARRAY_BUFFER, vertices)
        gl.glBindBuffer(gl.GL_ELEMENT_ARRAY_BUFFER, corners)
        widths = (3, 3, 3, 2) if painted else (3, 3)
        for location, width in enumerate(widths):
            offset = ctypes.c_void_p(4 * sum(widths[:location]))
            gl.glEnableVertexAttribArray(location)
            gl.glVertexAttribPointer(
                location, width, gl.GL_FLOAT, False, 4 * sum(widths), offset
            )
        head = "#version 330 core\n" + "#define PAINTED\n" * painted
        fragment = FRAGMENT_SHADER.replace("LIGHT", LIGHTS[self.config.light])
        program = shaders.compileProgram(
            shaders.compileShader(head + VERTEX_SHADER, gl.GL_VERTEX_SHADER),
            shaders.compileShader(head + fragment, gl.GL_FRAGMENT_SHADER),
        )
        return Pipeline(int(program), int(array), int(vertices), int(corners))

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
        both sides, for meshes from elsewhere. A PaintedMesh shows its colours if
        `config.colours` is set, and then white is the grey of other meshes.
        """
        gl, size, views = self._gl, self.config.size, self.config.views
        if out is None:
            out = np.empty((views, size, size, 3), np.uint8)
        self._platform.make_current()
        pipeline, columns = self._plain, [mesh.vertices, vertex_normals(mesh)]
        textures: tuple[tuple[int, np.ndarray | None], ...] = ((len(mesh.faces), None),)
        wraps: tuple[tuple[Wrap, Wrap], ...] = ()
        if self._painted and isinstance(mesh, PaintedMesh):
            pipeline, textures, wraps = self._painted, mesh.textures, mesh.wraps
            columns += [mesh.colours / np.float32(255), mesh.uv]
        vertices = np.hstack(columns).astype(np.float32)
        corners = mesh.faces.astype(np.uint32)
        gl.glUseProgram(pipeline.program)
        gl.glBindVertexArray(pipeline.array)  # and with it the buffer of corners
        gl.glBindBuffer(gl.GL_ARRAY_BUFFER, pipeline.vertices)
        for kind, array in (
            (gl.GL_ARRAY_BUFFER, vertices),
            (gl.GL_ELEMENT_ARRAY_BUFFER, corners),
        ):
            gl.glBufferData(kind, array.nbytes, array, gl.GL_STREAM_DRAW)
        gl.glEnable(gl.GL_DEPTH_TEST)
        gl.glFrontFace(gl.GL_CW)  # upside down: see `lenses` above
        (gl.glDisable if two_sided else gl.glEnable)(gl.GL_CULL_FACE)
        gl.glPixelStorei(gl.GL_PACK_ALIGNMENT, 1)
        with self._uploaded(textures, wraps, pipeline) as ranges:
            for first in range(0, views, self._views_per_pass):
                part = out[first : first + self._views_per_pass]
                self._draw_pass(pipeline.program, ranges, first, part)
        return out

    @contextlib.contextmanager
    def _uploaded(
        self,
        textures: tuple[tuple[int, np.ndarray | None], ...],
        wraps: tuple[tuple[Wrap, Wrap], ...],
        pipeline: Pipeline,
    ) -> Iterator[list[tuple[int, int]]]:
        """Per range of faces: how many, and which texture; 0: this pipeline has none.

        The textures are gone at the end of the block.
        """
        gl = self._gl
        if pipeline is self._plain:
            yield [(count, 0) for count, _ in textures]
            return
        white = np.full((1, 1, 3), 255, np.uint8)
        names = np.atleast_1d(gl.glGenTextures(len(textures))).tolist()
        gl.glPixelStorei(gl.GL_UNPACK_ALIGNMENT, 1)
        wraps = wraps or (REPEAT,) * len(textures)
        for name, (_, given), wrap in zip(names, textures, wraps, strict=True):
            picture = np.ascontiguousarray(white if given is None else given)
            height, width, _ = picture.shape
            gl.glBindTexture(gl.GL_TEXTURE_2D, name)
            gl.glTexImage2D(
                *(gl.GL_TEXTURE_2D, 0, gl.GL_RGB8, width, height, 0),
                *(gl.GL_RGB, gl.GL_UNSIGNED_BYTE, picture),
            )
            # Small pictures of large textures: without mipmaps they would sparkle.
            gl.glGenerateMipmap(gl.GL_TEXTURE_2D)
            gl.glTexParameteri(
                gl.GL_TEXTURE_2D, gl.GL_TEXTURE_MIN_FILTER, gl.GL_LINEAR_MIPMAP_LINEAR
            )
            for axis, kind in zip(
                (gl.GL_TEXTURE_WRAP_S, gl.GL_TEXTURE_WRAP_T), wrap, strict=True
            ):
                how = {"clamp": gl.GL_CLAMP_TO_EDGE, "mirror": gl.GL_MIRRORED_REPEAT}
                gl.glTexParameteri(gl.GL_TEXTURE_2D, axis, how.get(kind, gl.GL_REPEAT))
        try:
            counts = [count for count, _ in textures]
            yield list(zip(counts, names, strict=True))
        finally:
            gl.glDeleteTextures(names)

    def _draw_pass(
        self,
        program: int,
        ranges: list[tuple[int, int]],
        first: int,
        out: UInt8[np.ndarray, "V H W 3"],
    ) -> None:
        """Draws views `first`... of the uploaded mesh and reads them into `out`."""
        gl, size, large = self._gl, self.config.size, self.config.size * OVERSAMPLE
        gl.glBindFramebuffer(gl.GL_FRAMEBUFFER, self._large)
        gl.glClearColor(*[BACKGROUNDS[self.config.background]] * 3, 1.0)
        gl.glClear(gl.GL_COLOR_BUFFER_BIT | gl.GL_DEPTH_BUFFER_BIT)
        to_picture = gl.glGetUniformLocation(program, "world_to_picture")
        to_camera = gl.glGetUniformLocation(program, "world_to_camera")
        for row in range(len(out)):
            gl.glViewport(0, row * large, large, large)
            gl.glUniformMatrix4fv(to_picture, 1, True, self._to_picture[first + row])
            gl.glUniformMatrix3fv(to_camera, 1, True, self._to_camera[first + row])
            start = 0
            for faces, texture in ranges:
                if texture:
                    gl.glBindTexture(gl.GL_TEXTURE_2D, texture)
                if faces:
                    offset = ctypes.c_void_p(12 * start)
                    gl.glDrawElements(
                        gl.GL_TRIANGLES, 3 * faces, gl.GL_UNSIGNED_INT, offset
                    )
                start += faces
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
