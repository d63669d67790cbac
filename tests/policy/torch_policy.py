"""Small random models of transformers, to compare with: nothing is downloaded."""

from typing import Any

import numpy as np
import torch
import transformers

torch.set_num_threads(1)  # at these sizes threads only wait for each other

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
ROPE = {"rope_type": "default", "rope_theta": 1e6}
VISION = {
    "depth": 1,
    "hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 24,
    "patch_size": 14,
}


def qwen2(*, tied: bool, seed: int = 0, **sizes: Any) -> torch.nn.Module:
    config = transformers.Qwen2Config(
        **{**SIZES, **sizes}, rope_parameters=ROPE, tie_word_embeddings=tied
    )
    return randomised(transformers.Qwen2ForCausalLM(config), seed)


def qwen25_vl(*, tied: bool, seed: int = 0, **sizes: Any) -> torch.nn.Module:
    text = {**SIZES, **sizes}
    pairs = text["hidden_size"] // text["num_attention_heads"] // 2
    section = [pairs // 4, pairs // 4, pairs - 2 * (pairs // 4)]
    rope = {**ROPE, "mrope_section": section}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": rope, "tie_word_embeddings": tied},
        vision_config={**VISION, "out_hidden_size": text["hidden_size"]},
        tie_word_embeddings=tied,
    )
    return randomised(transformers.Qwen2_5_VLForConditionalGeneration(config), seed)


def randomised(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Also biases and norms, which start at 0 and 1.

    Wide enough that greedy decoding does not run in circles: attention is sharp, blocks
    change more than the embedding that they are added to, logits are of order 3.
    """
    gains = {"q_proj": 2, "k_proj": 2, "o_proj": 3, "down_proj": 3}
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.2)
            elif parameter.ndim == 1:
                parameter.normal_(0.0, 0.5)
            else:
                gain = gains.get(name.split(".")[-2], 1)
                parameter.normal_(0.0, gain * parameter[0].numel() ** -0.5)
        for module in model.get_output_embeddings(), model.get_input_embeddings():
            module.weight.normal_(0.0, 3 * module.weight.shape[1] ** -0.5)
    return model.eval()


def positions_of(valid: np.ndarray) -> np.ndarray:
    """Of each token among its row's valid ones, from 0."""
    return np.maximum(np.cumsum(valid, axis=1) - 1, 0)


def logits_of(
    model: torch.nn.Module, tokens: np.ndarray, valid: np.ndarray
) -> torch.Tensor:
    """Float32 logits [B, T, V] of padded rows, in the model's own arithmetic."""
    out = model(
        input_ids=torch.tensor(tokens).long(),
        attention_mask=torch.tensor(valid).long(),
        position_ids=torch.tensor(positions_of(valid)),
    )
    return out.logits.float()


def greedy_of(
    model: torch.nn.Module, tokens: np.ndarray, valid: np.ndarray, *, steps: int
) -> np.ndarray:
    """What `generate` appends to prompts padded on the left, [B, steps]."""
    out = model.generate(
        torch.tensor(tokens).long(),
        attention_mask=torch.tensor(valid).long(),
        do_sample=False,
        max_new_tokens=steps,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert out.shape[1] == tokens.shape[1] + steps
    return out[:, tokens.shape[1] :].numpy()


def text_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The text model's, by their older names."""
    return {
        name.replace("model.language_model.", "model."): parameter
        for name, parameter in model.named_parameters()
        if "visual" not in name
    }
