"""Metrics of generated text: captions against those that people wrote, or against the image, and answers
against those of ten people. Pure functions; the module imports no torch.

A caption is a sequence of tokens, as `tokens` gives them; N is the number of images. None of the figures is
in percent: each has the unit of its source.
"""

from __future__ import annotations

import html
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from wordsight.files import WordsightError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Tokens: TypeAlias = Sequence[str]
Ngram: TypeAlias = tuple[str, ...]

ORDERS = (1, 2, 3, 4)  # lengths of n-grams
SIGMA = 6.0  # of CIDEr-D's penalty for another length
TINY, SMALL = 1e-15, 1e-9  # what BLEU's counts are given, so that a length without a match has a logarithm
CLIP_SCALE = 2.5  # w of CLIPScore
CLIP_PREFIX = "A photo depicts "  # stands before each caption that CLIPScore encodes
ENOUGH = 3  # people who gave an answer, from which on it is right

# -- tokens --

# Contractions that stand for two words, and their cut.
JOINED = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
}
# Words whose full stop is theirs, wherever they stand.
SHORTENED = (
    "mr mrs ms dr st jr sr prof gen col sgt lt capt rev hon gov sen rep no vs etc inc ltd co corp ave blvd "
    "rd ft mt dept est approx jan feb aug sept oct nov dec"
)
QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2026": "..."})
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
TOKEN = re.compile(
    rf"""
      (?:https?://|www\.)\S+[\w/]             # addresses
    | [\w.+-]+@\w[\w-]*(?:\.\w+)+
    | (?:[^\W\d_]\.){{2,}}                    # u.s., p.m.
    | \b(?:{"|".join(SHORTENED.split())})\.(?=\s*\w)
    | \betc\.
    | \d+(?:[.,:/]\d+)+(?:-?[^\W\d_]+)?       # 1,000, 3.5, 10:30, 1/2
    | '\d0s | 'n' | @\w+                      # '90s, rock 'n' roll, @home
    | \w+(?:\.\w+)*\.(?:com|org|net|edu)\b
    | \w+(?:['/-]\w+)*                        # t-shirt, o'clock, his/her; also don't, dog's, cut below
    | '(?:s|re|ve|ll|d|m)\b                   # which stand alone
    | [?!]{{2,}} | [()\[\]{{}}] | [^\w\s]
    """,
    re.VERBOSE,
)
PUNCTUATION = {".", "?", "!", ",", ":", ";", "-", "--", "...", "'", "''", "`", "``", '"', "\u2013", "\u2014"}
CLITIC = re.compile(r"(.+?)(n't|'(?:s|re|ve|ll|d|m))$")


def tokens(text: str) -> list[str]:
    """The tokens of a caption, in lower case, without punctuation.

    They follow pycocoevalcap's tokenizer (Stanford's PTBTokenizer 3.4.1 with -lowerCase, then its list of
    punctuation), which is a Java program, as far as rules of a page go: n't, 's, 're and their kin are tokens
    of their own, words with hyphens are one, brackets stay as -lrb- and -rrb-, which that list forgets.
    Differs: fewer abbreviations, no smileys, letters joined by & are apart; how often: docs/text_metrics.md.
    """
    found: list[str] = []
    for token in TOKEN.findall(html.unescape(text).lower().translate(QUOTES)):
        found += _cut(token)
    return [BRACKETS.get(token, token) for token in found if token not in PUNCTUATION]


def _cut(token: str) -> list[str]:
    if token in JOINED:
        return list(JOINED[token])
    cut = CLITIC.match(token)
    return [cut[1], cut[2]] if cut else [token]


# -- captions against captions of people --


class _Weights(NamedTuple):
    """A caption as CIDEr-D sees it."""

    by_order: list[dict[Ngram, float]]  # the weight of each n-gram
    norms: list[float]  # of each order's weights
    pairs: int  # of words that stand side by side: what pycocoevalcap takes for a caption's length


