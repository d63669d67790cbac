"""A small Qwen2.5-VL in this process: what it sees and answers, and bad folders."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
import transformers

from ar3d_jax.config_rewards import JudgeConfig
from ar3d_jax.errors import UserError
from ar3d_jax.rewards.sidecar.chat import Question
from ar3d_jax.rewards.sidecar.chat_local import LocalChat
from tests.rewards import serve_transformers, tiny_qwen
from tests.rewards.sidecar.resting import rest_and_wake

FIELD = "rewards.qwen_vl"
TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_qwen.make(tmp_path_factory.mktemp("qwen"))


def config(folder, **fields):
    fields = {"max_tokens": TOKENS, "batch": 3, **fields}
    return JudgeConfig(model=str(folder), **fields)


def load(folder, **fields):
    return LocalChat(config(folder, **fields), FIELD, 1)


@pytest.fixture(scope="module")
def chat(folder):
    return load(folder)


def question(seed, pictures=1, side=56, words=1):
    random = np.random.default_rng(seed)
    shape = (pictures, side, side + 28, 3)
    text = " ".join(["How is it?"] * words)
    return Question(text, random.integers(0, 256, shape).astype(np.uint8))


QUESTIONS = [
    question(20),
    question(1, 6),
    question(2, 2, 84, words=7),
    question(3, 1, 112),
    question(4, 3, 60, words=3),  # no multiple of 28
    question(14),
    question(6, words=2),
    question(7, 6, words=20),
]


def inputs_of_transformers(folder, question):
    """What the library's own processor makes of the question."""
    processor = serve_transformers.Processor.from_pretrained(str(folder))
    pictures = [{"type": "image", "image": view} for view in question.pictures]
    content = [*pictures, {"type": "text", "text": question.text}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )


@pytest.mark.parametrize("index", [0, 1, 2, 3, 4])
def test_inputs_are_the_librarys_own(folder, chat, index):
    found = chat.prepare([QUESTIONS[index]])
    wanted = inputs_of_transformers(folder, QUESTIONS[index])
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name].to(tensor.dtype), tensor, rtol=0, atol=0)
    assert wanted["mm_token_type_ids"].sum() > 0


def test_answers_are_the_likeliest_tokens(folder, chat):
    """Against whole passes of the library's model without a cache, token by token."""
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    ends = words.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    answers = chat.answer(QUESTIONS[:5])
    for one, answer in zip(QUESTIONS, answers, strict=False):
        inputs = dict(inputs_of_transformers(folder, one))
        written = []
        while len(written) < TOKENS and not set(ends) & set(written):
            with torch.inference_mode():
                likeliest = model(**inputs).logits[0, -1].argmax()
            written.append(int(likeliest))
            for name, value in (
                ("input_ids", written[-1]),
                ("attention_mask", 1),
                ("mm_token_type_ids", 0),
            ):
                one_more = torch.full((1, 1), value, dtype=inputs[name].dtype)
                inputs[name] = torch.cat([inputs[name], one_more], 1)
        assert answer.text == words.decode(written, skip_special_tokens=True)
        assert answer.cut == (written[-1] not in ends)
        assert answer.reason is None
    assert len({answer.text for answer in answers}) > 3


def test_together_as_one_at_a_time(chat):
    together = chat.answer(QUESTIONS)
    alone = [chat.answer([one])[0] for one in QUESTIONS]
    assert together == alone
    assert {answer.cut for answer in alone} == {True, False}
    assert chat.answer(QUESTIONS[::-1])[::-1] == alone
    assert chat.answer([]) == []


def test_the_order_of_pictures_matters(chat):
    one = QUESTIONS[7]
    turned = dataclasses.replace(one, pictures=one.pictures[::-1].copy())
    assert chat.answer([one]) != chat.answer([turned])


