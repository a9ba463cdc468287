"""The chunked head against a plain log-softmax: values, gradients, chunk boundaries, and the memory that it takes."""

from __future__ import annotations

from math import log
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from slime_ray.data.collation import collate
from slime_ray.model import token_logps as head
from slime_ray.model.policy import Policy
from slime_ray.model.token_logps import token_logps, token_logps_and_entropies

TOKENS, HIDDEN, VOCABULARY = 7, 5, 11


class Allocations(TorchDispatchMode):
    """Notes what the operations inside it allocate, in bytes: the largest storage, and the most that lived at once."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.peak = self.operations = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                storage = tensor.untyped_storage()
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                self.largest = max(self.largest, storage.nbytes())
        self._live = {key: value for key, value in self._live.items() if not value[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        self.operations += 1
        return result


def plain(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, bias_V: Tensor | None = None) -> Tensor:
    logits_NV = torch.nn.functional.linear(hidden_ND, weight_VD, bias_V)
    return torch.log_softmax(logits_NV, -1).gather(1, targets_N[:, None]).squeeze(1)


def inputs(
    tokens: int = TOKENS, hidden: int = HIDDEN, vocabulary: int = VOCABULARY, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, bias and targets."""
    torch.manual_seed(0)
    floats = [3 * torch.randn(*shape, dtype=dtype) for shape in ((tokens, hidden), (vocabulary, hidden), (vocabulary,))]
    return floats[0], floats[1], floats[2], torch.randint(vocabulary, (tokens,))


