"""The colours of the pages, named by what they are for."""

from __future__ import annotations

COLOURS = {
    "paper": ("#fcfcfa", "#15181c"),
    "panel": ("#f3f3ef", "#1e2228"),
    "ink": ("#1b1e23", "#e8e7e2"),
    "quiet": ("#585e68", "#a3a9b3"),
    "rule": ("#d9d9d2", "#363b43"),
    "accent": ("#0b5a7a", "#7cc4e4"),
    "shade": ("#0003", "#000a"),
    "warn": ("#7a4b00", "#ffcf70"),
    "warn-panel": ("#fff3d6", "#362a10"),
    "fail": ("#9b1c1c", "#ffa8a0"),
    "fail-panel": ("#fde8e6", "#3b1a1a"),
    "gain": ("#12663a", "#7fd6a2"),
    "loss": ("#9b1c1c", "#ffa8a0"),
    "slot-0": ("#0b5a9c", "#6cb4f5"),
    "slot-1": ("#b8500b", "#f59a52"),
    "slot-2": ("#167a4e", "#5fcf9b"),
    "slot-3": ("#8a3a9b", "#d294e0"),
    "slot-4": ("#6b7280", "#a3a9b3"),
    "slot-5": ("#0e7c86", "#56c7d1"),
    "slot-6": ("#8c6206", "#dcb455"),
    "slot-7": ("#b02a62", "#f283ae"),
    "heat-right": ("#3f8fd2", "#2f7fc4"),
    "heat-wrong": ("#e58a3c", "#c26a1c"),
    "heat-apart": ("#8d939d", "#737a85"),
}
"""(light, dark). `slot-…` are the series of charts; `heat-…` the cells of confusion matrices (by their share)."""

LIGHT = {name: light for name, (light, _) in COLOURS.items()}
"""Charts saved as files have these too."""
DARK = {name: dark for name, (_, dark) in COLOURS.items()}
PRINT = {**LIGHT, "paper": "#fff", "panel": "#f3f3f0", "ink": "#000", "quiet": "#444", "rule": "#bbb"}

SLOTS = 8
"""Series that can be distinguished; each has its colour, marker and dash pattern."""
SHADES = 9
"""Steps of the colours in a confusion matrix."""
