"""Records to the report's numbers: seeds before objects, what is missing left out."""

import dataclasses

import numpy as np
import pytest

from ar3d_jax.codec import voxels
from ar3d_jax.config import EvalConfig, FeaturesConfig
from ar3d_jax.evaluation import eval_py, protocol, summary
from ar3d_jax.evaluation.benchmarks import Benchmark, Item
from ar3d_jax.evaluation.kernel_distance import kernel_distance
from ar3d_jax.evaluation.objects import Generated
from ar3d_jax.evaluation.record import RESOLUTION, Record

DIM, VIEWS = 6, 8
IDS = ("chair", "lamp", "sofa", "table")


def grid(seed):
    rng = np.random.default_rng(seed)
    return rng.random((RESOLUTION,) * 3) < 0.1


def record(seed, shift=0.0, text=None):
    rng = np.random.default_rng([seed, 9])
    vectors = (rng.normal(size=(VIEWS, DIM)) + shift).astype(np.float32)
    text = np.eye(DIM, dtype=np.float32)[0] if text is None else text
    return Record(
        vectors={"embedded": vectors},
        texts={"embedded": text},
        points=rng.random((64, 3), np.float32) - 0.5,
        packed=voxels.pack(grid(seed)),
        health={"components": float(seed), "watertight": 1.0},
    )


@pytest.fixture
def asked(tmp_path):
    items = [
        Item(name, f"a {name}", "seats" if n % 2 else "others", tmp_path / name)
        for n, name in enumerate(IDS)
    ]
    return Benchmark("catalog", items, ("a note",))


def system(asked, name, shift, seeds=(0, 1), drop=()):
    """Coarse and refined of each item and seed; `drop`: (id, seed) without refined."""
    things, records = [], []
    for seed in seeds:
        for n, item in enumerate(asked.items):
            made = {
                "coarse": record(100 + 10 * seed + n, 2 * shift),
                "refined": record(200 + 10 * seed + n, shift),
            }
            failures = {}
            if (item.id, seed) in drop:
                made.pop("refined")
                failures = {"refined": "an empty object: no voxel is set"}
            meshes = {step: asked.items[n].truth / step for step in made}
            codes = {step: [n, seed] for step in ("coarse", "refined")}
            things.append(Generated(item, seed, meshes, failures, {}, codes))
            records.append(made)
    return summary.Scored(name, "somewhere", things, records, ["stranger.ply"])


def summarise(asked, systems, tmp_path, config=None):
    config = config or EvalConfig(kd_subsets=1, resamples=50)
    truth = {item.id: record(n) for n, item in enumerate(asked.items)}
    look = protocol.of(config)
    found = summary.summarise(asked, asked, systems, truth, look, config, tmp_path)
    return found, truth


def clip(of):
    vectors = of.vectors["embedded"].astype(np.float64)
    cosine = vectors @ of.texts["embedded"] / np.linalg.norm(vectors, axis=1)
    return 100 * cosine.mean()


def test_numbers_of_objects_are_means_over_seeds_then_objects(asked, tmp_path):
    base = system(asked, "base", 0.0, drop={("lamp", 1)})
    found, _ = summarise(asked, [base], tmp_path)
    (told, real) = found["systems"]
    scores = {name: [] for name in IDS}
    for thing, records in zip(base.objects, base.records, strict=True):
        if "refined" in records:
            scores[thing.item.id].append(clip(records["refined"]))
    statistic = told["overall"]["refined"]["clip_score/embedded"]
    assert statistic["n"] == 4
    wanted = np.mean([np.mean(some) for some in scores.values()])
    assert statistic["mean"] == pytest.approx(wanted)
    assert statistic["error"] > 0
    seats = told["categories"]["refined"]["seats"]["clip_score/embedded"]
    assert seats["n"] == 2
    assert seats["mean"] == pytest.approx(
        np.mean([np.mean(scores[name]) for name in ("lamp", "table")])
    )
    iou = told["overall"]["coarse"]["iou"]
    assert 0 < iou["mean"] < 0.2
    assert real["name"] == summary.REAL
    assert real["overall"]["mesh"]["components"]["mean"] == pytest.approx(1.5)
    assert "iou" not in real["overall"]["mesh"]


def test_kd_sees_every_second_view_of_every_object(asked, tmp_path):
    base = system(asked, "base", 0.5, seeds=(0,))
    found, truth = summarise(asked, [base], tmp_path)
    made = np.concatenate([r["refined"].vectors["embedded"][::2] for r in base.records])
    real = np.concatenate([of.vectors["embedded"][::2] for of in truth.values()])
    wanted = kernel_distance(
        real.astype(np.float64),
        made.astype(np.float64),
        subsets=1,
        subset_size=1000,
        seed=0,
    )
    statistic = found["systems"][0]["overall"]["refined"]["kd/embedded"]
    assert statistic["mean"] == pytest.approx(wanted, rel=1e-9)
    assert statistic["n"] == 4
    assert "fd/embedded" in found["systems"][0]["overall"]["refined"]