def gradients(logps_N: Tensor, of: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a sum in which every token has another weight."""
    weights_N = torch.linspace(-1.0, 2.0, len(logps_N), dtype=logps_N.dtype)
    return torch.autograd.grad((weights_N * logps_N).sum(), of)


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("elements", [1, VOCABULARY, 2 * VOCABULARY, 3 * VOCABULARY + 5, TOKENS * VOCABULARY, 10**6])
def test_values_and_gradients_are_those_of_a_log_softmax_wherever_chunks_end(
    elements: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", elements)
    hidden_ND, weight_VD, bias_V, targets_N = inputs()
    trained = [hidden_ND, weight_VD, *([bias_V] if with_bias else [])]
    for tensor in trained:
        tensor.requires_grad_()

    actual_N = token_logps(hidden_ND, weight_VD, targets_N, bias_V=bias_V if with_bias else None)
    expected_N = plain(hidden_ND, weight_VD, targets_N, bias_V if with_bias else None)

    close(actual_N, expected_N)
    close(gradients(actual_N, trained), gradients(expected_N, trained))


def test_the_chunks_are_as_large_as_the_limit_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = head._logits

    def noted(hidden_CD: Tensor, *rest: Any) -> Tensor:
        sizes.append(len(hidden_CD))
        return original(hidden_CD, *rest)

    monkeypatch.setattr(head, "_logits", noted)
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 3 * VOCABULARY + 5)
    hidden_ND, weight_VD, _, targets_N = inputs()
    token_logps(hidden_ND.requires_grad_(), weight_VD, targets_N).sum().backward()

    assert sizes == [3, 3, 1] * 2


def test_gradients_are_those_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 2 * VOCABULARY)
    hidden_ND, weight_VD, bias_V, targets_N = inputs()
    trained = tuple(tensor.requires_grad_() for tensor in (hidden_ND, weight_VD, bias_V))

    assert torch.autograd.gradcheck(lambda h, w, b: token_logps(h, w, targets_N, bias_V=b), trained)


def test_a_frozen_head_gets_no_gradient_and_changes_none() -> None:
    hidden_ND, weight_VD, bias_V, targets_N = inputs()
    expected = gradients(plain(hidden_ND.requires_grad_(), weight_VD, targets_N, bias_V), [hidden_ND])
    logps_N = token_logps(hidden_ND, weight_VD, targets_N, bias_V=bias_V)

    close(gradients(logps_N, [hidden_ND]), expected)
    token_logps(hidden_ND, weight_VD, targets_N, bias_V=bias_V).sum().backward()
    assert weight_VD.grad is None
    assert bias_V.grad is None


def test_a_frozen_heads_gradient_is_not_even_computed() -> None:
    hidden_ND, weight_VD, _, targets_N = inputs(tokens=5, hidden=64, vocabulary=500)
    logps_N = token_logps(hidden_ND.requires_grad_(), weight_VD, targets_N)
    with Allocations() as frozen:
        logps_N.sum().backward()
    logps_N = token_logps(hidden_ND, weight_VD.requires_grad_(), targets_N)
    with Allocations() as trained:
        logps_N.sum().backward()

    assert frozen.peak < 8 * 500 * 64 <= trained.peak


def test_a_frozen_body_gets_no_gradient_and_changes_none() -> None:
    hidden_ND, weight_VD, _, targets_N = inputs()
    expected = gradients(plain(hidden_ND, weight_VD.requires_grad_(), targets_N), [weight_VD])

    close(gradients(token_logps(hidden_ND, weight_VD, targets_N), [weight_VD]), expected)
    token_logps(hidden_ND, weight_VD, targets_N).sum().backward()
    assert hidden_ND.grad is None


def test_no_tokens_give_no_values_and_a_gradient_of_zeros() -> None:
    hidden_ND, weight_VD, _, targets_N = inputs(tokens=0)
    logps_N = token_logps(hidden_ND.requires_grad_(), weight_VD.requires_grad_(), targets_N)

    assert logps_N.shape == (0,)
    hidden_grad_ND, weight_grad_VD = torch.autograd.grad(logps_N.sum(), [hidden_ND, weight_VD])
    assert hidden_grad_ND.shape == hidden_ND.shape
    assert weight_grad_VD.abs().sum() == 0


def test_huge_logits_neither_overflow_nor_lose_a_certain_token() -> None:
    # The logits of the two tokens are 2000, 0 and -2000 and the like: the first token is certain, the second hopeless.
    hidden_ND = torch.tensor([[1000.0], [-1000.0]], dtype=torch.float64, requires_grad=True)
    weight_VD = torch.tensor([[2.0], [0.0], [-2.0]], dtype=torch.float64)
    logps_N = token_logps(hidden_ND, weight_VD, torch.tensor([0, 0]))

    assert logps_N.tolist() == [0.0, -4000.0]
    # d logp / d hidden = weight of the target - the mean weight under the softmax: 2 - 2 and 2 + 2.
    assert gradients(logps_N, [hidden_ND])[0].tolist() == [[0.0], [2.0 * 4.0]]


@pytest.mark.parametrize(
    ("dtype", "result", "tolerance"),
    [(torch.bfloat16, torch.float32, 0.1), (torch.float32, torch.float32, 1e-5), (torch.float64, torch.float64, 1e-12)],
)
def test_values_are_float32_at_least_and_gradients_keep_their_parameters_type(
    dtype: torch.dtype, result: torch.dtype, tolerance: float
) -> None:
    hidden_ND, weight_VD, _, targets_N = inputs()
    expected_N = plain(hidden_ND, weight_VD, targets_N)
    # As under autocast: the hidden states are narrow, the weights are not.
    weight_VD = weight_VD.to(torch.float32 if dtype == torch.bfloat16 else dtype).requires_grad_()
    hidden_ND = hidden_ND.to(dtype).requires_grad_()
    logps_N = token_logps(hidden_ND, weight_VD, targets_N)

    assert logps_N.dtype == result
    torch.testing.assert_close(logps_N.double(), expected_N, rtol=tolerance, atol=tolerance)
    hidden_grad_ND, weight_grad_VD = gradients(logps_N, [hidden_ND, weight_VD])
    assert hidden_grad_ND.dtype == dtype
    assert weight_grad_VD.dtype == weight_VD.dtype


@pytest.mark.parametrize("with_bias", [False, True])
def test_no_more_than_two_chunks_of_logits_ever_exist(with_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, hidden, vocabulary, size = 400, 8, 2000, 8 * 20_000
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 20_000)  # 10 tokens; the weight has 16,000 elements
    hidden_ND, weight_VD, bias_V, targets_N = inputs(tokens, hidden, vocabulary)
    for tensor in (hidden_ND, weight_VD, bias_V):
        tensor.requires_grad_()

    with Allocations() as forward:
        logps_N = token_logps(hidden_ND, weight_VD, targets_N, bias_V=bias_V if with_bias else None)
    with Allocations() as backward:
        logps_N.sum().backward()

    assert weight_VD.grad is not None
    for allocations in (forward, backward):
        assert allocations.operations > 40 * 4  # it saw every chunk
        assert allocations.largest <= size  # the whole would be 40 times as much
        # The next chunk's logits are made before the last one's go; the rest is gradients and vectors.
        assert allocations.peak <= 2 * size + 8 * (vocabulary * (hidden + 1) + tokens * (hidden + 8))


def test_the_limit_holds_at_the_size_that_is_shipped() -> None:
    tokens, vocabulary = 640, 32_768  # 21 million logits, 2.5 times the limit
    hidden_ND, weight_VD, _, targets_N = inputs(tokens, 4, vocabulary, torch.float32)
    with Allocations() as allocations:
        token_logps(hidden_ND.requires_grad_(), weight_VD.requires_grad_(), targets_N).sum().backward()

    assert 4 * tokens * vocabulary > 2 * allocations.largest
    assert allocations.largest <= 4 * head.CHUNK_ELEMENTS


def test_the_measurement_sees_the_logits_of_a_plain_log_softmax() -> None:
    hidden_ND, weight_VD, _, targets_N = inputs(400, 8, 2000)
    with Allocations() as allocations:
        plain(hidden_ND, weight_VD.requires_grad_(), targets_N).sum().backward()

    assert allocations.largest >= 8 * 400 * 2000
    assert allocations.peak >= 2 * 8 * 400 * 2000


def test_a_whole_step_of_the_model_makes_nothing_larger_than_a_chunk_or_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vocabulary, hidden = 4000, 16
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", vocabulary * hidden)
    set_seed(0)
    shape: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, hidden_size=hidden, **shape)).double()
    policy = Policy(model, lora=None, device=torch.device("cpu"))
    rows = {"prompt_ids": [[1, 2, 3]] * 4, "chosen_ids": [list(range(60))] * 4, "rejected_ids": [list(range(50))] * 4}
    batch = collate(Rows(rows), range(4), pad_id=0, padding_side="right")

    with Allocations() as allocations:
        policy.completion_logps(batch).sum().backward()

    tokens = len(batch.targets_N)
    assert tokens == 4 * 110
    assert 8 * tokens * vocabulary > 25 * allocations.largest
    assert allocations.largest <= 8 * vocabulary * hidden


# --- Entropies, from the pass that gives the log-probabilities.

CHUNKS = [1, VOCABULARY, 3 * VOCABULARY + 5, 10**6]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("elements", CHUNKS)
def test_entropies_are_those_of_the_softmax_wherever_chunks_end(
    elements: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", elements)
    hidden_ND, weight_VD, bias_V, targets_N = inputs()
    hidden_ND /= 3  # as drawn, some distributions are all but certain
    logits_NV = torch.nn.functional.linear(hidden_ND, weight_VD, bias_V if with_bias else None)
    probabilities_NV = torch.softmax(logits_NV, -1)
    expected_N = -(probabilities_NV * probabilities_NV.log()).sum(-1)

    _, entropies_N = token_logps_and_entropies(hidden_ND, weight_VD, targets_N, bias_V=bias_V if with_bias else None)

    close(entropies_N, expected_N)
    assert expected_N.max() - expected_N.min() > 0.3


def test_entropies_worked_by_hand() -> None:
    # Logits ln 2, 0, 0 are 1/2, 1/4, 1/4; zeros are a third each; 2000, 0, -2000 leave nothing open.
    hidden_ND = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1000.0]], dtype=torch.float64)
    weight_VD = torch.tensor([[log(2), 2.0], [0.0, 0.0], [0.0, -2.0]], dtype=torch.float64)
    logps_N, entropies_N = token_logps_and_entropies(hidden_ND, weight_VD, torch.tensor([0, 1, 2]))

    close(entropies_N, torch.tensor([1.5 * log(2), log(3), 0.0], dtype=torch.float64))
    close(logps_N, torch.tensor([-log(2), -log(3), -4000.0], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("elements", CHUNKS)
def test_beside_entropies_the_log_probabilities_are_bit_for_bit_those_of_training(
    elements: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", elements)
    hidden_ND, weight_VD, bias_V, targets_N = (tensor.to(dtype) for tensor in inputs())
    targets_N = targets_N.long()
    expected_N = token_logps(hidden_ND, weight_VD, targets_N, bias_V=bias_V)
    logps_N, entropies_N = token_logps_and_entropies(
        hidden_ND.requires_grad_(), weight_VD.requires_grad_(), targets_N, bias_V=bias_V.requires_grad_()
    )

    assert torch.equal(logps_N, expected_N)
    assert logps_N.dtype == entropies_N.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not logps_N.requires_grad
    assert not entropies_N.requires_grad


def test_entropies_cost_one_pass_of_the_head_and_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, hidden, vocabulary, size = 400, 8, 2000, 8 * 20_000
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 20_000)  # 10 tokens; the weight has 16,000 elements
    passed: list[int] = []
    original = head._logits

    def noted(hidden_CD: Tensor, *rest: Any) -> Tensor:
        passed.append(len(hidden_CD))
        return original(hidden_CD, *rest)

    monkeypatch.setattr(head, "_logits", noted)
    hidden_ND, weight_VD, _, targets_N = inputs(tokens, hidden, vocabulary)
    with Allocations() as allocations:
        token_logps_and_entropies(hidden_ND, weight_VD, targets_N)

    assert passed == [10] * 40
    assert allocations.operations > 40 * 4  # it saw every chunk
    assert allocations.largest <= size
    # The next chunk's logits are made before the last one's go.
    assert allocations.peak <= 2 * size + 8 * tokens * 4


def test_no_tokens_have_no_entropies() -> None:
    hidden_ND, weight_VD, _, targets_N = inputs(tokens=0)
    logps_N, entropies_N = token_logps_and_entropies(hidden_ND, weight_VD, targets_N)

    assert logps_N.shape == entropies_N.shape == (0,)


class Rows:
    """Columns of tokens, indexed by rows as a data set is."""

    def __init__(self, columns: dict[str, list[list[int]]]) -> None:
        self.columns = columns

    def __getitem__(self, rows: list[int]) -> dict[str, list[list[int]]]:
        return {name: [column[row] for row in rows] for name, column in self.columns.items()}
