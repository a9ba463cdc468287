"""An evaluation's recipe: questions, the models that answer them, the judge, a budget."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue, model_validator

from slime_ray.config.section import READS, WRITES, Section


def _url(text: str) -> str:
    # It stands in files and messages, so that nothing secret may be in it.
    if not re.fullmatch(r"https?://[^/\s@?#]+(/[^\s@?#]*)?", text):
        raise ValueError("expected http://HOST[:PORT]/v1 or https://..., and a key in the variable of api_key_env")
    return text.rstrip("/")


def _file_name(text: str) -> str:
    # It names files of the evaluation's folder.
    if not re.fullmatch(r"\w[\w.\-]*", text):
        raise ValueError(
            "expected letters, digits, '-', '_' and '.'; the endpoint's own name goes into its key `model`"
        )
    return text


def _folder_name(text: str) -> str:
    if any(not part or part.startswith(".") or not part.isprintable() for part in text.split("/")):
        raise ValueError("expected letters, digits, '-', '_', '.' and '/' that nests folders")
    return text


Url = Annotated[str, AfterValidator(_url)]
UrlOrNone = Annotated[str, AfterValidator(lambda text: text and _url(text))]
Name = Annotated[str, AfterValidator(_file_name)]
FolderName = Annotated[str, AfterValidator(_folder_name)]

_RUBRIC = "rubric"


class PriceConfig(Section):
    """Money for a million tokens."""

    prompt: float = Field(ge=0.0)
    completion: float = Field(ge=0.0)


class EndpointConfig(Section):
    """A model behind an OpenAI-compatible chat endpoint."""

    base_url: UrlOrNone = Field(default="", description="such as http://127.0.0.1:8000/v1")
    model: str = Field(default="", description="what the endpoint calls it; default: the table's name")
    api_key_env: str | None = Field(default=None, description="the environment variable that holds the key")
    max_tokens: int = Field(default=1024, ge=1)
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="OpenAI's reasoning models want the second"
    )
    extra_body: dict[str, JsonValue] = Field(default={}, description="further fields of a request, such as seed")
    price: PriceConfig | None = Field(default=None, description="money for a million tokens")


class EvaluatedConfig(EndpointConfig):
    """A model under evaluation: an endpoint that answers, or a file with its answers."""

    temperature: float | None = Field(default=None, ge=0.0, le=2.0, description="default: the question's")
    answers: str | None = Field(
        default=None, json_schema_extra=READS, description="answers in FastChat's or Arena-Hard's form"
    )

    @model_validator(mode="after")
    def _one_source(self) -> EvaluatedConfig:
        if bool(self.base_url) == (self.answers is not None):
            raise ValueError("expected either base_url, an endpoint that answers, or answers, a file of them")
        return self


class JudgeEndpointConfig(EndpointConfig):
    """A language model that judges."""

    base_url: Url = Field(description="such as https://api.openai.com/v1")
    max_tokens: int = Field(default=2048, ge=1)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)

    def asked(self, name: str) -> JsonValue:
        """What tells this judge from others; `name` is its table's."""
        return [self.base_url, self.model or name, self.max_tokens, self.temperature, self.extra_body]


class QuestionsConfig(Section):
    """`[questions]`: what is asked."""

    path: str = Field(
        default="bundled",
        json_schema_extra=READS,
        description="MT-Bench's or Arena-Hard's question.jsonl; bundled: 80 of our own",
    )
    references: str | None = Field(
        default=None, json_schema_extra=READS, description="reference answers in FastChat's form"
    )
    limit: int | None = Field(default=None, ge=1, description="only the first so many")


