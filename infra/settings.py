"""Settings files and environments of all processes; the only place of `infra` that reads the environment.

A child gets an environment built here and inherits nothing else, so that a variable of the person who starts a demo
cannot reach a site.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from schemas.errors import OperationError
from schemas.options import Settings, SiteSettings
from tasks.settings_file import read_settings

S = TypeVar("S", bound=Settings)

_PASSED_ON = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    # A hospital's only way out may be its own proxy; the store and the coordinator are asked through it.
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
    "CONSILIUM_DEBUG",
    "PREFECT_API_AUTH_STRING",
)
# One thread per process: canonical order of every floating-point sum, and several agents share the machine's cores.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_NO_TELEMETRY = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
# A model that was pickled by somebody else is never loaded.
_NO_PICKLE = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}


@dataclass(frozen=True)
class UserEnvironment:
    """What a person may say by environment variables.

    Attributes:
        prefect_api_url: A Prefect server to use instead of a local one (`PREFECT_API_URL`).
        debug: Show tracebacks (`CONSILIUM_DEBUG=1`).
    """

    prefect_api_url: str | None
    debug: bool


def read_environment(environ: Mapping[str, str] | None = None) -> UserEnvironment:
    """Reads the user's variables from `environ` (default: the process environment)."""
    source = os.environ if environ is None else environ
    url = source.get("PREFECT_API_URL", "").strip()
    return UserEnvironment(url or None, source.get("CONSILIUM_DEBUG", "") not in ("", "0"))


def participant_environment(home: Path, prefect_variables: Mapping[str, str]) -> dict[str, str]:
    """Builds the whole environment of a site agent or of the coordinator's flows.

    Args:
        home: The participant's home folder; also its `HOME`.
        prefect_variables: What `infra.prefect_server.prefect_client_environment` says about the server.
    """
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {
        **passed,
        **_ONE_THREAD,
        **_NO_TELEMETRY,
        **_NO_PICKLE,
        **prefect_variables,
        "HOME": str(home),
        "GIT_PYTHON_REFRESH": "quiet",
        "PYTHONUNBUFFERED": "1",
        "MPLBACKEND": "Agg",
    }


def load_settings(model: type[S], path: Path) -> S:
    """Loads a settings file.

    Raises:
        OperationError: `settings-unreadable`, as `read_settings`: what does not fit and where, never a value.
    """
    return read_settings(model, path)


def save_settings(value: Settings, path: Path) -> None:
    """Writes a settings file for its owner only, whole or not at all."""
    temporary = path.with_suffix(".part")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as out:
        out.write(value.model_dump_json(indent=2) + "\n")
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)


def enter_site_environment(home: Path, settings: SiteSettings) -> None:
    """Makes this process the agent of a site; its token for the coordinator's proxy comes from a file.

    Raises:
        OperationError: `token-unreadable`, `insecure-proxy`, `prefect-unreachable`.
    """
    password = proxy_password(home, settings)
    if password is not None:
        # Prefect sends it with every request; the proxy takes it off.
        os.environ["PREFECT_API_AUTH_STRING"] = password
    authority = str(home / settings.ca_file) if settings.ca_file is not None else None
    if authority is not None:
        os.environ["PREFECT_API_SSL_CERT_FILE"] = os.environ["SSL_CERT_FILE"] = authority
    enter_participant_environment(home, settings.prefect_api_url, authority)


def _verify_encrypted(address: str) -> None:
    from infra.prefect_server import is_loopback

    if not address.startswith("https://") and not is_loopback(address):
        raise OperationError(
            "insecure-proxy",
            "Expected the coordinator's proxy at https://: a token in the clear is everybody's.",
            "Correct prefect_api_url in config.json.",
        )


def proxy_password(home: Path, settings: SiteSettings) -> str | None:
    """Returns ``name:token`` for the coordinator's proxy, None without a proxy.

    Raises:
        OperationError: `token-unreadable`, `insecure-proxy`.
    """
    if settings.token_file is None:
        return None
    _verify_encrypted(read_environment().prefect_api_url or settings.prefect_api_url)
    return f"{settings.name}:{_read_token(home / settings.token_file)}"


def _read_token(path: Path) -> str:
    try:
        mode, token = path.stat().st_mode, path.read_text().strip()
    except UnicodeDecodeError:
        raise _token_unreadable("it holds no text") from None
    except OSError as error:
        raise _token_unreadable(f"it cannot be read ({error.strerror})") from None
    if mode & 0o077:
        raise _token_unreadable("others can read it")
    if not token:
        raise _token_unreadable("it is empty")
    return token


def _token_unreadable(why: str) -> OperationError:
    # Not the path: somebody may have written the token itself there.
    return OperationError(
        "token-unreadable",
        f"Expected this site's token in the file that token_file in config.json names; {why}.",
        "Write the token that the coordinator gave you to that file, then chmod 600. A relative path begins at the "
        "home folder.",
    )


def enter_participant_environment(home: Path, prefect_api_url: str, authority: str | None = None) -> None:
    """Makes this process a participant: no telemetry, no pickle, the Prefect server of its settings and no other.

    Call it before Prefect or MLflow is imported. A process that a supervisor started has all of it already; one that a
    person started by hand gets the same. The server must answer: Prefect would otherwise start a private one.

    Args:
        home: The participant's home folder.
        prefect_api_url: From its config.json; `PREFECT_API_URL` in the environment comes first.
        authority: File with the authority of the server's certificate; by default the system's.

    Raises:
        OperationError: `prefect-unreachable`.
    """
    from infra.prefect_server import prefect_client_environment, wait_for_api

    address = read_environment().prefect_api_url or prefect_api_url
    wanted = prefect_client_environment(address, home / "prefect") | _ONE_THREAD | _NO_TELEMETRY | _NO_PICKLE
    for name, value in wanted.items():
        if name.upper() == "NO_PROXY":  # the person's own list, and this machine
            os.environ[name] = value
        os.environ.setdefault(name, value)
    password = os.environ.get("PREFECT_API_AUTH_STRING")
    wait_for_api(address, timeout_seconds=15, password=password, authority=authority)
