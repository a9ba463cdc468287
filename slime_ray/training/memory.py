"""How much memory a training takes: one step of it is run on tensors that have shapes but no numbers."""

from __future__ import annotations

import math
import os
import resource
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from slime_ray.config.recipe import Recipe
from slime_ray.config.training import TrainingConfig
from slime_ray.data.batching import Lengths, micro_batch_tokens
from slime_ray.data.collation import MicroBatch, RowTokens, pack, pad
from slime_ray.model.head import Head
from slime_ray.model.lora import add_lora
from slime_ray.model.policy import checkpoint_layers, hidden_states, layout_of
from slime_ray.storage import size_text

# A process that has loaded torch, transformers and Ray, and has trained a step of next to nothing.
PROCESS_BYTES = 600_000_000
# Tokens of a micro-batch, where neither the recipe nor memory asks for fewer: more make no processor faster.
MOST_TOKENS = 16384
# What is left free of a machine's memory, or of a GPU's: other programs, what allocators cannot use.
_SPARE = 0.1
_PROBED_VOCABULARY = 8192
_GROUPED = torch.ops.aten._grouped_mm.default

MakeModel = Callable[[], PreTrainedModel]


@dataclass(frozen=True)
class Need:
    """Bytes that one worker's tensors take.

    Attributes:
        state: weights, gradients and the optimizer's moments.
        constant, per_token: what a step takes beside them.
        checkpointing: whether activations are computed again in the backward.
    """

    state: int
    constant: float
    per_token: float
    checkpointing: bool

    def peak(self, tokens: int) -> int:
        """Bytes at the most, with micro-batches of so many tokens."""
        return int(self.state + self.constant + self.per_token * tokens)

    def tokens(self, room: int) -> int:
        """Tokens of a micro-batch that fits into so many bytes; 0 if none does."""
        return max(0, int((room - self.state - self.constant) / self.per_token))


@dataclass(frozen=True)
class Fit:
    """How a worker's micro-batches fit into its memory.

    Attributes:
        need: what the model and the recipe ask for.
        tokens: of a micro-batch.
        largest: tokens of the largest micro-batch, one pair at least.
        room: bytes that a worker may take.
        process: bytes of them that are no tensors.
    """

    need: Need
    tokens: int
    largest: int
    room: int
    process: int

    @property
    def peak(self) -> int:
        """Bytes that a worker takes at the most."""
        return self.need.peak(self.largest) + self.process

    @property
    def warning(self) -> str | None:
        """A sentence where the memory is too small for the longest pair."""
        if self.peak <= self.room:
            return None
        return (
            f"a worker is expected to take {size_text(self.peak)} of memory, and may take {size_text(self.room)}: "
            "lower data.max_length or training.tokens_per_micro_batch, train a lora, or give each worker more memory"
        )


@dataclass(frozen=True)
class Rows:
    """The rows that are trained on, as far as memory depends on them.

    Attributes:
        shares: of a row's tokens, that are prompt, chosen and rejected.
        longest: tokens of the longest row.
        of_step: tokens that a worker has in a step.
    """

    shares: tuple[float, float, float]
    longest: int
    of_step: int

    @classmethod
    def of(cls, lengths: Lengths, settings: TrainingConfig, *, packed: bool, workers: int) -> Rows:
        """Of a tokenised data set."""
        cells = micro_batch_tokens(lengths, np.arange(len(lengths.prompt)), packed=packed)
        parts = [lengths.prompt.sum(), (lengths.chosen + lengths.between).sum(), lengths.rejected.sum()]
        total = sum(parts)
        own = math.ceil(settings.pairs_per_step / max(1, workers))
        return cls(
            (parts[0] / total, parts[1] / total, parts[2] / total), int(cells.max()), int(np.sort(cells)[-own:].sum())
        )

    @classmethod
    def unknown(cls, recipe: Recipe) -> Rows:
        """Of a data set that is not at hand: pairs as long as the recipe allows."""
        longest = 2 * recipe.data.max_length
        return cls((0.25, 0.375, 0.375), longest, longest * recipe.training.pairs_per_step)


def fit(recipe: Recipe, make_model: MakeModel, rows: Rows, *, room: int) -> Fit:
    """Choose the micro-batch's tokens and checkpointing, where the recipe leaves them open.

    Args:
        recipe: what is trained.
        make_model: makes the model on the meta device.
        rows: what is trained on.
        room: bytes that a worker may take.
    """
    settings = recipe.training
    process = 0 if settings.use_gpu else PROCESS_BYTES
    fewest = max(rows.longest, min(settings.tokens_per_micro_batch or 1, rows.of_step))
    need = measure_need(recipe, make_model, shares=rows.shares, checkpointing=bool(settings.gradient_checkpointing))
    if settings.gradient_checkpointing is None and need.peak(fewest) + process > room:
        need = measure_need(recipe, make_model, shares=rows.shares, checkpointing=True)
    tokens = settings.tokens_per_micro_batch or min(MOST_TOKENS, max(1, need.tokens(room - process)))
    return Fit(need, tokens, largest=max(rows.longest, min(tokens, rows.of_step)), room=room, process=process)


