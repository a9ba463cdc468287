"""Answers of a model in this process: greedy, or sampled at temperature 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    seed: int | None,
    batch_size: int = 128,
) -> list[list[int]]:
    """The token ids that follow each prompt, without the token that ended the answer.

    Args:
        prompts: token ids, one sequence a prompt.
        stop_ids: tokens that end an answer.
        seed: None takes the likeliest token, a number samples from the whole distribution at temperature 1.
    """
    sampling: dict[str, Any] = {"do_sample": False}
    if seed is not None:
        torch.manual_seed(seed)
        sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    model.eval()
    answers: dict[int, list[int]] = {}
    # Prompts of like length go together, so that little is padded.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        width = max(len(prompts[index]) for index in indices)
        ids_SL = torch.tensor([[pad_id] * (width - len(prompts[i])) + list(prompts[i]) for i in indices])
        mask_SL = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in indices])
        generator: Any = model
        output_SL = generator.generate(
            input_ids=ids_SL.to(model.device),
            attention_mask=mask_SL.to(model.device),
            max_new_tokens=max_new_tokens,
            eos_token_id=list(stop_ids),
            pad_token_id=pad_id,
            use_cache=True,
            **sampling,
        )
        for index, ids in zip(indices, output_SL[:, width:].tolist(), strict=True):
            answers[index] = _until_stop(ids, stop_ids)
    return [answers[index] for index in range(len(prompts))]


def _until_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    ends = [position for position, token in enumerate(ids) if token in stop_ids]
    return ids[: ends[0]] if ends else ids
