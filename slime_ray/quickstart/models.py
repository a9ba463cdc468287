"""A model without any download: a tokenizer trained on the texts at hand and a small Llama with random weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from slime_ray.data.preferences import Demonstration, read_demonstrations

BOS, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_tokenizer(texts: Iterable[str], *, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with a chat template; every text can be encoded and decoded again.

    Args:
        texts: what merges are learned from; the same texts give the same tokenizer.
        vocabulary: the number of tokens, at least 256 bytes and the special ones.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, END, PAD, *_ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        additional_special_tokens=list(_ROLES),
        clean_up_tokenization_spaces=False,
    )


def make_llama(
    tokenizer: PreTrainedTokenizerFast, *, layers: int, hidden: int, heads: int, tied: bool, seed: int
) -> LlamaForCausalLM:
    """A Llama with random weights for a tokenizer, in float32."""
    set_seed(seed)
    special: dict[str, Any] = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=tied,
        **special,
    )
    return LlamaForCausalLM(config)


def write_model(folder: Path, rows: str, *, seed: int) -> Path:
    """Write the quickstart's base model: 1,024 tokens, 2 layers x 256, tied, 1.8 million parameters, never trained.

    Args:
        folder: where the Hugging Face folder goes; what is there stays as it is, so that a trained model's tokenizer
            never changes under it.
        rows: demonstrations whose texts the tokenizer is trained on.
        seed: of the weights.
    """
    if not (folder / "model.safetensors").is_file():
        texts = [
            message["content"]
            for row in read_demonstrations(rows)
            if isinstance(row, Demonstration)
            for message in (*row.prompt, *row.completion)
        ]
        tokenizer = make_tokenizer(texts, vocabulary=1024)
        model = make_llama(tokenizer, layers=2, hidden=256, heads=4, tied=True, seed=seed)
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)  # the weights last: they say that the folder is complete
    return folder
