"""What `kubectl kustomize` makes of docker/kuberay, as far as these manifests ask it for something."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "docker" / "kuberay"
OVERLAYS = ("cpu", "gpu")

Manifest = dict[str, Any]
_KEYS = {
    *("apiVersion", "kind", "namespace", "nameSuffix", "labels", "resources", "images", "patches"),
    *("configMapGenerator", "generatorOptions"),
}
_WITHOUT_NAMESPACE = {"Namespace"}


@cache
def built(overlay: str) -> list[Manifest]:
    """All manifests of an overlay; not to be changed."""
    return build(KUBERAY / "overlays" / overlay)


def build(folder: Path) -> list[Manifest]:
    """The manifests of a folder with a kustomization.yaml."""
    wanted = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    assert wanted.keys() <= _KEYS, f"{folder}: these tests do not know {wanted.keys() - _KEYS}"
    found: list[Manifest] = []
    for name in wanted.get("resources", []):
        path = (folder / name).resolve()
        found += build(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    found = _unshared(found)
    found += [_config_map(entry, folder) for entry in wanted.get("configMapGenerator", [])]
    for entry in wanted.get("patches", []):
        text = entry["patch"] if "patch" in entry else (folder / entry["path"]).read_text(encoding="utf-8")
        targets = [each for each in found if each["kind"] == entry["target"]["kind"]]
        assert targets, f"{folder}: a patch is for no {entry['target']['kind']}"
        for target in targets:
            for operation in yaml.safe_load(text):
                _apply(operation, target)
    for manifest in found:
        metadata = manifest["metadata"]
        metadata["name"] += wanted.get("nameSuffix", "")
        if "namespace" in wanted and manifest["kind"] not in _WITHOUT_NAMESPACE:
            metadata["namespace"] = wanted["namespace"]
        for entry in wanted.get("labels", []):
            metadata["labels"] = metadata.get("labels", {}) | entry["pairs"]
        for container in containers_in(manifest):
            for image in wanted.get("images", []):
                if container["image"] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"
    return found


def containers_in(value: Any) -> Iterator[Manifest]:
    """Every container that a manifest describes, wherever in it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("containers", "initContainers"):
                yield from inner
            else:
                yield from containers_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from containers_in(inner)


def _config_map(entry: Manifest, folder: Path) -> Manifest:
    data: dict[str, str] = {}
    for name in entry.get("envs", []):
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        data |= {key: value for key, _, value in (line.partition("=") for line in lines)}
    for name in entry.get("files", []):
        data[Path(name).name] = (folder / name).read_text(encoding="utf-8")
    metadata = {"name": entry["name"], "labels": dict(entry["options"]["labels"])}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _apply(operation: Manifest, document: Manifest) -> None:
    """One operation of RFC 6902."""
    *path, last = operation["path"].removeprefix("/").split("/")
    place: Any = document
    for part in path:
        place = place[int(part)] if isinstance(place, list) else place[part]
    key: Any = int(last) if isinstance(place, list) else last
    match operation["op"]:
        case "test":
            assert place[key] == operation["value"], f"{operation['path']} is {place[key]}"
        case "replace":
            assert place[key] is not None
            place[key] = operation["value"]
        case "add":
            assert isinstance(place, dict)
            place[key] = operation["value"]
        case other:
            raise AssertionError(f"these tests do not know the operation {other}")


def _unshared(value: Any) -> Any:
    """The same with a copy where YAML's anchors put one object into several places, which patches tell apart."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value
