"""NER: is a name in the sentence of a loan agreement a person, a location or an organization?"""

from __future__ import annotations

import random

from data.sample import words
from data.sample.drawing import SampleRow, pool

LABELS = ("person", "location", "organization")

QUESTIONS = (
    "What is the entity type of '{entity}' in the input sentence.",
    "In the input sentence, determine the entity type for '{entity}'.",
    "Check the input sentence for the entity type associated with '{entity}'.",
    "Within the input text, identify the entity type of '{entity}'.",
    "Analyze the input sentence to find the entity type of '{entity}'.",
    "Examine the input text to classify the entity type of '{entity}'.",
    "With the input text as context, identify the entity type of '{entity}'.",
    "Assessing the input sentence as context, label the entity type of '{entity}'.",
)

SENTENCES = (
    "THIS AGREEMENT is made between {organization} , whose registered office is in {location} , and a lender "
    "represented by {person} .",
    "Notices to {organization} shall be sent to its office in {location} , to the attention of {person} , Chief "
    "Financial Officer .",
    "The term loan granted by {organization} shall be governed by the laws of {location} and was signed by "
    "{person} on behalf of the parent .",
    "{person} , Managing Director , confirmed in {location} that {organization} had drawn the second instalment of "
    "the facility .",
    "Any dispute between {organization} and the guarantor , {person} , shall be heard by the courts of {location} .",
    "Attention : {person} , Treasurer of {organization} , {street} , {location} .",
    "The security agent , {organization} , holds a mortgage over the warehouse in {location} that was valued by "
    "{person} .",
    "IN WITNESS WHEREOF {organization} has caused this amendment to be executed in {location} by its Vice "
    "President , {person} .",
    "Interest is paid quarterly by {organization} to the account that {person} opened at a branch in {location} .",
)
STREETS = (
    "14 Harbour Lane",
    "207 Mill Street",
    "3 Foundry Square",
    "58 Orchard Road",
    "91 Canal Walk",
    "6 Station Terrace",
)


def ner(rng: random.Random, split: str, index: int) -> SampleRow:
    """Each sentence names one of each kind; the kind asked for takes turns."""
    target = LABELS[index % 3]
    names = {
        "person": words.person(rng, split),
        "location": rng.choice(pool(words.PLACES, split)),
        "organization": words.company(rng, split),
    }
    sentence = rng.choice(SENTENCES).format(street=rng.choice(STREETS), **names)
    options = rng.sample(LABELS, 3)
    question = rng.choice(QUESTIONS).format(entity=names[target])
    return SampleRow(f"Instruction: {question}\nOptions: {', '.join(options)}\nInput: {sentence}\nAnswer: ", target)
