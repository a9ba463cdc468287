"""The model card in final/: what was trained, on what, how, and what came out."""

from __future__ import annotations

import json

from jinja2 import Environment, StrictUndefined

from slime_ray.config.recipe import Recipe

_CARD = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
    """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [slime-ray, {{ recipe.loss.kind }}]
---
# {{ run }}

A model trained with the objective **{{ recipe.loss.kind }}** by slime-ray.
{% if recipe.loss.kind == "slime" %}
SLIME is described in [arXiv 2602.02383](https://arxiv.org/abs/2602.02383).
{% endif %}

| | |
|---|---|
| starting model | {{ parent or recipe.model.name }} |
| training data | {{ recipe.data.train | join(", ") }} |
| part of it | {{ recipe.data.part }}, {{ rows }} rows, content {{ data_hash[:16] }} |
| weights | {{ "LoRA r " ~ recipe.lora.r ~ ", merged; the adapter is in adapter/" if recipe.lora else "all trained" }} |
| steps | {{ steps }} of {{ recipe.training.pairs_per_step }} rows |

## Metrics

| name | first | last |
|---|---|---|
{% for name, (first, last) in metrics.items() %}
| {{ name }} | {{ "%.4g" | format(first) }} | {{ "%.4g" | format(last) }} |
{% endfor %}

## Settings

```json
{{ settings }}
```
""",
)


def model_card(
    recipe: Recipe,
    *,
    run: str,
    parent: str | None,
    data_hash: str,
    rows: int,
    steps: int,
    metrics: list[dict[str, float]],
) -> str:
    """The card as Markdown; `metrics` are the lines of metrics.jsonl."""
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for line in metrics:
        first = line | first
        last = last | line
    timed = ("step", "epoch", "num_tokens", "tokens_per_second", "pairs_per_second")
    return _CARD.render(
        recipe=recipe,
        run=run,
        parent=parent,
        data_hash=data_hash,
        rows=rows,
        steps=steps,
        metrics={name: (first[name], last[name]) for name in sorted(last) if name not in timed},
        settings=json.dumps(recipe.model_dump(mode="json"), indent=2),
    )
