"""A participant's process inherits nothing that was not meant for it."""

from pathlib import Path

import pytest

from infra.settings import load_settings, participant_environment, proxy_password, read_environment, save_settings
from schemas.errors import OperationError
from schemas.options import SiteSettings

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
    with pytest.raises(OperationError, match="these fields do not fit: delta, dleta") as caught:
        load_settings(SiteSettings, path)
    assert caught.value.code == "settings-unreadable"
    assert "secret" not in str(caught.value)


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
