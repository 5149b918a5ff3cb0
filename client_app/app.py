"""The ClientApp: unpack, call one function of `client_app.bank`, pack. Every error leaves as a code and a fixed
sentence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client_app.admission import check_refusals
from client_app.bank import note_unusable, train_round
from client_app.facts import BankFacts, bank_facts
from client_app.published import reported
from client_app.signed import bank_keys, check_request, sign_answer
from client_app.worker import train_in_worker
from fedfinlora.logs import about, belongs, show_logs
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.wire.messages import BankError, pack_error, pack_reply, unpack_request

log = logging.getLogger("fedfinlora.bank")
app = ClientApp()


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Who is there: the bank's name, the hash of the code that it runs, and its rank where it has one of its own."""

    read = _facts_once(context)

    def answer() -> RecordDict:
        facts = read()
        said = ConfigRecord({"status": "ok", "bank": facts.name, "source-sha256": source_fingerprint()})
        if facts.rank:
            said["rank"] = facts.rank
        return RecordDict({"reply": said})

    return _safely(message, context, answer, read)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round at this bank, if its coordinator signed the request; the answer is signed by the bank, errors too."""

    read = _facts_once(context)

    def answer() -> RecordDict:
        facts = read()
        check_refusals(facts)
        try:
            check_request(message.content, facts, bank_keys(context.node_config))
            request = unpack_request(message.content)
        except BankError as error:
            note_unusable(facts, str(message.metadata.run_id), error)
            raise
        belongs(run=request.run, round=request.round, bank=facts.name)
        if context.node_config.get("worker"):
            done = train_in_worker(request, facts, context.node_config)
        else:
            done = train_round(request, facts)
        reveal = reported(done.figures, facts.reveal, bool(facts.trainer.name))
        return pack_reply(
            facts.name, done.layout_id, done.delta, done.figures, facts.policy_sha256, reveal, done.ledger,
            done.second_moments,
        )  # fmt: skip

    return _signed(_safely(message, context, answer, read), message, context, read)


def _facts_once(context: Context) -> Callable[[], BankFacts]:
    """Reads who the bank is, once a message: its settings may be edited while the message is worked on."""
    return cache(lambda: bank_facts(context.node_config))


def _signed(reply: Message, message: Message, context: Context, read: Callable[[], BankFacts]) -> Message:
    """The reply with the bank's signature, or an unsigned error where the bank's key or disk fails: nothing else leaves
    then.
    """
    try:
        sign_answer(reply.content, message.content, read(), bank_keys(context.node_config))
        return reply
    except BankError as error:
        log.error("%s", error)
        return Message(pack_error(str(reply.content.config_records["reply"]["bank"]), error.code), reply_to=message)


def _safely(
    message: Message, context: Context, answer: Callable[[], RecordDict], read: Callable[[], BankFacts]
) -> Message:
    show_logs()
    with about():
        return _answered(message, context, answer, read)


def _answered(
    message: Message, context: Context, answer: Callable[[], RecordDict], read: Callable[[], BankFacts]
) -> Message:
    try:
        return Message(answer(), reply_to=message)
    except BankError as error:
        code = error.code
        log.error("%s", error)
    except MemoryError:
        code = "memory"
        log.exception("out of memory")
    except Exception as error:
        code = "memory" if "out of memory" in str(error).lower() else "internal"
        log.exception("unexpected error")
    try:
        name = read().name
    except BankError:
        name = f"bank-{context.node_id}"
    return Message(pack_error(name, code), reply_to=message)
