"""A checkpoint as a source names it, found and looked at, before it is decided from which engine it is served."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_ray.config.serving import ServedModelConfig
from slime_ray.copies import fetch, local_name
from slime_ray.data.chat_format import tokenizer_hash
from slime_ray.errors import ModelError, RunError
from slime_ray.manifest import Lineage, Manifest
from slime_ray.model.source import ModelSource, find_model
from slime_ray.runs import find_run
from slime_ray.storage import (
    cache_home,
    folder_files,
    is_local,
    is_url,
    json_hash,
    named,
    text_hash,
)

ADAPTER_CONFIG = "adapter_config.json"
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
# Of a hub's model what is looked at here; its weights are fetched where the engine runs.
_SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One checkpoint that is to be served.

    Attributes:
        name: what clients will call it.
        settings: its table in the recipe.
        location, revision: what an engine loads where it is served whole; for a bare adapter the folder that it is
            merged into when that is needed.
        content: a hash that stands for the weights themselves.
        label: the run's name, the folder's, or the hub's.
        files: a folder of this machine with the model's small files; for a bare adapter those of its base.
        tokenizer: a hash of the tokenizer with its chat template, and the folder that has it.
        runs_dir: where runs were looked for.
        run: of a run of ours.
        adapter: the folder of LoRA weights, where the model is a base with such on top.
        base: of a bare adapter, which comes without a whole model, what it goes on top of.
        copied: the URLs that an engine's files are copies of: they are fetched where it runs.
    """

    name: str
    settings: ServedModelConfig
    location: str
    revision: str | None
    content: str
    label: str
    files: Path
    tokenizer: tuple[str, Path]
    runs_dir: Path
    run: Manifest | None = None
    adapter: Path | None = None
    base: Candidate | None = None
    copied: tuple[str, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return read_json(self.files / "config.json")

    @property
    def dtype(self) -> str:
        """What its weights are stored in: as config.json says, else most of the tensors."""
        config = self.config
        for part in (config, config.get("text_config") or {}):
            said = part.get("dtype") or part.get("torch_dtype")
            if isinstance(said, str) and said.removeprefix("torch.") in DTYPES.values():
                return said.removeprefix("torch.")
        found = Counter(kind for path in weight_files(self.files) for kind in _header_dtypes(path))
        kind = max(found, key=lambda kind: found[kind], default="")
        if kind not in DTYPES:
            raise ModelError(
                f"models.{self.name}: neither config.json nor the weights say what to compute in "
                f"({kind or 'nothing'}); set models.{self.name}.dtype to float32, bfloat16 or float16"
            )
        return DTYPES[kind]

    @property
    def stop_ids(self) -> set[int]:
        """The tokens that end an answer, as generation_config.json, or without one config.json, has them."""
        path = self.files / "generation_config.json"
        said = (read_json(path) if path.is_file() else self.config).get("eos_token_id")
        return set(said) if isinstance(said, list) else {said} if isinstance(said, int) else set()


def find(name: str, settings: ServedModelConfig, *, runs_dir: Path) -> Candidate:
    """Find what a source names and see whether a chat can be had with it.

    Raises:
        RunError: there is no such finished run, or its folder is damaged or was moved.
        ModelError: there is no such model; it has no weights in safetensors, no tokenizer or no chat template.
    """
    key, source = f"models.{name}.source", settings.source
    folder = named(source).expanduser()
    place = None if source.startswith("run:") or not folder.is_dir() else run_of(folder)
    if place is not None:
        runs_dir, source = place[0], f"run:{place[1]}"
    elif folder.is_dir() and (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        return _bare_adapter(name, settings, folder.absolute(), label=folder_name(folder), runs_dir=runs_dir)
    found = find_model(source, runs_dir=runs_dir, key=key)
    files = _files(found, key=key)
    run = find_run(runs_dir, found.parent) if found.parent is not None else None
    if found.revision is None:
        check_weights(files, key=key)
    read_json(files / "config.json")
    tokenizer, told, location = _tokenizer(files, settings, runs_dir=runs_dir, key=key)
    adapter = files / "adapter"
    return Candidate(
        name=name,
        settings=settings.model_copy(update={"engine": settings.engine | told}),
        location=str(files) if is_url(found.location) else found.location,
        revision=found.revision,
        content=found.content,
        label=run.name if run else found.location if found.revision else folder_name(folder),
        files=files,
        tokenizer=(_tokenizer_hash(tokenizer, key=key), tokenizer),
        runs_dir=runs_dir,
        run=run,
        adapter=adapter if run is not None and (adapter / ADAPTER_CONFIG).is_file() else None,
        copied=tuple(name for name in (found.location, location) if is_url(name)),
    )


def run_of(folder: Path) -> tuple[Path, str] | None:
    """The runs folder and the name of the run that a folder, or the one of its final/, belongs to; None for any other.

    Raises:
        RunError: it is a run's folder, but lies elsewhere than where its runs folder would have it.
    """
    folder = Path(os.path.abspath(folder)) if is_local(folder) else folder
    is_final = folder.name == "final"
    run = folder.parent if is_final else folder
    lineage = Lineage.read(run / "lineage.json")
    if lineage is None:
        return None
    parts = Path(lineage.name).parts
    if tuple(run.parts[-len(parts) :]) == parts:
        return run.parents[len(parts) - 1], lineage.name
    if is_final:
        return None  # a model like any other
    raise RunError(
        f"{folder}: the folder of the run {lineage.name}, which was moved; put it back to its place, or serve "
        f"{folder / 'final'}, without its lineage and certificate"
    )


def folder_name(folder: Path) -> str:
    """What a folder is called, also where it is given as `.`."""
    return os.path.basename(os.path.abspath(folder)) if is_local(folder) else folder.name


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object.

    Raises:
        ModelError: it is none.
    """
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: no JSON ({error}); copy or download the model again") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path}: expected a JSON object; copy or download the model again")
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, as its index names them."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    named = read_json(index).get("weight_map")
    return [folder / name for name in sorted(set(named.values()))] if isinstance(named, dict) else []


def check_weights(folder: Path, *, key: str) -> None:
    """Refuse a checkpoint without safetensors, or with one that is missing or cut short.

    Raises:
        ModelError: it is so.
    """
    files = weight_files(folder)
    if not files:
        raise ModelError(f"{key}: {folder} has no weights in safetensors; save the model with save_pretrained")
    for path in files:
        if not path.is_file():
            raise ModelError(f"{key}: {path} is missing, the index names it; copy or download the model again")
        _header_dtypes(path)


def _header_dtypes(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return [file.get_slice(name).get_dtype() for name in file.keys()]  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: cut short or damaged ({error}); copy or download the model again") from None


def _files(source: ModelSource, *, key: str) -> Path:
    """A folder of this machine with a model's small files."""
    if source.revision is None:
        return Path(local_name(source.location))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError  # pyright: ignore[reportPrivateImportUsage]

    try:
        return Path(snapshot_download(source.location, revision=source.revision, allow_patterns=_SMALL_FILES))
    except (HTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{key} = {source.pinned!r}: the hub does not give its files ({type(error).__name__})"
        ) from None


def _tokenizer(
    files: Path, settings: ServedModelConfig, *, runs_dir: Path, key: str
) -> tuple[Path, dict[str, str], str]:
    """The folder with the tokenizer, the model's own or that of engine.tokenizer; that one in words that vLLM
    understands, and where it lies."""
    asked = settings.engine.get("tokenizer")
    if not isinstance(asked, str):
        return files, {}, ""
    found = find_model(asked, runs_dir=runs_dir, key=f"{key.removesuffix('source')}engine.tokenizer")
    files = _files(found, key=key)
    told = {"tokenizer": str(files) if is_url(found.location) else found.location}
    told |= {"tokenizer_revision": found.revision} if found.revision else {}
    return files, told, found.location


def _tokenizer_hash(folder: Path, *, key: str) -> str:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        detail = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
        raise ModelError(
            f"{key}: the tokenizer of {folder} cannot be loaded ({detail}); expected one beside the model"
        ) from None
    if not tokenizer.chat_template:
        raise ModelError(
            f"{key}: the tokenizer of {folder} has no chat template, which chats are made into prompts with; put "
            "chat_template.jinja beside it, or name a tokenizer that has one in the model's engine.tokenizer"
        )
    return tokenizer_hash(tokenizer)


def _bare_adapter(name: str, settings: ServedModelConfig, place: Path, *, label: str, runs_dir: Path) -> Candidate:
    key, folder = f"models.{name}.source", fetch(place)
    config = read_json(folder / ADAPTER_CONFIG)
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{key}: {folder} has no adapter_model.safetensors; save the adapter with save_pretrained")
    _header_dtypes(folder / "adapter_model.safetensors")
    asked, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(asked, str) or not asked:
        raise ModelError(f"{folder / ADAPTER_CONFIG}: base_model_name_or_path is missing; set it to the adapter's base")
    pinned = f"{asked}@{revision}" if revision and not named(asked).is_dir() else asked
    try:
        base = find(name, settings.model_copy(update={"source": pinned}), runs_dir=runs_dir)
    except (ModelError, RunError) as error:
        raise ModelError(f"{key}: {folder} is an adapter whose base cannot be used: {error}") from None
    if base.base is not None:
        raise ModelError(f"{key}: {folder} is an adapter of {asked}, which is one itself; merge that one first")
    own = any((folder / file).is_file() for file in _TOKENIZER_FILES)
    content = text_hash([json_hash(folder_files(folder)), base.content])
    return Candidate(
        name=name,
        settings=settings,
        location=str(cache_home().absolute() / "merged" / content[:32]),
        revision=None,
        content=content,
        label=label,
        files=base.files,
        tokenizer=(_tokenizer_hash(folder, key=key), folder) if own else base.tokenizer,
        runs_dir=runs_dir,
        adapter=folder,
        base=base,
        copied=(*([str(place)] if folder != place else []), *base.copied),
    )
