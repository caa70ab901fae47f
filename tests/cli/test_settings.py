"""A participant's process inherits nothing that was not meant for it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.context import open_coordinator
from infra.settings import load_settings, participant_environment, proxy_password, read_environment, save_settings
from schemas.errors import OperationError
from schemas.options import CoordinatorSettings, ReviewerSettings, SiteSettings
from site_agents.home import open_home

SETTINGS = SiteSettings(
    name="mercy", store="s", data="d", studies=("a" * 64,), prefect_api_url="u", epsilon="3", delta="1e-5"
)


def test_a_participant_inherits_no_secret_of_the_person_who_starts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUD_SECRET_TOKEN", "swordfish")
    monkeypatch.setenv("PYTHONPATH", "/evil")
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere/api")
    environment = participant_environment(tmp_path, {"PREFECT_API_URL": "http://here/api"})
    assert "swordfish" not in environment.values()
    assert "PYTHONPATH" not in environment
    assert environment["PREFECT_API_URL"] == "http://here/api"
    assert environment["HOME"] == str(tmp_path)
    assert environment["DO_NOT_TRACK"] == "true"


def test_the_user_may_name_a_server_and_ask_for_tracebacks() -> None:
    assert read_environment({}).prefect_api_url is None
    assert read_environment({"PREFECT_API_URL": " "}).prefect_api_url is None
    assert read_environment({"PREFECT_API_URL": "http://x/api"}).prefect_api_url == "http://x/api"
    assert not read_environment({"CONSILIUM_DEBUG": "0"}).debug
    assert read_environment({"CONSILIUM_DEBUG": "1"}).debug


def test_settings_survive_a_round_trip_and_are_private(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    save_settings(SETTINGS, path)
    save_settings(SETTINGS, path)
    assert load_settings(SiteSettings, path) == SETTINGS
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_settings_that_do_not_fit_name_the_field_and_not_the_value(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(SETTINGS.model_dump_json().replace('"delta"', '"dleta"').replace("1e-5", "secret"))
    with pytest.raises(
        OperationError, match=r"these fields do not fit: delta \(missing\), dleta \(unknown\)"
    ) as caught:
        load_settings(SiteSettings, path)
    assert caught.value.code == "settings-unreadable"
    assert "secret" not in str(caught.value)
    assert "Correct config.json" in caught.value.remedy


def _reads(home: Path) -> list[Callable[[], object]]:
    """All ways in which a site's settings are read."""
    return [lambda: load_settings(SiteSettings, home / "config.json"), lambda: open_home(home)]


@pytest.mark.parametrize(
    ("content", "said", "remedy"),
    [
        (b'{\n  "name": "mercy"\n  "store": "swordfish"\n}', r"to be JSON; it is not: line 3, column 3\.$", "a comma"),
        (b"", r"line 1, column 1\.$", "Correct config.json"),
        (b'{"name": "swordfish", "paused": swordfish}', r"line 1, column 33\.$", "Correct config.json"),
        (b'{"n": ' + b"9" * 5000 + b"}", "a number or a list is far too long", "Correct config.json"),
        (b"[" * 200_000, "a number or a list is far too long", "Correct config.json"),
        (b'["swordfish"]', "to be one JSON object", "Correct config.json"),
        (b'"swordfish \xff"', "to be UTF-8 text", "as UTF-8"),
        (b'{"format": "swordfish"}', r"format \(wrong value\), name \(missing\)", "if a newer version wrote it"),
        (b'{"name": {"swordfish": "swordfish"}}', r"name \(wrong value\)", "Correct config.json"),
        (b'{"options": {"swordfishes": 1}}', r"options\.swordfishes \(unknown\)", "Correct config.json"),
    ],
)
def test_a_mistake_in_a_settings_file_is_shown_where_it_is_and_costs_no_key(
    content: bytes, said: str, remedy: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes(content)
    for read in _reads(tmp_path):
        with pytest.raises(OperationError, match=r"to be|these fields") as caught:
            read()
        assert re.search(said, caught.value.message)
        assert remedy in caught.value.remedy
        assert caught.value.code == "settings-unreadable"
        assert "swordfish" not in str(caught.value).replace("swordfishes", "")
        assert "repare" not in str(caught.value)


def test_a_settings_file_that_is_missing_or_closed_is_not_a_mistake_in_it(tmp_path: Path) -> None:
    for read in _reads(tmp_path):
        with pytest.raises(OperationError, match=r"Expected a settings file config\.json in .* Name the home folder"):
            read()
    (tmp_path / "config.json").mkdir()
    for read in _reads(tmp_path):
        with pytest.raises(OperationError, match=r"Cannot read config\.json in .* \(Is a directory\)"):
            read()


def test_another_kind_of_home_is_named_as_such_and_its_fields_are_not_listed(tmp_path: Path) -> None:
    save_settings(SETTINGS, tmp_path / "config.json")
    with pytest.raises(OperationError, match=r"Expected a coordinator's home; .* is a hospital's\. Name the other"):
        load_settings(CoordinatorSettings, tmp_path / "config.json")
    with pytest.raises(OperationError, match=r"Expected a coordinator's home; .* is a hospital's") as caught:
        open_coordinator(tmp_path)
    assert caught.value.code == "settings-unreadable"
    save_settings(
        CoordinatorSettings(name="c", store="s", prefect_api_url="u", mlflow_uri="m", artifacts=""),
        tmp_path / "config.json",
    )
    for read in _reads(tmp_path):
        with pytest.raises(OperationError, match=r"Expected a hospital's home; .* is a coordinator's"):
            read()
    with pytest.raises(OperationError, match=r"Expected a reviewer's home; .* is a coordinator's"):
        load_settings(ReviewerSettings, tmp_path / "config.json")


def test_a_token_file_that_does_not_do_says_why_and_never_what_is_in_it(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"token_file": "swordfish", "prefect_api_url": "https://x/api"})
    path = tmp_path / "swordfish"

    def problem() -> str:
        with pytest.raises(OperationError, match="Expected this site's token in the file that token_file") as caught:
            proxy_password(tmp_path, settings)
        assert (caught.value.code, "swordfish" in str(caught.value)) == ("token-unreadable", False)
        return caught.value.message.rpartition("; ")[2]

    assert problem() == "it cannot be read (No such file or directory)."
    path.write_bytes(b"\xff")
    path.chmod(0o600)
    assert problem() == "it holds no text."
    path.write_text("\n")
    assert problem() == "it is empty."
    path.write_text("swordfish\n")
    path.chmod(0o640)
    assert problem() == "others can read it."


def test_a_token_is_not_sent_in_the_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("swordfish\n")
    (tmp_path / "token").chmod(0o600)

    def password(address: str) -> str | None:
        return proxy_password(tmp_path, SETTINGS.model_copy(update={"token_file": "token", "prefect_api_url": address}))

    for address in ("http://study.example.org/api", "study.example.org/api", "http://127.0.0.1.example.org/api"):
        with pytest.raises(OperationError, match="Expected the coordinator's proxy at https://") as caught:
            password(address)
        assert (caught.value.code, "swordfish" in str(caught.value)) == ("insecure-proxy", False)
    for address in ("https://study.example.org/api", "http://127.0.0.1:4200/api"):
        assert password(address) == "mercy:swordfish"
    monkeypatch.setenv("PREFECT_API_URL", "http://study.example.org/api")
    with pytest.raises(OperationError, match="a token in the clear is everybody's"):
        password("https://study.example.org/api")
