"""Which lines of the ledger each row and customer is in, for 100,000 rows and 1,000 lines without reading a cohort.

Members with the same history share an *atom*. An atom is a stretch of lines (first to last, all with one weight) and a
parent atom that holds the stretches before it; atom 0 is the empty history. A line that all members of an atom take
part in makes its stretch one longer. Members that are left behind move to a copy of the atom as it was.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fedfinlora.privacy.cohorts import Cohort, Hashes

PARENT, FIRST, LAST, WEIGHT = range(4)


@dataclass(frozen=True, eq=False)
class Index:
    """The state after so many lines. Nothing in it is ever changed in place."""

    lines: int = 0
    hashes: Hashes = field(default_factory=lambda: np.array([], dtype=np.uint64))
    """(members,), ascending: every row and customer that was ever in a line."""
    atoms: NDArray[np.int32] = field(default_factory=lambda: np.array([], dtype=np.int32))
    """(members,): the atom of each."""
    nodes: NDArray[np.int32] = field(default_factory=lambda: np.zeros((1, 4), dtype=np.int32))
    """(atoms, 4): parent, first line, last line, weight."""

    def after(self, cohort: Cohort | None) -> Index:
        """The index with one more line; None: a line that names every row ("*"), which no atom needs to say."""
        line = self.lines + 1
        if cohort is None:
            return replace(self, lines=line)
        hashes, atoms, places = self._with(cohort.hashes)
        pairs, pair_of = np.unique(atoms[places].astype(np.int64) << 32 | cohort.weights, return_inverse=True)
        old, weight = (pairs >> 32).astype(np.int32), (pairs & 0xFFFFFFFF).astype(np.int32)

        childless = np.ones(len(self.nodes), dtype=bool)
        childless[self.nodes[:, PARENT]] = False
        grows = childless[old] & (self.nodes[old, LAST] == line - 1) & (self.nodes[old, WEIGHT] == weight)
        members, taking_part = np.bincount(atoms, minlength=len(self.nodes)), np.bincount(pair_of, minlength=len(pairs))
        left_behind = old[grows][members[old[grows]] > taking_part[grows]]
        copies = len(self.nodes) + np.arange(len(left_behind), dtype=np.int32)
        moved = np.arange(len(self.nodes), dtype=np.int32)
        moved[left_behind] = copies

        begun = np.stack([moved[old], np.full_like(old, line), np.full_like(old, line), weight], axis=1)[~grows]
        nodes = np.concatenate([self.nodes, self.nodes[left_behind], begun])
        nodes[old[grows], LAST] = line
        atom_of_pair = old.copy()
        atom_of_pair[~grows] = len(self.nodes) + len(copies) + np.arange(len(begun), dtype=np.int32)
        atoms = moved[atoms]
        atoms[places] = atom_of_pair[pair_of]
        return Index(line, hashes, atoms, nodes)

    def _with(self, wanted: Hashes) -> tuple[Hashes, NDArray[np.int32], NDArray[np.intp]]:
        """(hashes, atoms) with `wanted` among them, and their places."""
        places = np.searchsorted(self.hashes, wanted)
        new = ~self._known(wanted, places)
        if not new.any():
            return self.hashes, self.atoms, places
        hashes = np.insert(self.hashes, places[new], wanted[new])
        return hashes, np.insert(self.atoms, places[new], 0), np.searchsorted(hashes, wanted)

    def _known(self, wanted: Hashes, places: NDArray[np.intp]) -> NDArray[np.bool_]:
        known = np.zeros(len(wanted), dtype=bool)
        inside = places < len(self.hashes)
        known[inside] = self.hashes[places[inside]] == wanted[inside]
        return known

    def atoms_of(self, wanted: Hashes) -> NDArray[np.int32]:
        """The atom of each of `wanted`; 0 for one that was never seen."""
        places = np.searchsorted(self.hashes, wanted)
        found = np.zeros(len(wanted), dtype=np.int32)
        known = self._known(wanted, places)
        found[known] = self.atoms[places[known]]
        return found

    def weights(self, atoms: NDArray[np.int32], lines: NDArray[np.int64]) -> NDArray[np.int32]:
        """(atoms, lines) int32: the weight of each atom's members in each of `lines`, ascending; 0 = not in it."""
        changes = np.zeros((len(atoms), len(lines) + 1), dtype=np.int32)
        if not len(lines):
            return changes[:, :-1]
        rows, current = np.arange(len(atoms)), atoms
        while len(rows):
            node = self.nodes[current]
            # Within one turn no row comes twice, so plain indexing adds up.
            changes[rows, np.searchsorted(lines, node[:, FIRST])] += node[:, WEIGHT]
            changes[rows, np.searchsorted(lines, node[:, LAST], side="right")] -= node[:, WEIGHT]
            # A parent ends before its child begins: what began before the first line asked for has no more to say.
            going_on = (node[:, PARENT] > 0) & (node[:, FIRST] > lines[0])
            rows, current = rows[going_on], node[going_on, PARENT]
        return np.cumsum(changes, axis=1, dtype=np.int32)[:, :-1]

    def members(self, line: int) -> Cohort:
        """The cohort of one line."""
        atoms, atom_of = np.unique(self.atoms, return_inverse=True)
        weights = self.weights(atoms, np.array([line]))[:, 0][atom_of]
        return Cohort(self.hashes[weights > 0], weights[weights > 0])

    def to_bytes(self) -> bytes:
        """The file: one line of JSON, then the arrays, little-endian."""
        header = {"lines": self.lines, "members": len(self.hashes), "atoms": len(self.nodes)}
        arrays = (self.hashes.astype("<u8"), self.atoms.astype("<i4"), self.nodes.astype("<i4"))
        return json.dumps(header, allow_nan=False).encode() + b"\n" + b"".join(array.tobytes() for array in arrays)

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """The index of a file whose hash was checked."""
        first, _, rest = content.partition(b"\n")
        header = json.loads(first)
        members = header["members"]
        return cls(
            header["lines"],
            np.frombuffer(rest, "<u8", members).astype(np.uint64),
            np.frombuffer(rest, "<i4", members, 8 * members).astype(np.int32),
            np.frombuffer(rest, "<i4", 4 * header["atoms"], 12 * members).reshape(-1, 4).astype(np.int32),
        )
