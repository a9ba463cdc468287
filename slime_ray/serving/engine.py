"""vLLM's engine under Ray Serve: one deployment for each checkpoint, and whether the cluster has room for it."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.serve import Application
from ray.serve.context import _get_global_client
from ray.serve.llm import LLMConfig, LLMServer, ModelLoadingConfig, build_llm_deployment
from ray.serve.llm.openai_api_models import ChatCompletionRequest

from slime_ray.config.serving import ServedModelConfig, ServingRecipe
from slime_ray.copies import fetch
from slime_ray.errors import ServingError
from slime_ray.serving.served import Served
from slime_ray.storage import json_hash, place
from slime_ray.training.cluster import free_resources

_STARTS = 2  # of an engine that fails to start, before its deployment counts as failed
_GB = 1_000_000_000
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has room for
# How a family writes its calls of tools, by transformers' model_type: vLLM's names for what reads them.
_TOOL_PARSERS = {
    "llama": "llama3_json",
    "mistral": "mistral",
    "qwen2": "hermes",
    "qwen3": "hermes",
    "qwen3_moe": "hermes",
    "smollm3": "hermes",
    "granite": "granite",
    "phi3": "phi4_mini_json",
}


class LocalFiles(CallbackBase):
    """Has the files of a URL on the engine's own node; vLLM loads a folder or asks the hub itself, so that Ray's task
    which fetches from a cloud's mirror is left out."""

    async def on_before_node_init(self) -> None:
        """Called by Ray's engine before it starts, on its node."""
        self.ctx.run_init_node = False
        for url in self.kwargs["copied"]:
            await asyncio.to_thread(fetch, place(url))


class Engine(LLMServer):
    """Ray's server of one engine, healthy only once it has answered: its first answer takes seconds on a CPU."""

    async def __init__(self, llm_config: LLMConfig, *, version: str) -> None:
        """The version tells weights and settings from all others; Serve's own is that of a whole YAML file."""
        self._version = version
        await super().__init__(llm_config)

    async def _start_engine(self) -> None:
        """Start the engine and have it answer; Ray's own also starts a process that reports usage to Ray's makers."""
        assert self.engine is not None
        await self.engine.start()
        messages = [{"role": "user", "content": "Hello"}]
        request = ChatCompletionRequest(model=self._llm_config.model_id, messages=messages, max_tokens=1)  # pyright: ignore[reportCallIssue]
        async for reply in await self.chat(request):
            error = getattr(reply, "error", None)
            if error is not None:
                raise RuntimeError(f"the engine started, but did not answer: {error.message}")

    async def version(self) -> str:
        """Which weights and settings answer here."""
        return self._version


def engine_deployment(served: Served, recipe: ServingRecipe) -> Application:
    """The deployment of one checkpoint's engine; equal settings and weights give an equal version, which Ray keeps."""
    config = LLMConfig(
        model_loading_config=ModelLoadingConfig(model_id=served.card.name, model_source=served.location),
        engine_kwargs=_engine_arguments(served, recipe),
        placement_group_config={"bundles": _bundles(served.settings)},
        accelerator_config={"kind": "gpu" if served.settings.gpus else "cpu"},  # pyright: ignore[reportArgumentType]
        runtime_env={"env_vars": _environment(served.settings)},
        deployment_config=_deployment_options(served.settings, recipe),
        callback_config={"callback_class": LocalFiles, "callback_kwargs": {"copied": served.copied}},  # pyright: ignore[reportArgumentType]
    )
    # The lineage stands for the weights themselves.
    version = json_hash([_engine_identity(served), recipe.limits.max_tokens, recipe.drain_seconds])
    bound = {"version": version}
    application = build_llm_deployment(config, deployment_cls=Engine, name_prefix="Engine:", bind_kwargs=bound)
    # Without a version `serve.run` replaces every engine each time.
    application._bound_deployment = application._bound_deployment.options(version=version, _internal=True)
    return application


