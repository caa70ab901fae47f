"""The reverse proxy between the hospitals' agents and the coordinator's Prefect server: TLS, a token each, few paths.

Prefect's server has one shared password and no roles: whoever reaches it may change anything in it. An agent needs a
dozen kinds of request; the proxy passes those on and refuses everything else. It decides on the request line as it
came, before any decoding, so that no spelling of a path means one thing here and another behind.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from infra.proxy.tokens import ensure_token, password_line
from schemas.canonical import is_name
from schemas.errors import OperationError

_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
# What every site may ask. A run's id is 122 random bits that only its own site is told.
SHARED = (
    "GET /api/health",
    "GET /api/csrf-token\\?client=[0-9a-f-]{36}",
    f"GET /api/flows/{_UUID}",
    f"GET /api/deployments/{_UUID}",
    f"GET /api/work_queues/{_UUID}",
    f"GET /api/flow_runs/{_UUID}",
    f"PATCH /api/flow_runs/{_UUID}",
    f"POST /api/flow_runs/{_UUID}/set_state",
    "GET /api/events/in",
)
# What a site may ask of its own work pool; \1 is the name in its credentials.
OWN = (
    r"GET /api/work_pools/consilium-\1",
    r"POST /api/work_pools/consilium-\1/get_scheduled_flow_runs",
    r"POST /api/work_pools/consilium-\1/workers/heartbeat",
)
_LARGEST_REQUEST = "256k"
# An agent's process holds one; more for those that a cut connection left behind, and for a few agents on one machine.
EVENT_CONNECTIONS = 8
LOGS = "logs"


@dataclass(frozen=True)
class ProxyOptions:
    """Where the proxy listens and what stands behind it.

    Attributes:
        listen: ``host:port`` as nginx' ``listen`` takes it.
        prefect_url: The Prefect server, with or without ``/api``.
        certificate, key: PEM files.
        user: ``name group`` that nginx becomes when root starts it; None for the one it was built with.
    """

    listen: str
    prefect_url: str
    certificate: Path
    key: Path
    user: str | None = None


def current_user() -> str | None:
    """Returns this account as nginx' ``user``.

    None for root, which nginx gives up and must not get back, and for an account without a name, as in a container.
    """
    if os.geteuid() == 0:
        return None
    try:
        return f"{pwd.getpwuid(os.geteuid()).pw_name} {grp.getgrgid(os.getegid()).gr_name}"
    except KeyError:
        return None


def passable(folder: Path) -> bool:
    """Says whether every user can pass `folder`, or where it is not there yet its nearest parent, and those above."""
    there = [path for path in (folder, *folder.parents) if path.exists()]
    return all(path.stat().st_mode & stat.S_IXOTH for path in there)


def verify_tls_files(options: ProxyOptions) -> None:
    """Refuses a certificate or a key that is not there; nginx would say so only when it is started.

    One that only root can look at is let through: root starts nginx.

    Raises:
        OperationError: `tls-file-missing`.
    """
    for option, path in (("--certificate", options.certificate), ("--key", options.key)):
        try:
            there = stat.S_ISREG(path.stat().st_mode)
        except PermissionError:
            continue
        except OSError:
            there = False
        if not there:
            raise OperationError(
                "tls-file-missing", f"Expected a PEM file at {path}; there is none.", f"Correct {option}."
            )


def write_proxy(folder: Path, sites: Sequence[str], options: ProxyOptions) -> Path:
    """Writes ``nginx.conf``, the password file and, for each site that has none yet, a token.

    Args:
        folder: Kept by the coordinator; ``tokens/<site>`` goes to that site by a safe way, and stays secret.

    Returns:
        The configuration file, for ``nginx -c``.

    Raises:
        OperationError: `site-name`, `proxy-path`, `prefect-address`.
    """
    for site in sites:
        if not is_name(site):
            raise OperationError("site-name", "Expected site names of lower-case letters, digits and hyphens.")
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True)
        # For an nginx that is somebody else. A folder that was there before stays as closed as its owner made it.
        folder.chmod(0o711)
    _make_private(folder / LOGS)
    lines = [password_line(site, ensure_token(folder / "tokens" / site)) for site in sorted(sites)]
    users = folder / "users"
    users.write_text("\n".join(lines) + "\n")
    # nginx reads it as its own user after giving up root; it holds salted digests of random tokens.
    users.chmod(0o644)
    config = folder / "nginx.conf"
    config.write_text(render_proxy(folder, users, options))
    return config


def _make_private(folder: Path) -> None:
    # nginx makes its logs readable by all; they hold the ids of runs, which only their own site is told.
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)


def render_proxy(folder: Path, users: Path, options: ProxyOptions) -> str:
    """Returns the whole nginx configuration.

    Raises:
        OperationError: `proxy-path`, `proxy-listen`, `prefect-address`, `proxy-user`.
    """
    for path in (folder, users, options.certificate, options.key):
        if not all(c.isalnum() or c in "/._-" for c in str(path)) or not path.is_absolute():
            raise OperationError(
                "proxy-path",
                "Expected absolute paths of plain characters for the proxy.",
                "Move the files.",
            )
    if not re.fullmatch(r"[0-9a-zA-Z.:\[\]-]+:[0-9]{1,5}", options.listen):
        raise OperationError("proxy-listen", "Expected host:port for the proxy.", "Correct --listen.")
    upstream = urlsplit(options.prefect_url)
    if upstream.scheme != "http" or not upstream.hostname or not upstream.port:
        raise OperationError(
            "prefect-address", "Expected the Prefect server as http://host:port.", "Name the server behind the proxy."
        )
    if options.user is not None and not re.fullmatch(r"[a-z_][a-z0-9_.-]* [a-z_][a-z0-9_.-]*", options.user):
        raise OperationError("proxy-user", "Expected an account of plain characters.", "Run it as the coordinator.")
    return _TEMPLATE.format(
        user="" if options.user is None else f"user {options.user};\n",
        folder=folder,
        users=users,
        certificate=options.certificate,
        key=options.key,
        listen=options.listen,
        upstream=f"http://{upstream.hostname}:{upstream.port}",
        shared="\n".join(f'        "~^{request}$" 1;' for request in SHARED),
        own="\n".join(f'        "~^([a-z][a-z0-9-]{{0,30}}) {request}$" 1;' for request in OWN),
        largest=_LARGEST_REQUEST,
        event_connections=EVENT_CONNECTIONS,
    )


_TEMPLATE = """\
# Written by `consilium coordinator proxy`; run it again instead of editing. Start: nginx -c {folder}/nginx.conf
{user}pid {folder}/nginx.pid;
error_log {folder}/logs/error.log warn;
worker_processes 1;

