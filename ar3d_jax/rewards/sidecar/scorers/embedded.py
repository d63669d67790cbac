"""The embedded scorers: small stand-ins for the published reward models.

They fill every role of the paper's ensemble at its ranges, so that the whole method
runs on a laptop, and are named for what they are. One picture and text encoder and one
point classifier, trained on the catalog's training objects, give:

| role        | stands in for     | number                                             |
|-------------|-------------------|----------------------------------------------------|
| preference  | HPS v2.1          | cosine of view and prompt, best view; -1 to 1      |
| alignment   | UnifiedReward     | 1 + 4 match, best view; 1 to 5                     |
| category    | Qwen2.5-VL        | 1 if the points look like the prompt's class, or 0 |
| quality     | UnifiedReward 2.0 | alignment + coherence + style, best view; 3 to 15  |
| consistency | Qwen2.5-VL        | subject + worst coherence + worst style; 0 to 3    |
| parts       | ShapeLLM          | mean of existence + completeness of parts; 0 to 2  |
| align_lmm   | Qwen2.5-VL        | 1 + 4 match, mean of the views; 1 to 5             |
| consistency_shape | Qwen2.5-VL  | worst coherence + worst style + parts / 2; 0 to 3  |

* *match*: how probable it is that view and prompt belong together, against a bank of
  captions of other classes and "no object";
* *coherence*: fidelity of `damage.py`, as the view shows it: does the surface belong to
  an object, is all of the object there? 1 + 4 of it;
* *style*: cleanliness of `damage.py`, likewise: no debris, no steps. 1 + 4 of it;
* *subject*: the mean match over views. Consistency takes the worst view where quality
  takes the best. It says nothing of colour, material or texture: there are none yet.

All numbers but category change smoothly with what is seen. An empty object is scored
like any other: white pictures, no points. The networks are in `networks.py`, the part
checks in `parts.py`, the training in `rewards/sidecar/train_embedded.py`.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ar3d_jax.config import RewardsConfig
from ar3d_jax.errors import UserError
from ar3d_jax.rewards.sidecar import devices, wrong_tensors
from ar3d_jax.rewards.sidecar.scorers import (
    About,
    Subject,
    Verdicts,
    networks,
    parts,
)

WEIGHTS = Path(__file__).parents[3] / "assets" / "tiny" / "scorers.safetensors"
SHARPNESS = 15.0  # of cosines in softmaxes, fixed: it spreads cosines well over -1 to 1
TOP = 3  # a class counts as recognised among the TOP most probable ...
SURE = 0.2  # ... if it is at least this probable, or if it is the most probable


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the weights file knows besides numbers: `scorers.json`.

    Attributes:
        classes: Names, in the classifier's order.
        words: Nouns of prompts -> class.
        bank: Class of each caption in the bank.
        examples: Class -> rows of the examples for part checks.
        limits: Class -> part -> likeness of a stranger and of a member.
        match: Slope and offset of the logistic that turns a margin into a match.
        report: What was measured on held-out objects when they were trained.
    """

    classes: list[str]
    words: dict[str, str]
    bank: list[str]
    examples: dict[str, list[int]]
    limits: dict[str, dict[str, list[float]]]
    match: list[float]
    report: dict[str, Any]


def class_in(prompt: str, words: Mapping[str, str]) -> str | None:
    """The class of the noun that ends last in the prompt's first phrase, if any.

    "tall table lamp with base, stem and seat" is a lamp: English puts the noun last,
    and parts follow "with" or a comma. Of nouns that end together the longest counts.
    """
    text = " ".join(networks.WORD.findall(prompt.lower()))
    head = re.split(r" with |[,:.;]", prompt.lower(), maxsplit=1)[0]
    for phrase in (" ".join(networks.WORD.findall(head)), text):
        padded = f" {phrase} "
        found = [
            (padded.rfind(f" {word}{plural} ") + len(word), len(word), kind)
            for word, kind in words.items()
            for plural in ("", "s", "es")
            if f" {word}{plural} " in padded
        ]
        if found:
            return max(found)[2]
    return None


