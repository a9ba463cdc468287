"""Subcommands that evaluate: answers, judgments, reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from slime_ray.cli.terms import AsJson, Overrides, RecipeFile, print_wide
from slime_ray.errors import ConfigError
from slime_ray.overrides import load_evaluation

if TYPE_CHECKING:
    from slime_ray.config.evaluation import EvaluationRecipe

app = typer.Typer()

Rule = Literal["strict", "fastchat", "arena_hard"]


@app.command()
def evaluate(
    recipe: RecipeFile,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask nothing; show what is left to ask and pay.")] = False,
) -> None:
    """Ask models, judge their answers, report (alone: answer, judge, report); nothing is asked twice."""
    settings = load_evaluation(recipe, overrides or [])
    if dry_run:
        _dry_run(settings)
        return
    from slime_ray.evaluation import evaluate
    from slime_ray.evaluation.report.text import table
    from slime_ray.evaluation.reporting import write_report

    folder = evaluate.evaluate(settings)
    print_wide(table(write_report(folder)))
    print(folder.path / "report.html")


@app.command(hidden=True)  # the list of commands has to fit one screen, and evaluate does both
def answer(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Ask the models of a recipe, and print the folder of their answers."""
    from slime_ray.evaluation import evaluate

    print(evaluate.answer(load_evaluation(recipe, overrides or [])).answers)


@app.command(hidden=True)
def judge(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Judge the answers that are there, and print the folder of the judgments."""
    from slime_ray.evaluation import evaluate

    print(evaluate.judge(load_evaluation(recipe, overrides or [])).judgments)


@app.command()
def report(
    paths: Annotated[list[str], typer.Argument(metavar="DIR|FILE...", show_default=False)],
    rule: Annotated[Rule | None, typer.Option(help="How verdicts are read: strict, fastchat or arena_hard.")] = None,
    baseline: Annotated[str | None, typer.Option(help="The model that the others are compared with.")] = None,
    answers: Annotated[list[str] | None, typer.Option(help="The models' answers, for lengths and words.")] = None,
    questions: Annotated[str | None, typer.Option(help="The question file, for categories.")] = None,
    different_sets: Annotated[
        bool, typer.Option("--different-sets", help="Compare models on the questions that both have.")
    ] = False,
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write the page with every question into this file.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write the summary for a pull request into this file.")
    ] = None,
) -> None:
    """Report from judgments on disk: an evaluation's folder, or FastChat's or Arena-Hard's files."""
    from slime_ray.evaluation import reporting
    from slime_ray.evaluation.report import text as report_text
    from slime_ray.storage import disk_errors, named, write_text

    found = reporting.find(
        [named(path) for path in paths],
        rule=rule,
        answers=[named(path) for path in answers or []],
        questions=named(questions) if questions is not None else None,
    )
    made = reporting.report_on(found, baseline=baseline, different_sets=different_sets)
    if html is not None:
        with disk_errors(html, setting="--html"):
            reporting.write_html(html, made, found)
    if markdown is not None:
        with disk_errors(markdown, setting="--markdown"):
            write_text(markdown, report_text.markdown(made))
    if as_json:
        print(made.model_dump_json(indent=2))
    else:
        print_wide(report_text.table(made))


@app.command()
def compare(
    model_a: Annotated[str, typer.Argument(metavar="A", show_default=False)],
    model_b: Annotated[str, typer.Argument(metavar="B", help="A model, or DIR|FILE or DIR:MODEL.", show_default=False)],
    within: Annotated[list[str] | None, typer.Option("--in", help="Where both models' judgments are.")] = None,
    rule: Annotated[Rule | None, typer.Option(help="How verdicts are read: strict, fastchat or arena_hard.")] = None,
    different_sets: Annotated[
        bool, typer.Option("--different-sets", help="Compare on the questions that both have.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Is B better than A, with what confidence, and on which categories?"""
    from slime_ray.evaluation.comparing import compare_models, verdict_table
    from slime_ray.storage import named

    places = [named(path) for path in within or []]
    found = compare_models(model_a, model_b, within=places, rule=rule, different_sets=different_sets)
    print(found.model_dump_json(indent=2)) if as_json else print_wide(verdict_table(found))


class _KeysInHelp(TyperCommand):
    """A command whose help ends with the keys of its JSON, which are loaded only for it."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from slime_ray.evaluation.agreement import describe_keys

        formatter.write("\nKeys of the JSON, by judge where a recipe names them:\n\n")
        for line in describe_keys().splitlines():
            formatter.write(f"  {line}\n")


@app.command(cls=_KeysInHelp, hidden=True)  # evaluate does it with judge.labels
def judge_check(
    labels: Annotated[str, typer.Option(help="Pairs that people labelled: LLMBar's, PandaLM's or Auto-J's form.")],
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE.toml", show_default=False)] = None,
    overrides: Overrides = None,
    judgments: Annotated[str | None, typer.Option(help="What a judge said of them, instead of a recipe.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Ask the recipe's judges for the first so many pairs.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How far can a judge be trusted: agreement with people, and with itself in swapped order; biases; variance."""
    from slime_ray.evaluation import agreement, evaluate
    from slime_ray.evaluation.label_files import load_labels, load_verdicts
    from slime_ray.storage import named

    if (recipe is None) == (judgments is None):
        raise ConfigError("give either a recipe, whose judges are asked, or --judgments, a file of what a judge said")
    if judgments is not None and limit is not None:
        raise ConfigError("--limit is for a recipe, whose judges are asked; --judgments are all read")
    pairs = load_labels(named(labels))
    if recipe is None:
        assert judgments is not None
        found = agreement.check(pairs, load_verdicts(named(judgments), pairs))
        print(found.model_dump_json(indent=2)) if as_json else print_wide(agreement.agreement_table(found))
        return
    checked = evaluate.check_judges(load_evaluation(recipe, overrides or []), pairs[:limit])
    if as_json:
        print(json.dumps({name: found.model_dump(mode="json") for name, found in checked.items()}, indent=2))
    else:
        for name, found in checked.items():
            print(name)
            print_wide(agreement.agreement_table(found))


def _dry_run(recipe: EvaluationRecipe) -> None:
    from slime_ray.evaluation.estimate import estimate, estimate_table
    from slime_ray.evaluation.opening import previewed

    with previewed(recipe) as evaluation:
        print_wide(estimate_table(estimate(evaluation), currency=recipe.budget.currency))
