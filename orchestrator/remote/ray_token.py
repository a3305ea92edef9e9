"""Token authentication of Ray, on the client's side: to which cluster the token is shown.

Ray shows its token by itself only to a cluster that it finds (`auto`), never to one that is named; with
RAY_AUTH_MODE=token it shows it to any. A sweep's commands name their cluster, so here the token is shown to this
machine, and to any other one where the user has set a token for it.
"""

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

ADVICE = (
    "give the cluster's token as RAY_AUTH_TOKEN, or as a file by RAY_AUTH_TOKEN_PATH, or in ~/.ray/auth_token with "
    "RAY_AUTH_MODE=token (on the head, `ray get-auth-token` prints it)"
)


def show_token(address: str) -> None:
    """Make Ray send its token to this address, where that is right. To be called before Ray is imported.

    Args:
        address: `host:port`, or with a scheme.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    if given or (Path.home() / ".ray" / "auth_token").is_file() and _is_here(host):
        os.environ["RAY_AUTH_MODE"] = "token"


def _is_here(host: str) -> bool:
    """Return whether this host name or address is this machine's own: only then can a socket be bound to it."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(target)
    except OSError:
        return False
    return True