events {{
    worker_connections 1024;
}}

http {{
    server_tokens off;
    client_max_body_size {largest};
    client_body_temp_path {folder}/temp;
    proxy_temp_path {folder}/temp-proxy;
    fastcgi_temp_path {folder}/temp-fastcgi;
    uwsgi_temp_path {folder}/temp-uwsgi;
    scgi_temp_path {folder}/temp-scgi;

    # Who asked for what, without headers and bodies: neither token nor parameters are written down.
    log_format audit '$time_iso8601 $remote_addr $remote_user $request_method $request_uri $status $request_time';
    access_log {folder}/logs/access.log audit;

    map "$request_method $request_uri" $shared_path {{
        default 0;
{shared}
    }}
    map "$remote_user $request_method $request_uri" $own_path {{
        default 0;
{own}
    }}
    map "$shared_path$own_path" $refused {{
        default 0;
        "00" 1;
    }}
    map $http_upgrade $connection_upgrade {{
        default upgrade;
        "" "";
    }}
    # By address: the name in a request is anybody's until the token is verified, and would lock its owner out.
    limit_req_zone $binary_remote_addr zone=clients:1m rate=200r/s;
    limit_conn_zone $remote_user zone=events:1m;

    server {{
        listen {listen} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:tls:1m;

        auth_basic "consilium";
        auth_basic_user_file {users};
        limit_req zone=clients burst=400 nodelay;

        proxy_http_version 1.1;
        # The server answers to its own address only: a name could be anybody's.
        proxy_set_header Host $proxy_host;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $connection_upgrade;
        # The token is for this proxy; the server behind it never sees it, but learns whom it has to limit.
        proxy_set_header Authorization "";
        proxy_set_header X-Consilium-Site $remote_user;
        proxy_read_timeout 1h;

        location / {{
            if ($refused) {{
                return 403;
            }}
            proxy_pass {upstream};
        }}

        # Connections are counted before a token is looked at: only behind the second step is the name its owner's.
        location = /api/events/in {{
            if ($refused) {{
                return 403;
            }}
            try_files /never-there @events;
        }}

        location @events {{
            limit_conn events {event_connections};
            proxy_pass {upstream};
        }}
    }}
}}
"""