def cider_d(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """CIDEr-D of each image's caption (Vedantam et al. 2015, eq. 2, 3, 6); their mean is the figure. From 0
    to 10, as pycocoevalcap has it; papers print it times 10 or 100.

    An n-gram weighs more, the fewer images have it in their references, so a caption's figure depends on all
    images it is measured among; of one image alone it is 0. Equal to pycocoevalcap's Cider. Differs from the
    paper, as that does: the length in the penalty is the number of pairs of words.

    Errors: WordsightError where there is no image, an image has no reference, or the numbers differ.
    """
    _check(captions, references)
    counted = [[_ngrams(text) for text in texts] for texts in references]
    images_with = Counter(ngram for texts in counted for ngram in set().union(*texts))
    images = len(captions)
    scores = []
    for caption, texts in zip(captions, counted):
        ours = _weighed(_ngrams(caption), images_with, images)
        alike = [_likeness(ours, _weighed(text, images_with, images)) for text in texts]
        scores.append(10 * sum(alike) / len(alike))
    return scores


def _ngrams(text: Tokens) -> Counter[Ngram]:
    return Counter(tuple(text[at : at + n]) for n in ORDERS for at in range(len(text) - n + 1))


def _weighed(counts: Counter[Ngram], images_with: Mapping[Ngram, int], images: int) -> _Weights:
    """The count of each n-gram times log(images / images that have it)."""
    by_order: list[dict[Ngram, float]] = [{} for _ in ORDERS]
    for ngram, count in counts.items():
        by_order[len(ngram) - 1][ngram] = count * math.log(images / max(1, images_with.get(ngram, 0)))
    norms = [math.hypot(*weights.values()) for weights in by_order]
    return _Weights(by_order, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2))


def _likeness(ours: _Weights, theirs: _Weights) -> float:
    """Mean over the orders of the cosine whose first side is clipped to the second, times the penalty."""
    total = 0.0
    for mine, other, norm, other_norm in zip(ours.by_order, theirs.by_order, ours.norms, theirs.norms):
        shared = sum(min(mine[ngram], other[ngram]) * other[ngram] for ngram in mine.keys() & other.keys())
        total += shared / (norm * other_norm) if norm and other_norm else 0.0
    return total / len(ORDERS) * math.exp(-((ours.pairs - theirs.pairs) ** 2) / (2 * SIGMA**2))