class EmbeddedScorer:
    """The networks and tables of one weights file, ready to score.

    Attributes:
        about: Which file.
        facts: What it knows besides numbers.
    """

    batch = 1  # the same bits, whatever else is scored

    def __init__(self, path: Path) -> None:
        """Reads `path` and, beside it, the facts in `path` with the ending .json.

        Raises:
            UserError: a file is missing, unreadable or of another shape.
        """
        self.facts = _read_facts(path.with_suffix(".json"))
        tensors = _read_tensors(path)
        digest = hashlib.blake2b(path.read_bytes(), digest_size=4).hexdigest()
        self.about = About("embedded", digest, "cpu")
        self.view = networks.ViewEncoder()
        self.text = networks.TextEncoder()
        self.points = networks.PointClassifier(len(self.facts.classes))
        modules = {"view": self.view, "text": self.text, "points": self.points}
        for name, module in modules.items():
            _fill(module, f"{name}.", tensors, path)
            module.eval()
        self._bank = _tensor(
            tensors, "bank", (len(self.facts.bank), networks.EMBEDDING), path
        )
        bits = _tensor(tensors, "examples", (None, parts.CELLS**3 // 8), path)
        grids = np.unpackbits(bits.to(torch.uint8).numpy(), axis=1).astype(bool)
        self._examples = parts.Examples(
            grids=parts.soften(grids.reshape(-1, *(parts.CELLS,) * 3)),
            rows=self.facts.examples,
            limits=self.facts.limits,
        )
        with torch.inference_mode():
            self._none = self.text.no_object()
        self._ask = functools.lru_cache(maxsize=1024)(self._understand)

    def _understand(self, prompt: str) -> tuple[Tensor, Tensor, str]:
        """The prompt's vector, the bank without its class, and its class."""
        vector = self.text([prompt])[0]
        kind = class_in(prompt, self.facts.words)
        if kind is None:  # the class of the nearest caption
            kind = self.facts.bank[int((self._bank @ vector).argmax())]
        strangers = torch.tensor([other != kind for other in self.facts.bank])
        return vector, torch.cat([self._bank[strangers], self._none[None]]), kind

    def margins(
        self, prompt: str, vectors: Float[Tensor, "V E"]
    ) -> Float[Tensor, " V"]:
        """How much nearer each view is to the prompt than to the bank.

        SHARPNESS * cosine minus the log of the mean exp(SHARPNESS * cosine) over the
        captions of other classes and "no object".
        """
        vector, strangers, _ = self._ask(prompt)
        rivals = SHARPNESS * vectors @ strangers.T
        mean = torch.logsumexp(rivals, dim=1) - np.log(len(strangers))
        return SHARPNESS * vectors @ vector - mean

    def score(self, subjects: Sequence[Subject]) -> list[Verdicts]:
        """Of each object, role -> (number, None); see the module's table."""
        return [
            self.score_object(each.prompt, each.views, each.points, each.roles)
            for each in subjects
        ]

    def score_object(
        self,
        prompt: str,
        views: UInt8[np.ndarray, "V H W 3"],
        points: Float[np.ndarray, "n 3"],
        roles: tuple[str, ...],
    ) -> Verdicts:
        """As `score`, of one object."""
        with torch.inference_mode():
            numbers = self._from_views(prompt, views, roles)
            if "category" in roles:
                numbers["category"] = self._category(prompt, points)
            if {"parts", "consistency_shape"} & set(roles):
                numbers["parts"] = self._parts(prompt, points)
            if "consistency_shape" in roles:
                numbers["consistency_shape"] += numbers["parts"] / 2
        return {role: (numbers[role], None) for role in roles}

    def _from_views(
        self, prompt: str, views: np.ndarray, roles: Sequence[str]
    ) -> dict[str, float]:
        if set(roles) <= {"category", "parts"}:
            return {}
        vectors, judged = self.view(networks.grey_pictures(views))
        slope, offset = self.facts.match
        match = torch.sigmoid(slope * self.margins(prompt, vectors) + offset)
        coherence, style = torch.sigmoid(judged).T
        vector = self._ask(prompt)[0]
        worst = coherence.min() + style.min()
        return {
            "preference": float((vectors @ vector).max()),
            "alignment": float(1 + 4 * match.max()),
            "quality": float((3 + 4 * (match + coherence + style)).max()),
            "consistency": float(match.mean() + worst),
            "align_lmm": float(1 + 4 * match.mean()),
            "consistency_shape": float(worst),  # of three terms; parts need the points
        }

    def _category(self, prompt: str, points: np.ndarray) -> float:
        if not len(points):
            return 0.0
        cloud = torch.from_numpy(parts.cloud(points))[None]
        probability = torch.softmax(self.points(cloud)[0], dim=0)
        mine = probability[self.facts.classes.index(self._ask(prompt)[2])]
        rank = int((probability > mine).sum())
        return float(rank == 0 or (rank < TOP and mine >= SURE))

    def _parts(self, prompt: str, points: np.ndarray) -> float:
        if not len(points):
            return 0.0
        complete = self._examples.check(self._ask(prompt)[2], points)
        stated = parts.stated_checks(prompt, points)
        return parts.parts_score([*complete.values(), *stated])

    def wake(self) -> None:
        """It lives in the machine's memory."""

    def rest(self) -> None:
        """Nothing to give back."""

    def close(self) -> None:
        """Nothing to give back."""


def load(config: RewardsConfig) -> EmbeddedScorer:
    """The shipped scorer.

    Raises:
        UserError: the shipped weights are missing or do not fit.
    """
    devices.start(config.threads)
    return EmbeddedScorer(WEIGHTS)


REBUILD = (
    "rebuild it with python -m ar3d_jax.rewards.sidecar.train_embedded --catalog=DIR"
)


def _read_facts(path: Path) -> Facts:
    try:
        return Facts(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        reason = str(error) if isinstance(error, TypeError) else type(error).__name__
        raise UserError(
            f"scorers: cannot read {path} ({reason}); expected the facts beside the "
            f"weights; {REBUILD}"
        ) from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"scorers: cannot read {path} ({type(error).__name__}); expected a "
            f"safetensors file; {REBUILD}"
        ) from error


def _tensor(
    tensors: Mapping[str, Tensor], name: str, shape: tuple[int | None, ...], path: Path
) -> Tensor:
    found = tuple(tensors[name].shape) if name in tensors else ()
    fits = len(found) == len(shape)
    if not fits or any(w not in (None, f) for w, f in zip(shape, found, strict=True)):
        raise UserError(
            f"scorers: {path} has {name} of shape {found}, expected {shape}; {REBUILD}"
        )
    if problem := wrong_tensors.problem_of(name, tensors[name]):
        raise UserError(f"scorers: {path} {problem}; {REBUILD}")
    return tensors[name].float()


def _fill(
    module: torch.nn.Module, prefix: str, tensors: Mapping[str, Tensor], path: Path
) -> None:
    """Copies the tensors under `prefix` into the module, whose names they have."""
    wanted = module.state_dict()
    module.load_state_dict(
        {
            name: _tensor(tensors, prefix + name, tuple(value.shape), path)
            for name, value in wanted.items()
            if value.dtype.is_floating_point
        },
        strict=False,  # BatchNorm's counters play no part in scoring
    )
