"""Answers: one sentence of whatever a model wrote."""

import time

import pytest

from wordsight.sentences.cleaning import clean

A = "A zebra has black and white stripes."
FINAL = "<|start|>assistant<|channel|>final<|message|>"
THOUGHTS = {
    "think": f"<think>hm. a fox</think>{A}",
    "no opening": f"Okay, they ask about it.\n</think>\n\n{A}",
    "empty thought": f"<think>\n\n</think>\n\n{A}",
    "brackets": f"[THINK]hm. ok[/THINK]{A}",
    "thinking": f"<thinking>\nhm.</thinking>\n{A}",
    "reasoning": f"<reasoning>x.</reasoning>{A}",
    "attribute": f'<thinking budget="3">a</thinking>{A}',
    "capitals": f"<THINK>a</THINK>{A}",
    "spaces": f"< think >a</ think >{A}",
    "prefix": f"<seed:think>a</seed:think>{A}",
    "longcat": f"<longcat_think>a</longcat_think>{A}",
    "kimi": f"◁think▷ a ◁/think▷ {A}",
    "nested": f"<think>a <think>b</think> c</think>{A}",
    "two": f"<think>a</think><think>b</think>{A}",
    "quoted mark": f"<think>no </think> tag, they say</think>{A}",
    "afterwards": f"{A}<think>more. and",
    "escaped": f"&lt;think&gt;a&lt;/think&gt;{A}",
    "self-closed": f"<think/>{A}",
    "answer tags": f"<think>\nhm\n</think>\n<answer>\n{A}\n</answer>",
    "harmony": f"<|channel|>analysis<|message|>User asks.<|end|>{FINAL}{A}<|return|>",
    "harmony, bare": f"<|channel|>analysis<|message|>User asks<|channel|>final<|message|>{A}",
    "harmony, final": f"{FINAL}{A}<|return|>",
    "harmony, none": f"<|start|>assistant<|message|>{A}<|end|>",
    "harmony, no final": f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|message|>{A}<|return|>",
    "harmony, json": f"<|channel|>final <|constrain|>json<|message|>{A}",
    "harmony, dropped": f"analysisWe need to write.assistantfinal{A}",
    "harmony, half dropped": f"analysis<|message|>We need<|end|>{FINAL}{A}",
    "harmony, commentary": f"<|channel|>commentary to=functions.x<|message|>hm<|end|>{FINAL}{A}",
    "solar": f"<|think|>hm<|end|><|begin|>assistant<|content|>{A}<|end|>",
    "gemma 4": f"<|channel>thought\nhm\n<channel|>{A}<turn|>",
    "medgemma": f"<unused94>thought\nhm. ok<unused95>{A}<end_of_turn>",
    "command": f"<|START_THINKING|>a.<|END_THINKING|><|START_RESPONSE|>{A}<|END_RESPONSE|>",
    "sky": f"<|begin_of_thought|>a<|end_of_thought|>\n<|begin_of_solution|>{A}<|end_of_solution|>",
    "granite": f"Here is my thought process:\nhm\nHere is my response: {A}",
    "apriel": f"Here are my reasoning steps:\nhm\n[BEGIN FINAL RESPONSE]\n{A}\n[END FINAL RESPONSE]",
    "labels": f"**Thinking:** hm, the user\n\n**Answer:** {A}",
}
TOKENS = {
    "chatml": f"<|im_start|>assistant\n{A}<|im_end|>\n<|im_start|>user\nNext",
    "llama 3": f"<|start_header_id|>assistant<|end_header_id|>\n\n{A}<|eot_id|>",
    "llama 3, with the question": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nQ?<|eot_id|>"
    f"<|start_header_id|>assistant<|end_header_id|>\n\n{A}<|eot_id|>",
    "mistral": f"[INST] What? [/INST] {A}</s>",
    "mistral, at the end": f"{A} [/INST] more",
    "gemma": f"<start_of_turn>model\n{A}<end_of_turn>\n<start_of_turn>user\nhi",
    "gemma 4": f"<|turn>model\n{A}<turn|>",
    "sentence marks": f"<s> {A}</s></s>",
    "padding": f"<pad><pad>{A}<|endoftext|><|endoftext|>",
    "zephyr": f"<|assistant|>\n{A}</s>\n<|user|>\nmore",
    "deepseek": f"<｜begin▁of▁sentence｜><｜User｜>Q<｜Assistant｜>{A}<｜end▁of▁sentence｜>",
    "exaone": f"[|assistant|]{A}[|endofturn|]",
    "command": f"<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{A}<|END_OF_TURN_TOKEN|>",
    "glm": f"<|begin_of_box|>{A}<|end_of_box|>",
    "llama.cpp": f"{A} [end of text]",
    "unknown inside": "A zebra has<unk> black and white stripes.",
    "cut off": f"{A}<|im_en",
    "role": f"assistant\n\n{A}",
    "roles": f"assistant\nassistant\n{A}",
    "role, glued": f"assistant{A}",
    "role, colon": f"Assistant: {A}",
    "prompt": f"user\nDescribe\nassistant\n{A}",
    "next turn": f"{A}\nuser\nDescribe more",
    "next question": f"{A}\nHuman: more",
}
MANNERS = {
    "fence": f"```text\n{A}\n```",
    "quotes": f'"{A}"',
    "curved quotes": f"“{A}”",
    "bold": f"**{A}**",
    "number": f"1. {A}",
    "bullet": f"- {A}",
    "block": f"> {A}",
    "code": f"`{A}`",
    "sure": f"Sure! Here's a plain sentence describing a zebra:\n\n{A}",
    "certainly": f"Certainly! {A}",
    "here": f"Here is one sentence: {A}",
    "answer": f"**Answer:** {A}",
    "terminal": f"\x1b[31m{A}\x1b[0m\x07\x00\u202e",
    "lines": "  A zebra has\r\n\r black and\n white stripes. ",
    "half a pair": "A zebra has \ud83d black and white stripes.",
}
CASES = [
    pytest.param(text, id=f"{kind}: {name}")
    for kind, table in (("thought", THOUGHTS), ("token", TOKENS), ("manner", MANNERS))
    for name, text in table.items()
]