def version_of(application: Application) -> str:
    """What tells a deployment's weights and settings from all others."""
    version = application._bound_deployment.version
    assert version is not None
    return version


def _engine_identity(served: Served) -> Any:
    cards = [served.card, *(adapter.card for adapter in served.adapters)]
    return [served.location, served.dtype, served.settings.model_dump(), [[c.name, c.lineage["run"]] for c in cards]]


def is_running(application: Application, *, app: str) -> bool:
    """Whether Serve has this very deployment already, so that it is left alone."""
    client = _get_global_client(raise_if_no_controller_running=False)
    deployment = application._bound_deployment
    try:
        info, _ = client.get_deployment_info(deployment.name, app) if client else (None, None)
    except KeyError:
        return False
    return info is not None and info.version == version_of(application)


def calls_tools(served: Served) -> bool:
    """Whether its answers can call tools."""
    return bool({**_tools(served), **served.settings.engine}.get("enable_auto_tool_choice"))


def check_room(models: Sequence[Served]) -> None:
    """Say at once what would otherwise wait for ever.

    Raises:
        ServingError: the cluster has too little free for the engines, with the numbers.
    """
    problem = fits(models)
    if problem is not None:
        raise ServingError(problem)


def fits(models: Sequence[Served]) -> str | None:
    """Why these engines cannot be placed together on what the cluster has free; None where they can."""
    return no_room(models, free_resources())


def no_room(models: Sequence[Served], nodes: Sequence[Mapping[str, float]]) -> str | None:
    """As `fits`, given what is free on each node.

    A replica's bundles are placed each for itself, the largest first, each on the first node with room for it.
    """
    free = [dict(node) for node in nodes]
    wanted = [(served, bundle) for served in models for bundle in _replica_bundles(served.settings)]
    wanted.sort(key=lambda item: (item[1].get("GPU", 0), item[1].get("CPU", 0)), reverse=True)
    for served, bundle in wanted:
        node = next((node for node in free if all(_has(node, kind, need) for kind, need in bundle.items())), None)
        if node is None:
            total = _summed([bundle for _, bundle in wanted])
            have = {kind: _summed(nodes).get(kind, 0.0) for kind in total}
            return (
                f"models.{served.card.name}: there is no room for its engine, which asks for {_amounts(bundle)}: all "
                f"that are to start ask for {_amounts(total)}, and the Ray cluster has {_amounts(have)} free on "
                f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}; lower cpus (fractions are allowed), gpus, "
                "memory_gb or replicas, or add nodes"
            )
        for kind, need in bundle.items():
            node[kind] -= need
    return None


def _has(node: Mapping[str, float], kind: str, need: float) -> bool:
    # What is left of 1 CPU beside 0.8 is a little less than 0.2.
    return node.get(kind, 0) + 1e-6 >= need


def _replica_bundles(settings: ServedModelConfig) -> list[dict[str, float]]:
    replicas = settings.replicas if isinstance(settings.replicas, int) else settings.replicas[0]
    return _bundles(settings) * replicas


def _bundles(settings: ServedModelConfig) -> list[dict[str, float]]:
    """What one replica takes of its node: a bundle for each GPU, or one of CPUs."""
    memory = {} if settings.memory_gb is None else {"memory": settings.memory_gb * _GB}
    if not settings.gpus:
        return [{"CPU": settings.cpus, **memory}]
    first = {"CPU": settings.cpus, "GPU": 1.0, **memory}
    return [first, *({"GPU": 1.0} for _ in range(settings.gpus - 1))]


def _summed(bundles: Sequence[Mapping[str, float]]) -> dict[str, float]:
    kinds = {kind for bundle in bundles for kind in bundle}
    return {kind: sum(bundle.get(kind, 0) for bundle in bundles) for kind in sorted(kinds)}


