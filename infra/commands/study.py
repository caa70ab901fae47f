"""`consilium study`: a study from files, on one's own table; and studies that measure accuracy over many splits."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import click

from infra.commands.base import FILE, FOLDER, Example, PositiveDecimal
from schemas.errors import OperationError

YAML = (".yaml", ".yml")


@click.command(
    "init",
    cls=Example,
    short_help="Write a study's files from a sample table.",
    epilog="consilium study init patients.csv --site-column hospital --outcome died --patient-id id --out my-study\n"
    "consilium study init patients.parquet --site-column hospital --outcome died --patient-id id --out my-study "
    "--range age=0:120",
)
@click.argument("sample", type=click.Path(path_type=Path))
@click.option("--site-column", required=True, help="Column whose values are the sites.")
@click.option("--outcome", required=True, help="Column with the binary outcome.")
@click.option("--positive", default="", help="Value of the outcome that counts as true, if its words do not say.")
@click.option("--patient-id", default="", help="Column that tells patients apart; without it every row is a patient.")
@click.option("--out", type=FOLDER, required=True, help="New folder for study.yaml, contract.yaml and mapping.yaml.")
@click.option("--public-sample", is_flag=True, help="The sample is public: propose ranges and codes from it.")
@click.option("--range", "ranges", multiple=True, help="Public range of a column, as age=0:120; repeatable.")
@click.option("--ignore", multiple=True, help="Column that is no feature; repeatable.")
@click.option("--epsilon", type=PositiveDecimal(), default="3", show_default=True, help="Budget per site.")
@click.option("--ask/--no-ask", "asks", default=None, help="Ask for what is missing [default: in a terminal].")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON what was written.")
def study_init(sample: Path, ranges: tuple[str, ...], asks: bool | None, as_json: bool, **asked: object) -> None:
    """Write a commented study, contract and mapping from SAMPLE, a table that may have no rows.

    Ranges and code lists become public with the plan. They are asked for or left to be filled in, and proposed from
    the sample's values only with --public-sample.
    """
    from infra.studies.skeleton import SkeletonOptions, write_skeleton

    options = SkeletonOptions(sample=sample, ranges=_ranges(ranges), **asked)  # type: ignore[arg-type]
    if asks is None:
        asks = sys.stdin.isatty() and not as_json
    written = write_skeleton(options, _ask if asks else None)
    if as_json:
        click.echo(written.model_dump_json(indent=2))
        return
    click.echo("\n".join(f"wrote     {name}" for name in written.files))
    click.echo(f"features  {', '.join(written.features) or 'none'}")
    for title, items in (("left out", written.left_out), ("fill in", written.open_points)):
        for item in items:
            click.echo(f"{title:<9} {item}")
    click.echo(f"next      consilium study check {options.out / 'study.yaml'}")


@click.command("check", cls=Example, epilog="consilium study check my-study/study.yaml")
@click.argument("file", type=FILE)
@click.option("--data-dir", type=FOLDER, help="Where the paths in the study's source.yaml start.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def study_check(file: Path, data_dir: Path | None, as_json: bool) -> None:
    """Read a study's files, check every site's rows against the contract and say what follows; nothing is written."""
    from infra.studies.whole import check_study

    found = check_study(file, data_dir)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    sites = ", ".join(f"{name} ({declared})" for name, declared in found.sites.items())
    click.echo(f"Sites    {len(found.sites)}, with declared patients: {sites}")
    click.echo(f"Numbers  {found.numbers}: they fit together")
    click.echo(f"Model    {found.features} encoded features, {found.rounds} rounds")
    click.echo(f"Noise    multiplier {found.noise_multiplier}")
    click.echo(f"Review   {found.review}")
    click.echo("Contract every site's rows pass")


@click.command(
    "run",
    cls=Example,
    epilog="consilium study run my-study/study.yaml --out my-run\n"
    "consilium study run studies/uci-heart/study.yaml --data-dir uci_heart --out heart-run\n"
    "consilium study run studies/uci-heart/study.yaml --accuracy --data-dir uci_heart --out heart --resume\n"
    "consilium study run heart --data-dir uci_heart --seeds 0-4 --epsilon 1 --out heart --resume",
)
@click.argument("name", metavar="NAME")
@click.option("--data-dir", type=FOLDER, help="Where the paths in the study's source.yaml start.")
@click.option("--seeds", default="0-19", show_default=True, help="Seeds of the public splits (accuracy).")
@click.option("--epsilon", "epsilons", default="1,3", show_default=True, help="Budgets, with commas (accuracy).")
@click.option("--out", type=FOLDER, required=True, help="Folder for what the study leaves.")
@click.option(
    "--accuracy", is_flag=True, help="Many public splits beside references, as the file's accuracy section says."
)
@click.option("--resume", is_flag=True, help="Go on in --out; finished runs are kept (accuracy).")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
def study_run(
    name: str,
    data_dir: Path | None,
    seeds: str,
    epsilons: str,
    out: Path,
    accuracy: bool,
    resume: bool,
    as_json: bool,
) -> None:
    """Run a study with real encryption, all sites in this process.

    NAME is a study file: one whole study from keys to audited release, exit code 15 if its audit fails. With
    --accuracy (or for the names heart and eicu) the study is repeated over many public splits, exit code 1 if a
    required figure is not reached.
    """
    from rich.console import Console

    if Path(name).suffix in YAML and not accuracy:
        _run_file(Path(name), out, data_dir, as_json)
        return
    from infra.studies.command import FAILED_EXIT_CODE, StudyOptions, parse_epsilons, parse_seeds, run_study
    from infra.studies.report import render_table

    options = StudyOptions(name, data_dir, parse_seeds(seeds), parse_epsilons(epsilons), out, resume)
    report = run_study(options, Console(stderr=True))
    click.echo(report.model_dump_json(indent=2) if as_json else render_table(report))
    sys.exit(0 if report.met else FAILED_EXIT_CODE)


def _run_file(path: Path, out: Path, data_dir: Path | None, as_json: bool) -> None:
    from rich.console import Console

    from infra.studies.whole import render_whole_study, run_whole_study
    from schemas.errors import EvidenceError

    with Console(stderr=True).status("starting") as status:
        result = run_whole_study(path, out, status.update, data_dir)
    click.echo(result.model_dump_json(indent=2) if as_json else render_whole_study(result))
    sys.exit(EvidenceError.exit_code if result.audit_failed else 0)


def _ranges(given: Iterable[str]) -> dict[str, tuple[str, str]]:
    found = {}
    for text in given:
        column, equals, bounds = text.rpartition("=")
        low, colon, high = bounds.partition(":")
        if not equals or not colon or not column:
            raise OperationError("range", f"Expected a range like age=0:120, got {text}.", "Correct --range.")
        found[column] = (low.strip(), high.strip())
    return found


def _ask(question: str) -> str:
    return str(click.prompt(question, default="", show_default=False))
