"""The fourth bank of `benchmarks.deploy_demo`: it is enrolled, has no rows, and lies in every round."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message

from benchmarks.demo_parties import Party, say
from benchmarks.hostile_bank import FIGURES, HostileBank
from fedfinlora.deployment.bank_keys import make_node_key, tls_key
from fedfinlora.deployment.certificates import write_private
from fedfinlora.deployment.reach import CERTIFICATE, TLS_KEY
from fedfinlora.wire.messages import TrainRequest

LIAR = "bank-3"
LIES = {1: "signature", 2: "malformed", 3: "not-finite"}
"""What comes of the liar's replies; in the later rounds it sends NaN again."""


def lies(bank: HostileBank, message: Message, request: TrainRequest) -> None:
    """What the liar answers."""
    if request.round == 1:
        said = "a reply that another key has signed"
        bank.sends(message, bank.content(request), key=ec.generate_private_key(ec.SECP384R1()))
    elif request.round == 2:
        said = "a claim of 1,000,000,000,000,000,000 rows"
        bank.sends(message, bank.content(request, figures=replace(FIGURES, rows=10**18)))
    else:
        said = "a delta of NaN"
        bank.sends(message, bank.content(request, np.full(request.adapter.size, np.nan, np.float32)))
    say(f"answers round {request.round}: {said}", bank.name)


def enrol_liar(aggregator: Party, folder: Path) -> None:
    """A key, a certificate over it, and no rows: a liar needs no `bank init`."""
    coordinator = aggregator.home / ".fedfinlora" / "coordinator"
    folder.mkdir(parents=True)
    make_node_key(folder / "node.key", LIAR)
    aggregator.types("coordinator", "enroll", str(folder / "node.key.pub"), "--name", LIAR)
    write_private(folder / TLS_KEY, tls_key(folder / "node.key"))
    for source, name in ((coordinator / "ca.crt", "ca.crt"), (coordinator / "enrolled" / f"{LIAR}.crt", CERTIFICATE)):
        shutil.copy(source, folder / name)
