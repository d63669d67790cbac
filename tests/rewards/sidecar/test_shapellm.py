"""ShapeLLM: published files, its answers, and the score that they make."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers

from ar3d_jax.config_rewards import RewardsConfig, ShapeLlmConfig
from ar3d_jax.errors import UserError
from ar3d_jax.rewards.sidecar import revisions
from ar3d_jax.rewards.sidecar.scorers import (
    SCORERS,
    About,
    Scorer,
    Subject,
    recon,
    shapellm,
    shapellm_model,
)
from tests.rewards.sidecar import published_shapellm as published
from tests.rewards.sidecar.resting import rest_and_wake

CPU = torch.device("cpu")
PROMPT = "a chair with four legs and a round back"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The folder and the file, and what is in them."""
    root = tmp_path_factory.mktemp("shapellm")
    language = published.folder(root / "llm")
    encoder = published.encoder(root / "recon" / recon.PUBLISHED)
    return root / "llm", root / "recon", language, encoder


def settings(places, part_lists="", **changes):
    own = ShapeLlmConfig(weights=str(places[0]), encoder=str(places[1]), **changes)
    return RewardsConfig(shapellm=own, part_lists=str(part_lists))


@pytest.fixture(scope="module")
def scorer(places):
    return shapellm.load(settings(places))


@pytest.fixture(scope="module")
def model(places):
    encoder = places[1] / recon.PUBLISHED
    return shapellm_model.load(places[0], encoder, CPU, torch.float32)


def subject(count=10_000, prompt=PROMPT, seed=0):
    xyz, colours = published.points(count, seed)
    white = np.full((1, 4, 4, 3), 255, np.uint8)
    return Subject(prompt, white, xyz, colours, ("parts",))


def number(scorer, asked):
    (verdicts,) = scorer.score([asked])
    assert list(verdicts) == ["parts"]
    return verdicts["parts"]


class Alone:
    """One question at a time, by the library's own model: no masks, no packing."""

    def __init__(self, places, encoder):
        folder, _, tensors, _ = places
        stated = json.loads((folder / "config.json").read_text())
        kept = ("hidden_size", "intermediate_size", "num_attention_heads")
        kept += ("num_hidden_layers", "vocab_size", "rms_norm_eps")
        config = transformers.LlamaConfig(**{name: stated[name] for name in kept})
        config.max_position_embeddings = 2048
        self.language = transformers.LlamaForCausalLM(config).eval()
        own = {n: t for n, t in tensors.items() if "mm_projector" not in n}
        self.language.load_state_dict(own, strict=True)
        self.t, self.encoder = tensors, encoder
        path = folder / "tokenizer.model"
        proto = published.sentencepiece.ModelProto()
        proto.ParseFromString(path.read_bytes())
        self.ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}

    def project(self, i, x):
        name = f"model.mm_projector.proj{i}"
        for layer in (0, 3, 6):
            x = x @ self.t[f"{name}.{layer}.weight"].T + self.t[f"{name}.{layer}.bias"]
            if layer < 6:
                weight, bias = (
                    self.t[f"{name}.{layer + 1}.{end}"] for end in ("weight", "bias")
                )
                x = torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias)
                x = torch.nn.functional.gelu(x)
        return torch.cat([x, self.t[f"model.mm_projector.prompt{i}"][0]])

    def tokens(self, text):
        """By hand: as many letters as a piece has, else the letter's byte."""
        text, found = "▁" + text.replace(" ", "▁"), []
        while text:
            piece = max(
                (p for p in self.ids if text.startswith(p)), default="", key=len
            )
            found.append(self.ids[piece or f"<0x{ord(text[0]):02X}>"])
            text = text[len(piece) or 1 :]
        return found

    def answer(self, cloud, question):
        points = [self.project(i + 1, x) for i, x in enumerate(self.encoder(cloud))]
        system = (
            "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's "
            "questions. USER: "
        )
        table = self.t["model.embed_tokens.weight"]
        before = table[[self.ids["<s>"], *self.tokens(system)]]
        after = table[self.tokens(f"\n{question} ASSISTANT:")]
        rows = torch.cat([before, *points, after])[None]
        likely = self.language(inputs_embeds=rows).logits[0, -1].softmax(0)
        return [
            float(likely[self.ids[f"▁{a}"]] + likely[self.ids[f"▁{b}"]])
            for a, b in (("Yes", "yes"), ("No", "no"))
        ]


