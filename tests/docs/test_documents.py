"""Documents do not drift: links lead somewhere, named files exist, named steps are real tasks."""

import re
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCE_FOLDERS = ("schemas", "tasks", "site_agents", "flows", "infra", "tests", "docs")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def headings(path: Path) -> set[str]:
    """Returns the anchors that a Markdown viewer gives to the headings of `path`."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        destination = (document.parent / path).resolve() if path else document
        assert destination.exists(), f"{name_of(document)} links to {target}"
        if anchor:
            assert anchor in headings(destination), f"{name_of(document)} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    folders = "|".join(SOURCE_FOLDERS)
    for name in re.findall(rf"`((?:{folders})/[\w/.*-]*)`", document.read_text()):
        assert list(ROOT.glob(name.rstrip("/"))), f"{name_of(document)} names {name}"


def test_the_life_of_an_update_names_real_steps() -> None:
    sources = "".join(path.read_text() for folder in ("flows", "site_agents") for path in (ROOT / folder).rglob("*.py"))
    text = (ROOT / "docs" / "life-of-an-update.md").read_text()
    named = {step.strip() for group in re.findall(r"\(\*([\w\-, ]+)\*\)", text) for step in group.split(",")}
    assert len(named) > 15
    missing = {step for step in named if f'"{step}"' not in sources}
    assert missing == set()


def test_the_glossary_is_in_order_and_explains_each_word_once() -> None:
    rows = re.findall(r"^\| (.+?) \| .+ \|$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)[1:]
    assert len(rows) > 40
    assert rows == sorted(set(rows), key=str.lower)


def test_every_decision_is_in_the_index_and_says_why() -> None:
    folder = ROOT / "docs" / "adr"
    records = sorted(path.name for path in folder.glob("0*.md"))
    listed = re.findall(r"\((0\d{3}-[\w-]+\.md)\)", (folder / "README.md").read_text())
    assert listed == records
    for name in records:
        text = (folder / name).read_text()
        for part in ("Status: ", "**Context.**", "**Decision.**", "**Instead of.**", "**Consequences.**"):
            assert part in text, f"{name} lacks {part}"


def test_the_picture_explains_itself_and_loads_nothing() -> None:
    root = ElementTree.parse(ROOT / "docs" / "picture.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title") is not None
    assert root.find(f"{space}desc") is not None
    attributes = [name for element in root.iter() for name in element.attrib]
    assert not any(name.endswith("href") for name in attributes)
    assert not list(root.iter(f"{space}script"))


def test_pinned_requirements_are_the_known_good_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().replace("_", "-").split()
    known = dict(line.split("==") for line in lines if "==" in line)
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    pinned = [requirement.split("==") for group in groups for requirement in group if "==" in requirement]
    assert len(pinned) > 5
    for name, version in pinned:
        assert known[name] == version


def test_constraints_hold_names_and_versions_only() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"(#.*|[A-Za-z0-9._-]+==[0-9][\w.+!]*)?", line), line


def test_the_contract_and_the_mapping_in_the_documents_fit_each_other() -> None:
    from schemas.mapping import SiteMapping
    from schemas.yaml_files import model_from_plain, parse_yaml
    from site_agents.cohort.mapping import verify_mapping
    from tasks.contract.contract_file import parse_contract

    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "contracts.md").read_text(), re.DOTALL)
    contract = parse_contract(blocks[0].encode(), "contract.yaml")
    mapping = model_from_plain(SiteMapping, parse_yaml(blocks[1].encode(), "mapping.yaml"), "mapping.yaml")
    verify_mapping(contract, mapping)
    assert {"CHOL", "HOUSE", "CASE"} < set(mapping.source_columns(contract))