def test_sampling_is_the_configs(folder, chat):
    drawn = [
        load(folder, temperature=1.5, seed=seed).answer(QUESTIONS[:3])
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    greedy = chat.answer(QUESTIONS[:3])
    assert drawn[0] != greedy
    assert load(folder, temperature=1.5, top_k=1).answer(QUESTIONS[:3]) == greedy
    assert load(folder, repetition_penalty=50.0).answer(QUESTIONS[:3]) != greedy


def test_the_checkpoints_generation_config_plays_no_part(folder, chat, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    spoil = _restate("generation_config.json", suppress_tokens=list(range(200)))
    spoil(tmp_path)
    assert load(tmp_path).answer(QUESTIONS[:3]) == chat.answer(QUESTIONS[:3])


def test_a_large_picture_is_made_smaller(chat):
    grid = chat.prepare([question(0, side=1000)])["image_grid_thw"][0].tolist()
    assert grid == [1, 30, 32]  # 420 x 448
    exact = Question("", np.zeros((1, 448, 448, 3), np.uint8))
    assert chat.prepare([exact])["image_grid_thw"][0].tolist() == [1, 32, 32]


def test_what_it_is(folder, chat, tmp_path):
    assert chat.about.model == str(folder)
    assert chat.about.place == "cpu"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert chat.about.revision == f"sha256:{digest[:12]}"
    other = tiny_qwen.make(tmp_path / "other", seed=1)
    assert load(other).about.revision != chat.about.revision
    cached = tmp_path / "models--a--b" / "snapshots" / "0123abc"
    shutil.copytree(folder, cached)
    assert load(cached).about.revision == "0123abc"


def test_shards_are_the_same_model(chat, tmp_path):
    folder = tiny_qwen.make(tmp_path, shards="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert load(folder).answer(QUESTIONS[:2]) == chat.answer(QUESTIONS[:2])


def test_half_precision(folder):
    chat = load(folder, dtype="bfloat16")
    assert chat.answer(QUESTIONS[:2])[0].reason is None


def test_an_older_place_of_the_template(folder, chat, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").unlink()
    text = json.dumps({"chat_template": tiny_qwen.TEMPLATE})
    (tmp_path / "chat_template.json").write_text(text)
    assert load(tmp_path).answer(QUESTIONS[:1]) == chat.answer(QUESTIONS[:1])


def _restate(name, **fields):
    def spoil(folder):
        stated = json.loads((folder / name).read_text()) | fields
        (folder / name).write_text(json.dumps(stated))

    return spoil


def _without(*names):
    def spoil(folder):
        for name in names:
            (folder / name).unlink()

    return spoil


def _lose_tensors(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    kept = {k: t for k, t in load_file(path).items() if "visual.merger" not in k}
    save_file(kept, path, metadata={"format": "pt"})


def _fill(name, value):
    def spoil(folder):
        from safetensors.torch import load_file, save_file

        path = folder / "model.safetensors"
        tensors = load_file(path)
        key = next(key for key in tensors if name in key)
        tensors[key] = torch.full_like(tensors[key], value)
        save_file(tensors, path, metadata={"format": "pt"})

    return spoil


def _cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_without("config.json"), "cannot be loaded (FileNotFoundError"),
        (_without("model.safetensors"), "cannot be loaded (OSError"),
        (_restate("config.json", model_type="qwen2"), "ValueError: it is a qwen2"),
        (_cut_short, "cannot be loaded (SafetensorError"),
        (_lose_tensors, "lacks model.visual.merger.ln_q.weight, model.visual.merger."),
        (_lose_tensors, " and 2 more; expected"),
        (_fill("layers.1.mlp.up_proj", 0.0), "layers.1.mlp.up_proj.weight that is all"),
        (_fill("norm.weight", np.nan), "norm.weight with numbers that are not finite"),
        (_without("chat_template.jinja"), "has no chat template"),
        (_without("preprocessor_config.json"), "has no image processor to read"),
        (_without("tokenizer.json"), "tokenizer"),
    ],
)
def test_a_bad_folder_is_one_line(folder, tmp_path, spoil, problem):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    spoil(tmp_path)
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{FIELD}.model: {tmp_path} ")
    assert problem in message
    assert "\n" not in message
    assert f"--config.{FIELD}.model" in message


@pytest.mark.parametrize("device", ["cuda:9", "gpu"])
def test_a_device_that_is_not_there(folder, device):
    line = (
        rf"^config field rewards\.qwen_vl\.device is '{device}'.*; expected auto, cpu"
    )
    with pytest.raises(UserError, match=line):
        load(folder, device=device)


def test_after_a_rest_the_answers_are_the_same(folder):
    chat = load(folder)
    answers = chat.answer(QUESTIONS[:3])
    rest_and_wake(chat, chat._model)
    assert chat.answer(QUESTIONS[:3]) == answers


def test_a_model_that_is_nowhere():
    with pytest.raises(UserError, match=r"^rewards\.qwen_vl\.model is 'nobody/none'"):
        load("nobody/none")
