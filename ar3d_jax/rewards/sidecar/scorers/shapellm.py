"""The scorer `shapellm`: are the prompt's parts there, and are they complete?

Equation 6: the mean over the prompt's parts of existence, 0 or 1, and completeness, 0
to 1; the sum is 0 to 2. Which parts a prompt has: `data/part_lists.py`. The paper says
neither how ShapeLLM is asked nor how its words become numbers; our choices are

* two questions per part, in `../prompts/shapellm.txt`;
* an answer is p(yes) / (p(yes) + p(no)), of the answer's first word: existence is 1
  from a half on, completeness is the number itself. Where the two have hardly any
  probability the score is missing, with the reason;
* an object without points has no part: 0. That is bad, but known;
* of more than 10,000 points every n-th is taken, which come in random order: the same
  object gives the same score. Fewer than the encoder's 512 groups are repeated.

The network is `shapellm_model.py`, its encoder `recon.py`. One object is read at a
time: its questions share one pass.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8

from ar3d_jax import weights
from ar3d_jax.config_rewards import RewardsConfig, ShapeLlmConfig
from ar3d_jax.data import part_lists
from ar3d_jax.rewards.sidecar import devices, revisions
from ar3d_jax.rewards.sidecar.scorers import (
    About,
    Subject,
    Verdict,
    Verdicts,
    recon,
    shapellm_model,
)

QUESTIONS = Path(__file__).parents[1] / "prompts" / "shapellm.txt"
KINDS = ("existence", "completeness")
MOST = 10_000  # points of a cloud, as in ShapeLLM's training
# Of yes and no together. Chance gives four words of 32,000 an eighth of it.
LEAST = 1e-3


def read_questions() -> dict[str, str]:
    """Templates with {part} and {count}, by `KINDS`."""
    lines = QUESTIONS.read_text("utf-8").splitlines()
    pairs = (line.split(": ", 1) for line in lines if not line.startswith("#"))
    return dict(pair for pair in pairs if len(pair) == 2)


def cloud(
    points: Float[np.ndarray, "n 3"], colours: UInt8[np.ndarray, "n 3"], up: str
) -> Float[np.ndarray, "N 6"]:
    """Points and colours as ShapeLLM was trained on them: float32.

    Points around their centroid, the farthest at 1; colours 0 to 1.

    Args:
        points: one or more; z is up.
        colours: theirs.
        up: which axis is to be up, z or y: front stays in front, of -y or z.
    """
    count = min(len(points), MOST)
    rows = np.arange(count) * len(points) // count
    rows = np.resize(rows, max(count, recon.GROUPS))  # repeats them
    xyz = points[rows].astype(np.float64)
    xyz -= xyz.mean(axis=0)
    # Points that are all the same are left at the origin.
    xyz /= max(np.linalg.norm(xyz, axis=1).max(), 1e-6)
    if up == "y":
        xyz = xyz[:, [0, 2, 1]] * [1, 1, -1]
    return np.hstack([xyz, colours[rows] / 255]).astype(np.float32)


class ShapeLlmScorer:
    """ShapeLLM, asked about parts."""

    batch = 1

    def __init__(
        self,
        model: shapellm_model.ShapeLlm,
        config: ShapeLlmConfig,
        lists: Mapping[str, part_lists.Parts],
        about: About,
    ) -> None:
        self.about = about
        self._model, self._config, self._lists = model, config, lists
        self._device = model.device
        self._templates = [read_questions()[kind] for kind in KINDS]

    def score(self, subjects: Sequence[Subject]) -> list[Verdicts]:
        """See `Scorer`."""
        return [
            dict.fromkeys(subject.roles, self._verdict(subject)) for subject in subjects
        ]

    def _verdict(self, subject: Subject) -> Verdict:
        if not len(subject.points):
            return 0.0, None
        questions = [
            template.format(part=name, count=count)
            for name, count in self._parts(subject.prompt)
            for template in self._templates
        ]
        answers = self._ask(subject, questions)
        mass = answers.sum(axis=1)
        for question, likely in zip(questions, mass, strict=True):
            if not likely >= LEAST:  # NaN neither
                return np.nan, f"neither yes nor no: p = {likely:.1e}, {question}"
        yes = (answers[:, 0] / mass).reshape(-1, len(KINDS))
        exists, complete = yes[:, 0] >= 0.5, yes[:, 1]
        return float((exists + complete).mean()), None

    def _parts(self, prompt: str) -> part_lists.Parts:
        listed = self._lists.get(" ".join(prompt.split()))
        return listed or part_lists.noun_phrases(prompt)

    def _ask(
        self, subject: Subject, questions: Sequence[str]
    ) -> Float[np.ndarray, "q 2"]:
        rows = cloud(subject.points, subject.colours, self._config.up)
        points = self._model.point_tokens(torch.from_numpy(rows))
        some = range(0, len(questions), self._config.batch)
        answers = [
            self._model.answer(points, questions[first : first + self._config.batch])
            for first in some
        ]
        return torch.cat(answers).double().cpu().numpy()

    def wake(self) -> None:
        """Brings encoder and language model to their device."""
        self._model.to(self._device)

    def rest(self) -> None:
        """Takes them to the machine's memory."""
        self._model.to("cpu")
        devices.empty()

    def close(self) -> None:
        """Nothing to give back."""


def load(config: RewardsConfig) -> ShapeLlmScorer:
    """The published ShapeLLM, or a folder and a file in its format.

    Raises:
        UserError: a file is missing or does not fit; there is no such device.
    """
    own = config.shapellm
    lists = part_lists.read(Path(config.part_lists)) if config.part_lists else {}
    folder, encoder = weights.resolve_all(
        {shapellm_model.FIELD: own.weights, recon.FIELD: own.encoder}
    )
    if encoder.is_dir():
        encoder = encoder / recon.PUBLISHED
    devices.start(config.threads)
    place = devices.device_of(own.device, "rewards.shapellm.device")
    dtype = devices.dtype_of(own.dtype, place, torch.float16)
    model = shapellm_model.load(folder, encoder, place, dtype)
    both = f"{revisions.revision_of(folder)}, encoder {revisions.revision_of(encoder)}"
    about = About(own.weights, both, str(place))
    return ShapeLlmScorer(model, own, lists, about)
