"""The policy against the model's own log-softmax, with and without adapters, and the models that it refuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import peft
import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaModel,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    set_seed,
)

from slime_ray.config.lora import LoraConfig
from slime_ray.data.collation import MicroBatch, collate
from slime_ray.errors import ConfigError, ModelError
from slime_ray.model.policy import Policy
from slime_ray.quickstart.models import make_llama, make_tokenizer

CPU = torch.device("cpu")
LORA = LoraConfig(r=4, alpha=8)
LORA_AND_HEAD = LoraConfig(r=4, alpha=8, modules_to_save=["lm_head"])
SHAPE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(["a quiet river reads seven letters every morning"] * 2, vocabulary=280)


def llama(*, tied: bool) -> PreTrainedModel:
    """A tiny Llama in float64 whose log-probabilities differ between tokens."""
    return sharpened(make_llama(tokenizer(), layers=2, hidden=32, heads=2, tied=tied, seed=0).double())


@torch.no_grad()
def sharpened(model: PreTrainedModel) -> PreTrainedModel:
    """As they are drawn, the weights are so small that all tokens are about as likely."""
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.mul_(6.0)
    return model


@torch.no_grad()
def moved(policy: Policy) -> Policy:
    """The policy after its trained parameters, adapters that began at 0 among them, went somewhere else."""
    generator = torch.Generator().manual_seed(1)
    for _, parameter in policy.trained():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return policy


def head(model: PreTrainedModel) -> Any:
    return model.get_output_embeddings()


def micro_batch(*, padding_side: Literal["left", "right"] = "right", vocabulary: int = 60) -> MicroBatch:
    """Three pairs of different lengths."""
    generator = torch.Generator().manual_seed(2)
    columns = {
        name: [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]
        for name, lengths in {"prompt_ids": [3, 6, 1], "chosen_ids": [4, 1, 7], "rejected_ids": [9, 2, 5]}.items()
    }
    return collate(Dataset.from_dict(columns), range(3), pad_id=0, padding_side=padding_side)


def own_logps(model: nn.Module, batch: MicroBatch) -> Tensor:
    """What the model's own logits give for the micro-batch's completion tokens."""
    logits_SLV = model(
        input_ids=batch.input_ids_SL, attention_mask=batch.attention_mask_SL, position_ids=batch.position_ids_SL
    ).logits
    logps_NV = torch.log_softmax(logits_SLV, -1).flatten(0, 1)[batch.predict_N]
    return logps_NV.gather(1, batch.targets_N[:, None]).squeeze(1)


def gradients(policy: Policy, logps_N: Tensor) -> dict[str, Tensor | None]:
    """Gradients of a sum in which every token has another weight, of all parameters that have one."""
    policy.model.zero_grad()
    (torch.linspace(-1.0, 2.0, len(logps_N), dtype=logps_N.dtype) * logps_N).sum().backward()
    return {name: parameter.grad for name, parameter in policy.model.named_parameters() if parameter.grad is not None}


def check_against_own(policy: Policy, batch: MicroBatch) -> None:
    actual_N, expected_N = policy.completion_logps(batch), own_logps(policy.model, batch)
    torch.testing.assert_close(actual_N, expected_N, rtol=1e-12, atol=1e-12)
    assert expected_N.std() > 0.3  # far from a uniform distribution

    actual, expected = gradients(policy, actual_N), gradients(policy, expected_N)
    assert actual.keys() == expected.keys() == {name for name, _ in policy.trained()}
    largest = max(float(gradient.abs().max()) for gradient in expected.values() if gradient is not None)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=0, atol=1e-9 * largest, msg=name)


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("lora", [None, LORA, LORA_AND_HEAD], ids=["plain", "lora", "lora-and-head"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_values_and_gradients_are_those_of_the_models_own_log_softmax(
    tied: bool, lora: LoraConfig | None, padding_side: Literal["left", "right"]
) -> None:
    policy = moved(Policy(llama(tied=tied), lora=lora, device=CPU))

    check_against_own(policy, micro_batch(padding_side=padding_side, vocabulary=280))


@pytest.mark.parametrize("lora", [None, LORA, LORA_AND_HEAD], ids=["plain", "lora", "lora-and-head"])
def test_a_heads_bias_is_part_of_it(lora: LoraConfig | None) -> None:
    set_seed(0)
    model = sharpened(PhiForCausalLM(PhiConfig(**SHAPE)).double())
    with torch.no_grad():
        head(model).bias.normal_()

    check_against_own(moved(Policy(model, lora=lora, device=CPU)), micro_batch())


def test_a_gemma_without_a_cap_on_its_logits_is_taken() -> None:
    set_seed(0)
    model = sharpened(Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=None)).double())

    check_against_own(moved(Policy(model, lora=LORA, device=CPU)), micro_batch())


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_head_that_is_not_trained_gets_no_gradient(tied: bool) -> None:
    policy = moved(Policy(llama(tied=tied), lora=LORA, device=CPU))
    policy.completion_logps(micro_batch()).sum().backward()

    weight = head(policy.plain).weight
    assert not weight.requires_grad
    assert weight.grad is None
    assert all("lora_" in name for name, _ in policy.trained())


def test_a_tied_head_is_one_parameter_and_a_head_trained_in_full_another() -> None:
    plain = Policy(llama(tied=True), lora=None, device=CPU)
    assert head(plain.plain).weight is plain.plain.get_input_embeddings().weight
    assert len({parameter.data_ptr() for _, parameter in plain.trained()}) == len(plain.trained())

    wrapped = Policy(llama(tied=True), lora=LORA_AND_HEAD, device=CPU)
    embeddings: Any = wrapped.plain.get_input_embeddings()
    in_full = {name: parameter for name, parameter in wrapped.trained() if "lora_" not in name}
    assert list(in_full) == ["base_model.model.lm_head.modules_to_save.default.weight"]
    (weight,) = in_full.values()
    assert weight.data_ptr() != head(wrapped.plain).original_module.weight.data_ptr()
    assert weight.data_ptr() != embeddings.weight.data_ptr()


@pytest.mark.parametrize("lora", [LORA, LORA_AND_HEAD], ids=["lora", "lora-and-head"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_new_adapters_change_nothing(tied: bool, lora: LoraConfig) -> None:
    batch = micro_batch()
    before_N = Policy(llama(tied=tied), lora=None, device=CPU).completion_logps(batch)
    after_N = Policy(llama(tied=tied), lora=lora, device=CPU).completion_logps(batch)

    torch.testing.assert_close(after_N, before_N, rtol=0, atol=0)


@pytest.mark.parametrize("lora", [LORA, LORA_AND_HEAD], ids=["lora", "lora-and-head"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_reference_is_the_policy_before_training_and_leaves_no_trace(tied: bool, lora: LoraConfig) -> None:
    batch = micro_batch()
    base_N = Policy(llama(tied=tied), lora=None, device=CPU).completion_logps(batch)
    policy = moved(Policy(llama(tied=tied), lora=lora, device=CPU))
    before_N, trained = policy.completion_logps(batch), [name for name, _ in policy.trained()]

    with policy.reference():
        reference_N = policy.completion_logps(batch)
    after_N = policy.completion_logps(batch)

    torch.testing.assert_close(reference_N, base_N, rtol=0, atol=0)
    assert not reference_N.requires_grad
    assert (before_N - base_N).abs().max() > 0.1
    torch.testing.assert_close(after_N, before_N, rtol=0, atol=0)
    assert [name for name, _ in policy.trained()] == trained
    check_against_own(policy, batch)


def test_the_adapters_are_on_again_after_an_error_in_the_reference() -> None:
    batch = micro_batch()
    policy = moved(Policy(llama(tied=True), lora=LORA_AND_HEAD, device=CPU))
    before_N = policy.completion_logps(batch)

    with pytest.raises(KeyboardInterrupt), policy.reference():
        raise KeyboardInterrupt

    torch.testing.assert_close(policy.completion_logps(batch), before_N, rtol=0, atol=0)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("lora", [None, LORA, LORA_AND_HEAD], ids=["plain", "lora", "lora-and-head"])
def test_entropies_are_those_of_the_models_own_logits(
    lora: LoraConfig | None, padding_side: Literal["left", "right"]
) -> None:
    policy = moved(Policy(llama(tied=False), lora=lora, device=CPU))
    batch = micro_batch(padding_side=padding_side, vocabulary=280)
    with torch.no_grad():
        logits_SLV = policy.model(
            input_ids=batch.input_ids_SL, attention_mask=batch.attention_mask_SL, position_ids=batch.position_ids_SL
        ).logits
    expected_N = torch.distributions.Categorical(logits=logits_SLV.flatten(0, 1)[batch.predict_N]).entropy()

    logps_N, entropies_N = policy.completion_logps_and_entropies(batch)

    torch.testing.assert_close(entropies_N, expected_N, rtol=1e-12, atol=1e-12)
    assert expected_N.std() > 0.02
    assert torch.equal(logps_N, policy.completion_logps(batch))
    assert not logps_N.requires_grad
    assert not entropies_N.requires_grad


def gemma2() -> PreTrainedModel:
    return Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=30.0))


def cohere() -> PreTrainedModel:
    return CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25))


def granite() -> PreTrainedModel:
    return GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=8.0))


@pytest.mark.parametrize("sharp", [False, True], ids=["small-logits", "large-logits"])
@pytest.mark.parametrize("make", [gemma2, cohere, granite])
def test_a_family_whose_logits_are_more_than_head_times_hidden_is_refused(
    make: Callable[[], PreTrainedModel], sharp: bool
) -> None:
    set_seed(0)
    model = sharpened(make()) if sharp else make()

    message = (
        f"^model type '{make.__name__}': its logits are more than its output embedding times the hidden state "
        r"\(log-probabilities differ by [0-9.]+\); this family is not supported$"
    )
    with pytest.raises(ModelError, match=message):
        Policy(model, lora=None, device=CPU)


def test_the_check_of_the_head_leaves_the_model_as_it_was() -> None:
    model = llama(tied=False)
    expected_N = own_logps(model, micro_batch())
    policy = Policy(model, lora=None, device=CPU)

    torch.testing.assert_close(own_logps(policy.plain, micro_batch()), expected_N, rtol=0, atol=0)
    assert policy.plain.training


def test_a_model_without_a_head_is_refused() -> None:
    config: Any = llama(tied=False).config
    message = "^model type 'llama' has no output head; expected a causal language model$"
    with pytest.raises(ModelError, match=message):
        Policy(LlamaModel(config), lora=None, device=CPU)


@pytest.mark.parametrize("place", ["head", "embedding"])
def test_weights_that_are_not_finite_are_refused(place: str) -> None:
    model = llama(tied=False)
    module: Any = model.get_output_embeddings() if place == "head" else model.get_input_embeddings()
    with torch.no_grad():
        module.weight[5, 3] = torch.nan

    with pytest.raises(ModelError, match=r"^the 'llama' model has weights that are not finite; expected a sound one$"):
        Policy(model, lora=None, device=CPU)


LINEAR = "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"


@pytest.mark.parametrize("target", [["c_attn"], ".*nothing", []], ids=["names", "regex", "none"])
def test_targets_that_match_nothing_are_refused_with_the_names_there_are(target: str | list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        Policy(llama(tied=False), lora=LoraConfig(target_modules=target), device=CPU)

    assert str(error.value) == f"lora.target_modules = {target!r} match no module; this model has {LINEAR}"


def test_a_target_that_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^lora\.target_modules = '\(\(' is no regular expression: "):
        Policy(llama(tied=False), lora=LoraConfig(target_modules="(("), device=CPU)


@pytest.mark.parametrize("target", [["lm_head"], ["q_proj", "lm_head"], ".*(q_proj|lm_head)"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_an_adapter_on_the_head_is_refused(tied: bool, target: str | list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        Policy(llama(tied=tied), lora=LoraConfig(target_modules=target), device=CPU)

    assert str(error.value) == (
        "lora.target_modules match the output head; the head is trained in full: name it in lora.modules_to_save"
    )


def test_modules_to_save_that_the_model_has_not_are_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError) as error:
        Policy(llama(tied=False), lora=LoraConfig(modules_to_save=["head"]), device=CPU)

    assert str(error.value) == f"lora.modules_to_save: 'head' is no module of this model; it has {LINEAR}"


def test_all_linear_adapts_every_projection_and_not_the_head() -> None:
    policy = Policy(llama(tied=False), lora=LORA, device=CPU)

    assert isinstance(policy.model, peft.PeftModel)
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in policy.trained()}
    assert adapted == set(LINEAR.split(", ")) - {"lm_head"}
    assert len(policy.trained()) == 2 * 2 * 7  # A and B, 2 layers, 7 projections
