"""How objects are looked at: two protocols, as values.

`trellis` is the evaluation of TRELLIS's supplement (C.1), as far as it is published:
cameras on a ring of 8, pitch 30 degrees, radius 2, field of view 40 degrees; all 8 for
the CLIP score, every second one (yaw 0, 90, 180, 270) for KD and FD. It leaves open
which networks, background and light: ours are in the report, and in docs/evaluation.md.

`eval_py_compat` is what the paper's public script does (3DGen-R1's `eval.py`), which is
not what its tables are said to hold: see `eval_py.py`.
"""

import dataclasses

from ar3d_jax.config import EvalConfig, RenderConfig
from ar3d_jax.evaluation import eval_py


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One protocol at the sizes of a config.

    Attributes:
        name: "trellis" or "eval_py_compat".
        generated: how generated objects are drawn.
        truth: how real ones are.
        every: of the views, each so many-th is for KD and FD.
        generated_up: the up axis that generated files are read with; "" the true one.
        notes: what a reader of the numbers must know.
    """

    name: str
    generated: RenderConfig
    truth: RenderConfig
    every: int
    generated_up: str
    notes: tuple[str, ...]

    def caption(self, text: str) -> str:
        """What the networks are told of an object."""
        return text if self.name == "trellis" else eval_py.compat_caption(text)

    def up(self, axis: str) -> str:
        """The up axis that a generated file with this one is read with."""
        return self.generated_up or axis


def of(config: EvalConfig) -> Protocol:
    """The protocol that a config names."""
    ring = RenderConfig(
        views=8,
        size=config.size,
        pitch_deg=30.0,
        radius=2.0,
        fov_deg=40.0,
        colours=config.colours,
        max_faces=config.max_faces,
        workers=config.workers,
    )
    if config.protocol == "trellis":
        looks = "in their own colours" if config.colours else "as grey geometry"
        return Protocol(
            "trellis",
            generated=ring,
            truth=ring,
            every=2,
            generated_up="",
            notes=(
                f"drawn {looks}, on white, with one light; TRELLIS's supplement states "
                "views and cameras, and leaves networks, background and light open",
            ),
        )
    sphere = dataclasses.replace(ring, views=24, cameras="hammersley", colours=False)
    return Protocol(
        "eval_py_compat",
        generated=dataclasses.replace(sphere, light="camera"),
        truth=dataclasses.replace(sphere, background="black", size=512, colours=True),
        every=1,
        generated_up="z",
        notes=(
            "the numbers of 3DGen-R1's eval.py, under its own rules: its kernel value "
            "is a similarity in (0, 1], higher is closer; it is a mean over objects, "
            "not a distance of sets; the caption ends at its first full stop",
            "generated objects are white on white and lie on their side (read with z "
            "up), real ones stand on black, as there",
            "left out: its second resizing of pictures (256, then the middle 224), and "
            "its dropping of objects that failed, which are counted here",
        ),
    )