QUESTIONS = ["Is it a sofa?", "Has it two big green wheels, or more?", "Is it?"]


@torch.inference_mode()
def test_answers_together_are_those_of_one_question_at_a_time(places, model):
    cloud = torch.from_numpy(shapellm.cloud(*published.points(3000), "z"))
    points = model.point_tokens(cloud)
    assert tuple(points.shape) == (512 + 32 + 512 + 32 + 16 + 32, published.HIDDEN)
    together = model.answer(points, QUESTIONS)
    alone = Alone(places, model._encoder)
    wanted = torch.tensor([alone.answer(cloud, question) for question in QUESTIONS])
    assert wanted.std(0).min() > 5e-4  # else the test could not tell them apart
    torch.testing.assert_close(together, wanted, rtol=0, atol=2e-6)
    for question, row in zip(QUESTIONS, together, strict=True):
        one = model.answer(points, [question])[0]
        torch.testing.assert_close(one, row, rtol=0, atol=2e-6)


def test_a_question_that_is_too_long_is_said(model):
    points = torch.zeros(1136, published.HIDDEN)
    with pytest.raises(ValueError, match="ShapeLLM reads 2048"):
        model.answer(points, ["Is it red?", "x" * 900])


def test_full_size_reads_1136_tokens_and_has_the_count_of_parameters():
    config = transformers.LlamaConfig()  # 7B
    with torch.device("meta"):
        widths = shapellm_model.Widths(1024, 1024, 2048, 4096, 32)
        language = shapellm_model.build(config, widths)
        encoder = recon.PointEncoder(recon.LARGE)
        tokens = language.model.mm_projector(*encoder(torch.zeros(10_000, 6)))
    assert tuple(tokens.shape) == (1136, 4096)
    counted = sum(parameter.numel() for parameter in language.parameters())
    mlp = 1024**2 + 1024 * 2048 + 2048 * 4096 + 3 * (1024 + 2048) + 4096
    assert counted == 6_738_415_616 + 3 * (mlp + 32 * 4096)


