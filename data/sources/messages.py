"""Conversations become rows: the last message, the assistant's, is the target; the contents of all earlier ones are the
context.

`{"messages": [{"role": "system", "content": …}, {"role": "user", "content": …}, {"role": "assistant", "content": …}]}`,
or the bare list. Earlier contents are joined by blank lines, in their order and without names of roles; of several
answers only the last is trained on. With `dataset.chat_template=true` the whole context is one user message.
"""

from __future__ import annotations

import json
from typing import Any

from data.sources.json_records import unique_keys
from data.sources.records import BadLine

ROLES = ("system", "developer", "user", "assistant")


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages, and not any other list."""
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) and "role" in part for part in value)


def context_and_target(value: Any) -> tuple[str, str]:
    """(context, target) of a list of messages, or of its JSON text. BadLine says what is wrong; a message is quoted
    nowhere.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError):
            raise BadLine("messages is not a list of messages") from None
    if not is_conversation(value):
        raise BadLine("messages is not a list of messages, each with role and content")
    contents = []
    for number, message in enumerate(value, 1):
        if message["role"] not in ROLES:
            raise BadLine(f"the role of message {number} is none of {', '.join(ROLES)}")
        if type(message.get("content")) is not str:
            raise BadLine(f"the content of message {number} is not text")
        contents.append(message["content"])
    if value[-1]["role"] != "assistant":
        raise BadLine("the last message is not the assistant's")
    if len(contents) == 1:
        raise BadLine("there is no message before the assistant's")
    return "\n\n".join(contents[:-1]), contents[-1]
