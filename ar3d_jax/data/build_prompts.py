"""The training prompts of the large preset, chosen from TRELLIS-500K's captions.

    python -m ar3d_jax.data.prompts --metadata=FOLDER --out=data/prompts.jsonl

The paper trains on 8,400 short captions from Objaverse-XL, HSSD and ABO and tests on
Toys4K; its list is not published. This command draws such a list from the metadata
files of TRELLIS-500K (`trellis_metadata.py`), keeps the test sets out of it, by id and
by text (`near_duplicates.py`), and writes beside it a report of what was left out. The
same files and flags give the same list, whatever the order of the rows. The file is
read by `prompts.py`, through which the command is called.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from ar3d_jax.command import run
from ar3d_jax.data.near_duplicates import THRESHOLD, NearDuplicates
from ar3d_jax.data.prompts import REASONING, read_prompts
from ar3d_jax.data.trellis_metadata import read_assets
from ar3d_jax.errors import UserError, write_whole, writing

TEST_SET = "Toys4k"  # its file's name, as TRELLIS-500K has it


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides which captions are chosen."""

    sources: dict[str, float]  # file without .csv: its share of the prompts
    count: int = 8400  # to train on; paper: 8,400
    held_out: int = 64  # more, marked held_out, for the judge; our choice
    seed: int = 0  # of the draw
    score: float = 4.5  # least aesthetic score: the lowest of TRELLIS-500K's own
    fewest_words: int = 3  # of a caption; our choice: below, hardly a prompt
    most_words: int = 15  # paper: "short"; our choice
    threshold: float = THRESHOLD  # of near-duplicates


# Our choice: a third from the two small sets, which together are 2% of the captions.
SOURCES = "ObjaverseXL_sketchfab:2,ObjaverseXL_github:2,HSSD:1,ABO:1"


@dataclasses.dataclass
class _Source:
    """The usable captions of one file, and what became of its rows."""

    counts: dict[str, int]
    candidates: list[tuple[bytes, str, str]]  # place in the draw, sha256, caption
    share: float
    chosen: int = 0