def test_cloud_is_centred_in_the_unit_ball_with_colours_up_to_1():
    xyz, colours = published.points(12_345)
    found = shapellm.cloud(xyz + 7, colours, "z")
    rows = [i * 12_345 // 10_000 for i in range(10_000)]
    np.testing.assert_allclose(found[:, 3:], colours[rows] / 255, atol=1e-6)
    mean = xyz[rows].mean(0)
    radius = max(np.linalg.norm(row - mean) for row in xyz[rows])
    np.testing.assert_allclose(found[:, :3], (xyz[rows] - mean) / radius, atol=1e-5)
    assert np.linalg.norm(found[:, :3], axis=1).max() == pytest.approx(1)


def test_cloud_by_hand():
    xyz = np.array([[0, 0, 0], [2, 0, 0], [1, 3, 0], [1, -3, 4]], np.float32)
    colours = np.array([[0, 0, 0], [255, 51, 0], [0, 0, 0], [0, 0, 0]], np.uint8)
    found = shapellm.cloud(xyz, colours, "z")
    assert found.shape == (512, 6)  # repeated
    np.testing.assert_array_equal(found[:4], found[508:])
    radius = np.sqrt(9 + 9)  # of the last, from the centroid (1, 0, 1)
    np.testing.assert_allclose(found[1, :3] * radius, [1, 0, -1], atol=1e-6)
    np.testing.assert_allclose(found[1, 3:], [1, 0.2, 0])
    y_up = shapellm.cloud(xyz, colours, "y")
    np.testing.assert_allclose(y_up[3, :3] * radius, [0, 3, 3], atol=1e-6)
    np.testing.assert_array_equal(y_up[:, 3:], found[:, 3:])
    same = shapellm.cloud(np.ones((1, 3), np.float32), colours[:1], "z")
    np.testing.assert_array_equal(same, np.zeros((512, 6)))


@torch.inference_mode()
def test_score_is_equation_6_of_the_answers(scorer, model):
    asked = subject()
    found, why = number(scorer, asked)
    assert why is None
    assert number(scorer, asked) == (found, None)  # the same bits
    cloud = torch.from_numpy(shapellm.cloud(asked.points, asked.colours, "z"))
    points = model.point_tokens(cloud)
    templates = shapellm.read_questions()
    terms = []
    for part, count in (("leg", 4), ("round back", 1)):
        for kind in ("existence", "completeness"):
            question = templates[kind].format(part=part, count=count)
            yes, no = model.answer(points, [question])[0].tolist()
            exact = yes / (yes + no)
            terms.append(float(exact >= 0.5) if kind == "existence" else exact)
    assert found == pytest.approx(sum(terms) / 2, abs=1e-5)
    assert 0 < found < 2


def test_scorer_is_what_the_sidecar_expects(places, scorer):
    assert isinstance(scorer, Scorer)
    assert SCORERS["shapellm"] == shapellm.__name__
    assert scorer.batch == 1
    assert scorer.about.model == str(places[0])
    encoder = places[1] / recon.PUBLISHED
    language, points = (revisions.revision_of(p) for p in (places[0], encoder))
    assert language != points
    assert scorer.about.revision == f"{language}, encoder {points}"
    assert scorer.about.place == "cpu"
    assert scorer.score([]) == []
    scorer.close()


def test_the_revision_is_of_the_files(tmp_path, scorer):
    published.folder(tmp_path / "llm", seed=5)
    published.encoder(tmp_path / recon.PUBLISHED)
    other = shapellm.load(settings((tmp_path / "llm", tmp_path)))
    assert other.about.revision != scorer.about.revision
    commit = tmp_path / "models--a--b" / "snapshots" / ("0a" * 20)
    commit.parent.mkdir(parents=True)
    (tmp_path / "llm").rename(commit)
    known = shapellm.load(settings((commit, tmp_path)))
    assert known.about.revision.startswith("0a" * 20 + ", encoder sha256:")


def test_up_axis_batch_and_points_count(places, scorer):
    found, _ = number(scorer, subject(600))
    turned, why = number(shapellm.load(settings(places, up="y")), subject(600))
    assert why is None
    assert abs(turned - found) > 1e-4
    one, _ = number(shapellm.load(settings(places, batch=1)), subject(600))
    assert one == pytest.approx(found, abs=1e-5)
    assert number(scorer, subject(600, seed=1))[0] != found
    few, why = number(scorer, subject(100))  # fewer than groups
    assert (why, 0 < few < 2) == (None, True)


def test_bfloat16_is_nearly_the_same(places, scorer):
    lower = shapellm.load(settings(places, dtype="bfloat16"))
    answers = [s._ask(subject(600), ["Is it red?"]) for s in (scorer, lower)]
    # Of all numbers, the points' first: some groups are around other centres.
    np.testing.assert_allclose(*answers, rtol=0.4)
    assert not np.array_equal(*answers)


def test_after_a_rest_the_scores_are_the_same(places):
    scorer = shapellm.load(settings(places))
    score = number(scorer, subject(600))
    rest_and_wake(scorer, scorer._model._encoder, scorer._model._language)
    assert number(scorer, subject(600)) == score


def test_an_object_without_points_has_no_parts(scorer):
    assert number(scorer, subject(0)) == (0.0, None)


class Fixed(shapellm_model.ShapeLlm):
    """Gives prepared answers, and remembers what it was asked."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    @property
    def device(self):
        return CPU

    def point_tokens(self, cloud):
        return torch.zeros(4, 2)

    def answer(self, points, questions):
        first = len(self.asked)
        self.asked += questions
        return torch.tensor(self.answers[first : len(self.asked)])


def fixed(answers, lists=None, batch=3):
    model = Fixed(answers)
    own = ShapeLlmConfig(batch=batch)
    about = About("m", "r", "p")
    return shapellm.ShapeLlmScorer(model, own, lists or {}, about), model


def test_score_by_hand():
    answers = [[0.3, 0.3], [0.1, 0.3], [0.2, 0.3], [0.1, 0.4]]
    scorer, model = fixed(answers)
    # Legs: exist at exactly a half, complete 1/4; back: not there, complete 1/5.
    assert number(scorer, subject()) == (
        pytest.approx((1 + 0.25 + 0 + 0.2) / 2, abs=1e-6),
        None,
    )
    assert [("leg" in q, "round back" in q, "4" in q) for q in model.asked] == [
        (True, False, False),
        (True, False, True),
        (False, True, False),
        (False, True, False),
    ]


def test_a_complete_part_that_is_not_there_has_its_completeness_alone():
    """Existence is the first answer's, whatever the second says, and the reverse."""
    absent, whole = [0.2, 0.3], [0.4, 0.1]
    for pair, expected in (
        ([absent, whole], 0 + 0.8),
        ([whole, absent], 1 + 0.4),
        ([whole, whole], 1 + 0.8),
        ([absent, absent], 0 + 0.4),
    ):
        scorer, _ = fixed(pair)
        found = number(scorer, subject(prompt="a sofa"))
        assert found == (pytest.approx(expected, abs=1e-6), None)


@pytest.mark.parametrize("last", [[4e-4, 5e-4], [0.0, 0.0], [np.nan, np.nan]])
def test_no_yes_and_no_no_is_a_reason_and_no_number(last):
    scorer, model = fixed([[0.5, 0.5]] * 3 + [last])
    found, why = number(scorer, subject())
    assert np.isnan(found)
    assert why.startswith("neither yes nor no: p = ")
    assert why.endswith(model.asked[-1])


def test_part_lists_come_before_words(tmp_path, places):
    path = tmp_path / "parts.jsonl"
    path.write_text(
        '{"prompt": "a chair", "parts": [{"name": "seat", "count": 3}]}\n'
        '{"prompt": "a sofa", "parts": []}\n'
    )
    read = shapellm.load(settings(places, part_lists=path))._lists
    for prompt, part in (("a  chair", "seat"), ("a sofa", "sofa"), ("a bed", "bed")):
        scorer, model = fixed([[0.5, 0.5]] * 2, read)
        assert number(scorer, subject(prompt=prompt))[0] == 1.5
        assert all(part in question for question in model.asked)


def test_questions_are_in_the_file():
    questions = shapellm.read_questions()
    assert tuple(questions) == shapellm.KINDS
    assert all("{part}" in text for text in questions.values())


SCALED = json.dumps(shapellm_model._STATED | {"rope_scaling": {"type": "linear"}})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "config.json cannot be read"),
        ("config.json", "[]", "config.json is no JSON object"),
        ("config.json", '{"model_type": "llama"}', "states model_type 'llama', not"),
        ("config.json", SCALED, "states rope_scaling {'type': 'linear'}, not None"),
        ("tokenizer.model", "no model", "tokenizer.model cannot be read"),
        ("tokenizer.json", "{}", "tokenizer.json cannot be read"),
        ("pytorch_model.bin.index.json", "{}", "names no files beside it"),
        (
            "pytorch_model.bin.index.json",
            '{"weight_map": {"a": "../b.bin"}}',
            "names no files beside it",
        ),
        (
            "pytorch_model.bin.index.json",
            '{"weight_map": {"a": "b.bin"}}',
            "b.bin is no file",
        ),
        ("pytorch_model-00002-of-00002.bin", "x", "00002.bin cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, name, content, message):
    published.folder(tmp_path / "llm")
    published.encoder(tmp_path / recon.PUBLISHED)
    (tmp_path / "llm" / name).write_text(content)
    with pytest.raises(UserError) as caught:
        shapellm.load(settings((tmp_path / "llm", tmp_path)))
    assert message in str(caught.value)
    assert "--config.rewards.shapellm.weights" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model.mm_projector.proj1.0.weight": None},
            "is no ShapeLLM (no 'model.mm_projector.proj1.0.weight')",
        ),
        (
            {
                "lm_head.weight": torch.zeros(3, 3),
                "model.norm.weight": None,
                "model.x": torch.zeros(1),
            },
            "lacks model.norm.weight; has lm_head.weight of shape (3, 3), not (",
        ),
    ],
)
def test_all_tensors_that_do_not_fit_are_said_at_once(tmp_path, change, message):
    tensors = published.folder(tmp_path / "llm") | change
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    published.write_shards(tmp_path / "llm", kept)
    published.encoder(tmp_path / recon.PUBLISHED)
    with pytest.raises(UserError) as caught:
        shapellm.load(settings((tmp_path / "llm", tmp_path)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tensors_that_cannot_be_right_are_one_line(tmp_path):
    tensors = published.folder(tmp_path / "llm")
    published.encoder(tmp_path / recon.PUBLISHED)
    name = "model.layers.0.self_attn.v_proj.weight"
    for value, problem in (
        (0.0, "that is all zeros"),
        (torch.nan, "with numbers that"),
    ):
        changed = tensors | {name: torch.full_like(tensors[name], value)}
        published.write_shards(tmp_path / "llm", changed)
        with pytest.raises(UserError, match=f"has a tensor {name} {problem}"):
            shapellm.load(settings((tmp_path / "llm", tmp_path)))


def test_the_index_decides_which_copy_counts(tmp_path, places):
    published.folder(tmp_path / "llm")
    place = tmp_path / "llm" / "pytorch_model.bin.index.json"
    placed = json.loads(place.read_text())["weight_map"]
    first, last = min(placed.values()), max(placed.values())
    read = shapellm_model._read_tensors(tmp_path / "llm")
    wanted = {name: tensor.clone() for name, tensor in read.items()}  # files change
    for file, other in ((first, last), (last, first)):  # whichever is read later
        name = next(name for name, where in placed.items() if where == other)
        tensors = torch.load(tmp_path / "llm" / file, weights_only=True)
        torch.save(tensors | {name: wanted[name] + 1}, tmp_path / "llm" / file)
    found = shapellm_model._read_tensors(tmp_path / "llm")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    place.write_text(json.dumps({"weight_map": placed | {"more": first}}))
    with pytest.raises(UserError, match=r"has no more, which .* places there"):
        shapellm_model._read_tensors(tmp_path / "llm")


def test_a_projector_for_another_encoder_is_refused(tmp_path):
    published.folder(tmp_path / "llm", features=64)
    published.encoder(tmp_path / recon.PUBLISHED)
    with pytest.raises(UserError, match="reads 64 numbers per group of points") as e:
        shapellm.load(settings((tmp_path / "llm", tmp_path)))
    assert "\n" not in str(e.value)


def test_absent_folders_and_devices_are_one_line(tmp_path, places):
    own = ShapeLlmConfig(weights=str(tmp_path / "no"), encoder=str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"shapellm\.weights.*shapellm\.encoder"):
        shapellm.load(RewardsConfig(shapellm=own))
    for device in ("cuda:7", "gpu"):
        wrong = dataclasses.replace(settings(places).shapellm, device=device)
        line = f"^config field rewards.shapellm.device is '{device}'.*; expected auto"
        with pytest.raises(UserError, match=line) as caught:
            shapellm.load(RewardsConfig(shapellm=wrong))
        assert "\n" not in str(caught.value)


def test_tokenizer_json_gives_the_same_tokens(tmp_path, model):
    vocabulary = published.tokenizer(tmp_path / "tokenizer.model")
    first = shapellm_model._read_tokenizer(tmp_path, vocabulary)
    first.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").exists()
    second = shapellm_model._read_tokenizer(tmp_path, vocabulary)
    text = "\nIs it a part? Yes, no ASSISTANT:"
    ids = first(text, add_special_tokens=False).input_ids
    pieces = ["▁", "<0x0A>", "I", "s", "▁", "i", "t", "▁", "a", "▁part"]
    assert first.convert_ids_to_tokens(ids)[: len(pieces)] == pieces
    assert second(text, add_special_tokens=False).input_ids == ids
    assert first.bos_token_id == second.bos_token_id == 1
    with pytest.raises(UserError, match=f"tokens, and config.json {vocabulary - 1}"):
        shapellm_model._read_tokenizer(tmp_path, vocabulary - 1)
