"""`serve RUN …`: several adapters on one base model behind an OpenAI-compatible address, to try them in a chat client.

For a laptop and a handful of people; `export --for vllm` is for more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.encode import encode_prompts
from fedfinlora.config.model import ModelConfig
from fedfinlora.config.schema import Config
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model.adapter_folder import CONFIG_FILE, base_name, same_base
from fedfinlora.model.base_checks import context_tokens
from fedfinlora.model.loading import load_base
from fedfinlora.run.folder import read_config
from fedfinlora.serving.engine import Engine
from fedfinlora.serving.http import BASE, Served, application
from fedfinlora.serving.many_adapters import ManyAdapters
from fedfinlora.serving.pages import is_loopback

LOOPBACK = "127.0.0.1"


def serve(sources: Sequence[str], host: str, port: int, room: int, most_rows: int, most_tokens: int) -> int:
    """Serve until Ctrl-C. Each source is a run, a PEFT folder, or NAME=either of them."""
    import uvicorn

    for name, value in (("--room", room), ("--batch", most_rows), ("--max-tokens", most_tokens)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}.")
    if not 0 <= port < 2**16:
        raise ConfigError(f"--port must be a number from 0 to 65535, not {port}.")
    served = prepare(sources, room, most_rows, most_tokens)
    if not is_loopback(host):
        print(f"warning: {host} is reachable from other machines, and there is no password.", flush=True)
    names = ", ".join((BASE, *served.adapters))
    print(f"models: {names}\nhttp://{host}:{port}/v1  (Ctrl-C ends it)", flush=True)
    try:
        uvicorn.run(application(served, is_loopback(host)), host=host, port=port, log_level="critical")
    except SystemExit as error:  # uvicorn's end where the port cannot be had
        raise UserError(f"Port {port} of {host} cannot be had. Choose another with --port.") from error
    finally:
        served.engine.close()
    return 0


def prepare(sources: Sequence[str], room: int, most_rows: int, most_tokens: int) -> Served:
    """The base model with its adapters, and the thread that decodes. UserError where they do not go together."""
    folders: dict[str, Path] = {}
    configs: dict[str, Config | None] = {}
    for source in sources:
        name, adapter, config = _adapter(source)
        if name in folders or name == BASE:
            raise UserError(f"Two adapters would be called {name!r}. Give one another name: NAME={source}")
        folders[name], configs[name] = adapter, config
    base = _base(folders, configs)
    model, tokenizer = load_base(base)
    adapters = ManyAdapters(model, base.path, folders, min(room, max(len(folders), 1)))
    ends = getattr(model.generation_config, "eos_token_id", None) or []
    end_ids = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    engine = Engine(model, adapters, sorted(end_ids), most_rows, most_waiting=8 * most_rows)

    def encode(name: str, text: str) -> Sequence[int]:
        config = configs.get(name)
        return encode_prompts(tokenizer, [text], config.dataset.chat_template if config else False)[0]

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True))

    return Served(engine, tuple(folders), encode, decode, context_tokens(base), most_tokens)


def _adapter(source: str) -> tuple[str, Path, Config | None]:
    from fedfinlora.run.which_run import folder_or_run

    name, _, where = source.rpartition("=")
    folder = folder_or_run(where)
    adapter = folder if (folder / CONFIG_FILE).is_file() else folder / "adapters" / "final"
    if not (adapter / CONFIG_FILE).is_file():
        raise UserError(
            f"{folder} has no adapter: neither {CONFIG_FILE} nor adapters/final is there. Has the run ended?"
        )
    run = next((each for each in adapter.absolute().parents if (each / "config.yaml").is_file()), None)
    return name or (run.name if run else adapter.name), adapter, read_config(run) if run else None


def _base(folders: dict[str, Path], configs: dict[str, Config | None]) -> ModelConfig:
    """The one base model of all adapters, quantized as the first one's run had it. UserError that names two that have
    different ones.
    """
    first = next(iter(folders))
    config = configs[first]
    path = base_name(folders[first])
    base = config.model if config else ModelConfig(name=path, path=path, quantization="none")
    for name, folder in folders.items():
        if not same_base(base_name(folder), base.path):
            raise UserError(
                f"{name} was made for {base_name(folder)} and {first} for {base.path}: one server has one base model."
            )
    return base
