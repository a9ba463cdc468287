"""What all sections of a recipe share."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

# A field with this in `json_schema_extra` says where something lies or how fast a run goes, not what comes out of it.
# It is not in a run's name, so moving a run to other workers or another folder finds the same run again; files and
# models stand in the name by their content.
PLACE: dict[str, Any] = {"place": True}


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
