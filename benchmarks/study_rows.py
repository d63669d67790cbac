"""The rows of the paper's tables 1, 2, 3, 5 and 6 and of figure 3, as commands.

Each row says which config file and which fields, beside the paper's numbers (CLIP
score and KD_incep on Toys4K). `docs/study.md` lists them; `study.py` runs them. What
the paper leaves open is decided here:

* tables 1 to 3 are one-step GRPO; their rewards are one ensemble, `coarse`, whose other
  weights are 0. "LMM 3D" is the role consistency_shape, "LMM align" align_lmm;
* table 2 begins with plain GRPO: sequences averaged first, one clip bound, KL 0.01.
  "Dynamic sampling" is `medium`: with scores that are numbers, hardly any group is
  without spread. "Token average" is DAPO's, over the whole batch;
* tables 5 and 6 use none of table 2's options. "Consist" of the coarse step is the role
  category;
* figure 3's data are shares of the prompts, a third being x1, its iterations multiples
  of the run's steps.
"""

import dataclasses

Fields = dict[str, object]  # config field -> value


@dataclasses.dataclass(frozen=True)
class Row:
    """One run of a table.

    Attributes:
        name: short, for folders; unique within its table.
        label: as in the paper's table.
        config: the config file, or "" for the policy before training.
        fields: overrides.
        clip: the paper's CLIP score; None where it prints none.
        kd: the paper's KD_incep, x 100; the same.
        steps: multiple of the study's steps.
    """

    name: str
    label: str
    config: str
    fields: Fields
    clip: float | None
    kd: float | None = None
    steps: float = 1.0

    def command(self, workdir: str = "runs/row") -> str:
        """The row as a user would type it; the base is an evaluation."""
        if not self.config:
            return f"python -m ar3d_jax.evaluate --workdir={workdir}"
        flags = [f"--config.{name}={_text(of)}" for name, of in self.fields.items()]
        return " ".join(
            [
                "python -m ar3d_jax.train",
                f"--config={self.config}",
                *flags,
                f"--workdir={workdir}",
            ]
        )


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


GRPO, HIGRPO = "configs/grpo.py", "configs/higrpo.py"
COARSE = ("preference", "alignment", "category", "align_lmm", "consistency_shape")
REFINED = ("preference", "quality", "consistency", "parts")


def _weights(step: str, roles: tuple[str, ...], wanted: str) -> Fields:
    chosen = wanted.split()
    return {f"rewards.weights.{step}.{r}": 1.0 * (r in chosen) for r in roles}


def _one_ensemble(wanted: str) -> Fields:
    return {"rewards.ensemble": "coarse", **_weights("coarse", COARSE, wanted)}


def _both(coarse: str, refined: str) -> Fields:
    return {
        **_weights("coarse", COARSE, coarse),
        **_weights("refined", REFINED, refined),
    }


LAST = "preference alignment consistency_shape"  # the rewards of tables 2, 3 and 6
# Plain GRPO, and Hi-GRPO without AR3D-R1's additions.
PLAIN: Fields = {
    "objective.dynamic_sampling": "off",
    "objective.clip_low": 0.2,
    "objective.clip_high": 0.2,
}
SEQUENCE: Fields = {**PLAIN, "objective.aggregation": "sequence"}
DYNAMIC: Fields = {"objective.dynamic_sampling": "medium"}
TOKEN: Fields = {"objective.aggregation": "token_batch"}
BASE = Row("base", "before training", "", {}, 22.7, 0.249)


def _rewards(name: str, label: str, wanted: str, clip: float, kd: float) -> Row:
    return Row(name, label, GRPO, {**SEQUENCE, **_one_ensemble(wanted)}, clip, kd)


def _options(name: str, label: str, fields: Fields, clip: float, kd: float) -> Row:
    fields = {**SEQUENCE, **_one_ensemble(LAST), **fields}
    return Row(name, label, GRPO, fields, clip, kd)


def _two_steps(coarse: str, refined: str, clip: float, kd: float) -> Row:
    label = f"{coarse or '-'} | {refined}"
    name = "_".join([*(f"c-{r}" for r in coarse.split()), *refined.split()])
    return Row(name, label, HIGRPO, {**PLAIN, **_both(coarse, refined)}, clip, kd)


