"""Answers: the sentence in what a model wrote, without its thoughts, its special tokens and its manners.

Models and servers mark thoughts and turns in many ways, and a server whose parser is not set up for its model
lets all of that through as text. Everything here takes time in proportion to the text, however it is made."""

from __future__ import annotations

import re

# What a thought is called inside a mark: think, thinking, thought, reasoning, seed:think, longcat_think, ...
NAME = (
    r"(?:[a-z]{1,12}[:_-]?)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratch_?pad"
    r"|rationale|monologue|deliberation)(?:_(?:process|fast|slow))?"
)
LEFT, RIGHT = r"[<\[◁]\s{0,2}\|?\s{0,2}", r"\s{0,2}\|?\s{0,2}[>\]▷]"
CAPITAL = r"(?=(?-i:[A-Z]))"
# What begins and ends a thought. `open` is ended by `close` or `turn`, `label` by `close` or `answer`. A
# `close` that nothing opened ends a thought that began in the prompt, so all that stands before it goes.
MARKS = re.compile(
    rf"""
    (?P<close>
        {LEFT}(?:/\s{{0,2}}|end_(?:of_)?){NAME}(?:{RIGHT}|\Z)
      | <\|channel\|>\s*final\b[^<]{{0,40}}(?:<\|constrain\|>[^<]{{0,40}})?(?:<\|message\|>)?   # harmony
      | assistantfinal(?:{CAPITAL}|(?=\W))              # harmony whose tokens were dropped
      | \Afinal{CAPITAL}
      | <channel\|>                                     # Gemma 4
      | <unused95>                                      # MedGemma
      | \[BEGIN\s+FINAL\s+RESPONSE\]                    # Apriel
    )
  | (?P<open>
        {LEFT}(?:start_|begin_(?:of_)?)?{NAME}(?:\s[^<>\[\]/\n]{{0,80}})?{RIGHT}
      | <\|channel\|>(?:\s*\w{{1,20}}[^<]{{0,60}})?(?:<\|message\|>)?
      | \A\s{{0,9}}(?:assistant\s{{0,3}})?(?:analysis|commentary){CAPITAL}
      | <\|channel>
      | <unused94>|<unused\d{{1,4}}>\s*(?:thoughts?|thinking)\b
    )
  | (?P<turn> <\|end\|>\s*<\|(?:start|begin)\|>\s*assistant\s*<\|(?:message|content)\|> )
  | (?P<label>
        \A\W{{0,6}}Here\s+are\s+my\s+reasoning\s+steps
      | \A\W{{0,6}}Here(?:\s+is|['’]s)\s+my\s+thought\s+process                                 # Granite
      | \A\W{{0,6}}(?:(?:my|the|internal)\s+)?(?:thoughts?|thinking|reasoning|chain\s+of\s+thought)
            (?:\s+process)?\W{{0,3}}:
    )
  | (?P<answer>
        Here(?:\s+is|['’]s)\s+my\s+response\W{{0,3}}:[*_]{{0,3}}
      | \n\W{{0,6}}(?:the\s+|my\s+)?(?:final\s+)?(?:answer|response|sentence|output)\W{{0,3}}:[*_]{{0,3}}
    )
    """,
    re.IGNORECASE | re.VERBOSE,
)
# What a thought without any mark sounds like. Asked only of an answer that max_tokens cut: it may have ended
# inside a thought that began in the prompt.
ALOUD = re.compile(
    r"\s{0,9}(?:let me|let's|(?:we|i) (?:need|should|must|have) to|(?:the )?user (?:asks|wants|is asking)"
    r"|(?:okay|ok|alright|hmm+|so|well|wait|first|we|i)\b.{0,300}?\b(?:the user|asks? (?:for|me|about|us)"
    r"|asked|asking|i (?:need|should|must)|i'll|let me|let's|we (?:need|should|must)|the question))\b",
    re.IGNORECASE | re.DOTALL,
)
# Tokens that a chat template is made of, whole or cut off at the end of the text.
TOKENS = re.compile(
    r"(<\|[^<>|\n]{0,40}\|>|<｜[^<>｜\n]{0,40}｜>|\[\|[^\[\]|\n]{1,30}\|\]|<\|turn>|<turn\|>"
    r"|</?(?:s|eos|bos|pad|unk|eod|eot|eom|end|stop|mask|cls|sep)>|<(?:start|end)_of_[a-z]{2,12}>"
    rf"|</?(?:answer|response|final|final_answer|output|solution)>|<{NAME}\s?/>|<unused\d{{1,4}}>"
    r"|<0x[0-9A-F]{2}>|\[/?INST\]|<</?SYS>>"
    r"|\[(?:EOS|BOS|SEP|CLS|PAD|UNK|MASK|end of text|END FINAL RESPONSE)\]"
    r"|<[|｜][a-z_]{0,30}\|?\Z|</?[a-z_]{0,12}\Z)",
    re.IGNORECASE,
)
# Names of tokens, without their brackets: those that end a turn, and those that begin one.
ENDS = re.compile(
    r"/s|/inst|eo[smtd](?:_id|_token)?|/(?:answer|response|final|final_answer|output|solution)|stop|return|call"
    r"|/turn|end|im_end|end[_ ].*response"
    r"|.*end[_▁ ]?of[_▁ ]?(?:turn|text|sentence|utterance|solution)(?:_token)?",
    re.IGNORECASE,
)
STARTS = re.compile(
    r"im_start|start|begin|turn|start_header_id|start_of_turn(?:_token)?|inst"
    r"|(?:.*[_\W])?(?:user|human|assistant|system|model|chatbot|tool|developer)(?:_token)?",
    re.IGNORECASE,
)
OURS = r"(?:assistant|model|chatbot|bot|ai)"
OTHERS = re.compile(r"user|human|system|tool|developer|inst$", re.IGNORECASE)
ROLE = re.compile(rf"\s*(?:{OURS}|user|human|system|tool|developer)\b\s*:?", re.IGNORECASE)
ECHO = re.compile(rf"(?:\s*{OURS}\s*(?::|\n|\Z)|\s*assistant{CAPITAL})+", re.IGNORECASE)
PROMPT = re.compile(rf"\A\s*(?:system|user)\s*\n.*\n{OURS}\s*\n", re.IGNORECASE | re.DOTALL)
NEXT_TURN = re.compile(r"\n\s{0,4}(?:(?:user|human|question|Q)\s{0,2}[:\n]|###)", re.IGNORECASE)

