"""A SuperNode that was killed is let in again at once, and does not report how long it has worked.

For the SuperLink the killed one is connected for another four minutes, and until then its key is refused (upstream:
flwrlabs/flower issue 4844 and pull request 8174). Here it keeps its node id in the file node.id of its folder, and
whoever starts in the same folder with the same key first ends what the killed one left.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

NODE_ID = Path("node.id")


def returning(client_class: type[Any]) -> type[Any]:
    """Flower's client of the SuperLink, whose node may take the place of its own former self, and does not say how
    long it has worked.

    Flower sends the seconds with each answer; a bank's policy may withhold them, and its rows decide them.
    """
    import httpx
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest

    class Returning(client_class):  # type: ignore[misc]
        def ActivateNode(self, request: Any) -> Any:
            try:
                answer = super().ActivateNode(request)
            except httpx.HTTPStatusError as refusal:
                try:
                    self.DeactivateNode(DeactivateNodeRequest(node_id=int(NODE_ID.read_text())))
                    answer = super().ActivateNode(request)
                except (OSError, ValueError, httpx.HTTPError):
                    raise refusal from None
            with contextlib.suppress(OSError):
                NODE_ID.write_text(str(answer.node_id))
            return answer

        def PushMessages(self, request: Any) -> Any:
            request.ClearField("clientapp_runtime_list")
            return super().PushMessages(request)

    return Returning
