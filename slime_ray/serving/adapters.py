"""LoRA adapters: which of them one engine serves beside their base, and what is merged instead, and why."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from slime_ray.config.model import ModelConfig
from slime_ray.config.serving import ServedModelConfig, ServedName
from slime_ray.errors import ModelError, RunError
from slime_ray.model.source import ModelSource
from slime_ray.runs import Run, read_recipe
from slime_ray.serving.candidate import ADAPTER_CONFIG, Candidate, find, read_json
from slime_ray.storage import disk_errors, text_hash

# The layers that vLLM takes adapters for, by architecture (vllm 0.29, SupportsLoRA and packed_modules_mapping in
# model_executor/models/). It says to know more; these were compared with merged weights, on a CPU, token by token. All
# others are served merged, which is always right.
_LAYERS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
_ARCHITECTURES = {
    "LlamaForCausalLM": _LAYERS,
    "Qwen3ForCausalLM": _LAYERS,
    "Gemma2ForCausalLM": _LAYERS,
    "Gemma3ForCausalLM": _LAYERS,
    "Phi3ForCausalLM": frozenset({"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
}
_MOST_RANK = 512  # vllm/config/lora.py, MaxLoRARanks
# Settings of an adapter that its weights already tell, or that matter to training alone; what vLLM does not read of all
# others (vllm/lora/peft_helper.py), it passes over in silence.
_HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
}
_PLAIN: dict[str, tuple[object, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),  # others begin by changing the base
    "peft_type": ("LORA",),
}
_WEIGHT_ENDINGS = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True, slots=True)
class Engine:
    """What one engine serves: a whole model, and adapters of it."""

    base: Candidate
    adapters: tuple[Candidate, ...] = ()


def engines(found: Mapping[str, Candidate], *, say: Callable[[str], None]) -> list[Engine]:
    """Deal candidates to engines: an adapter stands beside its base where that is served too, or has several.

    What vLLM cannot take as an adapter, or what stands alone, is served whole, with its adapter merged. A base that
    several adapters share is served too, under its own name: its engine has it anyway.

    Args:
        found: by name.
        say: is told of each that is merged instead, and of a base that nobody asked for.

    Raises:
        ModelError: an adapter's base cannot be used, or what has to be merged cannot be.
    """
    groups: dict[tuple[str, str | None], tuple[Candidate, list[Candidate]]] = {}
    for each in found.values():
        # Of a run that stands alone the base, which may be far away, is not looked for.
        shared = each.adapter is not None and (each.base is not None or len(found) > 1)
        base = _base_of(each) if shared else None
        if base is not None:
            groups.setdefault((base.location, base.revision), (base, []))[1].append(each)
    beside: dict[str, list[Candidate]] = {}
    hosts = dict(found)
    for (location, revision), (base, members) in groups.items():
        host = next((c for c in found.values() if (c.location, c.revision) == (location, revision)), None)
        # One that others stand on has to be whole, so it is no adapter itself.
        members = [each for each in members if not any((each.location, None) == key for key in groups)]
        if host is None and len(members) < 2 and all(each.base is None for each in members):
            continue
        members = list(_taken(members, host or base, given=host is not None, say=say))
        if host is None and (not members or (len(members) < 2 and members[0].base is None)):
            continue
        if host is None:
            host = replace(base, name=base.run.recipe if base.run else base.label, settings=members[0].settings)
            if host.name in hosts or not _is_served_name(host.name):
                say(f"{_names(members)}: served merged, since their base {base.label} has no name to be served under")
                continue
            say(f"serving {host.name} too, the base of {_names(members)}: their engine has it anyway")
            hosts[host.name] = host
        beside[host.name] = members
    apart = {each.name for members in beside.values() for each in members}
    return [
        Engine(_whole(each, say=say), tuple(beside.get(name, ()))) for name, each in hosts.items() if name not in apart
    ]


def rank(adapter: Path) -> int:
    """The rank of an adapter's matrices."""
    return int(read_json(adapter / ADAPTER_CONFIG)["r"])


def why_merged(adapter: Path, *, architectures: Iterable[str]) -> str | None:
    """Why vLLM would not serve an adapter, or would serve another than was trained; None where it does.

    Args:
        adapter: its folder.
        architectures: of config.json of its base.
    """
    config = read_json(adapter / ADAPTER_CONFIG)
    layers = next((_ARCHITECTURES[name] for name in architectures if name in _ARCHITECTURES), None)
    if layers is None:
        return f"no architecture whose adapters are known to work in vLLM ({', '.join(architectures) or 'none named'})"
    if config.get("modules_to_save"):
        return f"vLLM has no place for what was trained in full: {', '.join(config['modules_to_save'])}"
    for key, plain in _PLAIN.items():
        if config.get(key, plain[0]) not in plain:
            return f"vLLM takes no adapter with {key} = {config[key]!r}"
    odd = sorted(key for key, value in config.items() if value and key not in _HARMLESS and key not in _PLAIN)
    if odd:
        return f"vLLM takes no adapter with {odd[0]} = {config[odd[0]]!r}"
    if config["r"] > _MOST_RANK:
        return f"its rank is {config['r']}, vLLM has at most {_MOST_RANK}"
    others = sorted({name for name in _weights(adapter) if not _is_known(name, layers)})
    return f"vLLM takes no adapter of {others[0]}" if others else None


