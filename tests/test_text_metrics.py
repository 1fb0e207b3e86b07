"""Metrics of generated text: pycocoevalcap's figures on the same tokens, and the rules as published."""

import random

import pytest
import torch

from wordsight.config import WordsightError
from wordsight.text_metrics import (
    bleu,
    cider_d,
    clip_score,
    plain_answer,
    ref_clip_score,
    tokens,
    vqa_accuracy,
)

REFERENCES = [
    [
        "a dog runs through the deep snow",
        "a brown dog is running in snow",
        "the dog plays outside in the snow",
    ],
    ["two children play football on the grass", "children are playing with a ball"],
    [
        "a man rides a red bicycle down the street",
        "a cyclist on a street",
        "a man on a bike",
        "man rides bike",
    ],
    ["a dog swims in the water", "a wet dog with a ball in its mouth swims"],
    ["the the the the", "people"],
]
CAPTIONS = [
    "a dog running in the snow",
    "two children play football on the grass",
    "a man",
    "",
    "the the dog",
]
# of these, by pycocoevalcap 1.2
CIDER = [2.0466568075, 5.2789779622, 1.2519003181, 0.0, 0.8716921749]
BLEU = [0.5728345119, 0.5457171122, 0.4767745351, 0.4402389521]


def split(texts):
    return [text.split() for text in texts]


ALL = split(CAPTIONS), [split(texts) for texts in REFERENCES]


def test_cider_d_and_bleu_of_an_example_are_pycocoevalcap_s():
    assert cider_d(*ALL) == pytest.approx(CIDER, abs=1e-6)
    assert bleu(*ALL) == pytest.approx(BLEU, abs=1e-6)


def theirs(captions, references):
    """Of pycocoevalcap: CIDEr-D of each image, and BLEU-1 to BLEU-4."""
    cider = pytest.importorskip("pycocoevalcap.cider.cider", reason="pycocoevalcap is in the extra `eval`")
    from pycocoevalcap.bleu.bleu import Bleu

    said = {place: [" ".join(text)] for place, text in enumerate(captions)}
    known = {place: [" ".join(text) for text in texts] for place, texts in enumerate(references)}
    figures = cider.Cider().compute_score(known, said)[1].tolist()
    return figures, Bleu().compute_score(known, said, verbose=0)[0]


def drawn(seed):
    """Captions that share some words, pairs and longer pieces with their references."""
    stream = random.Random(seed)
    words = [f"w{int(stream.paretovariate(0.7))}" for _ in range(300)]

    def text(least):
        start = stream.randrange(280)
        return words[start : start + stream.randint(least, 12)]

    references = [[text(1) for _ in range(stream.randint(1, 5))] for _ in range(20)]
    captions = [stream.choice(texts)[stream.randint(0, 2) :] + text(0)[:3] for texts in references]
    return captions, references


@pytest.mark.parametrize("given", [ALL, drawn(0), drawn(1), ([["a"]], [[["a"], ["b"]]])])
def test_cider_d_and_bleu_are_pycocoevalcap_s(given):
    figures, bleus = theirs(*given)
    assert cider_d(*given) == pytest.approx(figures, abs=1e-6)
    assert bleu(*given) == pytest.approx(bleus, abs=1e-6)


def test_cider_d_of_the_only_image_is_zero_and_of_the_same_words_ten():
    assert cider_d([["a", "dog"]], [[["a", "dog"]]]) == [0]
    apart = [text.split() for text in ("one two three four five", "six seven eight nine ten")]
    assert cider_d(apart, [[text] for text in apart]) == pytest.approx([10, 10])
    assert cider_d(apart, [[text] for text in apart[::-1]]) == [0, 0]


def test_bleu_by_hand():
    """Papineni et al. 2002, example 2: of seven `the` two count; BLEU-1 has no penalty, being longer."""
    said = ["the"] * 7
    known = [text.split() for text in ("the cat is on the mat", "there is a cat on the mat")]
    assert bleu([said], [known])[0] == pytest.approx(2 / 7, abs=1e-6)
    one, *_, four = bleu([known[0][:4]], [known[:1]])
    assert [one, four] == pytest.approx([2.718281828 ** (1 - 6 / 4)] * 2, abs=1e-6)


@pytest.mark.parametrize("figure", [cider_d, bleu])
def test_what_cannot_be_measured_is_told(figure):
    with pytest.raises(WordsightError, match="1 captions for the references of 2 images"):
        figure([["a"]], [[["a"]], [["a"]]])
    with pytest.raises(WordsightError, match="0 captions"):
        figure([], [])
    with pytest.raises(WordsightError, match="image 1 has no reference"):
        figure([["a"], ["b"]], [[["a"]], []])
    with pytest.raises(WordsightError, match="'a dog' is a text; give its tokens"):
        figure(["a dog"], [[["a", "dog"]]])


