"""Makes the golden files next to this script: outputs of real models, and by hand, with the score that FinLoRA's rules
give them.

    python tests/golden/make.py                  about 12 minutes on one thread: trains, generates, judges, writes
    python tests/golden/make.py --keep-outputs   a second: keeps the models' outputs and judges them again, with the
    hand-made cases

One file a benchmark, one evaluation a file: its label set is that of all targets in it. The outputs are those of the
embedded model, untouched ("base") and with an adapter that is trained on the bundled sample for a few minutes
("adapter"), on rows of `data/sample` alone, by transformers' plain `generate`: greedy, row by row, FinLoRA's raw
prompt, the catalogue's budget. Verdicts on them come from `tests/helpers/finlora_reference.py`, which knows nothing of
the project's evaluator; those on the hand-made cases stand in `hand_made.py`, and nothing is written unless the
reference agrees with every one of them. Another machine may generate other outputs; the committed ones are as good as
those.

Fields: `id`, `prompt` (models' rows only), `target`, `output` (without the prompt), `finlora_correct`,
`finlora_ambiguous`, `label` (the label that the rules take as the answer), `why` (hand-made rows only). FiNER and FNXL
have a list in each of the three, an entry for each tag of the target. BERTScore sets have null there and
`finlora_output`, the text that is compared.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
if not __package__:  # run as a script; tests that import it have both
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "helpers")]

from finlora_reference import BERTSCORES, TAG_LISTS, Example, decoded_answer, evaluate  # noqa: E402
from golden.hand_made import CASES, STAND_IN_PROMPTS  # noqa: E402

ROWS = 8
"""Rows of each benchmark for each of the two models."""
ROWS_OF_LONG_PROMPTS = 4
"""The same for FiNER, FNXL and the four extraction sets."""
TRAINING = (
    "model.quantization=none", "model.threads=1", "peft=lora", "peft.target_modules=[q_proj,k_proj,v_proj,o_proj]",
    "num_server_rounds=3", "train.steps_per_round=8", "train.batch_rows=8", "train.warmup_steps=4", "evaluation=none",
    "run_name=golden",
)  # fmt: skip

Golden = dict[str, Any]
"""One row of a golden file."""


def train_adapter(folder: Path) -> Path:
    """The adapter folder of a short centralised run on the sample."""
    command = [sys.executable, "-m", "fedfinlora", "centralized", "--banks", "1", *TRAINING, f"output_dir={folder}"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    return folder / "golden" / "adapters" / "final"


def sample_rows(key: str) -> list[tuple[str, Golden]]:
    """(name of the model, golden row without output): the two models get different rows, drawn with a fixed seed."""
    from data.catalog import BENCHMARKS

    benchmark = BENCHMARKS[key]
    lines = (
        (ROOT / "data" / "sample" / "test" / f"{benchmark.test_file}.jsonl").read_text(encoding="utf-8").splitlines()
    )
    wanted = 2 * (ROWS_OF_LONG_PROMPTS if key in TAG_LISTS or "_extract" in key else ROWS)
    drawn = random.Random(key).sample(range(len(lines)), wanted)
    rows = []
    for name, numbers in (("base", drawn[::2]), ("adapter", drawn[1::2])):
        for number in sorted(numbers):
            line = json.loads(lines[number])
            row_id = f"{key}/test/{number:06d}/{name}"
            rows.append((name, {"id": row_id, "prompt": line["context"], "target": line["target"], "output": ""}))
    return rows


def generate_outputs() -> dict[str, list[Golden]]:
    """Benchmark -> rows with the models' outputs, base rows first."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from data.catalog import BENCHMARKS
    from fedfinlora.model.embedded import SMOLLM2, embedded_folder

    torch.set_num_threads(1)
    source = embedded_folder(SMOLLM2)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    golden: dict[str, list[Golden]] = {key: [] for key in BENCHMARKS}
    with tempfile.TemporaryDirectory() as scratch:
        adapter = train_adapter(Path(scratch))
        for name in ("base", "adapter"):
            if name == "adapter":
                model = PeftModel.from_pretrained(model, adapter).eval()
            for key, benchmark in BENCHMARKS.items():
                for row in [row for model_name, row in sample_rows(key) if model_name == name]:
                    row["output"] = generate(model, tokenizer, row["prompt"], benchmark.budget_tokens)
                    golden[key].append(row)
                print(f"{name}: {key}: {[row['output'] for row in golden[key]][-2:]}", flush=True)
    return golden


