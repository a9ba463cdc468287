"""What all sections of a recipe share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

# A field with this in `json_schema_extra` says where something lies or how fast a run goes, not what comes out of it.
# It is not in a run's name, so moving a run to other workers or another folder finds the same run again; files and
# models stand in the name by their content.
PLACE: dict[str, Any] = {"place": True}

# What a field names is read, or a folder that is written, or a file that nobody else may see: on a cluster, by the
# machines there.
Role = Literal["reads", "writes", "secret"]
READS: dict[str, Any] = {"role": "reads"}
WRITES: dict[str, Any] = {"role": "writes"}
SECRET: dict[str, Any] = {"role": "secret"}


class Section(BaseModel):
    """A frozen section of a recipe; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    def result_settings(self) -> dict[str, Any]:
        """The settings that change the result and are not at their default, nested, JSON-serialisable."""
        kept: dict[str, Any] = {}
        for key, field in type(self).model_fields.items():
            value = getattr(self, key)
            if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("place"):
                continue
            if key == "kind":  # says which class the section is, so its default is no common default
                kept[key] = value
            elif isinstance(value, Section):
                inner = value.result_settings()
                # An optional section that is switched on counts even if all inside it is at its default.
                if inner or field.default is None:
                    kept[key] = inner
            elif value != field.get_default(call_default_factory=True):
                kept[key] = value
        return kept

    def named(self, role: Role, prefix: str = "") -> Iterator[tuple[str, str]]:
        """The dotted key and the value of every setting of a role, in the order of the fields."""
        for key, field in type(self).model_fields.items():
            value, dotted = getattr(self, key), f"{prefix}{key}"
            inner = {f"{dotted}.{name}": each for name, each in value.items()} if isinstance(value, dict) else {}
            for place, each in {dotted: value, **inner}.items():
                if isinstance(each, Section):
                    yield from each.named(role, f"{place}.")
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("role") == role and value is not None:
                yield from ((dotted, each) for each in ([value] if isinstance(value, str) else value))