def bleu(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """BLEU-1 to BLEU-4 of all captions together (Papineni et al. 2002), from 0 to 1; BLEU-4 is the last.

    Counts are summed over the captions before they are divided, so it is no mean of figures of images. The
    length against which short captions are penalised is the closest reference's, the shorter of two. Equal to
    pycocoevalcap's Bleu. Errors: as `cider_d`.
    """
    _check(captions, references)
    right, said = Counter(), Counter()
    length = closest = 0
    for caption, texts in zip(captions, references):
        most = Counter()
        for text in texts:
            most |= _ngrams(text)
        right.update(len(ngram) for ngram in (_ngrams(caption) & most).elements())
        said.update({n: max(0, len(caption) - n + 1) for n in ORDERS})
        length += len(caption)
        closest += min((abs(len(text) - len(caption)), len(text)) for text in texts)[1]
    ratio = (length + TINY) / (closest + SMALL)
    penalty = math.exp(min(0.0, 1 - 1 / ratio))
    precisions = [(right[n] + TINY) / (said[n] + SMALL) for n in ORDERS]
    return [penalty * math.prod(precisions[:n]) ** (1 / n) for n in ORDERS]


def _check(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> None:
    if len(captions) != len(references) or not captions:
        raise WordsightError(
            f"{len(captions)} captions for the references of {len(references)} images; give one caption an "
            f"image, of one image at least"
        )
    for place, texts in enumerate(references):
        if not texts:
            raise WordsightError(f"image {place} has no reference; each needs at least one")
    given = next((one for one in (*captions, *(text for texts in references for text in texts))), [])
    if isinstance(given, str):
        raise WordsightError(f"{given!r} is a text; give its tokens, as text_metrics.tokens makes them")


# -- captions against images --


def clip_score(images: Float[Tensor, "N D"], captions: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    """CLIPScore of each image's caption, 2.5 max(cos, 0) (Hessel et al. 2021, section 3), from unit vectors;
    their mean is the figure.

    The authors encode captions behind CLIP_PREFIX, with CLIP ViT-B/32: figures of other backbones, or without
    it, are not theirs. As in the paper.
    """
    return CLIP_SCALE * (images * captions).sum(1).clamp_min(0)


def ref_clip_score(
    images: Float[Tensor, "N D"], captions: Float[Tensor, "N D"], references: Sequence[Float[Tensor, "R D"]]
) -> Float[Tensor, " N"]:
    """RefCLIPScore of each image's caption: the harmonic mean of its CLIPScore and of max(cos, 0) with the
    reference it is closest to (Hessel et al. 2021, section 3). `references` has the unit vectors of each
    image's. As in the paper; their code has no max(., 0) for references.

    Errors: WordsightError where an image has no reference.
    """
    if len(references) != len(captions) or any(len(vectors) == 0 for vectors in references):
        raise WordsightError("each caption needs the vectors of one reference at least")
    seen = clip_score(images, captions)
    said = seen.new_tensor([float((theirs @ own).max()) for theirs, own in zip(references, captions)])
    said = said.clamp_min(0)
    return 2 * seen * said / (seen + said).clamp_min(TINY)


# -- answers --

NUMBERS = {"none": "0", "zero": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), 1
    )
}
ARTICLES = ("a", "an", "the")
APART = ";/[]{}()=+\\_-><@`,?!" + '"'  # punctuation that goes: all but . : and '
CONTRACTIONS = (  # noqa: SIM905
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't "
    "he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've "
    "must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't "
    "shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's "
    "something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've "
    "they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's "
    "where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't "
    "wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
).split()
# each contraction by what is left where one apostrophe is missing
APOSTROPHES = {
    whole[:at] + whole[at + 1 :]: whole
    for whole in CONTRACTIONS
    for at, sign in enumerate(whole)
    if sign == "'"
}


def plain_answer(answer: str) -> str:
    """An answer as VQA compares it: lower case, no articles, number words as digits, apostrophes where a
    contraction lacks one, no punctuation but apostrophes, colons and full stops before a digit.

    Source: visualqa.org/evaluation and the code there. As that code: a sign beside a blank goes, any other
    becomes a blank, and where a comma stands between digits all signs go (100,978 becomes 100978). Differs:
    its "somebody'd", whose apostrophe it removes.
    """
    text = re.sub(r"[\n\t]", " ", answer).strip()
    joined = re.search(r"\d,\d", text)
    gone = {sign for sign in APART if joined or f"{sign} " in text or f" {sign}" in text}
    text = text.translate({ord(sign): "" if sign in gone else " " for sign in APART})
    words = [NUMBERS.get(word, word) for word in re.sub(r"\.(?!\d)", "", text).lower().split()]
    return " ".join(APOSTROPHES.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """VQA accuracy of one answer, from 0 to 1: of those who were asked, all but one at a time, min(number who
    gave this answer / 3, 1), averaged over who is left out (Antol et al. 2015, section 3; Goyal et al. 2017).

    Of ten people 0, 1, 2, 3 or more than 3 with this answer give 0, 0.3, 0.6, 0.9, 1. A single reference
    stands for ten. Both sides are compared as `plain_answer` has them, as visualqa.org says. Differs: of
    references the code there removes punctuation alone, and only where they are not all the same, so that
    nobody can meet a "two" among them.

    Errors: WordsightError for no reference, or for two or three, which could not give 1.
    """
    people = len(references)
    if people == 1:
        return float(plain_answer(answer) == plain_answer(references[0]))
    if people <= ENOUGH:
        raise WordsightError(
            f"{people} reference answers; give one, or {ENOUGH + 1} or more, VQA has ten of each question"
        )
    same = sum(plain_answer(answer) == plain_answer(reference) for reference in references)
    left_out = same * min((same - 1) / ENOUGH, 1) + (people - same) * min(same / ENOUGH, 1)
    return left_out / people
