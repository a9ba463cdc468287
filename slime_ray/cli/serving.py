"""Subcommands that serve: an endpoint, a chat with one, certificates, keys."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slime_ray.errors import ConfigError, ServingError

if TYPE_CHECKING:
    from slime_ray.serving.endpoint import Endpoint

app = typer.Typer()
keys = typer.Typer(no_args_is_help=True, help="Who may ask an endpoint: a file of names and hashes of keys.")
app.add_typer(keys, name="keys", hidden=True)  # one screen for the commands; serve names it where keys are needed

KeyName = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]
KeyFile = Annotated[Path, typer.Option("--file", dir_okay=False, help="What the endpoint's recipe has as keys.file.")]


@app.command()
def serve(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE.toml|RUN|FOLDER|HUB_NAME... [dotted.key=value]...",
            help="A key of [models.NAME] alone, such as cpus=0.5, is for all of them.",
            show_default=False,
        ),
    ],
    address: Annotated[
        str | None, typer.Option(help="Deploy onto this Ray cluster, which goes on; default: serve until stopped.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Serve a run whose certificate failed, too.")] = False,
) -> None:
    """Serve models side by side behind an OpenAI-compatible endpoint."""
    from slime_ray.serving.sources import recipe_of

    sources, overrides = _parted(arguments)
    recipe = recipe_of(sources, [*overrides, *(["force=true"] if force else [])])
    # Loads ray: after the recipe was found to be one.
    from slime_ray.serving.endpoint import deploy, serve_until_stopped
    from slime_ray.serving.gateway.keys import Keys

    keyed = Keys.load(recipe.keys).required
    if address is None:
        serve_until_stopped(recipe, say=_say, ready=lambda running: _show(running, keyed=keyed))
    else:
        _show(deploy(recipe, address=address, say=_say), keyed=keyed)


@app.command()
def certify(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN [key=value]...", help="Keys of [models.NAME], such as cpus=0.5.", show_default=False
        ),
    ],
    pairs: Annotated[int, typer.Option(min=1, help="Held-out rows to compare.")] = 32,
) -> None:
    """Serve a run for a moment and see whether the engine gives the model that was trained; keep the outcome."""
    from slime_ray.serving.candidate import find
    from slime_ray.serving.certificate import certificate_lines
    from slime_ray.serving.certificate import certify as compare
    from slime_ray.serving.sources import recipe_of
    from slime_ray.storage import place

    sources, overrides = _parted(arguments)
    # On loopback for some minutes: also where the environment has keys for other endpoints, none is asked for.
    own = ["host=127.0.0.1", "port=0", "keys={env = ''}", "force=true"]
    recipe = recipe_of(sources, [*overrides, *own])
    if len(recipe.models) > 1:
        raise ConfigError(f"{', '.join(recipe.models)}: expected one run; certify one after the other")
    ((name, settings),) = recipe.models.items()
    found = find(name, settings, runs_dir=place(recipe.runs_dir))
    if found.run is None:
        raise ConfigError(f"{settings.source}: no run; only a run has a training that an engine can be compared with")
    from slime_ray.serving.endpoint import endpoint

    with endpoint(recipe, say=_say) as running:
        certificate = compare(
            f"run:{found.run.name}",
            runs_dir=found.runs_dir,
            base_url=running.base_url,
            model=name,
            pairs=pairs,
            dtype=None if settings.dtype == "own" else settings.dtype,
        )
    print("\n".join(certificate_lines(certificate)))
    if not certificate.passed:
        raise ServingError(f"{found.run.name} failed its certificate; it is not served without --force")


@app.command()
def chat(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Default: the only one.", show_default=False)
    ] = None,
    url: Annotated[str, typer.Option(help="The endpoint.")] = "http://127.0.0.1:8000/v1",
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="What the conversation begins with.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="Default: the endpoint's.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Where an answer is cut off.")] = None,
    api_key_env: Annotated[str, typer.Option(help="The variable that holds the key.")] = "SLIME_RAY_API_KEY",
) -> None:
    """Talk to a served model; `echo QUESTION | slime-ray chat MODEL` prints the answer alone."""
    from slime_ray.cli.chatting import Chat, answer_pipe, talk

    conversation = Chat.open(
        model, url=url, system=system, temperature=temperature, max_tokens=max_tokens, api_key_env=api_key_env
    )
    if sys.stdin.isatty() and sys.stdout.isatty():
        talk(conversation)
    else:
        answer_pipe(conversation)


@keys.command("add")
def keys_add(name: KeyName, file: KeyFile) -> None:
    """Make a key and print it: this once, since only its hash is kept."""
    from slime_ray.serving.gateway.keys import add_key

    print(add_key(file, name))


@keys.command("revoke")
def keys_revoke(name: KeyName, file: KeyFile) -> None:
    """Revoke a key; endpoints that run refuse it from the next second on."""
    from slime_ray.serving.gateway.keys import revoke_key

    revoke_key(file, name)


@keys.command("list")
def keys_list(file: KeyFile) -> None:
    """Names of keys, and when they were made and revoked."""
    from slime_ray.serving.gateway.keys import list_keys

    for info in list_keys(file):
        revoked = f", revoked {info.revoked:%Y-%m-%d %H:%M} UTC" if info.revoked else ""
        print(f"{info.name}  made {info.created:%Y-%m-%d %H:%M} UTC{revoked}")


def _parted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Sources, or a recipe's file, and overrides."""
    return [each for each in arguments if "=" not in each], [each for each in arguments if "=" in each]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _show(endpoint: Endpoint, *, keyed: bool) -> None:
    """Print where an endpoint answers, what it serves, and how it is asked; with a key from `chat`'s own variable."""
    first = endpoint.models[0]
    body = f'{{"model": "{first}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    key = ' -H "Authorization: Bearer $SLIME_RAY_API_KEY"' if keyed else ""
    lines = [
        endpoint.base_url,
        *(f"  {model}" for model in endpoint.models),
        f"slime-ray chat {shlex.quote(first)} --url {endpoint.base_url}",
        f"curl {endpoint.base_url}/chat/completions -H 'Content-Type: application/json'{key} -d {shlex.quote(body)}",
    ]
    print("\n".join(lines), flush=True)
