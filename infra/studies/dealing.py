"""One table dealt to the sites that a column names: what stands in for hospitals on one machine.

The rows stay as they are written, other units, codes and names included: each site's own mapping makes them the
contract's, exactly as it would in a hospital.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from infra.datasets_tables import SiteTable, choose_held_out, round_declared
from infra.studies.study_file import PublicSplit, Simulation, StudyFile
from schemas.canonical import is_name
from schemas.contract import DataContract
from schemas.errors import OperationError, SiteDataError

if TYPE_CHECKING:
    import pyarrow as pa

    from schemas.mapping import SiteMapping


def deal_table(
    study: StudyFile,
    contract: DataContract,
    folder: Path,
    data_dir: Path | None = None,
    split_seed: int = 0,
    check: bool = True,
) -> tuple[SiteTable, ...]:
    """Reads the simulation's table and deals its rows to the sites, sorted by site name.

    Args:
        folder: Where the study file lies; its paths start there.
        data_dir: Where the paths in a source.yaml start, if not at the file itself.
        split_seed: Of the simulation's public split, if it has one.
        check: Check every site's rows against the contract here, before any site does.

    Raises:
        OperationError: `no-simulation`, `site-column`, `site-names`, `row-column`, `sites-unknown`.
        SiteDataError: the table cannot be read, or a site's rows break the contract; the site is named.
    """
    if study.simulation is None:
        raise OperationError(
            "no-simulation",
            "The study file has no simulation section, so there is no table to deal to sites.",
            "Add simulation: {data: ..., site_column: ...}, or let every hospital run its own agent.",
        )
    by_site = _split(_read(study.simulation, folder, data_dir), study.simulation)
    chosen = {name: table for name, table in by_site.items() if not study.sites or name in study.sites}
    if set(study.sites) - set(by_site):
        raise OperationError(
            "sites-unknown",
            f"No row belongs to these sites of the study: {', '.join(sorted(set(study.sites) - set(by_site)))}.",
            f"The table has {', '.join(sorted(by_site))}.",
        )
    mappings = {name: _mapping(name, study.simulation, folder) for name in chosen}
    if study.simulation.split is not None:
        chosen = _hold_out(chosen, contract, mappings, study.simulation.split, split_seed)
    return tuple(_site(name, chosen[name], study, contract, *mappings[name], check) for name in sorted(chosen))


def site_name(value: str) -> str:
    """Derives a site's name from a value of the site column: ``St. Mary 2`` is ``st-mary-2``, ``7`` is ``site-7``."""
    slug = re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")
    return slug if slug[:1].isalpha() else f"site-{slug}"


def _read(simulation: Simulation, folder: Path, data_dir: Path | None) -> pa.Table:
    import pyarrow as pa

    from site_agents.cohort.sources.opening import open_described, open_source
    from site_agents.cohort.sources.settings import read_source_settings

    path = folder / simulation.data
    described = data_dir is not None and path.suffix in (".yaml", ".yml")
    source = open_described(read_source_settings(path), data_dir) if data_dir and described else open_source(path)
    if simulation.site_column not in source.column_names():
        raise OperationError(
            "site-column",
            f"The table has no column {simulation.site_column}.",
            f"Name one of {', '.join(source.column_names())} as site_column.",
        )
    batches = list(source.read())
    if not batches:
        raise OperationError("site-column", "The table has no rows.", "Name a table with the sites' rows.")
    table = pa.concat_tables([pa.Table.from_batches([batch]) for batch in batches], promote_options="permissive")
    if not simulation.row_column:
        return table
    if simulation.row_column in table.column_names:
        raise OperationError(
            "row-column", f"The table has a column {simulation.row_column} already.", "Choose another row_column."
        )
    return table.append_column(simulation.row_column, pa.array([f"row-{n}" for n in range(1, table.num_rows + 1)]))


def _split(table: pa.Table, simulation: Simulation) -> dict[str, pa.Table]:
    import pyarrow as pa
    import pyarrow.compute as pc

    values = table.column(simulation.site_column).cast(pa.string())
    if values.null_count:
        raise OperationError(
            "site-names", f"Some rows name no site in {simulation.site_column}.", "Fill the column or drop these rows."
        )
    found: dict[str, pa.Table] = {}
    for value in sorted(values.unique().to_pylist()):
        name = site_name(value)
        if not is_name(name) or name in found or name == "coordinator":
            raise OperationError(
                "site-names",
                f"The values of {simulation.site_column} do not give distinct site names of at most 31 characters.",
                "Shorten or rename them.",
            )
        found[name] = table.filter(pc.equal(values, value))
    return found


def _hold_out(
    tables: dict[str, pa.Table],
    contract: DataContract,
    mappings: dict[str, tuple[SiteMapping | None, bytes | None]],
    split: PublicSplit,
    seed: int,
) -> dict[str, pa.Table]:
    """Adds the contract's held_out column: of every stratum the first fifth of the patients in a public order."""
    import pyarrow as pa

    from site_agents.cohort.mapping import map_batches
    from tasks.contract.arrow import collect_table

    column = _role(contract, "held_out")
    strata: dict[str, dict[str, bool]] = {}
    patients: dict[str, list[str]] = {}
    for name, table in tables.items():
        mapped = collect_table(contract, map_batches(contract, mappings[name][0], table.to_batches()))
        ids, label = _role(contract, "patient_id"), _role(contract, "label")
        if not {ids, label} <= set(mapped.column_names) or mapped.num_rows != table.num_rows:
            raise OperationError(
                "split", f"Site {name} has no ids and outcomes to split by.", "Correct its mapping, or use no cohort."
            )
        patients[name] = mapped.column(ids).to_pylist()
        of_site = strata.setdefault(name if split.strata == "site-outcome" else "", {})
        for patient, outcome in zip(patients[name], mapped.column(label).to_pylist(), strict=True):
            # A patient with an event in any row belongs to those with events.
            of_site[patient] = of_site.get(patient, False) or bool(outcome)
    groups = [[p for p, event in found.items() if event == side] for found in strata.values() for side in (True, False)]
    chosen = choose_held_out(groups, f"{split.label}/{seed}")
    return {
        name: table.append_column(column, pa.array([patient in chosen for patient in patients[name]]))
        for name, table in tables.items()
    }


def _role(contract: DataContract, role: str) -> str:
    column = contract.column_with_role(role)
    if column is None:
        raise OperationError("split", f"The contract has no {role} column.", "Correct the contract.")
    return column.name


def _site(
    name: str,
    table: pa.Table,
    study: StudyFile,
    contract: DataContract,
    mapping: SiteMapping | None,
    content: bytes | None,
    check: bool,
) -> SiteTable:
    from site_agents.cohort.mapping import map_batches
    from tasks.contract.suite import check_batches, verify_report

    declared = study.sites.get(name)
    if check or declared is None:
        try:
            batches = map_batches(contract, mapping, table.to_batches())
            patients = verify_report(contract, check_batches(contract, batches)).patients
        except SiteDataError as error:
            raise SiteDataError(error.code, f"Site {name}: {error.message}", error.remedy) from None
        declared = declared or round_declared(patients)
    return SiteTable(name, table, declared, content)


def _mapping(name: str, simulation: Simulation, folder: Path) -> tuple[SiteMapping | None, bytes | None]:
    from site_agents.cohort.mapping import read_mapping

    file = simulation.mappings.get(name, simulation.mapping)
    return (read_mapping(folder / file), (folder / file).read_bytes()) if file else (None, None)
