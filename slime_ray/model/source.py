"""Where a model lies: a run, a folder, a URL, the hub; and the hash that stands for its content. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slime_ray.errors import ModelError
from slime_ray.runs import find_run
from slime_ray.storage import file_hash, folder_files, is_url, json_hash, named, text_hash

_WEIGHTS = {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"}


@dataclass(frozen=True)
class ModelSource:
    """A model that transformers can load.

    Attributes:
        location: a folder, also one behind a URL, or a hub name.
        revision: the commit of a hub name.
        hash: what a run's name is made from: the parent run's hash, the files' hash, or the commit.
        content: stands for the weights themselves: as `hash`, but a run that was trained again has another.
        parent: the run's name, for the model of a run.
    """

    location: str
    revision: str | None
    hash: str
    content: str
    parent: str | None = None

    @property
    def pinned(self) -> str:
        """The location with the revision, as one name."""
        return f"{self.location}@{self.revision}" if self.revision else self.location


def find_model(name: str, *, runs_dir: Path, key: str = "model.name") -> ModelSource:
    """Resolve `run:NAME`, a folder, its URL or a hub name with an optional @revision; `key` is the setting it is from.

    Raises:
        RunError: there is no such finished run.
        ModelError: there is no such folder, and no such model on the hub or in its local cache.
    """
    if name.startswith("run:"):
        manifest = find_run(runs_dir, name.removeprefix("run:"))
        final = str(runs_dir / manifest.name / "final")
        return ModelSource(final, None, manifest.hash, json_hash(manifest.files), manifest.name)
    folder = named(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{key} = {name!r}: the folder has no config.json; expected a Hugging Face model")
        files = {path: file for path, file in folder_files(folder).items() if Path(path).suffix in _WEIGHTS}
        return ModelSource(str(folder.absolute()), None, json_hash(files), json_hash(files))
    if is_url(name):
        raise ModelError(f"{key} = {name!r}: no such folder; expected one with a Hugging Face model")
    location, _, revision = name.partition("@")
    commit = _pinned(location, revision or None, asked=f"{key} = {name!r}")
    return ModelSource(location, commit, text_hash([location, commit]), text_hash([location, commit]))


def settings_hash(*, tokenizer: ModelSource | None, chat_template: str | None) -> list[str]:
    """What a tokenizer or chat template of one's own adds to the model's hash."""
    if chat_template is not None and not named(chat_template).is_file():
        raise ModelError(f"model.chat_template = {chat_template!r}: no such file; expected a Jinja template")
    template = [file_hash(named(chat_template))] if chat_template is not None else []
    return [*([tokenizer.hash] if tokenizer else []), *template]


def _pinned(location: str, revision: str | None, *, asked: str) -> str:
    """The commit of a hub name: asked of the hub, or, without a connection, of the local cache."""
    from huggingface_hub import model_info, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError  # pyright: ignore[reportPrivateImportUsage]

    try:
        return str(model_info(location, revision=revision, timeout=10).sha)
    except HFValidationError:
        raise ModelError(f"{asked}: no such folder, and no hub name; expected run:NAME, a folder or org/name") from None
    except (HTTPError, OSError) as error:
        try:
            return Path(snapshot_download(location, revision=revision, local_files_only=True)).name
        except (LocalEntryNotFoundError, OSError):
            raise ModelError(
                f"{asked}: no such folder here, and the hub did not give it ({type(error).__name__}); "
                "expected run:NAME, a folder or a reachable hub name"
            ) from None