# -- tokens --

PTB = {  # by pycocoevalcap's PTBTokenizer, which is a Java program
    "The U.S. flag at 5 p.m. on St. Mark's square.": "the u.s. flag at 5 p.m. on st. mark 's square",
    "Don't! I can't, he won't; they've gone, I'm ok.": "do n't i ca n't he wo n't they 've gone i 'm ok",
    'A man (in black) said: "hello" - then left -- ok... fine': (
        "a man -lrb- in black -rrb- said hello then left ok fine"
    ),
    "I cannot, gonna wanna gotta": "i can not gon na wan na got ta",
    "$5 and 50% off #10, his/her and/or 1/2 3.5 1,000 10:30": (
        "$ 5 and 50 % off # 10 his/her and/or 1/2 3.5 1,000 10:30"
    ),
    "the boys' dogs ' quoted ' 'word' rock 'n' roll o'clock": (
        "the boys dogs quoted word rock 'n' roll o'clock"
    ),
    "a t-shirt, long-haired- dog": "a t-shirt long-haired dog",
    "No. 7 vs. 8, Mr. Smith Jr. and Dr. Who etc.": "no. 7 vs. 8 mr. smith jr. and dr. who etc.",
    "caf\u00e9 it\u2019s \u201cquoted\u201d \u2013 dash \u2014 \u2026": "caf\u00e9 it 's quoted dash",
    "what?! no?? yes!!!": "what ?! no ?? yes !!!",
    "red &amp; white .": "red & white",
    "": "",
}


@pytest.mark.parametrize("text", PTB)
def test_tokens_are_those_of_the_java_program(text):
    assert " ".join(tokens(text)) == PTB[text]


# -- captions against images --


def test_clip_scores_by_hand():
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    captions = torch.tensor([[0.6, 0.8], [-0.6, 0.8], [0.28, 0.96]])
    assert clip_score(images, captions).tolist() == pytest.approx([1.5, 0, 0.7])
    references = [torch.tensor([[0.8, 0.6], [0.0, 1.0]]), captions[1:2], -captions[2:3]]
    best = 0.6 * 0.8 + 0.8 * 0.6
    expected = [2 * 1.5 * best / (1.5 + best), 0, 0]
    assert ref_clip_score(images, captions, references).tolist() == pytest.approx(expected)
    with pytest.raises(WordsightError, match="one reference at least"):
        ref_clip_score(images, captions, [references[0], images[:0], images[:1]])


# -- answers --


@pytest.mark.parametrize(("same", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_of_ten_people_is_the_mean_over_who_is_left_out(same, accuracy):
    people = ["yes"] * same + ["no"] * (10 - same)
    subsets = [[*people[:out], *people[out + 1 :]] for out in range(10)]
    assert vqa_accuracy("Yes.", people) == pytest.approx(accuracy)
    assert accuracy == pytest.approx(sum(min(some.count("yes") / 3, 1) for some in subsets) / 10)


def test_vqa_accuracy_of_other_numbers_of_people():
    assert vqa_accuracy("a dog", ["dog"]) == 1 and vqa_accuracy("cat", ["dog"]) == 0
    assert vqa_accuracy("two", ["2", "two", "Two!", "three"]) == pytest.approx((3 * 2 / 3 + 1) / 4)
    for few in ([], ["dog"] * 2, ["dog"] * 3):
        with pytest.raises(WordsightError, match=f"{len(few)} reference answers; give one, or 4 or more"):
            vqa_accuracy("dog", few)


PLAIN = {
    # the rules at visualqa.org/evaluation, with the examples given there
    "dont": "don't",
    "100,978": "100978",
    "girl's": "girl's",
    "2:50 pm": "2:50 pm",
    "The Dog": "dog",
    "an apple and a pear": "apple and pear",
    "two": "2",
    "none": "0",
    "ten.": "10",
    "3.5": "3.5",
    "U.S.": "us",
    # as the code there does it
    "t-shirt": "t shirt",
    "red/white": "red white",
    "yes, it is": "yes it is",
    "yes,it is": "yes it is",
    "1,000-2": "10002",
    "what?\n": "what",
    "couldn'tve": "couldn't've",
    "somebodys dog": "somebody's dog",
    "lets": "lets",
    "a": "",
}


@pytest.mark.parametrize("answer", PLAIN)
def test_answers_are_compared_as_vqa_compares_them(answer):
    assert plain_answer(answer) == PLAIN[answer]
