"""Write trl_values.json: what TRL's own DPO and SimPO code makes of given token log-probabilities.

TRL is no dependency of this project. To regenerate the values, from the root of the repository:

    python3.11 -m venv /tmp/trl
    /tmp/trl/bin/pip install torch==2.13.0
    /tmp/trl/bin/pip install trl==1.16.0 torch==2.13.0
    /tmp/trl/bin/python tests/parity/trl_values.py

Nothing is trained and no model is built: the trainers' own loss methods are called on objects that hold the settings
alone, with a function in the place of the model. DPO's trainer asks its model for log-probabilities, CPO's for logits.
The latter are made for a vocabulary of two, [l, log(1 - exp(l))]: a log-softmax of them gives l back for token 0, and
its gradient with respect to l is 1.
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from torch import Tensor
from trl import DPOTrainer
from trl.experimental.cpo import CPOTrainer

PROMPT = 2  # tokens before each answer, which no loss may see
# Tokens of each pair's chosen and rejected answer: one pair, three, five.
LENGTHS = [[(4, 2)], [(1, 7), (5, 3), (2, 2)], [(3, 1), (9, 4), (1, 1), (2, 8), (6, 5)]]
DPO_BETAS = [0.01, 0.1, 0.5, 2.0]
SIMPO_SETTINGS = [(2.0, 0.2), (2.0, 1.0), (2.5, 0.0), (10.0, 3.0)]


class Accelerator:
    """One process on CPU."""

    device = torch.device("cpu")

    def gather(self, values: Tensor) -> Tensor:
        return values

    gather_for_metrics = gather


class Answers:
    """Seeded log-probabilities of a few pairs' answers, and the padded rows that trainers work on."""

    def __init__(self, lengths: list[tuple[int, int]], *, seed: int) -> None:
        torch.manual_seed(seed)
        self.pairs = len(lengths)
        sizes = [chosen for chosen, _ in lengths] + [rejected for _, rejected in lengths]
        # Confident, likely and unlikely tokens alike.
        self.logps = [-(torch.randn(size, dtype=torch.float64).abs() ** 2) - 1e-3 for size in sizes]
        self.reference = [logp.sum() + torch.randn((), dtype=torch.float64) for logp in self.logps]
        for logp in self.logps:
            logp.requires_grad_()

    def padded(self) -> Tensor:
        """The log-probabilities behind the prompts' places, which hold 0, as (2 x pairs, length)."""
        rows = [torch.cat([torch.zeros(PROMPT, dtype=torch.float64), logp]) for logp in self.logps]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def mask(self) -> Tensor:
        """1 at the places of answers."""
        rows = [torch.tensor([0] * PROMPT + [1] * len(logp)) for logp in self.logps]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def case(self, loss: Tensor, metrics: dict[str, float], **settings: float) -> dict[str, Any]:
        """Everything that a test compares."""
        loss.backward()
        gradients = [logp.grad.tolist() for logp in self.logps if logp.grad is not None]
        tokens, reference = [logp.tolist() for logp in self.logps], [float(value) for value in self.reference]
        return {
            "settings": settings,
            "chosen_token_logps": tokens[: self.pairs],
            "rejected_token_logps": tokens[self.pairs :],
            "reference_chosen": reference[: self.pairs],
            "reference_rejected": reference[self.pairs :],
            "loss": loss.item(),
            "metrics": metrics,
            "grad_chosen": gradients[: self.pairs],
            "grad_rejected": gradients[self.pairs :],
        }


def dpo_case(answers: Answers, *, beta: float) -> dict[str, Any]:
    """DPOTrainer's sigmoid loss, with reference values computed beforehand."""
    mask, logps = answers.mask(), answers.padded()
    places = torch.zeros_like(logps)[:, 1:]

    def model(**_: Any) -> SimpleNamespace:
        return SimpleNamespace(log_probs=logps[:, 1:], entropy=places, mean_logits=places, is_top1=places.bool())

    reference = torch.stack(answers.reference)
    trainer = DPOTrainer.__new__(DPOTrainer)
    settings: dict[str, Any] = {
        "model": SimpleNamespace(training=True),
        "accelerator": Accelerator(),
        "aux_loss_enabled": False,
        "ld_alpha": None,
        "precompute_ref_logps": True,
        "f_divergence_type": "reverse_kl",
        "loss_types": ["sigmoid"],
        "loss_weights": [1.0],
        "beta": beta,
        "use_weighting": False,
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    vars(trainer).update(settings)
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": reference[: answers.pairs],
        "ref_rejected_logps": reference[answers.pairs :],
    }
    loss = trainer._compute_loss(model, inputs, return_outputs=False)
    metrics = {name: values[0] for name, values in settings["_metrics"]["train"].items()}
    return answers.case(loss, own_names(metrics, logps="logps"), beta=beta)


def simpo_case(answers: Answers, *, beta: float, gamma: float) -> dict[str, Any]:
    """CPOTrainer's simpo loss without its likelihood term, from logits on."""
    mask, logps = answers.mask(), answers.padded()
    inside = torch.where(mask.bool(), logps, -1.0)
    logits = torch.stack([inside, torch.log1p(-inside.exp())], dim=-1)
    # The place before a token predicts it.
    logits = torch.cat([logits[:, 1:], logits[:, :1]], dim=1)

    def model(*_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=logits)

    trainer = CPOTrainer.__new__(CPOTrainer)
    settings: dict[str, Any] = {
        "accelerator": Accelerator(),
        "is_encoder_decoder": False,
        "pad_token_id": 0,
        "aux_loss_enabled": False,
        "loss_type": "simpo",
        "cpo_alpha": 0.0,
        "alpha": 0.0,
        "label_smoothing": 0.0,
        "beta": beta,
        "simpo_gamma": gamma,
    }
    vars(trainer).update(settings)
    labels = torch.where(mask.bool(), 0, -100)
    batch = {
        f"{side}_{name}": rows
        for name, tensor in (("input_ids", mask * 0), ("attention_mask", mask * 0 + 1), ("labels", labels))
        for side, rows in zip(("chosen", "rejected"), tensor.split(answers.pairs), strict=True)
    }
    loss, metrics = trainer.get_batch_loss_metrics(model, batch)
    return answers.case(loss, own_names(metrics, logps="mean_logps"), beta=beta, gamma=gamma)


def own_names(metrics: dict[str, float], *, logps: str) -> dict[str, float]:
    """The rewards and the answers' log-probabilities: sums under dpo, means over an answer's tokens under simpo."""
    names = {name: name for name in metrics if name.startswith("rewards/")}
    names |= {f"logps/{side}": f"{logps}/{side}" for side in ("chosen", "rejected")}
    return {own: metrics[name] for name, own in sorted(names.items())}


def main() -> None:
    cases: dict[str, list[dict[str, Any]]] = {"dpo": [], "simpo": []}
    for seed, lengths in enumerate(LENGTHS):
        cases["dpo"] += [dpo_case(Answers(lengths, seed=seed), beta=beta) for beta in DPO_BETAS]
        cases["simpo"] += [
            simpo_case(Answers(lengths, seed=seed), beta=beta, gamma=gamma) for beta, gamma in SIMPO_SETTINGS
        ]
    versions = {"trl": trl.__version__, "torch": torch.__version__.partition("+")[0]}
    lists = [f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, found)) + "\n]" for name, found in cases.items()]
    text = ",\n".join([f'"versions": {json.dumps(versions)}', *lists])
    Path(__file__).with_suffix(".json").write_text("{\n" + text + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
