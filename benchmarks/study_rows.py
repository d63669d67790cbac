"""The rows of the paper's tables 1, 2, 3, 5 and 6 and of figure 3, as commands.

    python -m benchmarks.study_rows > docs/study_commands.md

Each row says which config file and which fields, beside the paper's numbers (CLIP
score and KD_incep on Toys4K). `study.py` runs them. What the paper leaves open is
decided here:

* tables 1 to 3 are one-step GRPO; their rewards are one ensemble, `coarse`, whose other
  weights are 0. "LMM 3D" is the role consistency_shape, "LMM align" align_lmm;
* table 2 begins with plain GRPO: sequences averaged first, one clip bound, KL 0.01.
  "Dynamic sampling" is `medium`: with scores that are numbers, hardly any group is
  without spread. "Token average" is DAPO's, over the whole batch;
* table 6 uses none of table 2's options: its Hi-GRPO has 28.7. Table 5's last row has
  the 29.3 of AR3D-R1, so table 5 has its recipe, decoupled clip and dynamic sampling.
  "Consist" of the coarse step is the role category;
* figure 3 is table 2's best row with more data or iterations. Its data are shares of
  the prompts, x1 being a thirtieth, so that the miniature sees them several times, as
  the paper's run does; iterations are multiples of the run's steps, on the data of x3.
  The paper prints gains over the run before, which stand in the labels;
* "own" compares what is not in the paper with Hi-GRPO, at Hi-GRPO's settings.
"""

import dataclasses
import functools

from ar3d_jax import command as command_line

Fields = dict[str, object]  # config field -> value


@dataclasses.dataclass(frozen=True)
class Row:
    """One run of a table.

    Attributes:
        name: short, for folders; unique within its table.
        label: as in the paper's table.
        config: the config file.
        fields: overrides.
        clip: the paper's CLIP score; None where it prints none.
        kd: the paper's KD_incep, x 100; the same.
        steps: multiple of the run's steps; 0: the policy before training.
    """

    name: str
    label: str
    config: str
    fields: Fields
    clip: float | None
    kd: float | None = None
    steps: float = 1.0

    def command(self, workdir: str) -> str:
        """The row as a user would type it; without training, an evaluation."""
        if not self.steps:
            words = ["python -m ar3d_jax.evaluate", *self.policy_flags()]
            return " ".join([*words, f"--workdir={workdir}"])
        values = command_line.load_config_file(self.config)
        fields = self.changes()
        if self.steps != 1:
            fields["steps"] = round(self.steps * values.steps)
        flags = [f"--config.{name}={_text(of)}" for name, of in fields.items()]
        return " ".join(
            [
                "python -m ar3d_jax.train",
                f"--config={self.config}",
                *flags,
                f"--workdir={workdir}",
            ]
        )

    def changes(self) -> Fields:
        """The fields that differ from what the config file has."""
        values = command_line.load_config_file(self.config)
        return {
            name: of
            for name, of in self.fields.items()
            if functools.reduce(getattr, name.split("."), values) != of
        }

    def policy_flags(self, preset: str = "") -> list[str]:
        """Of a row without training: which policy `evaluate` asks, and how."""
        flags = [f"--policy={self.config}{':' * bool(preset)}{preset}"]
        return (
            flags if self.fields.get("rollout.plans", True) else [*flags, "--one_step"]
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
BASE = Row("base", "before training, plan and shape", GRPO, {}, 22.7, 0.249, steps=0)
BASE_DIRECT = Row(
    "base_direct",
    "before training, shape at once",
    GRPO,
    {"rollout.plans": False},
    None,
    steps=0,
)
BASE_TWO = Row("base_two", "before training, two steps", HIGRPO, {}, None, steps=0)


def _rewards(name: str, label: str, wanted: str, clip: float, kd: float) -> Row:
    return Row(name, label, GRPO, {**SEQUENCE, **_one_ensemble(wanted)}, clip, kd)


def _options(name: str, label: str, fields: Fields, clip: float, kd: float) -> Row:
    fields = {**SEQUENCE, **_one_ensemble(LAST), **fields}
    return Row(name, label, GRPO, fields, clip, kd)


def _two_steps(coarse: str, refined: str, clip: float, kd: float) -> Row:
    label = f"coarse: {coarse or '-'}; refined: {refined}"
    name = "_".join([*(f"c-{r}" for r in coarse.split()), *refined.split()])
    return Row(name, label, HIGRPO, _both(coarse, refined), clip, kd)


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
        BASE_DIRECT,
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
        BASE_DIRECT,
        BASE,
        BASE_TWO,
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
    "own": (
        BASE_TWO,
        Row("higrpo", "Hi-GRPO", HIGRPO, dict(PLAIN), 28.7, 0.182),
        Row(
            "sees_coarse",
            "Hi-GRPO, refined shapes see the coarse tokens",
            HIGRPO,
            {**PLAIN, "rollout.refined_sees_coarse": True},
            None,
        ),
        Row(
            "normalised",
            "Hi-GRPO, scores normalised",
            HIGRPO,
            {**PLAIN, "rewards.normalise_scores": True},
            None,
        ),
    ),
}


def _scaled(name: str, label: str, *, data: float = 3, steps: float = 1) -> Row:
    fields = {**TABLES["2"][-1].fields, "data.share": round(data / 30, 4)}
    return Row(name, label, GRPO, fields, None, steps=steps)


FIGURES: dict[str, tuple[Row, ...]] = {
    "3": (
        _scaled("data1", "data x1", data=1),
        _scaled("data1_5", "data x1.5 (paper: +0.4)", data=1.5),
        _scaled("data2", "data x2 (paper: +0.2)", data=2),
        _scaled("data3", "data x3 (paper: +0.4)"),
        _scaled("steps2", "iterations x2 (paper: +0.9)", steps=2),
        _scaled("steps3", "iterations x3 (paper: less)", steps=3),
    )
}


def as_markdown() -> str:
    """All rows as commands, under the headings of their tables."""
    lines = [
        "# The paper's tables, as commands",
        "",
        "What came of them is in [study.md](study.md), whose runs have four prompts",
        "a step: `--config.prompts_per_step=4`. A training in DIR is scored by",
        "`python -m ar3d_jax.evaluate --checkpoint=DIR --config.seeds='(0,1)'`.",
        "`:7b` after the config file is the paper's size; figure 3 then has",
        "`data.share` ten times as large, and `steps` of 2,400 and 3,600.",
        "",
        "Made by `python -m benchmarks.study_rows`.",
    ]
    headings = {f"Table {n}": rows for n, rows in TABLES.items() if n != "own"}
    headings |= {f"Figure {n}": rows for n, rows in FIGURES.items()}
    headings["Not in the paper"] = TABLES["own"]
    for heading, rows in headings.items():
        folder = f"runs/{heading.lower().replace(' ', '_')}"
        lines += ["", f"## {heading}"]
        for row in rows:
            command = row.command(f"{folder}/{row.name}")
            lines += ["", f"{row.label}:", "", "```", command, "```"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
