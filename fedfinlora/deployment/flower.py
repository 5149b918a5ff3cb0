"""Start Flower's SuperLink or SuperNode with the patches of `fedfinlora.deployment.flower_patches`: `python -P
flower.py superlink|supernode OPTIONS`.

Either ends with the process that started it. The bank's gate looks at each app bundle before it runs
(`fedfinlora.deployment.gate`), the coordinator's at the runs that it is asked to start. The SuperNode's loopback
interface is closed to other users; the SuperLink has two doors (`fedfinlora.deployment.door`, `binding`).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

PROMISED_S = 120
"""A SuperNode's sign of life. The SuperLink gives a bank up after twice what it promises: with Flower's own 30 seconds
a link that is cut for a minute would cost the bank its round.
"""


def superlink() -> None:
    """Flower's SuperLink at the public door and on loopback, behind `Limited`, with `stored_again`, `offered_again`,
    `forgetting`, nodes bound to their own messages, and a gate.
    """
    from importlib import import_module

    import uvicorn
    from flwr.superlink.cli.flower_superlink import flower_superlink

    from fedfinlora.deployment import binding
    from fedfinlora.deployment.flower_patches.body_limit import Limited
    from fedfinlora.deployment.flower_patches.forgetting import forgetting
    from fedfinlora.deployment.flower_patches.offered_again import offered_again
    from fedfinlora.deployment.flower_patches.stored_again import stored_again
    from fedfinlora.deployment.gate import installed_only
    from fedfinlora.deployment.listeners import serve
    from fedfinlora.deployment.own_user import is_own
    from fedfinlora.provenance.enrolled import PUBLIC

    for older in ("FLWR_INTERNAL_GRPC_CONTROL_API", "FLWR_INTERNAL_GRPC_FLEET_API"):
        os.environ.pop(older, None)  # they would open ports of their own
    sql_corestate: Any = import_module("flwr.supercore.corestate.sql_corestate")
    sql_corestate.SqlCoreState.store_object = stored_again(sql_corestate.SqlCoreState.store_object)
    sql_corestate.OBJECT_PUSH_SESSION_TTL_SECONDS = 2 * PROMISED_S
    sql_linkstate: Any = import_module("flwr.server.superlink.linkstate.sql_linkstate")
    sql_linkstate.SqlLinkState.activate_node = forgetting(sql_linkstate.SqlLinkState.activate_node)
    sql_linkstate.SqlLinkState.get_message_ins = offered_again(sql_linkstate.SqlLinkState.get_message_ins)
    fleet: Any = import_module("flwr.superlink.servicer.fleet.fleet_handlers")
    fleet.push_messages = binding.bound_push(fleet.push_messages)
    fleet.confirm_message_received = binding.bound_confirm(fleet.confirm_message_received)
    fleet.pull_object = binding.bound_pull(fleet.pull_object)
    fleet.push_object = binding.bound_put(fleet.push_object)
    control: Any = import_module("flwr.superlink.servicer.control.control_handlers")
    control.start_run = installed_only(control.start_run)
    host, _, port = os.environ[PUBLIC].rpartition(":")

    def run(app: Any, **settings: Any) -> None:
        limited = Limited(app)
        settings["access_log"] = False
        serve(uvicorn.Config(limited, **settings), limited, Path.cwd(), host, int(port), is_own)

    uvicorn.run = run
    flower_superlink()


def supernode() -> None:
    """Flower's SuperNode with `patient` calls to the SuperLink, `presenting` the bank's certificate, `returning` after
    it was killed, the bank's gate before what it is sent to run, and its own interface closed to other users.
    """
    from importlib import import_module

    import uvicorn
    from flwr.supernode.cli.flower_supernode import flower_supernode

    from fedfinlora.deployment.flower_patches.patient import patient
    from fedfinlora.deployment.flower_patches.presenting import presenting
    from fedfinlora.deployment.flower_patches.returning import returning
    from fedfinlora.deployment.gate import Gate, gated
    from fedfinlora.deployment.listeners import Listener
    from fedfinlora.deployment.own_user import is_own
    from fedfinlora.logs import show_logs

    show_logs()
    gate = Gate(Path.cwd())
    sys.argv += gate.begins()
    fleet_http_connection: Any = import_module("flwr.supernode.fleet_http_connection")
    fleet_http_connection.make_simple_http_retry_invoker = patient(fleet_http_connection.make_simple_http_retry_invoker)
    fleet_http_connection.HEARTBEAT_DEFAULT_INTERVAL = PROMISED_S
    client = presenting(fleet_http_connection.FleetHttpClient)
    fleet_http_connection.FleetHttpClient = gated(returning(client), gate)
    flowers: Any = uvicorn
    flowers.Server = lambda config: Listener(config, is_own)
    flower_supernode()


def _project_first() -> None:
    """Import the project next to this file, before any other that is installed."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


if __name__ == "__main__":
    _project_first()
    from fedfinlora.deployment.flower_patches.pieces import PIECES

    for name, value in PIECES.items():  # before Flower is imported; also for what it starts
        os.environ.setdefault(name, value)
    from flwr.supercore.app_utils import start_parent_process_monitor

    program = {"superlink": superlink, "supernode": supernode}[sys.argv.pop(1)]
    sys.argv[0] = f"flower-{program.__name__}"
    start_parent_process_monitor(os.getppid())
    program()