def fit_data(recipe: Recipe, make_model: MakeModel, lengths: Lengths | None, *, workers: int, room: int) -> Fit:
    """`fit` with the rows that these lengths are of; of rows that are not known, the longest that the recipe allows.

    Args:
        recipe, make_model, room: as for `fit`.
        lengths: of the training rows.
        workers: that share a step's rows.
    """
    if lengths is None:
        return fit(recipe, make_model, Rows.unknown(recipe), room=room)
    packed = layout_of(make_model(), recipe.training.layout) == "packed"
    return fit(recipe, make_model, Rows.of(lengths, recipe.training, packed=packed, workers=workers), room=room)


def fitted(settings: TrainingConfig, found: Fit) -> TrainingConfig:
    """The settings with what `fit` chose."""
    chosen = {"tokens_per_micro_batch": found.tokens, "gradient_checkpointing": found.need.checkpointing}
    return settings.model_copy(update=chosen)


def measure_need(
    recipe: Recipe,
    make_model: MakeModel,
    *,
    shares: tuple[float, float, float],
    checkpointing: bool,
    probes: tuple[int, int] = (512, 2048),
) -> Need:
    """What a step takes, from two of them on fake tensors.

    Args:
        recipe, make_model: as for `fit`.
        shares: of a pair's tokens that are prompt, chosen and rejected.
        checkpointing: compute activations again in the backward.
        probes: tokens of the two; what a step takes grows linearly between and beyond them.
    """
    state, peaks = 0, []
    for tokens in probes:
        state, peak = _probe(recipe, make_model, [round(share * tokens) for share in shares], checkpointing)
        peaks.append(peak - state)
    per_token = (peaks[1] - peaks[0]) / (probes[1] - probes[0])
    return Need(state, peaks[0] - per_token * probes[0], per_token, checkpointing)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator said no, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in ("allocate memory", "bad_alloc"))


def _probe(recipe: Recipe, make_model: MakeModel, parts: Sequence[int], checkpointing: bool) -> tuple[int, int]:
    """Bytes before a step on a pair with these tokens of prompt, chosen and rejected, and at its peak."""
    model = make_model()
    with torch.device("meta"):
        adapted = add_lora(model, recipe.lora) if recipe.lora else model
    model.train()
    if checkpointing:
        checkpoint_layers(model)
    pair = RowTokens(*(np.zeros(size, np.int32) for size in parts))
    with FakeTensorMode(allow_non_fake_inputs=True), _Live() as live, _precision(recipe.training):
        _materialize(adapted)
        trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        moments = [torch.zeros_like(parameter) for parameter in trained for _ in range(2)]
        before = live.restart()
        batch = _collated(pair, packed=layout_of(model, recipe.training.layout) == "packed")
        hidden_ND = hidden_states(model, batch)
        head = Head.of(model)
        # Tile after tile of the vocabulary takes the same: a few are enough. The objective's own tensors have a number
        # a token, which is not worth counting.
        head = replace(head, weight_VD=head.weight_VD.detach()[:_PROBED_VOCABULARY], bias_V=None)
        head.logps(hidden_ND, batch.targets_N).sum().backward()
        del moments
    return before, live.peak


def _collated(pair: RowTokens, *, packed: bool) -> MicroBatch:
    return pack([pair], rows=(0,)) if packed else pad([pair], rows=(0,), pad_id=0, left=False)


def _precision(settings: TrainingConfig) -> Any:
    """On a GPU activations are bfloat16; that is all of it that matters here."""
    return torch.autocast("cpu", torch.bfloat16) if settings.use_gpu else nullcontext()


def _materialize(module: nn.Module) -> None:
    """Give a module on the meta device parameters and buffers that count, shared where they were."""
    made: dict[int, Tensor] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                fresh = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), parameter.requires_grad)
                part._parameters[name] = made.setdefault(id(parameter), fresh)  # pyright: ignore[reportArgumentType]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        if isinstance(part, nn.Embedding):
            part.sparse = part.weight.requires_grad
            part.padding_idx = None  # to leave that row out, its tokens would have to be known


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages that operations inside it make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def restart(self) -> int:
        """Bytes that live now; the peak is counted from here."""
        self.peak = self.now
        return self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _GROUPED and isinstance(args[0], FakeTensor):
            # Without numbers, torch knows the experts' product in bfloat16 alone.
            left, right, *others = args
            result = func(left.bfloat16(), right.bfloat16(), *others, **(kwargs or {})).to(left.dtype)
        else:
            result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def room_for_worker(settings: TrainingConfig, *, workers: int, device: torch.device) -> int:
    """Bytes that each of some workers on this machine may take.

    Of the memory that there is at all, not of what is free now: the same on each start, so that a run that goes on
    cuts its micro-batches as before.
    """
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        return int((1 - _SPARE) * settings.gpus_per_worker * whole)
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    group = Path("/sys/fs/cgroup/memory.max")
    if group.is_file() and (text := group.read_text().strip()).isdigit():
        limits.append(int(text))
    own, _ = resource.getrlimit(resource.RLIMIT_AS)
    room = (1 - _SPARE) * min(limits) / max(1, workers)
    return int(room if own == resource.RLIM_INFINITY else min(room, own))
