"""The colours of the report: one set for light, one for dark, named by what they are for. Figures saved as files carry the light set."""

from __future__ import annotations

LIGHT: dict[str, str] = {
    "paper": "#fcfcfa",
    "panel": "#f3f3ef",
    "ink": "#1b1e23",
    "quiet": "#585e68",
    "rule": "#d9d9d2",
    "accent": "#0b5a7a",
    "shade": "#0003",
    "warn": "#7a4b00",
    "warn-panel": "#fff3d6",
    "fail": "#9b1c1c",
    "fail-panel": "#fde8e6",
    "gain": "#12663a",
    "loss": "#9b1c1c",
    "slot-0": "#0b5a9c",
    "slot-1": "#b8500b",
    "slot-2": "#167a4e",
    "slot-3": "#8a3a9b",
    "slot-4": "#6b7280",
    "slot-5": "#0e7c86",
    "slot-6": "#8c6206",
    "slot-7": "#b02a62",
    "heat-right": "#3f8fd2",
    "heat-wrong": "#e58a3c",
    "heat-apart": "#8d939d",
}
"""`slot-…` are the series of charts; `heat-…` the cells of confusion matrices (mixed with the paper by their share)."""

DARK: dict[str, str] = {
    "paper": "#15181c",
    "panel": "#1e2228",
    "ink": "#e8e7e2",
    "quiet": "#a3a9b3",
    "rule": "#363b43",
    "accent": "#7cc4e4",
    "shade": "#000a",
    "warn": "#ffcf70",
    "warn-panel": "#362a10",
    "fail": "#ffa8a0",
    "fail-panel": "#3b1a1a",
    "gain": "#7fd6a2",
    "loss": "#ffa8a0",
    "slot-0": "#6cb4f5",
    "slot-1": "#f59a52",
    "slot-2": "#5fcf9b",
    "slot-3": "#d294e0",
    "slot-4": "#a3a9b3",
    "slot-5": "#56c7d1",
    "slot-6": "#dcb455",
    "slot-7": "#f283ae",
    "heat-right": "#2f7fc4",
    "heat-wrong": "#c26a1c",
    "heat-apart": "#737a85",
}

PRINT: dict[str, str] = {**LIGHT, "paper": "#fff", "panel": "#f3f3f0", "ink": "#000", "quiet": "#444", "rule": "#bbb"}

SLOTS = 8
"""Series that can be told apart; each has its colour, marker and dash pattern."""


def variables(colours: dict[str, str]) -> str:
    """The colours as CSS custom properties: "--paper: #fcfcfa; …"."""
    return " ".join(f"--{name}: {value};" for name, value in colours.items())
