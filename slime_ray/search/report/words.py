"""What a study found in sentences, made from its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from slime_ray.evaluation.report.charts import number
from slime_ray.evaluation.statistics.intervals import Interval
from slime_ray.search.comparison import Difference
from slime_ray.search.contrasts import Contrasts, Row
from slime_ray.search.findings import Rival, StudyFindings
from slime_ray.search.importance import MIN_TRIALS
from slime_ray.search.trials import Trial

OBJECTIVES = {
    "accuracy": "preference accuracy",
    "chosen_logp": "retained chosen log-probability",
    "checked_greedy": "checked answers (greedy)",
    "checked_sampled": "checked answers (sampled)",
}
UNITS = {
    "accuracy": "share of held-out pairs",
    "chosen_logp": "nats a token, against the starting model",
    "checked_greedy": "share of right answers",
    "checked_sampled": "share of right answers",
}
_WHOSE = {
    "recipe": "the recipe's own settings",
    "paper": "the paper's settings",
    "authors": "the settings of the authors' code",
}
DIGITS = 3
FIRM = 0.05
"""Below this corrected p a difference counts as more than chance."""


def short(setting: str) -> str:
    """A setting without its table."""
    return setting.rpartition(".")[2]


def whose(trial: Trial) -> str:
    """What people call known settings: all whose they are."""
    return " and ".join(_WHOSE[each] for each in (trial.origin, *trial.also) if each in _WHOSE)


def figure(value: float | None) -> str:
    """A figure as it stands in all tables."""
    return number(value, DIGITS)


def signed(value: float) -> str:
    """A difference with its sign."""
    text = number(value, DIGITS)
    return text if text[0] == "−" or not text.strip("0.,") else f"+{text}"


def span(found: Difference) -> str:
    """A difference with its interval."""
    if found.interval is None:
        return f"{signed(found.value)}, {found.prompts} prompts are too few for an interval"
    return f"{signed(found.value)}, {signed(found.interval[0])} to {signed(found.interval[1])}"


def p_value(p: float | None) -> str:
    """A p-value as it stands in tables."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def told(trial: Trial) -> str:
    """What a trial is called."""
    return trial.label or f"trial {trial.number}"


def paragraph(findings: StudyFindings) -> list[str]:
    """A study's result, sentence by sentence."""
    winner = findings.winner
    if winner is None:
        return ["No trial finished, so nothing was found.", *_ended_early(findings)]
    name = findings.objective
    here, there = winner.selecting[name], winner.reporting[name]
    figures = (
        f"{OBJECTIVES[name]}: {_interval(here)} on the pairs that select, {_interval(there)} on the pairs that the "
        "search never saw."
    )
    judged = _judged(findings)
    said = [*judged, f"Its {figures}"] if judged else [f"Trial {winner.trial.number} is best in {figures}"]
    said += _flattered(findings)
    said += [_against(rival) for rival in findings.rivals]
    said += _chance(findings)
    said += _mattered(findings)
    if len(findings.evidence.objectives) > 1:
        front = sum(each.front for each in findings.standings)
        axes = " and ".join(OBJECTIVES[each] for each in findings.evidence.objectives)
        said.append(f"On the Pareto front of {axes} {'is' if front == 1 else 'are'} {_count(front, 'trial')}.")
    return said + _ended_early(findings)


def _judged(findings: StudyFindings) -> list[str]:
    found = findings.evidence.judgment
    if found is None:
        return []
    best, count = found.trials[0], len(found.trials)
    said = f"Trial {best.number} has the highest score of {count} judged ({found.scale}): {_interval(best.score)}"
    if best.lead is None:
        return [f"{said}; it is what the others are compared with."]
    lead, ends = signed(best.lead.value), (best.lead.low, best.lead.high)
    against = found.against if found.baseline is None else f"trial {found.baseline}"
    if ends[0] is None or ends[1] is None:
        return [f"{said}, {lead} over {against}, with too few questions for an interval."]
    doubt = ", within noise" if ends[0] <= 0 <= ends[1] else ""
    return [f"{said}, {lead} ({signed(ends[0])} to {signed(ends[1])}) over {against}{doubt}."]


def _flattered(findings: StudyFindings) -> list[str]:
    found = findings.flattery
    if found is None:
        return ["It has the recipe's own settings: the search found none that do better."] if _own(findings) else []
    lead = "its lead over the recipe's own settings"
    if found.value > 0 and not found.undecided:
        return [f"The selection flattered it: {lead} is larger on the pairs that chose it ({span(found)})."]
    return [f"The selection did not visibly flatter it: {lead} differs little between the two parts ({span(found)})."]


def _own(findings: StudyFindings) -> bool:
    winner = findings.winner
    return winner is not None and "recipe" in (winner.trial.origin, *winner.trial.also)


def _against(rival: Rival) -> str:
    found, name = rival.difference, _capital(whose(rival.trial))
    lead = f"the best leads by {span(found)}"
    if found.undecided:
        return f"{name} are within noise of the best ({lead})."
    return f"{name} are {'worse' if found.value > 0 else 'better'} than the best by more than noise ({lead})."


