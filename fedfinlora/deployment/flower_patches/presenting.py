"""The SuperNode presents the bank's certificate (mutual TLS), which Flower has no setting for.

No thread upstream was found.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def presenting(client_class: type[Any]) -> type[Any]:
    """Flower's client of the SuperLink, which shows a bank's certificate. The bank's folder is the present one, or that
    of ca.crt where its path is given.
    """

    class Presenting(client_class):  # type: ignore[misc]
        @classmethod
        def from_server_address(
            cls,
            server_address: str,
            insecure: bool,
            root_certificates: bytes | str | None,
            interceptors: Any,
            **more: Any,
        ) -> Any:
            from fedfinlora.deployment.reach import bank_context

            home = Path(root_certificates).parent if isinstance(root_certificates, str) else Path.cwd()
            return cls(f"https://{server_address}", interceptors=interceptors, verify=bank_context(home), **more)

    return Presenting