def generate(model: Any, tokenizer: Any, prompt: str, budget: int) -> str:
    """The decoded text behind the prompt."""
    import torch

    tokens = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**tokens, max_new_tokens=budget, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    decoded: str = tokenizer.decode(ids[0], skip_special_tokens=True)
    if not decoded.startswith(prompt):
        raise SystemExit("the decoded text does not begin with its prompt")
    return decoded[len(prompt) :]


def hand_made_rows(key: str) -> list[Golden]:
    """The hand-made cases of one benchmark with the verdicts that stand there."""
    return [
        {
            "id": f"{key}/hand/{case.name}",
            "target": case.target,
            "output": case.output,
            "finlora_correct": case.correct,
            "finlora_ambiguous": case.ambiguous,
            "label": case.label,
            **({"finlora_output": case.text} if key in BERTSCORES else {}),
            "why": case.why,
        }
        for case in CASES[key]
    ]


def examples_of(key: str, rows: list[Golden]) -> list[Example]:
    """Golden rows as the reference takes them; hand-made rows get a stand-in prompt."""
    stand_in = STAND_IN_PROMPTS["tag_list" if key in TAG_LISTS else "answer"]
    return [Example(row.get("prompt", stand_in), row["target"], row["output"]) for row in rows]


def verdicts(key: str, rows: list[Golden]) -> list[Golden]:
    """What the reference says of each row of one file: the fields that are frozen."""
    examples = examples_of(key, rows)
    if key in BERTSCORES:
        empty = {"finlora_correct": None, "finlora_ambiguous": None, "label": None}
        return [{**empty, "finlora_output": decoded_answer(key, example)} for example in examples]
    found = []
    for pieces in evaluate(key, examples):
        fields = {
            "finlora_correct": [piece.correct for piece in pieces],
            "finlora_ambiguous": [piece.ambiguous for piece in pieces],
            "label": [piece.label for piece in pieces],
        }
        found.append(fields if key in TAG_LISTS else {name: values[0] for name, values in fields.items()})
    return found


def judged(key: str, rows: list[Golden]) -> tuple[list[Golden], list[str]]:
    """The rows of one file with their verdicts, and the ids of hand-made rows that the reference judges otherwise."""
    rows = [*rows, *hand_made_rows(key)]
    complete, wrong = [], []
    for row, verdict in zip(rows, verdicts(key, rows), strict=True):
        if "why" in row and any(row[name] != value for name, value in verdict.items()):
            wrong.append(f"{row['id']}: by hand {[row[name] for name in verdict]}, reference {list(verdict.values())}")
        complete.append({**row, **verdict} if "why" not in row else row)
    return complete, wrong


def main() -> None:
    if sys.argv[1:] == ["--keep-outputs"]:
        kept = ("id", "prompt", "target", "output")
        files = {key: (FOLDER / f"{key}.jsonl").read_text(encoding="utf-8").split("\n")[:-1] for key in CASES}
        loaded = {key: [json.loads(line) for line in lines] for key, lines in files.items()}
        outputs = {
            key: [{name: row[name] for name in kept} for row in rows if "prompt" in row] for key, rows in loaded.items()
        }
    elif not sys.argv[1:]:
        outputs = generate_outputs()
    else:
        raise SystemExit(f"Unknown arguments {sys.argv[1:]}. Give none, or --keep-outputs.")
    files_and_faults = {key: judged(key, rows) for key, rows in outputs.items()}
    faults = [fault for _, found in files_and_faults.values() for fault in found]
    if faults:
        raise SystemExit("The reference disagrees with hand-made cases; nothing was written.\n" + "\n".join(faults))
    for key, (rows, _) in files_and_faults.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (FOLDER / f"{key}.jsonl").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
