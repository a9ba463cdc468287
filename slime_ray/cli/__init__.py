"""The command `slime-ray`: each subcommand reads a config, makes one call and prints the artifact."""

from __future__ import annotations

import sys

import typer

from slime_ray.cli import evaluation, pipeline, search, serving, submission, training
from slime_ray.errors import Interrupted, SlimeRayError

app = typer.Typer(
    help="Preference pairs in; a model aligned with SLIME, judged and served, out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(training.app)
app.add_typer(evaluation.app)
app.add_typer(serving.app)
app.add_typer(pipeline.app)
app.add_typer(search.app)
app.add_typer(submission.app)

# The extras without which the wheel still inspects data and reads recipes.
_EXTRAS = {
    "training": ("train", {"torch", "ray", "peft", "matplotlib", "safetensors"}),
    "evaluating": ("evaluate", {"openai", "scipy", "numpy", "sacrebleu"}),
    "searching": ("search", {"optuna"}),
    "serving": ("serve", {"vllm", "fastapi", "starlette", "prometheus_client"}),
}


def main(*command: str) -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2.

    Args:
        command: a subcommand that stands before the process's own arguments.
    """
    try:
        app([*command, *sys.argv[1:]])
    except SlimeRayError as error:
        print(error if isinstance(error, Interrupted) else f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        for what, (extra, packages) in _EXTRAS.items():
            if error.name in packages:
                needed = f"{what} needs: pip install 'slime-ray[{extra}]'"
                print(f"error: {error.name} is not installed; {needed}", file=sys.stderr)
                sys.exit(2)
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
