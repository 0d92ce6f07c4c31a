"""Users of an MLflow with passwords: training registers policies, inference reads them, and neither may do more.

Over MLflow's own interface, by a user who may administer it: the `basic-auth` app of its server. Any user may create a
model that was not there, and manages it then; MLflow has no right that could be taken for that.
"""

from __future__ import annotations

import json
import os
import ssl
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote, urlencode, urlsplit

from tradeloop.common.addresses import address
from tradeloop.common.errors import Unavailable, UserError

RIGHTS: Mapping[str, str] = {"training": "EDIT", "inference": "READ"}
"""The right on every experiment and every registered model, by user."""
_RESOURCES = ("experiment", "registered_model")
_WORKSPACE = "default"
_WITHIN_S = 30.0
_SHORTEST = 12


class Permitted(NamedTuple):
    """The changes for one user, in words."""

    user: str
    changes: tuple[str, ...]


class PermissionsUnavailable(Unavailable):
    """MLflow cannot be reached, or does not answer."""


def permit(tracking_uri: str, passwords: Mapping[str, str]) -> list[Permitted]:
    """Make the users with these passwords, give each what it may do, and take away all else. May be repeated.

    `tracking_uri` has an administrator's name and password. Raises `UserError` where that is refused, where the server
    knows no users, or a password is missing; and `PermissionsUnavailable`.
    """
    if missing := sorted(set(RIGHTS) - set(passwords)):
        raise UserError(f"no password for {', '.join(missing)}: set TRADELOOP_ROLES__{missing[0].upper()}")
    if short := [user for user in RIGHTS if len(passwords[user]) < _SHORTEST]:
        raise UserError(f"the password of {short[0]} is too short for MLflow: it takes {_SHORTEST} characters or more")
    server = _Administered(tracking_uri)
    server.check()
    roles = {role["name"]: role for role in server.ask("GET", "3.0/mlflow/roles/list", workspace=_WORKSPACE)["roles"]}
    return [_permit(server, user, right, passwords[user], roles) for user, right in RIGHTS.items()]


def _permit(
    server: _Administered, user: str, right: str, password: str, roles: Mapping[str, Mapping[str, Any]]
) -> Permitted:
    changes = []
    if server.has("2.0/mlflow/users/get", username=user):
        server.ask("PATCH", "2.0/mlflow/users/update-password", username=user, password=password)
        server.ask("PATCH", "2.0/mlflow/users/update-admin", username=user, is_admin=False)
    else:
        server.ask("POST", "2.0/mlflow/users/create", username=user, password=password)
        changes.append("made")
    name = f"tradeloop-{user}"
    role = roles.get(name)
    if role is None:
        role = server.ask("POST", "3.0/mlflow/roles/create", workspace=_WORKSPACE, name=name)["role"]
        server.ask("POST", "3.0/mlflow/roles/assign", username=user, role_id=role["id"])
    found = server.ask("GET", "3.0/mlflow/roles/permissions/list", role_id=role["id"])["role_permissions"]
    wanted = {(resource, "*", right) for resource in _RESOURCES}
    for each in found:
        held = (each["resource_type"], each["resource_pattern"], each["permission"])
        if held in wanted:
            wanted.remove(held)
        else:
            server.ask("DELETE", "3.0/mlflow/roles/permissions/remove", role_permission_id=each["id"])
            changes.append(f"{held[2]} of {held[0]} {held[1]} taken away")
    for resource, pattern, permission in sorted(wanted):
        server.ask(
            "POST",
            "3.0/mlflow/roles/permissions/add",
            role_id=role["id"],
            resource_type=resource,
            resource_pattern=pattern,
            permission=permission,
        )
        changes.append(f"{permission} of {resource} {pattern} given")
    return Permitted(user, tuple(changes))


class _Administered:
    """An MLflow server as an administrator asks it."""

    def __init__(self, tracking_uri: str) -> None:
        parts = urlsplit(tracking_uri)
        if parts.scheme not in ("http", "https") or not parts.username or not parts.hostname:
            shown = address(tracking_uri)
            raise UserError(f"{shown} is no MLflow with users: give http://USER:PASSWORD@HOST:PORT of an administrator")
        port = f":{parts.port}" if parts.port else ""
        self._shown, self._base = address(tracking_uri), f"{parts.scheme}://{parts.hostname}{port}/api"
        self._user = unquote(parts.username)
        signed = f"{self._user}:{unquote(parts.password or '')}"
        self._authorization = f"Basic {b64encode(signed.encode()).decode()}"
        ca_file = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH")
        try:
            self._tls = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None
        except OSError as error:
            raise UserError(f"MLFLOW_TRACKING_SERVER_CERT_PATH: {ca_file}: {error.strerror}") from None

    def check(self) -> None:
        """Raises `UserError` unless the user may administer; anybody may ask for roles and change their password."""
        if not self.ask("GET", "2.0/mlflow/users/get", username=self._user)["user"]["is_admin"]:
            raise UserError(f"MLflow at {self._shown}: its user is no administrator, or the password wrong")

    def ask(self, method: str, path: str, **told: object) -> dict[str, Any]:
        """The answer to a request. Raises `UserError` or `PermissionsUnavailable`."""
        query = f"?{urlencode(told)}" if method == "GET" else ""
        body = None if method == "GET" else json.dumps(told).encode()
        headers = {"Authorization": self._authorization, "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._base}/{path}{query}", body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=_WITHIN_S, context=self._tls) as answer:
                found: dict[str, Any] = json.loads(answer.read() or b"{}")
                return found
        except urllib.error.HTTPError as error:
            if error.code == 404 and path.endswith("users/get"):
                raise LookupError from None
            if error.code in (401, 403):
                raise UserError(
                    f"MLflow at {self._shown}: its user is no administrator, or the password wrong"
                ) from None
            if error.code in (404, 405):
                raise UserError(f"MLflow at {self._shown} has no users: start it with --app-name basic-auth") from None
            raise PermissionsUnavailable(f"MLflow at {self._shown}: {method} {path} failed with {error.code}") from None
        except OSError as error:
            raise PermissionsUnavailable(f"MLflow at {self._shown}: {error}") from None

    def has(self, path: str, **told: object) -> bool:
        """Whether there is such a thing."""
        try:
            self.ask("GET", path, **told)
        except LookupError:
            return False
        return True