def _amounts(resources: Mapping[str, float]) -> str:
    shown = {"CPU": "{:.3g} CPU", "GPU": "{:.3g} GPU", "memory": "{:.3g} GB of memory"}
    scale = {"memory": _GB}
    return ", ".join(
        text.format(resources[kind] / scale.get(kind, 1)) for kind, text in shown.items() if kind in resources
    )


def _engine_arguments(served: Served, recipe: ServingRecipe) -> dict[str, Any]:
    settings = served.settings
    arguments: dict[str, Any] = {
        "dtype": served.dtype,
        "max_num_seqs": settings.max_ongoing,
        "enable_log_requests": False,
        # Of answers whose request names no length as of those that do.
        "override_generation_config": {"max_new_tokens": recipe.limits.max_tokens},
    }
    if served.revision is not None:
        arguments["revision"] = served.revision
    if settings.max_model_len is not None:
        arguments["max_model_len"] = settings.max_model_len
    if settings.gpus:
        arguments["tensor_parallel_size"] = settings.gpus
    else:
        # Compiling takes minutes on a CPU and gains little there.
        arguments |= {"enforce_eager": True, "kv_cache_memory_bytes": int(settings.kv_cache_gb * _GB)}
    if served.adapters:
        modules = [{"name": adapter.card.name, "path": adapter.folder} for adapter in served.adapters]
        largest = max(adapter.rank for adapter in served.adapters)
        rank = next(rank for rank in _LORA_RANKS if rank >= largest)
        arguments |= {"enable_lora": True, "lora_modules": modules, "max_loras": len(modules), "max_lora_rank": rank}
    return arguments | _tools(served) | settings.engine


def _tools(served: Served) -> dict[str, Any]:
    """Calls of tools, where the template has them and the family's way to write them is known."""
    folder = Path(served.location)
    template = folder / "chat_template.jinja"
    config = folder / "config.json"
    if not template.is_file() or not config.is_file() or "tools" not in template.read_text(encoding="utf-8"):
        return {}
    parser = _TOOL_PARSERS.get(json.loads(config.read_bytes()).get("model_type", ""))
    if parser is None or not _reads_calls(parser, folder):
        return {}
    return {"enable_auto_tool_choice": True, "tool_call_parser": parser}


def _reads_calls(parser: str, folder: Path) -> bool:
    """Whether the tokenizer has what marks a call; without it vLLM would fail at every chat, with tools or none."""
    from transformers import AutoTokenizer
    from vllm.tool_parsers import ToolParserManager

    try:
        ToolParserManager.get_tool_parser(parser)(AutoTokenizer.from_pretrained(folder))
    except (RuntimeError, ValueError):
        return False
    return True


def _environment(settings: ServedModelConfig) -> dict[str, str]:
    found = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "INFO", "RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0"}
    if not settings.gpus:
        # Left to itself, every engine binds its threads to the machine's first cores, on top of the others'.
        found |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(max(1, math.ceil(settings.cpus)))}
    return found


def _deployment_options(settings: ServedModelConfig, recipe: ServingRecipe) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_ongoing_requests": settings.max_ongoing,
        "max_queued_requests": settings.max_queued,
        "ray_actor_options": {"num_cpus": 0},
        "health_check_period_s": 5,
        "health_check_timeout_s": 60,
        "graceful_shutdown_timeout_s": recipe.drain_seconds,
        "graceful_shutdown_wait_loop_s": 0.5,
        "max_constructor_retry_count": _STARTS,
        "max_surge_percent": 100,  # the new one answers before the old one stops
    }
    if isinstance(settings.replicas, int):
        return options | {"num_replicas": settings.replicas, "autoscaling_config": None}
    least, most = settings.replicas
    scaling = {
        "min_replicas": least,
        "max_replicas": most,
        "target_ongoing_requests": max(1, settings.max_ongoing // 2),
    }
    return options | {"autoscaling_config": scaling}