def _is_known(name: str, layers: frozenset[str]) -> bool:
    module = next((name.removesuffix(end) for end in _WEIGHT_ENDINGS if name.endswith(end)), "")
    return module.rpartition(".")[2] in layers


def _weights(adapter: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", framework="numpy") as file:
        return list(file.keys())


def _base_of(candidate: Candidate) -> Candidate | None:
    """What an adapter goes on top of; None where a run's base is not there any more, or no chat can be had with it."""
    if candidate.base is not None:
        return candidate.base
    run, runs_dir = candidate.run, candidate.runs_dir
    assert run is not None
    # What the recipe calls newest may be newer than what this run has started from.
    source = f"run:{run.parent}" if run.parent else read_recipe(Run(runs_dir, run.recipe, run.hash)).model.name
    try:
        return find(candidate.name, ServedModelConfig(source=source), runs_dir=runs_dir)
    except (ModelError, RunError):
        return None


def _taken(
    members: Sequence[Candidate], host: Candidate, *, given: bool, say: Callable[[str], None]
) -> Iterator[Candidate]:
    """Those of a base's adapters that its engine can serve; of the others is said why not."""
    engine = _table(host.settings) if given else next((_table(each.settings) for each in members), {})
    for each in members:
        reason = _why_apart(each, host)
        if reason is None and _table(each.settings) not in ({}, engine):
            reason = f"its table asks for another engine than that of models.{host.name if given else members[0].name}"
        if reason is None:
            yield each
        else:
            say(f"models.{each.name}: served merged, not as an adapter beside {host.label}: {reason}")


def _table(settings: ServedModelConfig) -> dict[str, Any]:
    """What a model's table says of its engine."""
    return settings.model_dump(exclude={"source"}, exclude_defaults=True)


def _why_apart(candidate: Candidate, base: Candidate) -> str | None:
    assert candidate.adapter is not None
    architectures = base.config.get("architectures") or []
    if candidate.config.get("architectures") != base.config.get("architectures"):
        return f"it was trained as {', '.join(candidate.config.get('architectures') or ['another architecture'])}"
    if candidate.tokenizer[0] != base.tokenizer[0]:
        return "its tokenizer or chat template is not its base's"
    if not candidate.stop_ids <= base.stop_ids:
        return f"its base does not stop after token {min(candidate.stop_ids - base.stop_ids)}, as it does"
    if candidate.run and base.run and base.run.finished > candidate.run.finished:
        return "its base was trained again since"
    if candidate.run and not base.run and candidate.run.model != text_hash([base.content]):
        return "its base is not as it was, or was trained with a tokenizer or a chat template of its own"
    return why_merged(candidate.adapter, architectures=architectures)


def _whole(candidate: Candidate, *, say: Callable[[str], None]) -> Candidate:
    """The model with its adapter in its weights; a run's final/ is so already."""
    if candidate.base is None:
        return candidate
    folder = Path(candidate.location)
    if not folder.is_dir():
        say(f"models.{candidate.name}: merging the adapter with {candidate.base.label}")
        _merge(candidate, candidate.base, folder)
    return replace(candidate, files=folder, tokenizer=(candidate.tokenizer[0], folder))


def _merge(candidate: Candidate, base: Candidate, folder: Path) -> None:
    """Write the merged model in the base's dtype, whole or not at all."""
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer, GenerationConfig

    from slime_ray.model.loading import load_model
    from slime_ray.model.lora import merge_lora

    source = ModelSource(base.location, base.revision, base.content, base.content)
    model = load_model(source, ModelConfig(name=base.label))
    try:
        adapted = PeftModel.from_pretrained(model, str(candidate.adapter))
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"models.{candidate.name}: the adapter does not fit {base.label}: {reason}") from None
    merged = merge_lora(adapted).to(getattr(torch, base.dtype))  # pyright: ignore[reportArgumentType]
    merged.config.use_cache = True
    if (base.files / "generation_config.json").is_file():
        merged.generation_config = GenerationConfig.from_pretrained(base.files)
    with disk_errors(folder, setting="SLIME_RAY_CACHE"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".merge-", dir=folder.parent) as unfinished:
            merged.save_pretrained(f"{unfinished}/model")
            AutoTokenizer.from_pretrained(candidate.tokenizer[1]).save_pretrained(f"{unfinished}/model")
            with suppress(OSError):  # another process made the same
                Path(unfinished, "model").rename(folder)


def _is_served_name(name: str) -> bool:
    """Whether a recipe could have a model of this name."""
    try:
        TypeAdapter(ServedName).validate_python(name)
    except ValidationError:
        return False
    return True


def _names(members: Iterable[Candidate]) -> str:
    return " and ".join(each.name for each in members)