def _chance(findings: StudyFindings) -> list[str]:
    noise = findings.noise
    if noise is None:
        return ["No settings were trained under another seed, so chance in training is in none of these intervals."]
    repeated = _count(len(findings.repeated), "setting")
    said = f"Another seed alone changes the figure by {figure(noise.variance**0.5)} (standard deviation, of {repeated})"
    if not findings.fresh:
        return [f"{said}."]
    seeds = _count(findings.fresh, "other seed")
    return [f"{said}; the best settings are compared by their {seeds}, not by the one that they were chosen for."]


def _mattered(findings: StudyFindings) -> list[str]:
    found = findings.importance
    if not found:
        return [f"Which setting mattered cannot be told: that takes {MIN_TRIALS} trials and two settings."]
    first, rest = found[0], found[1:]
    shown = f"importance {first.value:.2f}, {first.low:.2f} to {first.high:.2f}"
    rivals = [each for each in rest if each.high >= first.low]
    if not rivals:
        return [f"{short(first.setting)} mattered most ({shown}), clearly more than every other setting."]
    near = _listed([short(each.setting) for each in rivals])
    return [f"{short(first.setting)} mattered most ({shown}), but the trials cannot tell it from {near}."]


def _ended_early(findings: StudyFindings) -> list[str]:
    said = []
    total, stopped, failed = len(findings.evidence.trials), findings.in_state("stopped"), findings.in_state("failed")
    if stopped:
        said.append(
            f"{len(stopped)} of {_count(total, 'trial')} {'was' if len(stopped) == 1 else 'were'} stopped early."
        )
    if failed:
        said.append(f"{_count(len(failed), 'trial')} failed; the first: {failed[0].reason}.")
    return said


def contrast_paragraph(found: Contrasts) -> list[str]:
    """An ablation's result, sentence by sentence: each objective in turn."""
    return [sentence for name in found.objectives for sentence in _contrasted(found, name)]


def notes(found: Contrasts) -> list[str]:
    """What a reader has to know of an ablation's figures."""
    said = []
    if found.seeds == 1:
        said.append("Every row was trained once: chance in training is in no interval, and may be all that is seen.")
    elif found.seeds == 2:
        said.append("Two seeds say little about chance in training, so these intervals are wide; five are usual.")
    if not found.sensitivity:
        rate = f"{found.learning_rate:g}"
        said.append(
            f"The other objectives have their defaults and the recipe's learning rate, {rate}, not their own best."
        )
    said.append("Nothing was chosen by these pairs, so all of them are in every figure.")
    if found.failed:
        said.append(f"{_count(len(found.failed), 'trial')} failed: those rows have fewer seeds.")
    return said


def _contrasted(found: Contrasts, name: str) -> list[str]:
    title, full = _capital(OBJECTIVES[name]), found.rows[0].variant.label
    rows = [row for row in found.rows if name in row.differences]
    if not rows:
        return [f"{title}: no row can be compared with {full}, since too few trials finished."]
    decided = [row for row in rows if not row.differences[name].undecided]
    if not decided:
        return [f"{title}: all {_count(len(rows), 'row')} are undecided, their intervals hold 0."]
    sides = [
        f"{side} {full}: {_listed([row.variant.label for row in by_size(rows_there, name)])}"
        for side, sign in (("above", 1), ("below", -1))
        if (rows_there := [row for row in decided if sign * row.differences[name].value > 0])
    ]
    said = [f"{title}: {'; '.join(sides)}. {len(rows) - len(decided)} of {len(rows)} rows are undecided."]
    infirm = [row.variant.label for row in by_size(decided, name) if row.p_holm.get(name, 1.0) >= FIRM]
    if infirm:
        said.append(
            f"Corrected for {len(rows)} comparisons (Holm), so {'is' if len(infirm) == 1 else 'are'} {_listed(infirm)}."
        )
    return said


def care(found: Contrasts, objective: str) -> list[tuple[str, Row | None]]:
    """Of each setting that was varied alone, the row that changed the objective most, corrected for all rows.

    The settings of the largest changes first; None where no row changed it beyond doubt: within the values that were
    tried, a user need not care.
    """
    most: dict[str, Row | None] = {}
    for group in found.groups:
        firm = [row for row in found.of_group(group) if row.p_holm.get(objective, 1.0) < FIRM]
        most[group] = by_size(firm, objective)[0] if firm else None
    return sorted(most.items(), key=lambda each: -abs(each[1].differences[objective].value) if each[1] else 0.0)


def by_size(rows: Sequence[Row], objective: str) -> list[Row]:
    """The largest difference first, whatever its sign."""
    return sorted(rows, key=lambda row: -abs(row.differences[objective].value))


def _interval(found: Interval) -> str:
    if found.low is None:
        return figure(found.value)
    return f"{figure(found.value)} ({figure(found.low)} to {figure(found.high)})"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
