"""A served endpoint's recipe: checkpoints by name, their engines, keys, limits, the request log."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue, model_validator

from slime_ray.config.section import READS, SECRET, WRITES, Section


def _served_name(text: str) -> str:
    # A ':' parts a base from an adapter in Ray's ingress.
    if not re.fullmatch(r"\w[\w.\-]*(/\w[\w.\-]*)*", text):
        raise ValueError("expected letters, digits, '-', '_', '.' and '/' between parts")
    return text


ServedName = Annotated[str, AfterValidator(_served_name)]
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class ServedModelConfig(Section):
    """`[models.NAME]`: one checkpoint and the engine that runs it."""

    source: str = Field(json_schema_extra=READS, description="run:NAME, a folder, or a hub name with @revision")
    dtype: Literal["own", "float32", "bfloat16", "float16"] = Field(
        default="own", description="own: the one that the weights are stored in"
    )
    max_model_len: int | None = Field(
        default=None, ge=1, description="tokens of prompt and answer; default: the model's"
    )
    cpus: float = Field(default=1.0, gt=0.0, description="that the engine asks of the cluster; fractions allowed")
    gpus: int = Field(default=0, ge=0, description="0 runs the engine on CPU")
    memory_gb: float | None = Field(default=None, gt=0.0, description="that the engine asks of the cluster")
    kv_cache_gb: float = Field(default=1.0, gt=0.0, description="on CPU; a GPU's is what its memory leaves")
    max_ongoing: int = Field(default=32, ge=1, description="requests that one replica works on at once")
    max_queued: int = Field(default=64, ge=0, description="requests that wait for it; beyond, 429")
    replicas: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = Field(
        default=1, description="or [least, most], by ongoing requests"
    )
    engine: dict[str, JsonValue] = Field(default={}, description="further arguments of vLLM's engine")

    @model_validator(mode="after")
    def _ordered(self) -> ServedModelConfig:
        if isinstance(self.replicas, tuple) and self.replicas[0] > self.replicas[1]:
            raise ValueError("replicas = [least, most]: least is above most")
        return self


class KeysConfig(Section):
    """`[keys]`: who may ask. With neither a file nor the variable, any process on this machine."""

    file: str | None = Field(
        default=None, json_schema_extra=SECRET, description="what `slime-ray keys add` writes: names and hashes"
    )
    env: str = Field(default="SLIME_RAY_API_KEYS", description="the variable with NAME=KEY,NAME=KEY")


class LimitsConfig(Section):
    """`[limits]`: what one request, one key and all together may take."""

    concurrent: int = Field(default=64, ge=1, description="requests at once; beyond, 429")
    concurrent_per_key: int = Field(default=32, ge=1)
    body_bytes: int = Field(default=2**20, ge=1)
    max_tokens: int = Field(default=4096, ge=1, description="of one answer")
    choices: int = Field(default=8, ge=1, description="answers to one request (n)")
    request_seconds: float = Field(default=600.0, gt=0.0, description="from the first byte of a request to its answer")
    body_seconds: float = Field(default=30.0, gt=0.0, description="for a request's body to arrive")


class RequestLogConfig(Section):
    """`[log]`: one JSON line a request."""

    file: str | None = Field(
        default=None, json_schema_extra=WRITES, description="default: standard output of the ingress"
    )
    text: bool = Field(default=False, description="prompts and answers too")


class ServingRecipe(Section):
    """Everything that decides one endpoint."""

    name: str = Field(default="", description="default: the path below jobs/recipes/, else the file's stem")
    runs_dir: str = Field(default="runs", json_schema_extra=WRITES)
    host: str = Field(default="127.0.0.1", description="of the HTTP server; others than loopback need a key")
    port: int = Field(default=8000, ge=0, le=65535, description="0: any that is free")
    models: dict[ServedName, ServedModelConfig] = Field(min_length=1)
    keys: KeysConfig = KeysConfig()
    limits: LimitsConfig = LimitsConfig()
    log: RequestLogConfig = RequestLogConfig()
    cors_origins: tuple[str, ...] = Field(default=(), description="of browsers' pages that may ask; default: none")
    ingress_replicas: int = Field(default=1, ge=1, description="each keeps its share of the limits")
    drain_seconds: float = Field(default=30.0, ge=0.0, description="for running answers when it is stopped or replaced")
    force: bool = Field(default=False, description="serve a checkpoint whose certificate failed")