def test_failures_are_counted_and_named(asked, tmp_path):
    base = system(asked, "base", 0.0, drop={("lamp", 1)})
    broken = dataclasses.replace(record(0), vectors={}, reasons={"embedded": "it hung"})
    base.records[0]["coarse"] = broken
    base.records[1]["coarse"] = Record(failure="drawing failed: no triangles")
    found, _ = summarise(asked, [base], tmp_path)
    covered = found["systems"][0]["coverage"]
    assert covered["refined"]["asked"] == 8
    assert covered["refined"]["scored"] == 7
    (failed,) = covered["refined"]["failed"]
    assert (failed["id"], failed["seed"]) == ("lamp", 1)
    reasons = [of["reason"] for of in covered["coarse"]["failed"]]
    assert reasons == ["embedded: it hung", "drawing failed: no triangles"]
    assert found["systems"][0]["strangers"] == ["stranger.ply"]


def test_differences_are_paired_and_against_the_first(asked, tmp_path):
    systems = [system(asked, name, shift) for name, shift in (("a", 0.0), ("b", 1.0))]
    found, _ = summarise(asked, systems, tmp_path)
    pairs = [(of["a"], of["b"], of["step"]) for of in found["differences"]]
    assert pairs == [
        ("a", "a", "refined \N{MINUS SIGN} coarse"),
        ("b", "b", "refined \N{MINUS SIGN} coarse"),
        ("a", "b", "coarse"),
        ("a", "b", "refined"),
    ]
    means = [of["overall"]["refined"] for of in found["systems"][:2]]
    last = found["differences"][-1]["metrics"]
    for metric in ("clip_score/embedded", "kd/embedded", "fd/embedded"):
        wanted = means[1][metric]["mean"] - means[0][metric]["mean"]
        assert last[metric]["mean"] == pytest.approx(wanted, abs=1e-9), metric
    # Both have the same objects, so geometry differs by nothing, without any error.
    assert last["iou"] == {"mean": 0.0, "error": 0.0, "n": 4}


def test_borrowed_references_give_no_numbers_of_pairs(asked, tmp_path):
    """Without real objects of its own: KD and FD only, and a note that says so."""
    config = EvalConfig(kd_subsets=1, resamples=50)
    items = [dataclasses.replace(item, truth=None) for item in asked.items]
    alone = Benchmark("reasoning249", items, ())
    truth = {item.id: record(n) for n, item in enumerate(asked.items)}
    base = system(asked, "base", 0.0)
    found = summary.summarise(
        alone, asked, [base], truth, protocol.of(config), config, tmp_path
    )
    overall = found["systems"][0]["overall"]["refined"]
    assert "kd/embedded" in overall
    assert not {"iou", "chamfer", "f_score"} & set(overall)
    assert any(
        "borrow" in n or "no real objects" in n for n in found["benchmark"]["notes"]
    )


def test_the_public_scripts_numbers(asked, tmp_path):
    """A cosine, not x 100; its "KD" of the sets that read no text; nothing pooled."""
    sets = FeaturesConfig(sets=("clip_b32", "dinov2_b14"))
    config = EvalConfig(protocol="eval_py_compat", features=sets, resamples=50)

    def as_script(of):
        views = of.vectors["embedded"]
        return dataclasses.replace(
            of,
            vectors={"clip_b32": views, "dinov2_b14": views},
            texts={"clip_b32": of.texts["embedded"]},
        )

    base = system(asked, "base", 0.3, seeds=(0,))
    records = [{s: as_script(of) for s, of in r.items()} for r in base.records]
    base = dataclasses.replace(base, records=records)
    truth = {item.id: as_script(record(n)) for n, item in enumerate(asked.items)}
    look = protocol.of(config)
    found = summary.summarise(asked, asked, [base], truth, look, config, tmp_path)
    assert [of["name"] for of in found["systems"]] == ["base"]
    overall = found["systems"][0]["overall"]["refined"]
    assert set(overall) == {"clip_score/clip_b32", "similarity/dinov2_b14"}
    cosines = [clip(record(200 + n, 0.3)) / 100 for n in range(4)]
    assert overall["clip_score/clip_b32"]["mean"] == pytest.approx(np.mean(cosines))
    wanted = eval_py.similarity(
        np.stack([of.vectors["dinov2_b14"] for of in truth.values()]),
        np.stack([r["refined"].vectors["dinov2_b14"] for r in records]),
    )
    similarity = overall["similarity/dinov2_b14"]["mean"]
    assert similarity == pytest.approx(wanted.value)
    assert 0 < similarity < 1


def test_protocols_look_as_they_say():
    ring = protocol.of(EvalConfig())
    assert (ring.generated, ring.every) == (ring.truth, 2)
    assert (ring.generated.views, ring.generated.pitch_deg) == (8, 30.0)
    assert (ring.generated.radius, ring.generated.fov_deg) == (2.0, 40.0)
    assert ring.up("z") == "z"
    assert ring.caption("A chair. Red.") == "A chair. Red."
    script = protocol.of(EvalConfig(protocol="eval_py_compat", size=299))
    assert (script.generated.size, script.truth.size) == (299, 512)
    assert (script.generated.background, script.truth.background) == ("white", "black")
    assert script.generated.views == script.truth.views == 24
    assert script.up("y") == "z"  # its objects lie on their side
    assert script.caption("A chair. Red.") == "A chair"