@pytest.mark.parametrize("text", CASES)
def test_the_sentence_is_what_remains(text):
    assert clean(text) == A


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "<think>never ends. so",
        "[THINK]a. b",
        "<thinking>a.",
        "<reasoning> a. b",
        "&lt;think&gt;a. b",
        "<think>hm\nAnswer: a draft. so",
        "a. b</think>",
        "a. b</think",
        "<|channel|>analysis<|message|>We need. to",
        "<|channel|>analysis<|message|>a.<|end|>",
        "<|start|>assistant<|channel|>analysis<|message|>a. b",
        "<|start|>assistant",
        "analysisWe need to. So",
        "<unused94>thought\na. b",
        "<|channel>thought\na. b",
        "<|START_THINKING|>a. b",
        "<|begin_of_thought|>a. b",
        "Here is my thought process:\nhm. a",
        "Thinking: I must. do",
        "[INST] a question",
        "<|im_end|>",
        "assistant",
        "...",
        "",
    ],
)
def test_a_thought_or_nothing_leaves_nothing(text, cut):
    assert clean(text, cut) == ""


def test_a_thought_without_any_mark_is_known_by_its_sound_where_it_was_cut():
    for text in (
        "Okay, so the user wants me to describe a zebra. First, I",
        "We need to write one sentence. A zebra is",
        "Hmm, let me think. Zebras are",
    ):
        assert clean(text, cut=True) == "" and clean(text) == text
    assert clean("So tall is it. It", cut=True) == "So tall is it."


def test_a_plain_sentence_stays_as_it_is():
    for text in (
        'It says "yes." and 3.5 m',
        "Model trains are small.",
        "AI systems draw it.",
        "A yin_yang has two __ parts.",
        "The user of a lathe wears goggles.",
        "An analysis of it shows stripes.",
        "It is 5 * 3 * 2 cm < 9 and > 1 cm.",
        "The M*A*S*H logo.",
        "It is [sic] red.",
        "Of course, it is red.",
        "“A” or “B”",
        "它有黑白条纹。",
    ):
        assert clean(text) == text


def test_what_max_tokens_cut_ends_with_its_last_whole_sentence():
    assert clean("It has a tail. It is re", cut=True) == "It has a tail."
    assert clean('It says "yes." and 3.5 m', cut=True) == 'It says "yes."'
    assert clean("It has a long", cut=True) == "It has a long"
    assert clean("它有黑白条纹。它很", cut=True) == "它有黑白条纹。"


def test_an_answer_far_longer_than_asked_ends_with_a_sentence_within_the_limit():
    assert clean("It has a tail. It is re" + "d" * 90, longest=30) == "It has a tail."
    assert clean("one two three four", longest=11) == "one two"
    assert clean("It has a tail. " * 40, longest=40) == "It has a tail. It has a tail."


@pytest.mark.parametrize(
    "part",
    ["<think>", "</think>", "<s>", "\n", "*a", "<|", "a.'", "\n ", "`a", "<|channel|>", "user\n", "here is "],
)
def test_no_text_takes_long(part):
    began = time.monotonic()
    clean(part * (60_000 // len(part)), cut=True, longest=600)
    assert time.monotonic() - began < 5  # a step that looks at all of the rest takes minutes
