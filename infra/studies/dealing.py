"""One table dealt to the sites that a column names: what stands in for hospitals on one machine.

The rows stay as they are written, other units, codes and names included: each site's own mapping makes them the
contract's, exactly as it would in a hospital.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from infra.datasets_tables import SiteTable, round_declared
from infra.studies.study_file import Simulation, StudyFile
from schemas.canonical import is_name
from schemas.contract import DataContract
from schemas.errors import OperationError, SiteDataError

if TYPE_CHECKING:
    import pyarrow as pa

    from schemas.mapping import SiteMapping


def deal_table(study: StudyFile, contract: DataContract, folder: Path) -> tuple[SiteTable, ...]:
    """Reads the simulation's table and deals its rows to the sites, sorted by site name; every site is checked.

    Args:
        folder: Where the study file lies; its paths start there.

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
    by_site = _split(_read(study.simulation, folder), study.simulation)
    chosen = {name: table for name, table in by_site.items() if not study.sites or name in study.sites}
    if set(study.sites) - set(by_site):
        raise OperationError(
            "sites-unknown",
            f"No row belongs to these sites of the study: {', '.join(sorted(set(study.sites) - set(by_site)))}.",
            f"The table has {', '.join(sorted(by_site))}.",
        )
    return tuple(_site(name, chosen[name], study, contract, folder) for name in sorted(chosen))


def site_name(value: str) -> str:
    """Derives a site's name from a value of the site column: ``St. Mary 2`` is ``st-mary-2``, ``7`` is ``site-7``."""
    slug = re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")
    return slug if slug[:1].isalpha() else f"site-{slug}"


def _read(simulation: Simulation, folder: Path) -> pa.Table:
    import pyarrow as pa

    from site_agents.cohort.sources.opening import open_source

    source = open_source(folder / simulation.data)
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


def _site(name: str, table: pa.Table, study: StudyFile, contract: DataContract, folder: Path) -> SiteTable:
    from site_agents.cohort.mapping import map_batches
    from tasks.contract.suite import check_batches, verify_report

    mapping, content = _mapping(name, study.simulation, folder)
    try:
        batches = map_batches(contract, mapping, table.to_batches())
        patients = verify_report(contract, check_batches(contract, batches)).patients
    except SiteDataError as error:
        raise SiteDataError(error.code, f"Site {name}: {error.message}", error.remedy) from None
    return SiteTable(name, table, study.sites.get(name, round_declared(patients)), content)


def _mapping(name: str, simulation: Simulation | None, folder: Path) -> tuple[SiteMapping | None, bytes | None]:
    from site_agents.cohort.mapping import read_mapping

    assert simulation is not None
    file = simulation.mappings.get(name, simulation.mapping)
    return (read_mapping(folder / file), (folder / file).read_bytes()) if file else (None, None)