STEERING = re.compile(
    "\x1b\\[[0-9;?]{0,20}[A-Za-z]"
    "|[\x00-\x08\x0e-\x1f\x7f-\x9f\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069\ufeff]"
)
FENCE = re.compile(r"^[ \t]*(?:```|~~~)[\w+-]*[ \t]*$|```", re.MULTILINE)
EMPHASIS = re.compile(
    r"(?<![\w*])(\*{1,3}|_{2,3})(?=\S)([^*_\n]{1,400}?)(?<=\S)\1(?![\w*])|`([^`\n]{1,400})`"
)
LINE_START = re.compile(r"^[ \t]*(?:#{1,6}|>|[-*+•‣]|\(?\d{1,2}[.)])[ \t]+", re.MULTILINE)
MANNERS = re.compile(
    r"\s{0,9}(?:(?:sure|certainly|of course|absolutely|okay|ok|alright)\s{0,2}"
    r"(?:[!.:]|[,—-](?=\s{0,3}here))\s{0,9})?"
    r"(?:here(?:['’]s| is| are| you go)\b[^:\n]{0,100}\b(?:sentence|description|answer|response|caption|one)"
    r"\b[^:\n]{0,60}:\s{0,9})?"
    r"(?:(?:the\s+)?(?:final\s+)?(?:answer|response|sentence|output|A)\s{0,2}:\s+)?",
    re.IGNORECASE,
)
QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "'": "'", "‘": "’", "`": "`", "「": "」"}
SENTENCE_END = re.compile(r"[.!?…][\"')\]”’»]*(?=\s|$)|[。！？][」』”]*")


