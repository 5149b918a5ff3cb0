"""Invented names and everyday figures that fill the templates. No company or person here is meant to exist."""

# ruff: noqa: SIM905 (word lists read better as running text)

from __future__ import annotations

import random

from data.sample.drawing import pool

STEMS = (
    "Brenholt Tavosk Ilmarra Quessen Vardolin Ostrelle Kaldenby Merrowick Sundarve Pellagon Havrik Torrendal "
    "Nyvola Corvessa Dunmaro Ettelwyn Fjorsund Galvetta Hestrom Ivennor Jorvalis Kestravel Lomendra Marivelt "
    "Norquill Ostmarke Prevanta Rundelow Silvarna Trevonne Ulvesta Veltrano Wexmoor Xandrell Yarrowdene Zelmontis "
    "Ardelune Bastovar Cindrake Drovanna Elmsgard Frestova Grellach Holmquara Istravin Jendover Kvarnholt Lindrosse"
).split()
LEGAL_FORMS = ("Oyj", "plc", "AB", "Group", "Corp", "Holdings")
FIRST_NAMES = (
    "Anneli Marek Ines Tobias Farida Henrik Lucia Oskar Priya Stefan Yuki Mateo Greta Samir Elena Ruben Nadia Jonas"
).split()
LAST_NAMES = (
    "Kvistrand Dubrovan Almerath Solvesen Quintavel Harrowgate Petrescova Lindqvar Ostrowen Mbarele "
    "Castellino Vanderholm Ashdownley Tarkovan Bellarosa Fennimoor Grundvald Ikonenko"
).split()
PLACES = (
    "Finland Norway Estonia Poland Spain Portugal Austria Canada Brazil Chile Vietnam Kenya "
    "Tampere Bergen Tallinn Gdansk Seville Porto Graz Halifax Recife Valparaiso Hanoi Mombasa"
).split()
CITIES = (
    "Tampere",
    "Bergen",
    "Tallinn",
    "Gdansk",
    "Seville",
    "Porto",
    "Graz",
    "Halifax",
    "Recife",
    "Valparaiso",
    "Hanoi",
    "Mombasa",
)
PRODUCTS = (
    "packaging board",
    "heat pumps",
    "mobile payment software",
    "harbour cranes",
    "frozen foods",
    "medical sensors",
    "elevator doors",
    "timber houses",
    "fibre cables",
    "bicycle parts",
    "garden furniture",
    "battery chemicals",
)
QUARTERS = ("first quarter", "second quarter", "third quarter", "fourth quarter")
MONTHS = ("January", "March", "April", "June", "August", "September", "October", "November")


def stem(rng: random.Random, split: str) -> str:
    """A company name without its legal form."""
    return rng.choice(pool(STEMS, split))


def company(rng: random.Random, split: str) -> str:
    """A company name with its legal form."""
    return f"{stem(rng, split)} {rng.choice(LEGAL_FORMS)}"


def ticker(name: str) -> str:
    """A five-letter cashtag made from a stem's own letters, e.g. `$BRNHX` for Brenholt."""
    consonants = [letter for letter in name.upper() if letter not in "AEIOUY"]
    return "$" + "".join(consonants[:4]).ljust(4, "Q") + "X"


def person(rng: random.Random, split: str) -> str:
    """A given name and an invented family name."""
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(pool(LAST_NAMES, split))}"


def fill(template: str, rng: random.Random, split: str) -> str:
    """Fill a template's {company}, {stem}, {ticker}, {product}, {low}, {high}, … from one draw; low < high always."""
    name = stem(rng, split)
    low = rng.randrange(12, 480)
    high = low + rng.randrange(low // 6 + 2, low // 2 + 8)
    return template.format(
        stem=name,
        company=f"{name} {rng.choice(LEGAL_FORMS)}",
        ticker=ticker(name),
        product=rng.choice(PRODUCTS),
        city=rng.choice(CITIES),
        person=person(rng, split),
        quarter=rng.choice(QUARTERS),
        month=rng.choice(MONTHS),
        low=f"{low / 10:.1f}",
        high=f"{high / 10:.1f}",
        small=f"{rng.randrange(4, 19) / 10:.1f}",
        middle=rng.randrange(4, 12),
        large=rng.randrange(21, 68),
        count=rng.randrange(40, 900),
        link=f"https://example.com/{''.join(rng.choice('abcdefghjkmnpqrstuvwxyz23456789') for _ in range(5))}",
    )
