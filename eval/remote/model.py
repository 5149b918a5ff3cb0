"""Which model behind a server is asked: its address, its name and the key, which comes from the environment only and is
written nowhere.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from eval.remote.openai_form import PATHS
from fedfinlora.config.evaluation import EvaluationConfig
from fedfinlora.errors import ConfigError, UserError

KEY_VARIABLES = ("FEDFINLORA_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key; the first one that is set counts."""
_NO_ADDRESS = "--model-url must be an address such as http://127.0.0.1:8000/v1."


@dataclass(frozen=True)
class RemoteModel:
    """A model behind a server, and how it may be asked."""

    url: str
    """The address below which /completions and /chat/completions are, e.g. http://127.0.0.1:8000/v1."""
    name: str
    """What the server calls the model."""
    limits: EvaluationConfig
    """requests_at_once, requests_per_minute, request_timeout_s and request_retries count."""
    chat: bool = False
    """Use /chat/completions from the start (dataset.chat_template=true)."""
    seed: int = 0
    """Sent to servers that take one; also decides the pauses between tries."""

    def __post_init__(self) -> None:
        import httpx

        try:
            parts = urlsplit(str(httpx.URL(self.url)))
        except (httpx.InvalidURL, ValueError):
            raise ConfigError(_NO_ADDRESS) from None
        if parts.scheme not in ("http", "https") or not parts.hostname or "%" in parts.hostname:
            raise ConfigError(_NO_ADDRESS)
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ConfigError(
                "--model-url must have no user name, password, ? or #: it is written into the run's folder. "
                f"A key belongs into the environment variable {KEY_VARIABLES[0]}."
            )
        if parts.path.rstrip("/").endswith("/completions"):
            raise ConfigError("--model-url ends one level too deep: leave /completions or /chat/completions off.")
        if not self.name:
            raise ConfigError("--model-url needs --model-name NAME, what the server calls the model.")

    def endpoint(self, api: str) -> str:
        """The address of one form of the interface (a key of PATHS)."""
        return self.url.rstrip("/") + PATHS[api]


def api_key() -> tuple[str, str]:
    """(name of the environment variable, key); empty texts without one."""
    for variable in KEY_VARIABLES:
        key = os.environ.get(variable, "").strip()
        if key:
            if not key.isascii() or not key.isprintable():
                raise UserError(f"The environment variable {variable} holds characters that no key has. Set it again.")
            return variable, key
    return "", ""
