"""`transformers serve`, for a machine without torchvision: FOLDER PORT.

Only the processor differs: its video part, which needs torchvision, is left out.
"""

import sys
from typing import Any

import transformers
from transformers.cli.serve import Serve
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor


class Processor(Qwen2_5_VLProcessor):
    """Pictures and text."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    def __init__(self, image_processor: Any = None, tokenizer: Any = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        ids = tokenizer.convert_tokens_to_ids([self.image_token, self.video_token])
        self.image_token_id, self.video_token_id = ids
        super(Qwen2_5_VLProcessor, self).__init__(
            image_processor, tokenizer, chat_template=tokenizer.chat_template
        )

    @classmethod
    def from_pretrained(cls, folder: str, **settings: Any) -> "Processor":
        return cls(
            transformers.Qwen2VLImageProcessorPil.from_pretrained(folder),
            transformers.AutoTokenizer.from_pretrained(folder),
        )


if __name__ == "__main__":
    folder, port = sys.argv[1:]
    transformers.AutoProcessor.from_pretrained = Processor.from_pretrained
    Serve(force_model=folder, host="127.0.0.1", port=int(port), device="cpu")
