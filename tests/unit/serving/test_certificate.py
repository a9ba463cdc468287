"""The certificate: what passes and fails by hand-made numbers, its file, its text, and how a server is asked."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slime_ray.data.preferences import Preference
from slime_ray.errors import ConfigError, EndpointError, RunError
from slime_ray.serving.asked import Asked
from slime_ray.serving.certificate import Certificate, certificate_lines, read_certificate
from slime_ray.serving.comparison import (
    AnswerLogps,
    Dtype,
    Likelihoods,
    PromptIds,
    Prompts,
    Stops,
    compare_likelihoods,
    compare_prompts,
    failures,
)
from slime_ray.serving.trained import Side
from tests.json_server import Reply, json_server

WORDS = ["the", "red", "river", "walks", "past", "seven", "stones", "and", "never", "reads", "a", "letter"]
ALIKE = PromptIds([0, 4, 7], [0, 4, 7], [0, 4, 7])
PROMPTS = compare_prompts([ALIKE], decode=str, skipped=0)
STOPS = Stops(end_of_turn=1, listed=(1, 9), stopping=(1, 9), ordinary=5, ordinary_stops=False)


def decode(ids: list[int]) -> str:
    return " ".join(WORDS[number] for number in ids)


def likelihoods(served: list[float], *, dtype: Dtype = "float32", skipped: int = 0) -> Likelihoods:
    """One answer whose tokens the trainer all gives -1.0; numbers of two binary digits are exact."""
    return compare_likelihoods([AnswerLogps([-1.0] * len(served), served)], dtype=dtype, skipped=skipped)


def certificate(
    prompts: Prompts = PROMPTS, compared: Likelihoods | None = None, stops: Stops = STOPS, *, files: str = "f" * 64
) -> Certificate:
    compared = compared or likelihoods([-1.0, -1.0 - 2**-11])
    reasons = failures(prompts, compared, stops)
    return Certificate(
        passed=not reasons,
        reasons=reasons,
        run="tiny/slime-0123abcd",
        hash="0123abcd" * 8,
        files=files,
        model="slime",
        dtype="float32",
        data="data.eval",
        prompts=prompts,
        likelihoods=compared,
        stops=stops,
        server="vllm-0.29.0-1a2b3c4d",
        versions={"torch": "2.13.0"},
        made="2026-11-22T00:00:00+00:00",
    )


@pytest.mark.parametrize(
    ("dtype", "served", "mean", "most", "passes"),
    [
        ("float32", [-1.0, -1.00099], 0.000495, 0.00099, True),
        ("float32", [-1.0, -0.99899], 0.000505, 0.00101, False),
        # 16 bits: neither of these is too much at most, and one is on average.
        ("bfloat16", [-1.0] * 15 + [-1.29], 0.29 / 16, 0.29, True),
        ("bfloat16", [-1.0] * 13 + [-1.29], 0.29 / 14, 0.29, False),
        ("bfloat16", [-1.0] * 99 + [-0.69], 0.0031, 0.31, False),
        ("float16", [-1.019, -0.981], 0.019, 0.019, True),
        ("float16", [-1.021, -0.979], 0.021, 0.021, False),
    ],
)
def test_log_probabilities_are_held_to_the_limits_of_the_servers_dtype(
    dtype: Dtype, served: list[float], mean: float, most: float, passes: bool
) -> None:
    found = likelihoods(served, dtype=dtype)
    assert (found.answers, found.tokens, found.not_finite) == (1, len(served), 0)
    assert (found.mean_difference, found.max_difference) == (pytest.approx(mean), pytest.approx(most))
    assert (not failures(PROMPTS, found, STOPS)) == passes


def test_the_mean_is_over_tokens_not_answers() -> None:
    short, long = AnswerLogps([-1.0], [-1.75]), AnswerLogps([-2.0, -2.0, -2.0], [-2.0, -2.25, -2.0])
    found = compare_likelihoods([short, long], dtype="float32", skipped=0)
    assert (found.answers, found.tokens, found.mean_difference, found.max_difference) == (2, 4, 0.25, 0.75)


@pytest.mark.parametrize("number", [math.nan, -math.inf])
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "the server's"])
def test_a_log_probability_that_is_no_number_fails(number: float, ours: bool) -> None:
    pair = ([-1.0, number], [-1.0, -1.0])
    found = compare_likelihoods([AnswerLogps(*(pair if ours else pair[::-1]))], dtype="bfloat16", skipped=0)
    assert (found.not_finite, found.max_difference) == (1, 0.0)
    assert failures(PROMPTS, found, STOPS) == ("1 of 2 log-probabilities are no finite numbers",)


def test_nothing_compared_fails_with_what_was_left_out() -> None:
    found = failures(
        compare_prompts([], decode=str, skipped=3), compare_likelihoods([], dtype="float32", skipped=6), STOPS
    )
    assert found == (
        "no prompts were compared (3 are longer than the server takes)",
        "no answers were compared (6 are longer than the server takes)",
    )


def test_rows_that_are_left_out_do_not_fail_the_others() -> None:
    assert failures(PROMPTS, likelihoods([-1.0], skipped=5), STOPS) == ()


@pytest.mark.parametrize(
    ("trained", "served", "shown"),
    [
        ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 9, 5], "from token 4: trained on 'the red river walks past seven'"),
        ([0, 0, 1], [0, 1], "from token 1: trained on 'the the red' [0, 0, 1], served 'the red' [0, 1]"),
        ([0, 1], [0, 1, 2], "from token 2: trained on 'the red' [0, 1], served 'the red river' [0, 1, 2]"),
        ([0, 1], "no such role", "the server refuses it: no such role"),
    ],
    ids=["one id", "a token too few", "a token too many", "refused"],
)
def test_one_other_id_fails_and_is_shown(trained: list[int], served: list[int] | str, shown: str) -> None:
    found = compare_prompts([ALIKE, PromptIds(trained, served, trained), ALIKE], decode=decode, skipped=0)
    assert (found.compared, found.mismatches, found.dated) == (3, 1, 0)
    assert found.first is not None
    assert found.first.startswith(shown)
    (reason,) = failures(found, likelihoods([-1.0]), STOPS)
    assert reason.startswith("1 of 3 prompts have other token ids")


def test_todays_date_is_no_other_prompt_but_another_date_is() -> None:
    today, yesterday = PromptIds([0, 1, 5], [0, 2, 5], [0, 2, 5]), PromptIds([0, 1, 5], [0, 3, 5], [0, 2, 5])
    found = compare_prompts([today, yesterday, ALIKE], decode=decode, skipped=0)
    assert (found.compared, found.mismatches, found.dated) == (3, 1, 1)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"listed": (9,)}, "generation_config.json does not stop at the end of a turn, token 1"),
        ({"stopping": (9,)}, "the server goes on after the stop token 1"),
        ({"stopping": (1,)}, "the server goes on after the stop token 9"),
        ({"ordinary_stops": True}, "the server stops after token 5, which ends no answer"),
    ],
)
def test_stops_that_differ_fail(changed: dict[str, Any], reason: str) -> None:
    assert failures(PROMPTS, likelihoods([-1.0]), STOPS.model_copy(update=changed)) == (reason,)


def test_a_certificate_is_read_back_and_is_for_its_weights_alone(tmp_path: Path) -> None:
    nothing = read_certificate(tmp_path, files_hash="f" * 64)
    written = certificate()
    written.write(tmp_path / "certificate.json")
    assert nothing is None
    assert written.passed
    assert read_certificate(tmp_path, files_hash="f" * 64) == written
    assert read_certificate(tmp_path, files_hash="e" * 64) is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [('"passed": false', '"passed": true', "it was changed after it was written"), ("{", "", "the file is no JSON")],
)
def test_a_certificate_that_was_edited_or_damaged_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "certificate.json"
    certificate(stops=STOPS.model_copy(update={"stopping": ()})).write(path)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(RunError, match=f"certificate.json: {said}.*; make it anew with `slime-ray certify`"):
        read_certificate(tmp_path, files_hash="f" * 64)


def test_the_text_says_what_was_compared_and_why_it_failed() -> None:
    passed = "\n".join(certificate_lines(certificate()))
    failed = certificate_lines(certificate(compared=likelihoods([-1.0, -1.5], skipped=2)))
    assert "tiny/slime-0123abcd as slime in float32: passed" in passed
    assert "1 answers, 2 tokens: 0.00049 nats a token at most, 0.00024 on average (at most 0.001)" in passed
    assert failed[0].endswith("FAILED")
    assert failed[1].startswith("  because log-probabilities are 0.5 nats a token at most from the trainer's")
    assert "  left out           2 longer than the server takes" in failed
    assert max(map(len, failed)) < 200


def test_reading_certificates_loads_nothing_heavy() -> None:
    code = (
        "import sys, slime_ray.serving.certificate; print({'torch', 'ray', 'transformers', 'openai'} & {*sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "set()"


# What a server is asked, by path; the real vLLM is asked in tests/parity/test_served_families.py.

ROW = Preference(({"role": "user", "content": "hello"},), (), (), "pairs.jsonl:1")


@pytest.fixture
def serve() -> Iterator[Callable[[dict[str, Reply]], str]]:
    """A function that starts a server of some paths and gives its address."""
    with contextlib.ExitStack() as servers:
        yield lambda replies: servers.enter_context(json_server(replies))


def asked(url: str) -> Asked:
    return Asked(url, model="slime", api_key_env=None)


def test_log_probabilities_are_those_of_the_answers_own_tokens(serve: Callable[[dict[str, Reply]], str]) -> None:
    def completions(body: dict[str, Any]) -> tuple[int, Any]:
        assert (body["model"], body["prompt_logprobs"]) == ("slime", 0)
        told = [None] + [{str(token): {"logprob": -token / 4}, "77": {"logprob": 0.0}} for token in body["prompt"][1:]]
        return 200, {"system_fingerprint": "vllm-1-2", "choices": [{"prompt_logprobs": told}]}

    server = asked(serve({"/completions": completions}))
    assert server.logps([Side([0, 9, 8], [3, 1]), Side([0], [2])]) == [[-0.75, -0.25], [-0.5]]
    assert server.server == "vllm-1-2"


@pytest.mark.parametrize(
    ("choice", "said"),
    [({"prompt_logprobs": None}, "does not tell the log-probabilities"), ({}, "does not tell the log-probabilities")],
)
def test_a_server_that_is_not_vllm_is_named(
    serve: Callable[[dict[str, Reply]], str], choice: dict[str, Any], said: str
) -> None:
    server = asked(serve({"/completions": lambda body: (200, {"choices": [choice]})}))
    with pytest.raises(EndpointError, match=said):
        server.logps([Side([0], [2])])


def test_a_prompt_that_the_server_refuses_is_a_finding_not_an_error(serve: Callable[[dict[str, Reply]], str]) -> None:
    def chat(body: dict[str, Any]) -> tuple[int, Any]:
        if body["messages"][0]["content"] == "hello":
            return 200, {"prompt_token_ids": [0, 4, 7]}
        return 400, {"error": {"message": "no such role"}}

    other = Preference(({"role": "user", "content": "bye"},), (), (), "pairs.jsonl:2")
    ids, refused = asked(serve({"/chat/completions": chat})).prompts([ROW, other])
    assert ids == [0, 4, 7]
    assert isinstance(refused, str)
    assert "no such role" in refused


def test_tools_and_tool_calls_are_sent_in_openais_form(serve: Callable[[dict[str, Reply]], str]) -> None:
    sent: list[dict[str, Any]] = []
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "river"}}}
    prompt = ({"role": "user", "content": "look"}, {"role": "assistant", "content": "", "tool_calls": [call]})
    row = Preference(prompt, (), (), "pairs.jsonl:1", tools=({"type": "function", "function": {"name": "look"}},))
    url = serve({"/chat/completions": lambda body: (200, sent.append(body) or {"prompt_token_ids": [1]})})
    asked(url).prompts([row])
    (said,) = sent[0]["messages"][1]["tool_calls"]
    assert json.loads(said["function"]["arguments"]) == {"at": "river"}
    assert isinstance(said["id"], str)
    assert (sent[0]["tools"], sent[0]["tool_choice"]) == (list(row.tools or ()), "none")


@pytest.mark.parametrize(("ids", "reason", "stops"), [([1], "stop", True), ([1, 1], "length", False)])
def test_a_stop_is_seen_by_how_an_answer_ends(
    serve: Callable[[dict[str, Reply]], str], ids: list[int], reason: str, stops: bool
) -> None:
    choice = {"token_ids": ids, "finish_reason": reason}
    server = asked(serve({"/chat/completions": lambda body: (200, {"choices": [choice]})}))
    assert server.stops_after(1) == stops
    with pytest.raises(EndpointError, match="asked for token 2 alone"):
        server.stops_after(2)


@pytest.mark.parametrize(
    ("status", "said"), [(401, "401.*look at the key"), (404, "404"), (403, "403.*look at the key")]
)
def test_a_server_that_does_not_let_us_in_is_a_sentence(
    serve: Callable[[dict[str, Reply]], str], status: int, said: str
) -> None:
    server = asked(serve({"/models": lambda body: (status, {"error": {"message": "no"}})}))
    with pytest.raises(EndpointError, match=said):
        server.look()


def test_the_servers_length_is_read_from_its_card(serve: Callable[[dict[str, Reply]], str]) -> None:
    cards = [{"id": "base", "max_model_len": 8}, {"id": "slime", "max_model_len": 512}]
    url = serve({"/models": lambda body: (200, {"data": cards})})
    assert asked(url).look() == 512
    with pytest.raises(EndpointError, match="no model 'sft'; it has base, slime"):
        Asked(url, model="sft", api_key_env=None).look()


def test_a_key_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ConfigError, match="SOME_KEY"):
        Asked("http://127.0.0.1:9/v1", model="slime", api_key_env="SOME_KEY")
