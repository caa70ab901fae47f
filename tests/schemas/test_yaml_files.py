"""A file written by hand means what was written: no guessed types, no objects, no growing aliases."""

from __future__ import annotations

import pytest

from schemas.canonical import Decimal, Strict
from schemas.errors import PlanError, SiteDataError
from schemas.yaml_files import model_from_plain, parse_yaml, read_yaml


class Noun(Strict):
    count: int
    share: Decimal
    flag: bool = False
    codes: tuple[str, ...] = ()
    note: str | None = None


def test_scalars_stay_the_text_that_was_written():
    text = b"a: 0.10\nb: no\nc: 1_0\nd: 2024-01-01\ne: [1, on, 0x10]\nf: 'null'\ng: null\nh:\n"
    assert parse_yaml(text, "x") == {
        "a": "0.10",
        "b": "no",
        "c": "1_0",
        "d": "2024-01-01",
        "e": ["1", "on", "0x10"],
        "f": "null",
        "g": None,
        "h": None,
    }


def test_types_come_from_the_noun(tmp_path):
    path = tmp_path / "noun.yaml"
    path.write_text("count: 5\nshare: 0.10\nflag: true\ncodes: [no, 1]\n")
    assert read_yaml(Noun, path) == Noun(count=5, share="0.10", flag=True, codes=("no", "1"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"a: 1\na: 2\n", "line 2: a key that stands there twice"),
        (b"a: &x [1]\nb: *x\n", "an alias"),
        (b"a: !!python/object/apply:os.system ['true']\n", "a tag|valid YAML"),
        (b"a: !secret x\n", "a tag"),
        (b"a: 1\n---\nb: 2\n", "not valid YAML"),
        (b"a: [1\n", "line 2 is not valid YAML"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"", "it is empty"),
        (b"x" * (1024 * 1024 + 1), "larger than"),
        (b"[" * 100 + b"]" * 100, "nested too deeply"),
        (b"? [a, b]\n: c\n", "a key that is not text"),
    ],
)
def test_what_is_not_plain_yaml_is_refused(text, problem):
    with pytest.raises(PlanError, match=problem) as caught:
        parse_yaml(text, "file.yaml")
    assert caught.value.code == "yaml-unreadable"


def test_a_chain_of_aliases_costs_nothing():
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    with pytest.raises(PlanError, match="an alias"):
        parse_yaml("\n".join(lines).encode(), "bomb.yaml")


def test_every_field_that_does_not_fit_is_named_and_no_value_quoted():
    with pytest.raises(SiteDataError, match=r"count \(.*; other \(.*; share \(") as caught:
        model_from_plain(Noun, {"count": "patient-7", "share": "patient-8", "other": "x"}, "noun.yaml", SiteDataError)
    assert "patient" not in caught.value.message
    assert caught.value.code == "yaml-fields"


def test_missing_file(tmp_path):
    with pytest.raises(PlanError, match="cannot be read"):
        read_yaml(Noun, tmp_path / "absent.yaml")