TABLES: dict[str, tuple[Row, ...]] = {
    "1": (
        BASE,
        _rewards("hps", "HPS", "preference", 24.0, 0.241),
        _rewards("unified", "Unified", "alignment", 23.5, 0.246),
        _rewards("lmm3d", "LMM 3D", "consistency_shape", 23.3, 0.245),
        _rewards("hps_unified", "HPS, Unified", "preference alignment", 24.6, 0.235),
        _rewards("hps_lmm", "HPS, LMM align", "preference align_lmm", 24.2, 0.238),
        _rewards("all", "HPS, Unified, LMM 3D", LAST, 25.2, 0.228),
    ),
    "2": (
        _options("grpo", "GRPO", {}, 25.2, 0.228),
        _options("dynamic", "+ dynamic sampling", DYNAMIC, 25.8, 0.219),
        _options(
            "gspo",
            "+ dynamic sampling, sequence (GSPO)",
            {**DYNAMIC, "objective.importance": "sequence"},
            25.5,
            0.223,
        ),
        _options(
            "token",
            "+ dynamic sampling, token average",
            {**DYNAMIC, **TOKEN},
            26.3,
            0.214,
        ),
        _options(
            "no_kl",
            "+ dynamic sampling, token average, KL removed",
            {**DYNAMIC, **TOKEN, "objective.kl_coef": 0.0},
            25.9,
            0.213,
        ),
        _options(
            "decoupled",
            "+ dynamic sampling, token average, clip decoupled",
            {**DYNAMIC, **TOKEN, "objective.clip_high": 0.28},
            26.5,
            0.210,
        ),
    ),
    "3": (
        BASE,
        Row(
            "without",
            "GRPO without plan",
            GRPO,
            {**SEQUENCE, **_one_ensemble("preference"), "rollout.plans": False},
            23.4,
        ),
        Row(
            "with",
            "GRPO with plan",
            GRPO,
            {**SEQUENCE, **_one_ensemble("preference")},
            24.0,
        ),
    ),
    "5": (
        _two_steps("", "preference quality", 25.0, 0.235),
        _two_steps("", "preference quality consistency", 25.7, 0.223),
        _two_steps(
            "preference alignment", "preference quality consistency", 27.8, 0.194
        ),
        _two_steps(
            "preference alignment category",
            "preference quality consistency",
            28.3,
            0.182,
        ),
        _two_steps(
            "preference alignment", "preference quality consistency parts", 28.6, 0.178
        ),
        _two_steps(
            "preference alignment category",
            "preference quality consistency parts",
            29.3,
            0.156,
        ),
    ),
    "6": (
        BASE,
        Row(
            "grpo",
            "GRPO",
            GRPO,
            {**SEQUENCE, **_one_ensemble(LAST), "rollout.plans": False},
            24.3,
            0.237,
        ),
        Row(
            "plan", "GRPO, plan", GRPO, {**SEQUENCE, **_one_ensemble(LAST)}, 25.2, 0.228
        ),
        Row(
            "coarse",
            "GRPO, plan, coarse rewards",
            GRPO,
            {**SEQUENCE, "rewards.ensemble": "coarse"},
            24.8,
            0.235,
        ),
        Row(
            "refined",
            "GRPO, plan, refined rewards",
            GRPO,
            {**SEQUENCE, "rewards.ensemble": "refined"},
            26.0,
            0.214,
        ),
        Row("higrpo", "Hi-GRPO", HIGRPO, dict(PLAIN), 28.7, 0.182),
    ),
}

# Figure 3 gives gains of the CLIP score over the run before: of data +0.4, +0.2, +0.4,
# of iterations +0.9, then worse, without a number. Table 2's best row is scaled.
_BEST = TABLES["2"][-1].fields
FIGURES: dict[str, tuple[Row, ...]] = {
    "3": (
        *(
            Row(
                f"data{share:g}".replace(".", "_"),
                f"data x{share:g}",
                GRPO,
                {**_BEST, "data.share": round(share / 3, 4)},
                26.5 + gain,
            )
            for share, gain in ((1, 0.0), (1.5, 0.4), (2, 0.6), (3, 1.0))
        ),
        Row("steps2", "iterations x2", GRPO, dict(_BEST), 27.4, steps=2.0),
        Row("steps3", "iterations x3", GRPO, dict(_BEST), None, steps=3.0),
    )
}
