"""A data set on the Hugging Face hub, pinned to a commit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_ray.errors import DataError

_ENTRY = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<split>[\w.-]+))?(@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubEntry:
    """``org/name[:split][@revision]``; the split is train and the revision main unless said otherwise."""

    name: str
    split: str
    revision: str | None

    @classmethod
    def parse(cls, entry: str) -> HubEntry | None:
        """The entry as a hub name, or None where it has another form."""
        match = _ENTRY.fullmatch(entry)
        return cls(match["name"], match["split"] or "train", match["revision"]) if match else None

    def commit(self) -> str:
        """The commit hash of the revision, from the hub or, offline, from the local cache.

        Raises:
            DataError: neither has it.
        """
        if self.revision and _COMMIT.fullmatch(self.revision):
            return self.revision
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            # Asks the hub, notes the answer in the local cache, and takes that note where the hub cannot be reached.
            folder = snapshot_download(
                self.name, repo_type="dataset", revision=self.revision, allow_patterns="README.md"
            )
        except LocalEntryNotFoundError:
            raise DataError(f"{self._missing()}: the hub cannot be reached and the local cache has no copy") from None
        except (HfHubHTTPError, HFValidationError) as error:
            raise DataError(f"{self._missing()}: {_first_line(error)}") from None
        return Path(folder).name

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the split at the pinned commit.

        Raises:
            DataError: the data set, revision or split is not to be had.
        """
        from datasets import Dataset, load_dataset
        from datasets.exceptions import DatasetsError

        commit = self.commit()
        try:
            dataset = load_dataset(self.name, split=self.split, revision=commit)
        except (OSError, ValueError, DatasetsError) as error:
            raise DataError(f"{self._missing()}: {_first_line(error)}") from None
        assert isinstance(dataset, Dataset)
        # Offline, `datasets` takes the newest revision in its cache, whatever was asked for; the folder has its name.
        for file in dataset.cache_files:
            found = Path(file["filename"]).parent.name
            if _COMMIT.fullmatch(found) and found != commit:
                raise DataError(
                    f"{self.name}@{commit}: the hub cannot be reached and the local cache has only @{found}"
                )
        for row in dataset:
            assert isinstance(row, dict)
            yield row

    def _missing(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.name}:{self.split}{revision}: neither a file or folder here nor a reachable hub name"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
