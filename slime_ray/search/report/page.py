"""What a study found as one HTML file that needs nothing else: no network, no font, no script.

It shares the look of an evaluation's report: the style sheet and the macros of dots with whiskers are the same files.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache, partial
from importlib.resources import files
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from slime_ray.evaluation.report import charts as rows
from slime_ray.search.contrasts import Contrasts
from slime_ray.search.findings import StudyFindings
from slime_ray.search.report import charts, words

_OURS, _EVALUATION = "slime_ray.search.report", "slime_ray.evaluation.report"
_GROUPS = {
    "component": "Parts of SLIME",
    "power": "Exponent",
    "lambda_rejected": "Weight of the stabilizer",
    "objective": "Other objectives",
}


def render_study(found: StudyFindings) -> str:
    """The page of a search."""
    seeds = [value for each in found.repeated for _, value in each.values]
    return _rendered(
        "study.html.j2",
        found.evidence.name,
        "Study",
        found=found,
        said=words.paragraph(found),
        known=_known(found),
        fronts=charts.front(found),
        slices=charts.slices(found),
        curves=charts.curves(found),
        share_axis=rows.axis([end for each in found.importance for end in (each.low, each.high)], bounds=(0.0, 1.0)),
        seed_axis=charts.axis_of(seeds) if seeds else None,
        told=words.told,
        whose=words.whose,
    )


def render_contrasts(found: Contrasts) -> str:
    """The page of an ablation or a sensitivity study."""
    return _rendered(
        "ablation.html.j2",
        found.name,
        "Sensitivity study" if found.sensitivity else "Ablation",
        found=found,
        said=words.contrast_paragraph(found),
        notes=words.notes(found),
        axes={name: charts.difference_axis(found.rows, name) for name in found.objectives},
        panels={name: charts.responses(found, name) for name in found.objectives},
        care=partial(words.care, found),
        groups={} if found.sensitivity else _GROUPS,
    )


def _known(found: StudyFindings) -> list[Mapping[str, Any]]:
    """The trials of known settings that are not the winner, with what the table says of each."""
    leads = {rival.trial.number: rival.difference for rival in found.rivals}
    return [
        {
            "title": words.whose(each.trial),
            "trial": each.trial,
            "selecting": each.selecting,
            "reporting": each.reporting,
            "difference": leads.get(each.trial.number),
        }
        for each in sorted(found.standings[1:], key=lambda each: each.trial.number)
        if words.whose(each.trial)
    ]


def _rendered(template: str, name: str, kind: str, **values: Any) -> str:
    style = _style()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        _environment()
        .get_template(template)
        .render(
            name=name,
            kind=kind,
            style=style,
            policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
            titles=words.OBJECTIVES,
            units=words.UNITS,
            **values,
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(_OURS), PackageLoader(_EVALUATION)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": rows.number,
        "figure": words.figure,
        "signed": words.signed,
        "span": words.span,
        "short": words.short,
        "plain": "{:g}".format,
        "p_value": words.p_value,
    }
    environment.globals |= {"finite": rows.finite}
    return environment


@cache
def _style() -> Markup:
    parts = (files(_EVALUATION) / "templates" / "report.css", files(_OURS) / "templates" / "study.css")
    return Markup("".join(part.read_text(encoding="utf-8") for part in parts))