def build_prompts(
    metadata: Path, settings: Settings, *, test_set: bool = True
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the prompts file, training first, and the report.

    Every row has `id` (the object's sha256), `prompt`, `source` and `held_out`.

    Args:
        metadata: folder with one CSV per source and Toys4k.csv.
        settings: what to choose.
        test_set: False: do without Toys4k.csv.

    Raises:
        UserError: a file is missing or malformed, or too few captions are left.
    """
    kept_out, test_ids = _test_texts(metadata, settings, test_set)
    seen: set[str] = set()
    sources = {
        name: _read_source(metadata / f"{name}.csv", share, settings, test_ids, seen)
        for name, share in settings.sources.items()
    }
    rows = _draw(sources, settings, kept_out)
    files = [f"{name}.csv" for name in settings.sources]
    files += [f"{TEST_SET}.csv"] if test_set else []
    report = {
        "prompts": settings.count,
        "held_out": settings.held_out,
        "settings": dataclasses.asdict(settings),
        "test_texts": {name: len(index.texts) for name, index in kept_out.items()},
        "test_ids": len(test_ids),
        "sources": {name: source.counts for name, source in sources.items()},
        "files": {name: _digest(metadata / name) for name in files},
    }
    return rows, report


def _test_texts(
    metadata: Path, settings: Settings, test_set: bool
) -> tuple[dict[str, NearDuplicates], set[str]]:
    """What no prompt may resemble, by test set, and ids of Toys4K's objects."""
    texts: dict[str, list[str]] = {
        "reasoning249": [row.texts[0] for row in read_prompts(str(REASONING))],
        "catalog": [row.texts[0] for row in read_prompts("catalog") if row.held_out],
    }
    ids: set[str] = set()
    if test_set:
        path = metadata / f"{TEST_SET}.csv"
        if not path.is_file():
            raise UserError(
                f"no {path.name} in {metadata}; expected Toys4K's metadata, the test "
                "set, beside the others; --notoys4k does without it"
            )
        assets = list(read_assets(path))
        ids = {asset.sha256 for asset in assets}
        texts[TEST_SET] = [text for asset in assets for text in asset.captions]
    indexes = {
        name: NearDuplicates(dict.fromkeys(found), settings.threshold)
        for name, found in texts.items()
    }
    return indexes, ids


def _read_source(
    path: Path, share: float, settings: Settings, test_ids: set[str], seen: set[str]
) -> _Source:
    """One caption of every usable row. `seen` gets the ids."""
    names = ("rows", "test_object", "repeated", "low_score", "no_caption", "no_short")
    counts: dict[str, int] = dict.fromkeys(names, 0)
    candidates = []
    for asset in read_assets(path, required=("aesthetic_score",)):
        counts["rows"] += 1
        short = [
            text
            for text in asset.captions
            if settings.fewest_words <= len(text.split()) <= settings.most_words
        ]
        if asset.sha256 in test_ids:
            counts["test_object"] += 1
        elif asset.sha256 in seen:
            counts["repeated"] += 1
        elif not asset.score >= settings.score:  # nan, too
            counts["low_score"] += 1
        elif not asset.captions:
            counts["no_caption"] += 1
        elif not short:
            counts["no_short"] += 1
        else:
            seen.add(asset.sha256)
            # A hash takes the place of a random number: rows may come in any order.
            key = f"{settings.seed} {asset.sha256}".encode()
            digest = hashlib.blake2b(key, digest_size=16).digest()
            text = short[int.from_bytes(digest[8:], "big") % len(short)]
            candidates.append((digest[:8], asset.sha256, text))
    counts["usable"] = len(candidates)
    candidates.sort(reverse=True)  # taken from the end
    return _Source(counts, candidates, share)


def _draw(
    sources: dict[str, _Source],
    settings: Settings,
    kept_out: dict[str, NearDuplicates],
) -> list[dict[str, Any]]:
    """Rows from all sources by their shares; the others stand in for an empty one."""
    chosen = NearDuplicates(threshold=settings.threshold)
    checks = {**kept_out, "each_other": chosen}
    for source in sources.values():
        source.counts |= {"looked_at": 0} | {f"like_{name}": 0 for name in checks}
    wanted = settings.count + settings.held_out
    rows = []
    with tqdm(total=wanted, desc="prompts", unit="prompt") as bar:
        while len(rows) < wanted:
            left = [name for name in sources if sources[name].candidates]
            if not left:
                raise UserError(
                    f"{len(rows)} captions are left of {wanted} asked for; lower "
                    "--count or --held_out, or widen --words or --score"
                )
            name = min(left, key=lambda n: sources[n].chosen / sources[n].share)
            source = sources[name]
            _, sha256, text = source.candidates.pop()
            source.counts["looked_at"] += 1
            like = next((c for c, x in checks.items() if x.find(text) is not None), "")
            if like:
                source.counts[f"like_{like}"] += 1
                continue
            chosen.add(text)
            source.chosen += 1
            rows.append({"id": sha256, "prompt": text, "source": name})
            bar.update()
    for source in sources.values():
        source.counts["chosen"] = source.chosen
    # The first of the draw are of every source, as the sources take turns.
    held_out = [row | {"held_out": True} for row in rows[: settings.held_out]]
    return [row | {"held_out": False} for row in rows[settings.held_out :]] + held_out


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _shares(texts: Sequence[str]) -> dict[str, float]:
    """{"HSSD": 1.0} of ["HSSD:1"]."""
    shares = {}
    for text in texts:
        name, _, share = text.partition(":")
        try:
            shares[name] = float(share or 1)
        except ValueError:
            shares[name] = 0.0
        if not name or not 0 < shares[name] < float("inf"):
            raise UserError(f"--sources has {text!r}; expected NAME:SHARE, e.g. HSSD:1")
    if not shares:
        raise UserError("--sources is empty; expected NAME:SHARE, e.g. HSSD:1")
    return shares


def _words(text: str) -> tuple[int, int]:
    """(3, 15) of "3-15"."""
    low, _, high = text.partition("-")
    if not low.isdecimal() or not high.isdecimal() or int(low) > int(high):
        raise UserError(f"--words is {text!r}; expected FEWEST-MOST, e.g. 3-15")
    return int(low), int(high)


def _define_flags() -> None:
    default = Settings({})
    flags.DEFINE_string(
        "metadata", None, "folder of TRELLIS-500K's CSV files", required=True
    )
    flags.DEFINE_string("out", None, "the .jsonl file to write", required=True)
    flags.DEFINE_list("sources", SOURCES, "CSV files and their shares")
    flags.DEFINE_bool("toys4k", True, "keep the objects of Toys4k.csv out")
    flags.DEFINE_integer("count", default.count, "prompts to train on", 1)
    flags.DEFINE_integer("held_out", default.held_out, "more, for the judge", 0)
    flags.DEFINE_integer("seed", default.seed, "of the draw")
    flags.DEFINE_float("score", default.score, "least aesthetic score")
    words = f"{default.fewest_words}-{default.most_words}"
    flags.DEFINE_string("words", words, "fewest and most words of a caption")
    flags.DEFINE_float(
        "threshold", default.threshold, "share of pieces of near-duplicates", 0.1, 1.0
    )


def main(_: list[str]) -> None:
    """Writes the prompts and the report, and says what was chosen."""
    out = Path(flags.FLAGS.out)
    if out.suffix != ".jsonl":
        raise UserError(f"--out is {out}; expected a .jsonl file")
    fewest, most = _words(flags.FLAGS.words)
    settings = Settings(
        sources=_shares(flags.FLAGS.sources),
        count=flags.FLAGS.count,
        held_out=flags.FLAGS.held_out,
        seed=flags.FLAGS.seed,
        score=flags.FLAGS.score,
        fewest_words=fewest,
        most_words=most,
        threshold=flags.FLAGS.threshold,
    )
    folder = Path(flags.FLAGS.metadata)
    rows, report = build_prompts(folder, settings, test_set=flags.FLAGS.toys4k)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    beside = out.with_suffix(".report.json")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, "".join(lines))
    write_whole(beside, json.dumps(report, indent=1) + "\n")
    parts = [f"{name} {s['chosen']}" for name, s in report["sources"].items()]
    print(f"{out}: {len(rows)} prompts ({', '.join(parts)}); see {beside.name}")


def command() -> None:
    """The command line."""
    _define_flags()
    run(main)
