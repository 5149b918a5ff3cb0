"""`bom.cdx.json`: the bill of materials of an adapter (CycloneDX 1.6), made from the statement of its origin."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from fedfinlora import __version__
from fedfinlora.model.adapter_folder import WEIGHTS_FILE
from fedfinlora.provenance.signatures import canonical

BOM_FILE = "bom.cdx.json"


def bom_of(name: str, files: Mapping[str, str], predicate: Mapping[str, Any]) -> dict[str, Any]:
    """Base model, data files and libraries of an adapter."""
    base, data = predicate["baseModel"], predicate["data"]
    version = str(predicate["run"])
    parts = [
        {
            "type": "machine-learning-model", "bom-ref": "base-model", "name": base["name"],
            "version": base["revision"] or "unversioned",
            **_hashes(base["sha256"]), "properties": [{"name": "fedfinlora:path", "value": base["path"]}],
        },
        *({"type": "data", "bom-ref": f"data:{file}", "name": file, **_hashes(found)} for file,
        found in sorted(data.items())),
        *(
            {"type": "library", "bom-ref": f"pkg:pypi/{package}@{number}", "name": package, "version": number,
            "purl": f"pkg:pypi/{package}@{number}"}
            for package, number in sorted(predicate["software"].items())
        ),
    ]  # fmt: skip
    privacy = predicate["privacy"]
    facts = {
        "run": version, "rounds": predicate["rounds"], "banks": ", ".join(predicate["banks"]),
        "strategy": predicate["strategy"],
        "configurationSha256": predicate["configurationSha256"], "sourceSha256": predicate["code"]["sourceSha256"],
        "privacy": f"{privacy['mode']}, {privacy['unit']}, epsilon {privacy['epsilon']}, delta {privacy['delta']}" if privacy else "none",  # noqa: E501
    }  # fmt: skip
    adapter = {
        "type": "machine-learning-model", "bom-ref": "adapter", "name": name, "version": version,
        **_hashes(files[WEIGHTS_FILE]),
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"}, "task": "text-generation", "architectureFamily": "transformer",
                "modelArchitecture": (f"{base['name']} with {predicate['adapter']['method']} of rank "
                                     f"{predicate['adapter']['rank']}"),
                "datasets": [{"ref": f"data:{file}"} for file in sorted(data)],
            },
            **({"considerations": {"technicalLimitations": list(privacy["limits"])}} if privacy else {}),
        },
        "properties": [{"name": f"fedfinlora:{key}", "value": str(value)} for key, value in facts.items()],
    }  # fmt: skip
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{version} {files[WEIGHTS_FILE]}')}",
        "version": 1,
        "metadata": {
            "tools": {
                "components": [{"type": "application", "name": "fedfinlora", "version": predicate["code"]["version"]}]
            },
            "component": adapter,
        },
        "components": parts,
        "dependencies": [
            {"ref": "adapter", "dependsOn": [str(part["bom-ref"]) for part in parts]},
            *({"ref": str(part["bom-ref"])} for part in parts),
        ],
    }


def _hashes(sha256: str) -> dict[str, Any]:
    return {"hashes": [{"alg": "SHA-256", "content": sha256}]} if sha256 else {}


def check_bom(found: Any, files: Mapping[str, str], predicate: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(names of values that do not follow from the statement, names of values that cannot be compared: those that a
    bill of another version has more or fewer).

    KeyError or TypeError where it has not the form of a bill.
    """
    made = json.loads(
        json.dumps(bom_of(str(found["metadata"]["component"]["name"]), files, predicate), allow_nan=False)
    )
    differences = list(differing(made, found))
    if predicate["code"]["version"] == __version__:
        return [name for name, _ in differences], []
    return [name for name, one_sided in differences if not one_sided], [
        name for name, one_sided in differences if one_sided
    ]


def differing(expected: Any, found: Any, where: str = "") -> Iterator[tuple[str, bool]]:
    """(dotted name of a value that differs, whether one of the two lacks it). Parts of a list go by their name.

    >>> list(differing({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 0}, "e": 4}))
    [('b.c', False), ('b.d', True), ('e', True)]
    >>> list(differing([{"name": "x", "value": 1}], [{"name": "y", "value": 2}, {"name": "x", "value": 3}]))
    [('[x].value', False), ('[y]', True)]
    """
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for name in sorted({*expected, *found}):
            if name in expected and name in found:
                yield from differing(expected[name], found[name], f"{where}{name}.")
            else:
                yield f"{where}{name}", True
    elif (
        isinstance(expected, list)
        and isinstance(found, list)
        and (one := _by_name(expected))
        and (other := _by_name(found))
    ):
        for name in sorted({*one, *other}):
            if name in one and name in other:
                yield from differing(one[name], other[name], f"{where.removesuffix('.')}[{name}].")
            else:
                yield f"{where.removesuffix('.')}[{name}]", True
    elif canonical(expected) != canonical(found):
        yield where.removesuffix("."), False


def _by_name(parts: list[Any]) -> dict[str, Any]:
    """The objects of a list by what names each; {} where something has no name or two have one."""
    named = {}
    for part in parts:
        name = (
            next((str(part[key]) for key in ("bom-ref", "ref", "name") if key in part), "")
            if isinstance(part, Mapping)
            else ""
        )
        if not name or name in named:
            return {}
        named[name] = part
    return named
