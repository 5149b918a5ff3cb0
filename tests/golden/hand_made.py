"""The hand-made golden cases: outputs that FinLoRA's rules treat in ways worth knowing, with verdicts worked out by
hand.

After a change: `python tests/golden/make.py --keep-outputs`. Every target is a label of its whole file (see `make.py`),
so a number or a tag that must not be a label elsewhere is used once only. Rule numbers are FinLoRA's, as in
`eval/scoring.py`.
"""

from __future__ import annotations

from typing import NamedTuple

STAND_IN_PROMPTS = {"answer": "A question.\nAnswer:", "tag_list": "A question.\nOutput US GAAP tags:"}
"""The prompt in front of a hand-made output."""

Label = str | None


class Case(NamedTuple):
    """One output, and what the rules make of it. For FiNER and FNXL label, correct and ambiguous are lists by tag."""

    name: str
    target: str
    output: str
    label: Label | list[Label]
    """The label that is taken as the answer (lower case), None if the output holds no label."""
    correct: bool | list[bool] | None
    ambiguous: bool | list[bool] | None
    why: str
    text: str = ""
    """BERTScore sets only: the text that is compared."""


T, F = True, False
TIE, ALONE = True, False
"""Two labels start at the earliest place; one does (or none)."""

CASES: dict[str, list[Case]] = {
    "fpb": [
        Case("not-neutral", "neutral", "not neutral", "neutral", T, ALONE, "the label is found behind `not`; rule 5 sees no negation"),
        Case("strong-positive", "positive", "strong positive", "positive", T, ALONE, "`strong` is no label here, so it is passed over"),
        Case("two-labels", "positive", "negative or positive", "negative", F, ALONE, "the label that starts first is the answer"),
        Case("inside-a-word", "positive", "nonpositively charged", "positive", T, ALONE, "`find` needs no word boundary"),
        Case("split-by-a-line-end", "positive", "posi\ntive", None, F, ALONE, "line ends are removed in tag lists only (rule 4)"),
        Case("empty", "neutral", "", None, F, ALONE, "no label in an empty output: wrong, and not ambiguous"),
        Case("blanks", "neutral", " \n\t ", None, F, ALONE, "stripped to nothing by rule 3"),
        Case("output-in-capitals", "positive", "POSITIVE", "positive", T, ALONE, "the output is lower-cased"),
        Case("target-with-a-capital", "Positive", "positive", "positive", T, ALONE, "the label set and the comparison are in lower case"),
        Case("capital-target-missed", "Negative", "Neutral", "neutral", F, ALONE, "F1 counts `Negative` and `negative` as two classes"),
        Case("answer-again", "negative", "positive\nAnswer: negative", "negative", T, ALONE, "rule 3 takes what follows the last `Answer:`"),
        Case("answer-again-and-nothing", "positive", "positive\nAnswer:", None, F, ALONE, "what follows the last `Answer:` is empty"),
        Case("answer-first", "positive", " Answer: positive", "positive", T, ALONE, "the part before the last `Answer:` is dropped"),
        Case("answer-in-small-letters", "negative", "positive answer: negative", "positive", F, ALONE, "rule 3 splits on `Answer:` as written, capital A"),
        Case("answer-and-a-blank-before-the-colon", "negative", "positive Answer : negative", "positive", F, ALONE, "`Answer :` is not `Answer:`"),
        Case("full-width-colon", "positive", "positive\nAnswer\uff1a negative", "positive", T, ALONE, "U+FF1A is not the colon of rule 3"),
        Case("full-width-letters", "positive", "\uff30\uff4f\uff53\uff49\uff54\uff49\uff56\uff45", None, F, ALONE, "lower() keeps full-width letters full-width"),
        Case("dotted-capital-i", "positive", "POS\u0130TIVE", None, F, ALONE, "lower() makes i and a combining dot of U+0130, one character more"),
        Case("dotted-capital-i-before", "negative", "\u0130\u0130\u0130 negative, positive", "negative", T, ALONE, "lower() moves both labels by three places, their order stays"),
        Case("long-s", "positive", "po\u017fitive", None, F, ALONE, "lower() keeps the long s; only casefold() would make it an s"),
        Case("zero-width-blank", "positive", "posi\u200btive", None, F, ALONE, "an invisible character splits the label"),
        Case("odd-blanks-around", "neutral", "\u00a0\u2028neutral\u3000", "neutral", T, ALONE, "strip() takes every Unicode blank"),
    ],
    "fiqa": [
        Case("inside-a-noun", "neutral", "neutrality", "neutral", T, ALONE, "a longer word that begins with a label"),
        Case("choices-repeated", "positive", "{negative/neutral/positive} positive", "negative", F, ALONE, "the first of the repeated choices is taken"),
        Case("goes-on", "positive", "positive\nInput: shares fell, negative", "positive", T, ALONE, "text behind the first label does not matter"),
        Case("answer-goes-on", "positive", "positive\nInput: shares fell\nAnswer: negative", "negative", F, ALONE, "an invented second question replaces the right answer"),
        Case("answer-glued", "negative", "positiveAnswer:negative", "negative", T, ALONE, "no blank is needed around `Answer:`"),
        Case("answer-twice", "neutral", "Answer: positive Answer: negative Answer: neutral", "neutral", T, ALONE, "only the last piece counts"),
        Case("shortened", "positive", "pos", None, F, ALONE, "a part of a label is no label"),
    ],
    "tfns": [
        Case("other-word", "positive", "bullish", None, F, ALONE, "a synonym is no label"),
        Case("full-stop", "neutral", "Neutral.", "neutral", T, ALONE, "case and punctuation do not matter"),
        Case("inner-blank", "neutral", "neu tral", None, F, ALONE, "blanks inside are kept"),
        Case("other-language", "negative", "Negativ", None, F, ALONE, "one letter short"),
        Case("hyphen", "negative", "non-negative", "negative", T, ALONE, "a hyphen does not bind"),
        Case("emoji", "positive", "\U0001f4c8\U0001f4c8 positive", "positive", T, ALONE, "what stands in front does not matter"),
        Case("explained", "positive", "This is not a negative tweet but a positive one", "negative", F, ALONE, "the first label is a denied one"),
    ],
    "nwgi": [
        Case("other-degree", "strong positive", "mildly positive", "positive", T, ALONE, "rule 8: both are positive"),
        Case("same-level", "strong negative", "strong negative", "negative", T, ALONE, "`negative` is found behind `strong`, which is no label"),
        Case("degree-alone", "moderately negative", "moderately", None, F, ALONE, "the degree is no label of the three"),
        Case("collapsed-output", "moderately negative", "negative", "negative", T, ALONE, "the collapsed label is enough"),
        Case("adverb", "strong positive", "Strongly Positive", "positive", T, ALONE, "`positive` in lower case is found"),
        Case("denied", "mildly positive", "not negative but mildly positive", "negative", F, ALONE, "the first label is the answer"),
        Case("two-levels", "neutral", "mildly neutral positive", "neutral", T, ALONE, "`neutral` starts before `positive`"),
        Case("empty", "neutral", "", None, F, ALONE, "no label in an empty output"),
    ],
    "headline": [
        Case("inside-nothing", "No", "nothing", "no", T, ALONE, "`no` begins `nothing`"),
        Case("inside-not", "Yes", "I do not say yes", "no", F, ALONE, "`no` in `not` starts before `yes`"),
        Case("inside-know", "No", "Who knows", "no", T, ALONE, "`no` in `knows`"),
        Case("inside-yesterday", "No", "Yesterday, no", "yes", F, ALONE, "`yes` begins `yesterday`"),
        Case("inside-eyes", "Yes", "eyes", "yes", T, ALONE, "`yes` in `eyes`"),
        Case("both", "Yes", "Yes and no", "yes", T, ALONE, "the first label is the answer"),
        Case("capitals", "no", "NO", "no", T, ALONE, "a target in small letters, an output in capitals"),
        Case("numero-sign", "No", "\u2116", None, F, ALONE, "U+2116 is one character, not an n and an o"),
        Case("full-width-n", "No", "\uff2eo", None, F, ALONE, "a full-width N stays full-width in lower case"),
        Case("blank", "Yes", "\n", None, F, ALONE, "stripped to nothing"),
    ],
    "ner": [
        Case("other-spelling", "organization", "organisation", None, F, ALONE, "the British spelling is no label"),
        Case("inside-allocation", "location", "allocation", "location", T, ALONE, "`location` in `allocation`"),
        Case("inside-personal", "location", "personal location", "person", F, ALONE, "`person` in `personal` starts before `location`"),
        Case("plural", "organization", "Organizations", "organization", T, ALONE, "a longer word that begins with a label"),
        Case("options-repeated", "person", "Options: organization, location, person", "organization", F, ALONE, "the first of the repeated options is taken"),
        Case("long-s", "person", "per\u017fon", None, F, ALONE, "lower() keeps the long s"),
        Case("company", "organization", "company", None, F, ALONE, "a synonym is no label"),
    ],
    "cfa_level1": [
        Case("letter", "B", "B", "b", T, ALONE, "the letter alone"),
        Case("sentence", "B", "The answer is B", "a", F, ALONE, "`a` of `answer` is the first letter that is a label"),
        Case("sentence-by-luck", "A", "The answer is C", "a", T, ALONE, "`a` of `answer` again: right for any answer that follows"),
        Case("answer-with-colon", "B", "The right one: Answer: B", "b", T, ALONE, "rule 3 cuts the sentence off"),
        Case("inside-because", "B", "Because of growth", "b", T, ALONE, "`b` begins `because`"),
        Case("brackets", "C", "(C)", "c", T, ALONE, "brackets do not matter"),
        Case("not-on-offer", "B", "D", None, F, ALONE, "no target is D, so D is no label"),
        Case("no-letter", "A", "either", None, F, ALONE, "no a, b or c in it"),
        Case("full-width", "B", "\uff22", None, F, ALONE, "a full-width B is no B"),
        Case("cyrillic", "B", "\u0412", None, F, ALONE, "a Cyrillic letter that looks like B"),
    ],
    "cfa_level2": [
        Case("small-letter", "B", "b) 144.30", "b", T, ALONE, "case does not matter"),
        Case("two-letters", "C", "A, because C", "a", F, ALONE, "the first letter is the answer; commas split tag lists only"),
        Case("inside-residual", "A", "Residual income", "a", T, ALONE, "`a` of `residual` starts before `c` of `income`"),
        Case("glued", "C", "Answer:C", "c", T, ALONE, "rule 3 takes what follows"),
        Case("figure-only", "C", "$85.10", None, F, ALONE, "no letter"),
    ],
    "cfa_level3": [
        Case("sentence", "A", "I think the best is A", "b", F, ALONE, "`b` of `best` starts before the answer"),
        Case("choice", "C", "Choice C", "c", T, ALONE, "`c` of `choice`, right by luck"),
        Case("choice-by-bad-luck", "A", "Choice A", "c", F, ALONE, "`c` of `choice`, wrong by bad luck"),
        Case("option", "B", "Option B", "b", T, ALONE, "no a, b or c in `option`"),
        Case("empty", "A", "  ", None, F, ALONE, "stripped to nothing"),
    ],
    "cpa_reg": [
        Case("fourth-letter", "D", "D. $51,000", "d", T, ALONE, "D is a label here"),
        Case("inside-basis", "B", "The outside basis", "d", F, ALONE, "`d` of `outside` starts before `b` of `basis`"),
        Case("two-letter-target", "A and C", "A and C", "a and c", T, TIE, "`a` and `a and c` start together; the longer one wins"),
        Case("longer-label-wins", "A", "A and C", "a and c", F, TIE, "the same tie; under another order of the set it would be right"),
        Case("letter-of-a-longer-label", "A", "A and D", "a", T, ALONE, "`a and c` is not in it"),
        Case("shorter-than-the-target", "A and C", "A", "a", F, ALONE, "a part of the target"),
        Case("answer-again", "C", "B\nAnswer: C", "c", T, ALONE, "rule 3 takes what follows the last `Answer:`"),
    ],
    "xbrl_finer": [
        Case("exact", "Assets,Revenues", "Assets,Revenues", ["assets", "revenues"], [T, T], [ALONE, ALONE], "piece by piece"),
        Case("prefix", "Assets,Revenues", "AssetsCurrent,Revenues", ["assetscurrent", "revenues"], [F, T], [TIE, ALONE], "`assets` and `assetscurrent` start together; the longer one wins"),
        Case("prefix-right", "AssetsCurrent,Assets", "AssetsCurrent,Assets", ["assetscurrent", "assets"], [T, T], [TIE, ALONE], "`assetscurrent` is not in the second piece"),
        Case("prefix-unknown", "Assets,Revenues", "AssetsNet,RevenuesNet", ["assets", "revenues"], [T, T], [ALONE, ALONE], "neither longer tag is a target of this file, so its beginning counts"),
        Case("too-short", "Assets,Revenues,InterestExpense", "Assets", ["assets", None, None], [T, F, F], [ALONE] * 3, "padded with empty pieces"),
        Case("too-long", "Revenues", "Revenues,Assets,Assets", ["revenues"], [T], [ALONE], "cut to the target's length"),
        Case("too-long-and-late", "Revenues", "Assets,Revenues", ["assets"], [F], [ALONE], "the right tag is cut off"),
        Case("blanks", "Assets,Revenues", "  Assets ,\tRevenues ", ["assets", "revenues"], [T, T], [ALONE, ALONE], "each piece is stripped"),
        Case("line-ends-inside", "IncomeTaxExpenseBenefit,Revenues", "IncomeTax\nExpenseBenefit\n,\nRevenues", ["incometaxexpensebenefit", "revenues"], [T, T], [ALONE, ALONE], "newlines are removed, not made blanks"),
        Case("carriage-return-inside", "IncomeTaxExpenseBenefit,Revenues", "IncomeTax\r\nExpenseBenefit,Revenues", [None, "revenues"], [F, T], [ALONE, ALONE], "only the newline is removed; the carriage return stays"),
        Case("line-end-for-comma", "Assets,Revenues", "Assets\nRevenues", ["assets", None], [T, F], [ALONE, ALONE], "one piece, `AssetsRevenues`, and an empty one"),
        Case("trailing-comma", "Assets,Revenues", "Assets,Revenues,", ["assets", "revenues"], [T, T], [ALONE, ALONE], "the empty third piece is cut off"),
        Case("trailing-commas-for-tags", "Assets,Revenues", "Assets,,", ["assets", None], [T, F], [ALONE, ALONE], "an empty piece holds no label"),
        Case("leading-comma", "Assets,Revenues", ",Assets,Revenues", [None, "assets"], [F, F], [ALONE, ALONE], "every tag is one place late"),
        Case("double-comma", "Assets,Revenues", "Assets,,Revenues", ["assets", None], [T, F], [ALONE, ALONE], "the empty piece takes the place of the second tag"),
        Case("swapped", "Assets,Revenues", "Revenues,Assets", ["revenues", "assets"], [F, F], [ALONE, ALONE], "places count"),
        Case("empty", "Assets,Revenues", "", [None, None], [F, F], [ALONE, ALONE], "one empty piece, padded"),
        Case("only-blanks", "Assets,Revenues", " \n ", [None, None], [F, F], [ALONE, ALONE], "the same"),
        Case("only-commas", "Assets,Revenues", ", ,", [None, None], [F, F], [ALONE, ALONE], "three empty pieces, cut to two"),
        Case("semicolon", "Assets,Revenues", "Assets; Revenues", ["assets", None], [T, F], [ALONE, ALONE], "one piece, whose first label is `assets`"),
        Case("full-width-comma", "Assets,Revenues", "Assets\uff0cRevenues", ["assets", None], [T, F], [ALONE, ALONE], "U+FF0C separates nothing"),
        Case("numbered", "Assets,Revenues", "1. Assets, 2. Revenues", ["assets", "revenues"], [T, T], [ALONE, ALONE], "labels are found behind the numbers"),
        Case("with-prefix", "Assets,Revenues", "us-gaap:Assets,US-GAAP:REVENUES", ["assets", "revenues"], [T, T], [ALONE, ALONE], "labels are found behind the prefix, in any case"),
        Case("answer-in-output", "Assets,Revenues", "Revenues,Assets\nAnswer: Assets,Revenues", ["assets", "revenues"], [T, T], [ALONE, ALONE], "rule 3 on the output; this prompt holds no `Answer:`"),
        Case("marker-repeated", "Assets,Revenues", "Output US GAAP tags:Assets,Revenues", ["assets", "revenues"], [T, T], [ALONE, ALONE], "no rule cuts this marker off, and no label is in it"),
        Case("blank-in-the-target", "Assets, Revenues\n", "Assets,Revenues", ["assets", "revenues"], [T, T], [ALONE, ALONE], "the target's pieces are stripped too"),
    ],
    "xbrl_fnxl": [
        Case("three-start-together", "DebtInstrument,DebtInstrumentFace,DebtInstrumentFaceAmount", "DebtInstrument,DebtInstrumentFace,DebtInstrumentFaceAmount", ["debtinstrument", "debtinstrumentface", "debtinstrumentfaceamount"], [T, T, T], [ALONE, TIE, TIE], "one, two and three labels start at the first place"),
        Case("always-the-longest", "DebtInstrument,DebtInstrumentFace,DebtInstrumentFaceAmount", "DebtInstrumentFaceAmount,DebtInstrumentFaceAmount,DebtInstrumentFaceValue", ["debtinstrumentfaceamount", "debtinstrumentfaceamount", "debtinstrumentface"], [F, F, F], [TIE, TIE, TIE], "the longest label in the piece wins each time"),
        Case("label-inside-a-label", "DeferredRevenue,Revenue", "DeferredRevenue,DeferredRevenue", ["deferredrevenue", "deferredrevenue"], [T, F], [ALONE, ALONE], "`revenue` starts later, so there is no tie"),
        Case("text-before", "DeferredRevenue,Revenue", "The revenue tag is DeferredRevenue,Revenue", ["revenue", "revenue"], [F, T], [ALONE, ALONE], "a word of the sentence is the first label"),
        Case("too-short", "DeferredRevenue,Revenue,AdvertisingExpense", "DeferredRevenue,Revenue", ["deferredrevenue", "revenue", None], [T, T, F], [ALONE] * 3, "padded with an empty piece"),
        Case("too-long", "AdvertisingExpense", "DeferredRevenue,AdvertisingExpense", ["deferredrevenue"], [F], [ALONE], "cut to one piece"),
        Case("thousands-comma", "DeferredRevenue,AdvertisingExpense", "1,200 is DeferredRevenue,AdvertisingExpense", [None, "deferredrevenue"], [F, F], [ALONE, ALONE], "the comma of a number separates pieces too"),
        Case("line-end-and-comma", "DeferredRevenue,AdvertisingExpense", "DeferredRevenue,\nAdvertisingExpense\n", ["deferredrevenue", "advertisingexpense"], [T, T], [ALONE, ALONE], "stripped"),
        Case("empty", "DeferredRevenue", "", [None], [F], [ALONE], "no label in an empty piece"),
    ],
    "xbrl_term": [
        Case("plain", "What a company owes.", " What a company owes.\n", None, None, None, "stripped; nothing is right or wrong here", "What a company owes."),
        Case("answer-again", "What a company owes.", "A debt. Answer: What a company owns.", None, None, None, "rule 3", "What a company owns."),
        Case("answer-at-the-end", "What a company owes.", "A debt.\nAnswer: ", None, None, None, "nothing follows the last `Answer:`", ""),
        Case("blanks", "What a company owes.", "\n\u00a0\n", None, None, None, "stripped to nothing", ""),
        Case("inner-line-ends", "What a company owes.", "What a\ncompany\n\nowes.", None, None, None, "line ends inside stay", "What a\ncompany\n\nowes."),
        Case("commas", "Cash, notes and bonds.", "Cash, notes, bonds", None, None, None, "commas split tag lists only", "Cash, notes, bonds"),
    ],
    "xbrl_tags_extract": [
        Case("prefix-too-long", "us-gaap:Assets", "us-gaap:AssetsCurrent", "us-gaap:assetscurrent", F, TIE, "both start together; the longer one wins"),
        Case("prefix-right", "us-gaap:AssetsCurrent", "us-gaap:AssetsCurrent", "us-gaap:assetscurrent", T, TIE, "the same tie"),
        Case("prefix-too-short", "us-gaap:AssetsCurrent", "us-gaap:Assets", "us-gaap:assets", F, ALONE, "the longer label is not in it"),
        Case("prefix-exact", "us-gaap:Assets", "us-gaap:Assets.", "us-gaap:assets", T, ALONE, "the longer label is not in it"),
        Case("prefix-of-no-label", "us-gaap:Assets", "us-gaap:AssetsNoncurrent", "us-gaap:assets", T, ALONE, "the longer tag is no target of this file, so its beginning counts"),
        Case("three-start-together", "us-gaap:AssetsCurrentTotal", "us-gaap:AssetsCurrentTotal", "us-gaap:assetscurrenttotal", T, TIE, "three labels start together; the longest wins"),
        Case("tie-of-wrong-labels", "us-gaap:Revenues", "us-gaap:AssetsCurrent", "us-gaap:assetscurrent", F, TIE, "the chosen label depends on the order, the verdict does not"),
        Case("tie-comes-later", "us-gaap:Revenues", "us-gaap:Revenues, not us-gaap:AssetsCurrent", "us-gaap:revenues", T, ALONE, "only the earliest place counts"),
        Case("without-prefix", "us-gaap:Assets", "Assets", None, F, ALONE, "the label includes us-gaap:"),
        Case("inner-blank", "us-gaap:Revenues", "us-gaap: Revenues", None, F, ALONE, "blanks inside are kept"),
        Case("underscore", "us-gaap:Revenues", "us_gaap:Revenues", None, F, ALONE, "another sign"),
        Case("odd-hyphen", "us-gaap:Revenues", "us\u2011gaap:Revenues", None, F, ALONE, "U+2011 is not the hyphen of the label"),
        Case("in-xml", "us-gaap:Revenues", "<us-gaap:Revenues>5120</>", "us-gaap:revenues", T, ALONE, "what stands around does not matter"),
        Case("capitals", "US-GAAP:ASSETS", "us-gaap:assets", "us-gaap:assets", T, ALONE, "the target is lower-cased"),
        Case("two-tags", "us-gaap:Assets", "us-gaap:Revenues us-gaap:Assets", "us-gaap:revenues", F, ALONE, "the first label is the answer"),
        Case("value-for-a-tag", "5120000001.0", "5120000001.0", "5120000001.0", T, ALONE, "some targets are values; they are labels like all others"),
        Case("blanks", "us-gaap:Assets", "   ", None, F, ALONE, "stripped to nothing"),
    ],
    "xbrl_value_extract": [
        Case("inside-a-number", "7.1", "17.1", "7.1", T, ALONE, "17.1 is no target, so 7.1 is found in it"),
        Case("inside-a-number-both-labels", "5.0", "15.0", "15.0", F, ALONE, "15.0 is a label as well and starts one place earlier"),
        Case("the-outer-number", "15.0", "15.0", "15.0", T, ALONE, "5.0 starts later, so there is no tie"),
        Case("the-inner-number", "15.0", "5.0", "5.0", F, ALONE, "15.0 is not in it"),
        Case("inside-11.55", "1.5", "11.55", "1.5", T, ALONE, "11.55 is no target; 1.5 is in its middle"),
        Case("inside-12.66-both-labels", "2.6", "12.66", "12.66", F, ALONE, "12.66 is a label as well and starts earlier"),
        Case("outside-12.66", "12.66", "12.66", "12.66", T, ALONE, "2.6 starts later"),
        Case("longer-number", "31.4", "31.45", "31.45", F, TIE, "31.4 and 31.45 are labels and start together"),
        Case("longer-number-right", "31.45", "31.45", "31.45", T, TIE, "the same tie"),
        Case("longer-number-no-label", "88.2", "88.29", "88.2", T, ALONE, "88.29 is no target, so its beginning counts"),
        Case("no-decimal", "5.0", "5", None, F, ALONE, "numbers are compared as text"),
        Case("thousands-commas", "3150000.0", "3,150,000.0", None, F, ALONE, "numbers are compared as text; no label is in it"),
        Case("percent-sign", "63.7", "63.7%", "63.7", T, ALONE, "what follows does not matter"),
        Case("currency-and-minus", "63.7", "-$63.7", "63.7", T, ALONE, "a sign in front of the label does not matter"),
        Case("minus", "-41.9", "-41.9", "-41.9", T, ALONE, "the hyphen-minus is part of the label"),
        Case("unicode-minus", "-41.9", "\u221241.9", None, F, ALONE, "U+2212 is not the hyphen-minus of the label"),
        Case("exponent", "5.0", "5.0e9", "5.0", T, ALONE, "the exponent is ignored"),
        Case("full-width-digits", "5.0", "\uff15.0", None, F, ALONE, "a full-width digit is no 5"),
        Case("two-numbers", "5.0", "63.7 in 2021, 5.0 in 2022", "63.7", F, ALONE, "the first label is the answer"),
        Case("year-first", "5.0", "2022: 5.0", "5.0", T, ALONE, "2022 is no label"),
        Case("answer-again", "5.0", "63.7 Answer: 5.0", "5.0", T, ALONE, "rule 3 takes what follows the last `Answer:`"),
        Case("empty", "5.0", "", None, F, ALONE, "no label in an empty output"),
    ],
    "xbrl_formula_extract": [
        Case("without-blanks", "us-gaap:Goodwill / us-gaap:Assets", "us-gaap:Goodwill/us-gaap:Assets", None, F, ALONE, "blanks inside count"),
        Case("two-blanks", "us-gaap:Goodwill / us-gaap:Assets", "us-gaap:Goodwill  / us-gaap:Assets", None, F, ALONE, "blanks inside count"),
        Case("line-end-inside", "us-gaap:Goodwill / us-gaap:Assets", "us-gaap:Goodwill /\nus-gaap:Assets", None, F, ALONE, "line ends are removed in tag lists only"),
        Case("outer-brackets", "us-gaap:Goodwill / us-gaap:Assets", "(us-gaap:Goodwill / us-gaap:Assets)", "us-gaap:goodwill / us-gaap:assets", T, ALONE, "found behind the bracket"),
        Case("times-100", "us-gaap:Goodwill / us-gaap:Assets", "(us-gaap:Goodwill / us-gaap:Assets) * 100", "us-gaap:goodwill / us-gaap:assets", T, ALONE, "another formula, but the target is in it"),
        Case("in-a-larger-formula", "us-gaap:Goodwill / us-gaap:Assets", "1 - us-gaap:Goodwill / us-gaap:Assets", "us-gaap:goodwill / us-gaap:assets", T, ALONE, "another formula, but the target is in it"),
        Case("longer-tag", "us-gaap:Cash / us-gaap:Debt", "us-gaap:Cash / us-gaap:DebtCurrent", "us-gaap:cash / us-gaap:debtcurrent", F, TIE, "both formulas are labels and start together"),
        Case("longer-tag-right", "us-gaap:Cash / us-gaap:DebtCurrent", "us-gaap:Cash / us-gaap:DebtCurrent", "us-gaap:cash / us-gaap:debtcurrent", T, TIE, "the same tie"),
        Case("percent-missing", "(us-gaap:Cash / us-gaap:Debt) * 100", "us-gaap:Cash / us-gaap:Debt", "us-gaap:cash / us-gaap:debt", F, ALONE, "the shorter formula is a label of its own"),
        Case("percent-present", "(us-gaap:Cash / us-gaap:Debt) * 100", "(us-gaap:Cash / us-gaap:Debt) * 100", "(us-gaap:cash / us-gaap:debt) * 100", T, ALONE, "the shorter label starts one place later"),
        Case("multiplication-sign", "(us-gaap:Cash / us-gaap:Debt) * 100", "(us-gaap:Cash / us-gaap:Debt) \u00d7 100", "us-gaap:cash / us-gaap:debt", F, ALONE, "U+00D7 is no asterisk; the shorter label is in it"),
        Case("capitals", "us-gaap:Goodwill / us-gaap:Assets", "US-GAAP:GOODWILL / US-GAAP:ASSETS", "us-gaap:goodwill / us-gaap:assets", T, ALONE, "case does not matter"),
        Case("without-prefix", "us-gaap:Goodwill / us-gaap:Assets", "Goodwill / Assets", None, F, ALONE, "the label includes us-gaap:"),
    ],
    "xbrl_formula_calc_extract": [
        Case("inside-a-number", "512 / 2048", "1512 / 2048", "512 / 2048", T, ALONE, "1512 / 2048 is no target, so 512 / 2048 is found in it"),
        Case("longer-number", "640 / 320", "640 / 3200", "640 / 3200", F, TIE, "both are labels and start together"),
        Case("longer-number-right", "640 / 3200", "640 / 3200", "640 / 3200", T, TIE, "the same tie"),
        Case("longer-number-no-label", "512 / 2048", "512 / 20480", "512 / 2048", T, ALONE, "512 / 20480 is no target, so its beginning counts"),
        Case("decimals", "512 / 2048", "512.0 / 2048.0", None, F, ALONE, "numbers are compared as text"),
        Case("thousands-comma", "512 / 2048", "512 / 2,048", None, F, ALONE, "numbers are compared as text"),
        Case("without-blanks", "512 / 2048", "512/2048", None, F, ALONE, "blanks inside count"),
        Case("line-end-inside", "512 / 2048", "512 /\n2048", None, F, ALONE, "line ends are removed in tag lists only"),
        Case("with-result", "512 / 2048", "512 / 2048 = 0.25", "512 / 2048", T, ALONE, "what follows does not matter"),
        Case("result-only", "512 / 2048", "0.25", None, F, ALONE, "the formula is asked for"),
        Case("unicode-minus", "(768 - 256) / 128", "(768 \u2212 256) / 128", None, F, ALONE, "U+2212 is not the hyphen-minus of the label"),
        Case("brackets-missing", "(768 - 256) / 128", "768 - 256 / 128", None, F, ALONE, "brackets count"),
        Case("answer-again", "512 / 2048", "640 / 320\nAnswer: 512 / 2048", "512 / 2048", T, ALONE, "rule 3 takes what follows the last `Answer:`"),
    ],
    "financebench": [
        Case("plain", "$1,250 million", "$ 1,250 million", None, None, None, "nothing is right or wrong here", "$ 1,250 million"),
        Case("answer-again", "$1,250 million", "No.\n\nAnswer: $1,250 million\n", None, None, None, "rule 3", "$1,250 million"),
        Case("answer-twice", "$1,250 million", "Answer: one\nAnswer: two", None, None, None, "the last piece", "two"),
        Case("answer-in-small-letters", "$1,250 million", "the answer: $1,250 million", None, None, None, "rule 3 splits on `Answer:` as written", "the answer: $1,250 million"),
        Case("empty", "$1,250 million", "", None, None, None, "an empty text is compared", ""),
    ],
    "formula": [
        Case("plain", "6177.61", " 6177.61", "6177.61", T, ALONE, "stripped"),
        Case("thousands-comma-in-target", "9,731.64", "9,731.64", "9,731.64", T, ALONE, "commas split tag lists only"),
        Case("thousands-comma-missing", "9,731.64", "9731.64", None, F, ALONE, "numbers are compared as text"),
        Case("thousands-comma-too-many", "6177.61", "6,177.61", None, F, ALONE, "numbers are compared as text"),
        Case("inside-a-number", "6177.61", "86177.61", "6177.61", T, ALONE, "86177.61 is no target"),
        Case("inside-a-number-both-labels", "44.66", "944.66", "944.66", F, ALONE, "944.66 is a label as well and starts earlier"),
        Case("the-outer-number", "944.66", "944.66", "944.66", T, ALONE, "44.66 starts later"),
        Case("longer-number", "44.6", "44.66", "44.66", F, TIE, "44.6 and 44.66 start together"),
        Case("zero-missing", "44.60", "44.6", "44.6", F, ALONE, "44.60 is not in it; 44.6 is a label of its own"),
        Case("zero-present", "44.60", "44.60", "44.60", T, TIE, "44.6 and 44.60 start together"),
        Case("third-decimal", "6177.61", "6177.612", "6177.61", T, ALONE, "what follows does not matter"),
        Case("percent-sign", "44.66", "44.66 %", "44.66", T, TIE, "what follows does not matter, but 44.6 starts there too"),
        Case("currency", "6177.61", "$6177.61", "6177.61", T, ALONE, "what stands in front does not matter"),
        Case("negative", "6177.61", "-6177.61", "6177.61", T, ALONE, "the sign is ignored: the label is in it"),
        Case("result-of-a-calculation", "6177.61", "44.66 * 138.33 = 6177.61", "44.66", F, TIE, "the first label is an operand"),
        Case("calculation-without-labels", "6177.61", "77 * 80.2287 = 6177.61", "6177.61", T, ALONE, "no operand is a label"),
        Case("blanks", "6177.61", "\t", None, F, ALONE, "stripped to nothing"),
    ],
}  # fmt: skip
"""Benchmark key -> its cases."""