class JudgeConfig(Section):
    """`[judge]`: how answers are judged, and by whom; without `[judge.models.NAME]` by the offline rubric."""

    mode: Literal["grade", "pair", "arena"] = Field(
        default="grade", description="1-10 an answer; two answers in both orders; five labels against the baseline"
    )
    models: dict[Name, JudgeEndpointConfig] = Field(default={}, description="language models that judge")
    baseline: str | None = Field(default=None, description="the model that the others are compared with")
    prompts: str = Field(
        default="bundled", json_schema_extra=READS, description="judge prompts in FastChat's form; bundled: our own"
    )
    repeats: int = Field(default=1, ge=1, description="judgments of one answer by one judge")
    rule: Literal["strict", "fastchat", "arena_hard"] = Field(default="strict", description="how a verdict is read")
    labels: str | None = Field(
        default=None, json_schema_extra=READS, description="human labels that the judges are checked with before"
    )
    labels_limit: int | None = Field(default=None, ge=1)
    min_agreement: float | None = Field(default=None, ge=0.0, le=100.0, description="percent, below it is refused")

    @model_validator(mode="after")
    def _whole(self) -> JudgeConfig:
        if self.mode == "arena" and self.baseline is None:
            raise ValueError("mode = 'arena' compares with a baseline; set judge.baseline to one of the models")
        if self.mode == "arena" and self.rule == "fastchat":
            raise ValueError(
                "rule = 'fastchat' reads none of the five labels of mode = 'arena'; take arena_hard or strict"
            )
        if _RUBRIC in self.models:
            raise ValueError("judge.models.rubric: the offline judge has this name; give the language model another")
        for (one, first), (other, second) in combinations(self.models.items(), 2):
            if first.asked(one) == second.asked(other):
                raise ValueError(f"judge.models.{one} and {other} are one judge; for several judgments set repeats")
        if self.min_agreement is not None and (self.labels is None or not self.models):
            raise ValueError("min_agreement needs judge.labels, a file of human labels, and a judge in judge.models")
        return self


class BudgetConfig(Section):
    """`[budget]`: where an evaluation stops, counted over all of its runs."""

    tokens: int | None = Field(default=None, ge=1)
    money: float | None = Field(default=None, gt=0.0, description="in the currency of the prices")
    currency: str = "USD"


class RequestsConfig(Section):
    """`[requests]`: how endpoints are asked."""

    concurrency: int = Field(default=16, ge=1, description="requests to one endpoint at once")
    timeout_s: float = Field(default=120.0, gt=0.0)
    attempts: int = Field(default=6, ge=1, description="for what may pass: rate limits, time-outs, 5xx")
    longest_wait_s: float = Field(default=60.0, ge=0.0, description="between two attempts, Retry-After included")


class EvaluationRecipe(Section):
    """Everything that decides one evaluation."""

    name: FolderName = Field(description="default: the path below jobs/recipes/, else the file's stem")
    evaluations_dir: str = Field(
        default="evaluations", json_schema_extra=WRITES, description="where evaluation folders are kept"
    )
    questions: QuestionsConfig = QuestionsConfig()
    models: dict[Name, EvaluatedConfig] = Field(min_length=1)
    judge: JudgeConfig = JudgeConfig()
    budget: BudgetConfig = BudgetConfig()
    requests: RequestsConfig = RequestsConfig()

    @model_validator(mode="after")
    def _models_that_fit(self) -> EvaluationRecipe:
        names = sorted(self.models)
        if self.judge.baseline is not None and self.judge.baseline not in self.models:
            raise ValueError(f"judge.baseline = {self.judge.baseline!r} is none of the models ({', '.join(names)})")
        if self.judge.mode != "grade" and len(names) < 2:
            raise ValueError(f"judge.mode = {self.judge.mode!r} compares models, but there is only {names[0]}")
        if self.budget.money is not None:
            asked = {f"models.{name}": model for name, model in self.models.items() if model.base_url}
            asked |= {f"judge.models.{name}": judge for name, judge in self.judge.models.items()}
            unpriced = [key for key, endpoint in asked.items() if endpoint.price is None]
            if unpriced:
                raise ValueError(f"budget.money needs a price for every endpoint; {unpriced[0]}.price is missing")
        return self
