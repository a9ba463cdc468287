"""The model that is trained, seen as what it does: token log-probabilities of a micro-batch's completions.

Axes: S sequences, L padded length, D hidden size, V vocabulary, N completion tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slime_ray.config.lora import LoraConfig
from slime_ray.data.collation import MicroBatch
from slime_ray.errors import ModelError
from slime_ray.model.lora import add_lora
from slime_ray.model.token_logps import token_logps, token_logps_and_entropies


class Policy:
    """A causal language model, with or without adapters.

    Attributes:
        model: what is trained: the transformers model, or peft's wrapper of it.
        plain: the transformers model; under LoRA its layers carry the adapters.
        device: where it computes.
    """

    def __init__(self, model: PreTrainedModel, *, lora: LoraConfig | None, device: torch.device) -> None:
        """Check the head, add the adapters and move the model to the device.

        Raises:
            ModelError: the model computes logits in a way that the chunked head does not know.
            ConfigError: the adapters do not fit the model.
        """
        model.train()
        self.plain = model
        self.device = device
        check_head(model)
        self.model: PreTrainedModel | peft.PeftModel = add_lora(model, lora) if lora else model
        self.model.to(device)  # pyright: ignore[reportArgumentType]
        # bfloat16 where the hardware computes it; the weights stay as they are loaded.
        self._bf16 = device.type == "cuda" and model.dtype == torch.float32 and torch.cuda.is_bf16_supported()

    def completion_logps(self, batch: MicroBatch) -> Tensor:
        """log pi(token | context) of every completion token of the micro-batch, in nats, shape (N,)."""
        weight_VD, bias_V = head_parameters(self.plain)
        return token_logps(self._hidden(batch), weight_VD, batch.targets_N, bias_V=bias_V)

    @torch.no_grad()
    def completion_logps_and_entropies(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """The same log-probabilities and the entropy of the distribution that predicts each token, both in nats and of
        shape (N,), from one forward pass without gradient."""
        weight_VD, bias_V = head_parameters(self.plain)
        return token_logps_and_entropies(self._hidden(batch), weight_VD, batch.targets_N, bias_V=bias_V)

    def _hidden(self, batch: MicroBatch) -> Tensor:
        """The body's last hidden states at the positions that predict the completion tokens, (N, D)."""
        with torch.autocast("cuda", torch.bfloat16) if self._bf16 else nullcontext():
            hidden_SLD = body(self.plain)(
                input_ids=batch.input_ids_SL,
                attention_mask=batch.attention_mask_SL,
                position_ids=batch.position_ids_SL,
            ).last_hidden_state
        hidden_ND = hidden_SLD.flatten(0, 1)[batch.predict_N]
        return hidden_ND.bfloat16() if self._bf16 else hidden_ND

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside it the adapters are off: the policy is the one that training started from. LoRA only."""
        assert isinstance(self.model, peft.PeftModel)
        was_training = self.model.training
        self.model.eval()  # the reference knows no dropout
        with torch.no_grad(), self.model.disable_adapter():
            yield
        self.model.train(was_training)

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that are trained, by name, each once."""
        return [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]


def body(model: PreTrainedModel) -> nn.Module:
    """The part of a causal language model before its head."""
    return model.base_model


def head_parameters(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """The head's weight and bias as they are in force: a head trained in full counts unless adapters are off."""
    head: Any = model.get_output_embeddings()
    if isinstance(head, peft.utils.ModulesToSaveWrapper):
        head = head.original_module if head.disable_adapters else head.modules_to_save[head.active_adapters[0]]
    return head.weight, head.bias


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Compare the chunked head with the model's own logits on a short probe.

    Raises:
        ModelError: they differ, so that every loss would be wrong.
    """
    head: Any = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"model type {model.config.model_type!r} has no output head; expected a causal language model")
    ids_SL = torch.arange(8, device=model.device).remainder(model.config.get_text_config().vocab_size)[None]
    was_training = model.training
    model.eval()
    # The logits are stretched to 30, where a cap on them shows, however small the weights are.
    stretch = (30 / model(input_ids=ids_SL).logits.abs().max()).clamp(1, 1e6)
    hook = head.register_forward_hook(lambda _module, _inputs, logits: logits * stretch)
    expected_N = torch.log_softmax(model(input_ids=ids_SL).logits[0, :-1].double(), -1)
    hook.remove()
    expected_N = expected_N.gather(1, ids_SL[0, 1:, None]).squeeze(1)
    hidden_ND = body(model)(input_ids=ids_SL).last_hidden_state[0, :-1]
    weight_VD, bias_V = head_parameters(model)
    bias_V = None if bias_V is None else bias_V * stretch
    actual_N = token_logps(hidden_ND * stretch, weight_VD, ids_SL[0, 1:], bias_V=bias_V)
    model.train(was_training)
    if not expected_N.isfinite().all():
        raise ModelError(f"the {model.config.model_type!r} model has weights that are not finite; expected a sound one")
    difference = (actual_N.double() - expected_N).abs().max().item()
    if difference > 1e-3:
        raise ModelError(
            f"model type {model.config.model_type!r}: its logits are more than its output embedding times the hidden "
            f"state (log-probabilities differ by {difference:.3g}); this family is not supported"
        )
