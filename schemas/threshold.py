"""The numbers of a study that must fit together, and the nearest plan that holds when they do not."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from pydantic import Field

from schemas.canonical import Strict
from schemas.errors import PlanError


class Threshold(Strict):
    """Threshold and collusion numbers of a plan.

    Attributes:
        t: Key holders needed to open a sum.
        certificate_quorum: Q, key holders that must sign the same record before any share leaves.
        k_min: Fewest contributors in a sum that may be opened.
        colluding_key_holders: c_key, key holders that may collude with the coordinator.
        colluding_contributors: c_contrib, contributors that may collude with the coordinator.
        honest_noise_shares: h, honest contributors whose noise shares carry the guarantee.
        tolerated_dropouts: Key holders that may be silent in a round without stopping it.
    """

    t: int = Field(ge=2)
    certificate_quorum: int = Field(ge=2)
    k_min: int = Field(ge=2)
    colluding_key_holders: int = Field(ge=0)
    colluding_contributors: int = Field(ge=0)
    honest_noise_shares: int = Field(ge=1)
    tolerated_dropouts: int = Field(ge=0)


def broken_rules(numbers: Threshold, key_holders: int, contributors: int) -> tuple[str, ...]:
    """Returns the rules (secure-sum.md section 2) that `numbers` violates, in words with the figures."""
    n = numbers
    rules = (
        (n.colluding_key_holders <= n.t - 1, f"c_key <= t - 1 ({n.colluding_key_holders} <= {n.t - 1})"),
        (
            2 * n.certificate_quorum > key_holders + n.colluding_key_holders,
            f"2Q > n_k + c_key ({2 * n.certificate_quorum} > {key_holders + n.colluding_key_holders})",
        ),
        (
            n.certificate_quorum <= key_holders - n.tolerated_dropouts,
            f"Q <= n_k - drop-outs ({n.certificate_quorum} <= {key_holders - n.tolerated_dropouts})",
        ),
        (n.t <= n.certificate_quorum, f"t <= Q ({n.t} <= {n.certificate_quorum})"),
        (n.k_min <= contributors, f"k_min <= n_c ({n.k_min} <= {contributors})"),
        (
            n.k_min - n.colluding_contributors >= max(n.honest_noise_shares, 2),
            f"k_min - c_contrib >= max(h, 2) ({n.k_min - n.colluding_contributors} >= {max(n.honest_noise_shares, 2)})",
        ),
    )
    return tuple(text for holds, text in rules if not holds)


def verify_numbers_fit(numbers: Threshold, key_holders: int, contributors: int) -> None:
    """Refuses numbers that do not fit together.

    Raises:
        PlanError: `threshold-rule`, naming each broken rule and the nearest numbers that hold.
    """
    broken = broken_rules(numbers, key_holders, contributors)
    if not broken:
        return
    nearest = find_nearest(numbers, key_holders, contributors)
    remedy = f"The nearest plan that holds: {describe(nearest)}." if nearest else "Add sites: no numbers hold."
    raise PlanError("threshold-rule", f"The plan breaks {'; '.join(broken)}.", remedy)


def find_nearest(numbers: Threshold, key_holders: int, contributors: int) -> Threshold | None:
    """Returns numbers that hold, closest by summed absolute change of t, Q, k_min, then of the assumptions."""
    best: tuple[tuple[int, int], Threshold] | None = None
    for candidate in _candidates(numbers, key_holders, contributors):
        main = sum(abs(a - b) for a, b in zip(_main(candidate), _main(numbers), strict=True))
        rest = sum(abs(a - b) for a, b in zip(_rest(candidate), _rest(numbers), strict=True))
        rank = (main + rest, rest)
        if (best is None or rank < best[0]) and not broken_rules(candidate, key_holders, contributors):
            best = (rank, candidate)
    if best is None and min(key_holders, contributors) >= 4:
        fallback = default_threshold(min(key_holders, contributors))
        return None if broken_rules(fallback, key_holders, contributors) else fallback
    return best[1] if best else None


def default_threshold(sites: int) -> Threshold:
    """Returns the default numbers for a study whose `sites` sites all hold keys and contribute (at least 4)."""
    if sites < 4:
        raise PlanError("threshold-rule", f"Expected at least 4 sites, got {sites}.", "Add sites.")
    colluding = (sites - 1) // 2
    quorum = sites - 1
    return Threshold(
        t=colluding + 1,
        certificate_quorum=quorum,
        k_min=max(sites - 1, colluding + 2),
        colluding_key_holders=min(colluding, 2 * quorum - sites - 1),
        colluding_contributors=min(colluding, sites - 3),
        honest_noise_shares=2,
        tolerated_dropouts=1,
    )


def describe(n: Threshold) -> str:
    """Returns the numbers on one line."""
    return (
        f"t={n.t}, Q={n.certificate_quorum}, k_min={n.k_min}, c_key={n.colluding_key_holders}, "
        f"c_contrib={n.colluding_contributors}, h={n.honest_noise_shares}, drop-outs={n.tolerated_dropouts}"
    )


def _candidates(n: Threshold, key_holders: int, contributors: int) -> Iterator[Threshold]:
    def near(value: int, low: int, high: int, reach: int) -> list[int]:
        return sorted({min(max(value + d, low), high) for d in range(-reach, reach + 1)})

    if key_holders < 2 or contributors < 2:
        return
    reach = 3
    for t, quorum, k_min, c_key, c_contrib, h, out in product(
        near(n.t, 2, key_holders, reach),
        near(n.certificate_quorum, 2, key_holders, reach),
        near(n.k_min, 2, contributors, reach),
        near(n.colluding_key_holders, 0, key_holders - 1, 1),
        near(n.colluding_contributors, 0, contributors - 1, 1),
        [n.honest_noise_shares],
        near(n.tolerated_dropouts, 0, key_holders, 1),
    ):
        yield Threshold(
            t=t,
            certificate_quorum=quorum,
            k_min=k_min,
            colluding_key_holders=c_key,
            colluding_contributors=c_contrib,
            honest_noise_shares=h,
            tolerated_dropouts=out,
        )


def _main(n: Threshold) -> tuple[int, int, int]:
    return (n.t, n.certificate_quorum, n.k_min)


def _rest(n: Threshold) -> tuple[int, int, int, int]:
    return (n.colluding_key_holders, n.colluding_contributors, n.honest_noise_shares, n.tolerated_dropouts)
