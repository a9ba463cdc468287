"""Training pairs whose rejected answer the trained model still finds more likely: often, the pair is mislabelled."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from slime_ray.config.training import TrainingConfig
from slime_ray.model.policy import Policy
from slime_ray.training.measurement import TokenizedRows, reference_logps

# So many characters of a text are listed; what is left out is in its middle.
_TEXT_CHARS = 80
_GAP = " ... "


@dataclass(frozen=True)
class AnswerMeans:
    """Mean token log-probability of the answers of every row that is a pair, in nats.

    Attributes:
        rows: the pairs' rows in the data set, in its order.
        chosen, rejected: float64, one value a pair.
    """

    rows: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def margins(self) -> np.ndarray:
        """Chosen minus rejected, whatever the objective was: for DPO too, not the difference of its rewards."""
        return self.chosen - self.rejected


@dataclass(frozen=True)
class Suspect:
    """A training pair that the trained model ranks the other way round.

    Attributes:
        source: file:line.
        margin: mean log-probability of the chosen answer minus that of the rejected one, nats per token; negative.
        mean_logp_chosen, mean_logp_rejected: the two means.
        prompt, chosen, rejected: the texts on one line, as far as they were trained on, shortened in the middle.
    """

    source: str
    margin: float
    mean_logp_chosen: float
    mean_logp_rejected: float
    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Suspects:
    """The suspects of a training, the most negative margin first, and how many pairs were looked at."""

    listed: tuple[Suspect, ...]
    pairs: int

    @property
    def share(self) -> float:
        """Of all pairs, how many are listed."""
        return len(self.listed) / max(1, self.pairs)

    def rows(self) -> list[dict[str, Any]]:
        """A JSON-serialisable row for each suspect."""
        return [asdict(suspect) for suspect in self.listed]

    def summary(self) -> str:
        """One sentence on what was found, where anything was."""
        worst = self.listed[0]
        return (
            f"suspects: {len(self.listed):,} of {self.pairs:,} training pairs ({self.share:.1%}) still have a negative "
            f"margin and may be mislabelled; first {worst.source} ({worst.margin:.2f} nats per token)"
        )


def answer_means(policy: Policy, data: TokenizedRows, settings: TrainingConfig) -> AnswerMeans:
    """Both answers' mean log-probabilities under the policy as it is now; all workers compute them together.

    Dropout is off meanwhile. Rows without a rejected answer are left out.
    """
    was_training = policy.model.training
    policy.model.eval()
    sums = reference_logps(policy, data, settings)
    policy.model.train(was_training)
    rows = np.flatnonzero(data.lengths.rejected)
    chosen, rejected = sums.chosen[rows], sums.rejected[rows]
    return AnswerMeans(rows, chosen / data.lengths.chosen[rows], rejected / data.lengths.rejected[rows])


def find_suspects(means: AnswerMeans, data: TokenizedRows, tokenizer: Any) -> Suspects:
    """The pairs whose margin is negative, with their texts; for the first worker alone.

    Args:
        means: of these rows.
        data: what was trained on.
        tokenizer: of transformers; only the listed pairs are decoded.
    """
    order = np.argsort(means.margins, kind="stable")
    negative = order[means.margins[order] < 0]
    listed = tuple(_suspect(means, int(index), data, tokenizer) for index in negative)
    return Suspects(listed=listed, pairs=len(means.rows))


def _suspect(means: AnswerMeans, index: int, data: TokenizedRows, tokenizer: Any) -> Suspect:
    row = data.dataset[int(means.rows[index])]
    texts = {
        name: shorten(tokenizer.decode(row[f"{name}_ids"], skip_special_tokens=True))
        for name in ("prompt", "chosen", "rejected")
    }
    return Suspect(
        source=row["source"],
        margin=float(means.margins[index]),
        mean_logp_chosen=float(means.chosen[index]),
        mean_logp_rejected=float(means.rejected[index]),
        **texts,
    )


def shorten(text: str) -> str:
    """A text on one line, of at most 80 characters; beginning and end are kept."""
    line = " ".join(text.split())
    if len(line) <= _TEXT_CHARS:
        return line
    kept = _TEXT_CHARS - len(_GAP)
    return line[: kept - kept // 2] + _GAP + line[-(kept // 2) :]
