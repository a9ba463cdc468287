"""Families on real vLLM: a tiny checkpoint is trained one step, served on a CPU, certified, and asked for an answer.

Shapes are those of `tests.families` but for heads of 32: vLLM's attention on a CPU knows no smaller ones.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import openai
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from slime_ray.config.recipe import Recipe
from slime_ray.quickstart.models import make_tokenizer
from slime_ray.serving.certificate import Certificate, certify
from slime_ray.training.fit import train
from tests import families
from tests.conftest import preference_rows, write_rows

# vLLM 0.29 serves every family on a CPU. What it computes otherwise than transformers: Cohere 2's window holds one
# token more (its commandr.py), which shows in sequences that are longer than the window.
OTHERWISE: dict[str, str] = {"cohere2": "its sliding window is one token wider under vLLM"}
# Families whose logits vLLM computes from the input embeddings, whatever head is saved: what becomes of a trained head.
HEADLESS: dict[str, Literal["refused", "ignored"]] = {"cohere": "ignored", "cohere2": "ignored", "gemma2": "refused"}
# Adapters, and a head that is trained in full.
HEAD: dict[str, Any] = {"r": 4, "alpha": 8, "modules_to_save": ["lm_head"]}

_WIDE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 96}
_WIDE_GPT_2: dict[str, Any] = {"n_embd": 128, "n_inner": 96}
_STARTS_S = 240.0


@dataclass(frozen=True)
class Outcome:
    """What came of a family.

    Attributes:
        certificate: None where vLLM did not serve it.
        answered: tokens of the answer to one question.
        refusal: vLLM's first error, where it did not serve it.
    """

    certificate: Certificate | None
    answered: int
    refusal: str | None


def write_family(folder: Path, family: str, *, tied: bool) -> Path:
    """Write a tiny float32 checkpoint with our tokenizer, weights far from uniform."""
    settings: dict[str, Any] = families._SETTINGS[family]
    wide = _WIDE_GPT_2 if family == "gpt2" else _WIDE
    if "head_dim" in settings:
        wide = wide | {"head_dim": 32}
    config = AutoConfig.for_model(family, **settings | wide, **families._tokens(families.VOCABULARY, tied=tied))
    model = families._drawn(AutoModelForCausalLM.from_config(config, **families._BUILT), seed=0)
    with torch.no_grad():  # drawn for 32 inputs; 128 add up to twice as much
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.5)
    model.float().save_pretrained(folder)
    texts = [row["prompt"] for row in preference_rows(50, seed=0)]
    make_tokenizer(texts, vocabulary=280).save_pretrained(folder)
    return folder


def train_family(folder: Path, family: str, *, tied: bool, lora: dict[str, Any] | None = None) -> str:
    """Train a family's checkpoint for one step in this process; the run's name."""
    pairs = write_rows(folder / "pairs.jsonl", preference_rows(16, seed=0))
    held_out = write_rows(folder / "held_out.jsonl", preference_rows(8, seed=1))
    recipe = Recipe.model_validate(
        {
            "name": family,
            "runs_dir": str(folder / "runs"),
            "model": {"name": str(write_family(folder / "base", family, tied=tied))},
            "data": {"train": [str(pairs)], "eval": [str(held_out)], "max_length": 96},
            "lora": lora,
            "training": {
                "learning_rate": 1e-2,
                "pairs_per_step": 8,
                "max_steps": 1,
                "num_workers": 0,
                # Given, so that no family waits for them to be chosen.
                "tokens_per_micro_batch": 16384,
                "gradient_checkpointing": False,
            },
        }
    )
    return train(recipe).name


@contextlib.contextmanager
def vllm(folder: Path, *arguments: str) -> Iterator[str]:
    """vLLM's own server of a folder, called `served`, in float32 on a CPU; its address up to /v1.

    Raises:
        RuntimeError: it did not come up; the message is the first error that it said.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "served", "--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--max-num-seqs", "8", *arguments]
    log = folder.with_name(f"{folder.name}-vllm.log")
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            env=os.environ | quiet | {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(server, port, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # what its engine left
        server.wait(30)


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + _STARTS_S
    while time.monotonic() < until and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return  # it listens once its engine is up
        time.sleep(0.5)
    # The cause comes first; what follows from it ends with "See root cause above". A warning of vLLM's quotes an error.
    causes = re.findall(r"^(?!.* WARNING ).*?\b(\w+(?:Error|Exception): .+)", log.read_text(errors="replace"), re.M)
    raise RuntimeError(causes[0][:200] if causes else f"it was not up within {_STARTS_S:g} s; see {log}")


def look_at(folder: Path, family: str, *, tied: bool = True, lora: dict[str, Any] | None = None) -> Outcome:
    """Train, serve, certify and ask one family."""
    name = train_family(folder, family, tied=tied, lora=lora)
    runs = folder / "runs"
    try:
        with vllm(runs / name / "final") as url:
            certificate = certify(f"run:{name}", runs_dir=runs, base_url=url, model="served", pairs=8)
            with openai.OpenAI(base_url=url, api_key="none") as client:
                asked = client.chat.completions.create(
                    model="served", messages=[{"role": "user", "content": "red river?"}], max_tokens=8, temperature=0
                )
            assert asked.usage is not None
            return Outcome(certificate, asked.usage.completion_tokens, None)
    except RuntimeError as error:
        return Outcome(None, 0, str(error))