def clean(answer: str, cut: bool = False, longest: int | None = None) -> str:
    """One line of text: the sentence that the model was asked for, or nothing where there is none.

    Thoughts go, in every form in which models mark them; one that was cut off before its end leaves nothing.
    So do special tokens, the names of roles, control characters, markup, and quotes around the whole. `cut`
    says that max_tokens ended the answer: it then ends with its last whole sentence, if it has one. So does
    an answer of more than `longest` characters."""
    text = answer.encode("utf-8", "ignore").decode()  # half a surrogate pair cannot be written to a file
    text = STEERING.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _without_thoughts(text.replace("&lt;", "<").replace("&gt;", ">"), cut)
    text = " ".join(_plain(_own_turn(text)).split())
    text = _shortened(text, cut, longest)
    return text if any(map(str.isalnum, text)) else ""


def marked(text: str) -> bool:
    """Whether a text holds marks of thoughts. A tokenizer may count them among the tokens that it drops."""
    return MARKS.search(text) is not None


def _without_thoughts(text: str, cut: bool) -> str:
    kept: list[str] = []
    begin, inside, seen = 0, None, False  # where the answer goes on; what opened the thought we are in
    for mark in MARKS.finditer(text):
        kind = mark.lastgroup
        if kind in ("open", "label"):
            kept += [text[begin : mark.start()]] if inside is None else []
            inside, seen = inside or kind, True
        elif kind == "close" or (inside, kind) in (("open", "turn"), ("label", "answer")):
            kept = kept if inside else []
            begin, inside, seen = mark.end(), None, True
    if inside:
        return " ".join(kept)
    return "" if cut and not seen and ALOUD.match(text) else " ".join([*kept, text[begin:]])


def _own_turn(text: str) -> str:
    """What the assistant says in its first turn: no tokens, no names of roles, nothing that comes after."""
    parts = TOKENS.split(PROMPT.sub("", text))
    said: list[str] = []
    begun, ours = False, True
    for token, part in zip(["", *parts[1::2]], parts[::2]):
        name = "/turn" if token == "<turn|>" else token.strip("<>[]|｜ ")
        starts = STARTS.fullmatch(name)
        if begun and (starts or ENDS.fullmatch(name)):
            break
        if starts or name.lower() == "/inst":
            ours = not OTHERS.search(name) or name.lower() == "/inst"
        if not begun and (role := (ROLE if starts else ECHO).match(part)):
            ours, part = not OTHERS.search(role[0]), part[role.end() :]
        if ours:
            said.append(part)
            begun = begun or bool(part.strip())
    return NEXT_TURN.split(" ".join(said).strip(), maxsplit=1)[0]


def _plain(text: str) -> str:
    """Without code fences, markup, an opening such as "Sure! Here is a sentence:", and quotes around it."""
    text = EMPHASIS.sub(_emphasized, FENCE.sub(" ", text))
    text = LINE_START.sub("", text)
    manners = MANNERS.match(text)
    text = (text[manners.end() if manners else 0 :] or text).strip()
    while len(text) > 2 and QUOTES.get(text[0]) == text[-1] and not {text[0], text[-1]} & set(text[1:-1]):
        text = text[1:-1].strip()
    return text


def _emphasized(found: re.Match[str]) -> str:
    return found[2] or found[3]


def _shortened(text: str, cut: bool, longest: int | None) -> str:
    if longest is not None and len(text) > longest:
        text, cut = text[:longest].rsplit(" ", 1)[0], True
    ends = [match.end() for match in SENTENCE_END.finditer(text)] if cut else []
    return text[: ends[-1]] if ends else text
