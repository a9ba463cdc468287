"""Small JSON files that say what something is, sealed by a hash of what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from slime_ray.errors import RunError
from slime_ray.storage import json_hash, read_bytes, write_json


class Sealed(BaseModel):
    """A record that is written once; one that was edited or damaged afterwards is refused by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def write(self, path: Path) -> None:
        """Write the record with its seal, whole or not at all."""
        values = self.model_dump(mode="json")
        write_json(path, {**values, "seal": json_hash(values)})

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The record in a file, None if there is no file.

        Raises:
            RunError: the file is no such record, or it was changed since it was written.
        """
        try:
            data = read_bytes(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        try:
            values = json.loads(data)
        except ValueError as error:
            raise RunError(f"{path}: the file is no JSON ({error}); {_ADVICE}") from None
        seal = values.pop("seal", None) if isinstance(values, dict) else None
        try:
            record = cls.model_validate(values)
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]
            where = ".".join(map(str, reason["loc"])) or "the file"
            raise RunError(f"{path}: {where}: {reason['msg']}; {_ADVICE}") from None
        if seal != json_hash(values):
            raise RunError(f"{path}: it was changed after it was written; {_ADVICE}")
        return record


_ADVICE = "put the original back, or move its folder away and run the command again"
