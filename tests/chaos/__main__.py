"""``make chaos``: studies under seeds, resumable; a table of what happened and what held."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from schemas.errors import ConsiliumError
from tests.chaos.hosts import FAKETIME
from tests.chaos.network import Loopback, Namespaces, missing_for_namespaces
from tests.chaos.run import HOSTS, Outcome, remove_run, run_seed
from tests.consortium.stores import open_object_store
from tests.consortium.supervisor import NGINX
from tests.storage.s3_servers import missing_programs


def main() -> int:
    """Runs every seed that is not yet in the file of outcomes; exit code 1 if one did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seeds", default="0-19", help="first-last, or one seed")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("out/chaos"))
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    outcomes = options.out / "outcomes.jsonl"
    options.out.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in outcomes.read_text().splitlines()] if outcomes.is_file() else []
    done = {entry["seed"] for entry in known if entry["rounds"] == options.rounds}
    wanted = [seed for seed in range(int(first), int(last or first) + 1) if seed not in done]
    separate = _say_what_is_missing()
    failures = 0
    for seed in wanted:
        outcome = _try(seed, options.rounds, separate)
        if outcome is None:
            failures += 1
            continue
        entry = {"rounds": options.rounds, **asdict(outcome)}
        known.append(entry)
        with outcomes.open("a") as out:
            out.write(json.dumps(entry) + "\n")
        print(_row(outcome), file=sys.stderr, flush=True)
    print(render_table(known))
    return 1 if failures else 0


def _try(seed: int, rounds: int, separate: bool) -> Outcome | None:
    print(f"seed {seed}", file=sys.stderr, flush=True)
    folder = Path(tempfile.mkdtemp(prefix="consilium-chaos-"))
    folder.chmod(0o711)  # the database's account passes through where the runs are root's
    network = Namespaces(HOSTS) if separate else Loopback()
    try:
        with open_object_store(folder, network.certified(HOSTS)) as store:
            outcome = run_seed(seed, folder / "study", store, rounds=rounds, separate=separate)
    except (AssertionError, ConsiliumError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        print(f"seed {seed} FAILED: {type(error).__name__}: {error} (kept in {folder})", file=sys.stderr, flush=True)
        return None
    remove_run(folder / "study")
    shutil.rmtree(folder, ignore_errors=True)
    return outcome


def _say_what_is_missing() -> bool:
    """Says on standard error what will not be struck, and returns whether hosts can have namespaces."""
    for missing, what in (
        (missing_for_namespaces(), "all hosts share the loopback: no cable is unplugged or narrowed, no disk is full"),
        ([] if NGINX else ["nginx"], "there is no proxy"),
        (missing_programs(), "the S3 server is moto, which is not killed"),
        ([] if any(path.is_file() for path in FAKETIME) else ["libfaketime"], "no clock is set"),
    ):
        if missing:
            print(f"Without {', '.join(missing)} {what}.", file=sys.stderr)
    return not missing_for_namespaces()


def render_table(entries: list[dict[str, object]]) -> str:
    """Returns the outcomes as a Markdown table."""
    lines = ["| seed | struck | seconds | restarts | rounds opened | dead | drop-outs | charges |"]
    lines.append("|---" * 8 + "|")
    for entry in sorted(entries, key=lambda item: int(str(item["seed"]))):
        verdict, blows, starts = entry["verdict"], entry["blows"], entry["starts"]
        assert isinstance(verdict, dict)
        assert isinstance(blows, list | tuple)
        assert isinstance(starts, dict)
        restarts = ", ".join(f"{name} {count - 1}" for name, count in starts.items() if count > 1)
        cells = [entry["seed"], "; ".join(str(b) for b in blows), f"{float(str(entry['seconds'])):.0f}", restarts]
        cells += [verdict[name] for name in ("rounds", "dead", "dropped", "charges")]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _row(outcome: Outcome) -> str:
    verdict = outcome.verdict
    return (
        f"seed {outcome.seed}: held; {outcome.seconds:.0f} s, {verdict.rounds} rounds opened, {verdict.dead} dead, "
        f"{verdict.dropped} drop-outs, {verdict.charges} charges"
    )


if __name__ == "__main__":
    sys.exit(main())
