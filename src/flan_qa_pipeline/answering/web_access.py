"""Who may use the page and the API: hosts, origins and the password."""

import ipaddress
import logging
import secrets
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from flan_qa_pipeline.config.parameters import ServingParameters
from flan_qa_pipeline.errors import InputError

logger = logging.getLogger(__name__)

VARIABLES = {"username": "FLAN_QA_USERNAME", "password": "FLAN_QA_PASSWORD"}  # noqa: S105
HOW_TO_GIVE = (
    f"set {VARIABLES['username']} and {VARIABLES['password']}, or serving.username and "
    "serving.password in conf/local/credentials.yml"
)
LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}


class Credentials(BaseModel):
    """The username and the password that the page and the API ask for."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    # HTTP's basic authentication takes ASCII, and a username without a colon
    username: str = Field(pattern="^[!-9;-~]+$")
    password: str = Field(pattern="^[ -~]+$", repr=False)

    @classmethod
    def find(cls, environment: Mapping[str, str], stored: Mapping[str, Any]) -> Self | None:
        """Take them from environment variables, or else from the project's credentials.

        Args:
            environment: the process's environment variables.
            stored: what the configuration holds under `credentials`.

        Returns:
            None if neither place holds any.

        Raises:
            InputError: one of the two is missing, empty or not in ASCII.
        """
        given: Any = {
            key: environment[name] for key, name in VARIABLES.items() if name in environment
        }
        given = given or stored.get("serving")
        if not given:
            return None
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            wrong = " and ".join(str(part["loc"][-1]) for part in error.errors() if part["loc"])
            raise InputError(
                f"The credentials of the web page lack a valid {wrong or 'mapping'}; "
                f"{HOW_TO_GIVE}, in ASCII."
            ) from None

    def match(self, username: str, password: str) -> bool:
        """Compare in a time that does not depend on where the texts differ."""
        pairs = ((username, self.username), (password, self.password))
        return all([secrets.compare_digest(a.encode(), b.encode()) for a, b in pairs])


def check_access(serving: ServingParameters, credentials: Credentials | None) -> None:
    """Check that only this machine can ask without a password, unless `serving.open` allows it.

    Raises:
        InputError: other machines could ask without a password.
    """
    if is_loopback(serving.host) or credentials:
        return
    if not serving.open:
        raise InputError(
            f"Other machines could reach serving.host {serving.host} without a password; "
            f"{HOW_TO_GIVE}, or let everyone ask with serving.open=true."
        )
    logger.warning(
        "Other machines can reach %s, and the page asks for no password; serving.host 127.0.0.1 "
        "restricts it to this machine.",
        serving.host,
    )


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class SameOrigin:
    """Refuses requests that the page of another site sends from a reader's browser.

    A browser names the site in `Origin`. A site whose name was made to point to this machine is
    the same origin for the browser; `hosts` refuses it by its name.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None):
        """Wrap an application.

        Args:
            app: the application.
            hosts: the names by which it may be addressed; None allows any.
        """
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._hosts is not None and _name(f"//{host}") not in self._hosts:
            refusal = "The server answers to the name of this machine only."
        elif origin is not None and _place(origin) != host.lower():
            refusal = "The server answers requests of its own page only."
        else:
            return await self._app(scope, receive, send)
        await PlainTextResponse(refusal, 403)(scope, receive, send)


def allowed_hosts(
    serving: ServingParameters, credentials: Credentials | None
) -> frozenset[str] | None:
    """Return the names by which a server without a password may be addressed; None allows any."""
    if credentials or serving.open or not is_loopback(serving.host):
        return None
    return frozenset(LOCAL_NAMES | {serving.host})


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _place(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None
