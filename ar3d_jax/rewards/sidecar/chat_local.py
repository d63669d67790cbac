"""Qwen2.5-VL, or a fine-tune of it, that answers questions in this process.

transformers' model, tokenizer, chat template and Pillow image processor do the work.
Its `AutoProcessor` would join them, but it insists on torchvision for videos, of which
there are none; so the join is here: as many image tokens as there are squares of 28
pixels, and a mark on each. Sampling is the config's alone: the checkpoint's
generation_config plays no part.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

from ar3d_jax import weights
from ar3d_jax.config_rewards import JudgeConfig
from ar3d_jax.rewards.sidecar import devices, revisions
from ar3d_jax.rewards.sidecar.answers import Answer
from ar3d_jax.rewards.sidecar.chat import PIXELS, Question, generation_fields
from ar3d_jax.rewards.sidecar.features import files
from ar3d_jax.rewards.sidecar.scorers import About

EXPECTED = "a Qwen2.5-VL as published: safetensors, config.json and tokenizer"
ENDS = ("<|im_end|>", "<|endoftext|>")  # of a turn, of a text


class LocalChat:
    """A `Chat`: one model on its device."""

    def __init__(self, config: JudgeConfig, field: str, threads: int) -> None:
        """Loads `config.model`, of the section `field`.

        Raises:
            UserError: a file is missing or broken, it is another kind of model, or the
                device is not there.
        """
        devices.start(threads)
        device = devices.device_of(config.device, f"{field}.device")
        dtype = devices.dtype_of(config.dtype, device, torch.bfloat16)
        folder = weights.resolve(config.model, f"{field}.model")
        self._config, self._device = config, device
        self._model = _load_model(folder, dtype, f"{field}.model").to(device)
        numbers = self._model.named_parameters()  # a GPU looks at 15 GB in no time
        files.refuse_damage(numbers, folder, f"{field}.model", EXPECTED)
        self._tokenizer = _load_tokenizer(folder, f"{field}.model")
        self._images = _load_images(folder, f"{field}.model")
        ends = self._tokenizer.convert_tokens_to_ids(list(ENDS))
        self._ends = [end for end in ends if end is not None]
        if not self._ends:
            problem = f"has a tokenizer without {' and '.join(ENDS)}"
            files.refuse(f"{field}.model", folder, problem, EXPECTED)
        self.about = About(config.model, revisions.revision_of(folder), str(device))
        # What is not said below would be taken from here, and it was the checkpoint's.
        self._model.generation_config = transformers.GenerationConfig()
        self._generation = transformers.GenerationConfig(
            **generation_fields(config),
            eos_token_id=self._ends,
            pad_token_id=self._ends[0],
        )

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """See `Chat`; `config.batch` questions at a time.

        Greedy answers are those of each question alone, but for rounding. Sampled ones
        start from the config's seed in each batch.
        """
        answers, size = [], self._config.batch
        for start in range(0, len(questions), size):
            answers += self._answer_together(questions[start : start + size])
        return answers

    def wake(self) -> None:
        """Brings the model to its device."""
        self._model.to(self._device)

    def rest(self) -> None:
        """Takes it to the machine's memory."""
        self._model.to("cpu")
        devices.empty()

    @torch.inference_mode()
    def _answer_together(self, questions: Sequence[Question]) -> list[Answer]:
        inputs = self.prepare(questions)
        torch.manual_seed(self._config.seed)
        tokens = self._model.generate(**inputs, generation_config=self._generation)
        written = tokens[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._read(row) for row in written]

    def _read(self, row: list[int]) -> Answer:
        """What is before the first end; the rest of a row is padding."""
        end = next((i for i, token in enumerate(row) if token in self._ends), None)
        text = self._tokenizer.decode(row[:end], skip_special_tokens=True)
        return Answer(text, cut=end is None)

    def prepare(self, questions: Sequence[Question]) -> dict[str, Tensor]:
        """The model's inputs, padded on the left, on its device."""
        pictures = [Image.fromarray(view) for q in questions for view in q.pictures]
        seen: dict[str, Tensor] = {}  # the processor refuses to see nothing
        counts: Iterator[int] = iter(())
        if pictures:
            seen = dict(self._images(images=pictures, return_tensors="pt"))
            area = self._images.merge_size**2
            counts = iter((seen["image_grid_thw"].prod(1) // area).tolist())
        image = self._model.config.image_token_id
        rows = []
        for question in questions:
            ids = self._tokenizer(self._turn(question))["input_ids"]
            rows.append(
                [t for i in ids for t in [i] * (next(counts) if i == image else 1)]
            )
        longest = max(map(len, rows))
        padded = [[self._ends[0]] * (longest - len(row)) + row for row in rows]
        tokens = torch.tensor(padded)
        there = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        inputs = {
            "input_ids": tokens,
            "attention_mask": torch.tensor(there),
            "mm_token_type_ids": (tokens == image).int(),  # for 3D positions
            **seen,
        }
        return {name: value.to(self._model.device) for name, value in inputs.items()}

    def _turn(self, question: Question) -> str:
        """The conversation so far, as the checkpoint's template has it."""
        content = [{"type": "image"} for _ in question.pictures]
        content.append({"type": "text", "text": question.text})
        return self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=False,
            add_generation_prompt=True,
        )


def _load_model(folder: Path, dtype: torch.dtype, field: str) -> Any:
    transformers.logging.set_verbosity_error()  # what it would report, we raise
    transformers.logging.disable_progress_bar()
    try:
        kind = json.loads((folder / "config.json").read_text("utf-8"))["model_type"]
        if kind != "qwen2_5_vl":
            raise ValueError(f"it is a {kind}")
        kinds: Any = transformers  # its annotations know no loading info
        model, found = kinds.Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # of json, of safetensors, of transformers' own checks
        problem = f"cannot be loaded ({files.first_line(error)})"
        files.refuse(field, folder, problem, EXPECTED)
    problem = files.misfits(sorted(found["missing_keys"]), {})
    if problem:
        files.refuse(field, folder, problem, EXPECTED)
    return model.eval()


def _load_tokenizer(folder: Path, field: str) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True
        )
        older = folder / "chat_template.json"  # where checkpoints of 2024 have it
        if tokenizer.chat_template is None and older.is_file():
            stated = json.loads(older.read_text("utf-8"))
            tokenizer.chat_template = stated["chat_template"]
    except Exception as error:  # the tokenizers library raises plain Exceptions
        problem = f"has a tokenizer that cannot be read ({files.first_line(error)})"
        files.refuse(field, folder, problem, EXPECTED)
    if tokenizer.chat_template is None:
        files.refuse(field, folder, "has no chat template", EXPECTED)
    return tokenizer


def _load_images(folder: Path, field: str) -> Any:
    """The image processor, for pictures of `PIXELS` at most, as endpoints have it."""
    try:
        images: Any = transformers.Qwen2VLImageProcessorPil.from_pretrained(
            folder, local_files_only=True
        )
    except Exception as error:
        problem = f"has no image processor to read ({files.first_line(error)})"
        files.refuse(field, folder, problem, EXPECTED)
    most = min(images.size["longest_edge"], PIXELS)
    images.size = {"shortest_edge": images.size["shortest_edge"], "longest_edge": most}
    return images
