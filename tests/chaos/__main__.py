"""``make chaos``: studies under seeds, resumable; a table of what happened and what held."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.chaos.run import Outcome, run_seed


def main() -> int:
    """Runs every seed that is not yet in the file of outcomes; exit code 1 if one did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0-19", help="first-last, or one seed")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("out/chaos"))
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    outcomes = options.out / "outcomes.jsonl"
    options.out.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in outcomes.read_text().splitlines()] if outcomes.is_file() else []
    failures = 0
    for seed in range(int(first), int(last or first) + 1):
        if any(entry["seed"] == seed and entry["rounds"] == options.rounds for entry in known):
            continue
        print(f"seed {seed}", file=sys.stderr, flush=True)
        folder = Path(tempfile.mkdtemp(prefix="consilium-chaos-"))
        folder.chmod(0o711)  # the database's account passes through where the tests run as root
        try:
            outcome = run_seed(seed, folder / "study", options.rounds)
        except AssertionError as error:
            failures += 1
            print(f"seed {seed} FAILED: {error} (kept in {folder})", file=sys.stderr, flush=True)
            continue
        shutil.rmtree(folder, ignore_errors=True)
        entry = {"rounds": options.rounds, **asdict(outcome)}
        known.append(entry)
        with outcomes.open("a") as out:
            out.write(json.dumps(entry) + "\n")
        print(_row(outcome), file=sys.stderr, flush=True)
    print(render_table(known))
    return 1 if failures else 0


def render_table(entries: list[dict[str, object]]) -> str:
    """Returns the outcomes as a Markdown table."""
    lines = ["| seed | blows | seconds | coordinator restarts | rounds opened | dead | drop-outs | charges |"]
    lines.append("|---" * 8 + "|")
    for entry in sorted(entries, key=lambda item: int(str(item["seed"]))):
        verdict = entry["verdict"]
        assert isinstance(verdict, dict)
        blows = entry["blows"]
        assert isinstance(blows, list | tuple)
        seconds = float(str(entry["seconds"]))
        cells = [entry["seed"], "; ".join(str(b) for b in blows), f"{seconds:.0f}", entry["recoveries"]]
        cells += [verdict[name] for name in ("rounds", "dead", "dropped", "charges")]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _row(outcome: Outcome) -> str:
    verdict = outcome.verdict
    return (
        f"seed {outcome.seed}: held; {outcome.seconds:.0f} s, {verdict.rounds} rounds opened, {verdict.dead} dead, "
        f"{verdict.dropped} drop-outs, {verdict.charges} charges, coordinator restarted {outcome.recoveries} times"
    )


if __name__ == "__main__":
    sys.exit(main())
