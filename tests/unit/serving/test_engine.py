"""An engine's arguments and whether there is room for it; engines that run are tested where they are served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs

from slime_ray.config.serving import ServedModelConfig, ServingRecipe
from slime_ray.quickstart.models import make_tokenizer
from slime_ray.serving import engine
from slime_ray.serving.served import Adapter, Card, Served


def served(name: str = "a", **settings: Any) -> Served:
    config = ServedModelConfig(source="folder", **settings)
    return Served(Card(name, {"run": f"{name}@1"}), "folder", None, "float32", config)


def node(**resources: float) -> dict[str, float]:
    return dict(resources)


@pytest.mark.parametrize(
    ("models", "nodes"),
    [
        ([{"cpus": 1.0}, {"cpus": 1.0}], [node(CPU=2)]),
        ([{"cpus": 0.5}] * 4, [node(CPU=1), node(CPU=1)]),
        ([{"cpus": 0.8}, {"cpus": 0.2}], [node(CPU=1)]),
        ([{"cpus": 0.5}, {"cpus": 1.5}], [node(CPU=0.5), node(CPU=1.5)]),  # the larger is placed first
        ([{"cpus": 1.0, "gpus": 2}], [node(CPU=1, GPU=1), node(GPU=1)]),
        ([{"cpus": 1.0, "replicas": 2}], [node(CPU=2)]),
        ([{"cpus": 1.0, "replicas": (1, 4)}], [node(CPU=1)]),  # the least that it may have
        ([{"cpus": 1.0, "memory_gb": 2.0}], [node(CPU=1, memory=2e9)]),
    ],
)
def test_engines_fit_where_each_bundle_finds_a_node(
    models: list[dict[str, Any]], nodes: list[dict[str, float]]
) -> None:
    assert engine.no_room([served(f"m{number}", **each) for number, each in enumerate(models)], nodes) is None


@pytest.mark.parametrize(
    ("models", "nodes", "said"),
    [
        (
            [{"cpus": 1.0}, {"cpus": 1.5}],
            [node(CPU=2)],
            "models.m0: there is no room for its engine, which asks for 1 CPU: all that are to start ask for 2.5 CPU, "
            "and the Ray cluster has 2 CPU free on 1 node;",
        ),
        ([{"cpus": 1.5}], [node(CPU=1), node(CPU=1)], "asks for 1.5 CPU: all that are to start ask for 1.5 CPU, and"),
        ([{"cpus": 1.0, "gpus": 1}], [node(CPU=8)], "has 8 CPU, 0 GPU free on 1 node;"),
        ([{"cpus": 1.0, "replicas": 3}], [node(CPU=2)], "ask for 3 CPU, and the Ray cluster has 2 CPU"),
        ([{"cpus": 0.1, "memory_gb": 3.5}], [node(CPU=2, memory=2.5e9)], "0.1 CPU, 3.5 GB of memory: all"),
        ([{"cpus": 1.0}], [], "has 0 CPU free on 0 nodes;"),
    ],
)
def test_what_does_not_fit_is_told_with_the_numbers(
    models: list[dict[str, Any]], nodes: list[dict[str, float]], said: str
) -> None:
    problem = engine.no_room([served(f"m{number}", **each) for number, each in enumerate(models)], nodes)
    assert problem is not None
    assert said in problem


def arguments(model: Served, **recipe: Any) -> dict[str, Any]:
    found = engine._engine_arguments(model, ServingRecipe(models={"a": model.settings}, **recipe))
    assert set(found) - {"lora_modules", "enable_auto_tool_choice", "tool_call_parser"} <= set(
        AsyncEngineArgs.__dataclass_fields__
    )
    return found


def test_the_engine_gets_the_stored_dtype_the_ceiling_and_what_the_recipe_adds() -> None:
    found = arguments(served(max_ongoing=4, max_model_len=64, kv_cache_gb=0.5), limits={"max_tokens": 77})
    assert found["dtype"] == "float32"  # "auto" would make bfloat16 of it
    assert (found["max_num_seqs"], found["max_model_len"], found["kv_cache_memory_bytes"]) == (4, 64, 500_000_000)
    assert found["override_generation_config"] == {"max_new_tokens": 77}
    assert arguments(served(engine={"max_num_seqs": 9}))["max_num_seqs"] == 9
    gpu = arguments(served(gpus=2))
    assert gpu["tensor_parallel_size"] == 2
    assert not {"enforce_eager", "kv_cache_memory_bytes"} & set(gpu)


@pytest.mark.parametrize(("ranks", "room"), [((4,), 8), ((8,), 8), ((9, 4), 16), ((130,), 256)])
def test_adapters_of_one_engine_get_a_rank_that_vllm_has(ranks: tuple[int, ...], room: int) -> None:
    adapters = tuple(Adapter(Card(f"l{rank}", {"run": f"l{rank}"}), f"folder/{rank}", rank) for rank in ranks)
    base = served()
    found = arguments(Served(base.card, base.location, None, base.dtype, base.settings, adapters))
    assert (found["max_lora_rank"], found["max_loras"]) == (room, len(ranks))
    assert [module["name"] for module in found["lora_modules"]] == [f"l{rank}" for rank in ranks]


@pytest.mark.parametrize(
    ("model_type", "template", "mark", "parser"),
    [
        ("llama", "{% if tools %}{{ tools | tojson }}{% endif %}", "<|python_tag|>", "llama3_json"),
        ("llama", "{{ tools }}", "<|other|>", None),  # vLLM would fail at every chat
        ("qwen3", "{{ tools }}", "<tool_call>", "hermes"),
        ("llama", "{{ messages }}", "<|python_tag|>", None),
        ("unheard_of", "{{ tools }}", "<|python_tag|>", None),
    ],
)
def test_tools_are_called_where_template_tokenizer_and_vllm_have_one_form_of_them(
    tmp_path: Path, model_type: str, template: str, mark: str, parser: str | None
) -> None:
    tokenizer = make_tokenizer(["some text"], vocabulary=300)
    tokenizer.add_tokens([mark, "</tool_call>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (tmp_path / "chat_template.jinja").write_text(template)
    base = served()
    model = Served(base.card, str(tmp_path), None, base.dtype, base.settings)
    assert arguments(model).get("tool_call_parser") == parser
    assert engine.calls_tools(model) is (parser is not None)


def test_an_engine_is_another_one_exactly_if_its_weights_or_settings_are() -> None:
    def identity(model: Served) -> Any:
        return engine._engine_identity(model)

    base = served()
    assert identity(served()) == identity(base)
    assert identity(served(cpus=2.0)) != identity(base)
    scored = Card("a", {"run": "a@1", "evaluations": {"e": {"score": 5.0}}})
    assert identity(Served(scored, "folder", None, "float32", base.settings)) == identity(base)
    retrained = Card("a", {"run": "a@2"})
    assert identity(Served(retrained, "folder", None, "float32", base.settings)) != identity(base)


def test_every_known_family_s_parser_is_one_of_vllm_s() -> None:
    from vllm.tool_parsers import ToolParserManager

    known = set(ToolParserManager.list_registered())
    assert set(engine._TOOL_PARSERS.values()) <= known
