"""One LM that classifies, embeds, captions, answers and chats: in memory once, and never mixed up."""

import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from standins import captioned, replaced

import wordsight
from wordsight.assistant import Assistant
from wordsight.assistant.session import Session
from wordsight.backbones.generator import Generator, Turn, Writing
from wordsight.backbones.lm_generator import LMGenerator
from wordsight.backbones.prefixed import PrefixedLM
from wordsight.cli import main
from wordsight.config import RunSettings, WordsightError
from wordsight.fit import fit
from wordsight.fitted import open_generator
from wordsight.reader import read
from wordsight.runs import Run

TEMPLATE = (
    "{% for message in messages %}{{ message.role }} {{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}reply {% endif %}"
)
SHORT = Writing(max_new_tokens=8)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return captioned(tmp_path_factory.mktemp("pairs"), ["a wall in {name}"])


def fitted(method, table, tower, lm, out, **own):
    given = {"data": str(table), "backbone": str(tower), "method": method, "out": str(out), "device": "cpu"}
    loop = {"max_steps": 8, "batch_size": 10, "warmup_steps": 1, "lr": 3e-2}
    return fit(read(RunSettings, given, {"settings": {"text": str(lm), **own}, "train": loop})).folder


@pytest.fixture(scope="module")
def clamp(table, tiny_clip, own_lm, tmp_path_factory):
    own = {"prompts": 3, "heads": 2, "rank": 4, "max_tokens": 60, "wrapper": "plain"}
    return fitted("two_tower", table, tiny_clip, own_lm, tmp_path_factory.mktemp("clamp") / "run", **own)


@pytest.fixture(scope="module")
def limber(table, tiny_clip, own_lm, tmp_path_factory):
    own = {"tokens": 3, "max_tokens": 24}
    return fitted("limber", table, tiny_clip, own_lm, tmp_path_factory.mktemp("limber") / "run", **own)


@pytest.fixture(scope="module")
def assistant(clamp, limber):
    return Assistant.from_runs(clamp, limber)


@pytest.fixture
def chatting(assistant):
    """The assistant, with a chat template for one test."""
    tokenizer = assistant.generator.lm.tokenizer
    tokenizer.chat_template = TEMPLATE
    yield assistant
    tokenizer.chat_template = None


@pytest.fixture(scope="module")
def images(table):
    return sorted(map(str, table.glob("*0.png")))


@pytest.mark.slow
def test_the_lm_is_in_memory_once(assistant):
    tower, writer = assistant.embedder.text.plain, assistant.generator.lm.lm
    own = {value.data_ptr() for value in tower.parameters()}
    theirs = {value.data_ptr() for value in writer.parameters()}
    assert theirs < own  # which has LoRA beside them
    assert assistant.embedder.image is assistant.generator.backbone  # and so is the image tower


def test_it_does_what_each_run_does_by_itself(assistant, clamp, limber, images):
    assert wordsight.Assistant is Assistant
    alone = open_generator(limber)
    (said,) = alone.write([alone.asking([Turn(assistant.see(images[0]), "what is it")])], SHORT)
    assert assistant.caption(images) == [
        " ".join(text.split()) for text in alone.write([[assistant.see(one)] for one in images], Writing())
    ]
    assert said.startswith(assistant.answer(images[0], "what is it", SHORT))
    backbone = wordsight.load_backbone(clamp)
    texts = ["a red wall", "a blue wall"]
    assert np.array_equal(assistant.embed(texts=texts), backbone.encode_text(texts).numpy())
    for one in (partial(assistant.embed, texts="a red wall"), partial(assistant.write, "a red wall")):
        with pytest.raises(WordsightError, match="one text 'a red wall' was given where a list"):
            one()
    chances = assistant.classify(images, ["red", "blue", "green"])
    words = backbone.encode_text(["a photo of a red.", "a photo of a blue."]).numpy()
    near = assistant.embed(images) @ words.T
    for row, (red, blue) in zip(chances, near):
        assert abs(sum(row.values()) - 1) < 1e-9 and list(row.values()) == sorted(row.values())[::-1]
        assert (row["red"] > row["blue"]) == (red > blue)


@pytest.mark.slow
def test_rows_with_and_without_adapters_share_a_batch(assistant, images):
    prompts = [[assistant.see(images[0]), "it is "], ["a wall in "], [assistant.see(images[1])]]
    off, on = assistant.write(prompts), assistant.write(prompts, "on")
    assert off != on and assistant.write(prompts, ["on", "off", "on"]) == [on[0], off[1], on[2]]
    with pytest.raises(WordsightError, match="on or off for each of 3"):
        assistant.write(prompts, ["on", "off"])


@pytest.mark.slow
def test_threads_do_not_mix_them_up(assistant, images):
    texts = [f"a wall {letter} {other}" for letter in "abcdef" for other in "abcd"]  # LoRA is folded in
    prompts = [[assistant.see(one)] for one in images]

    def work(number):
        tower, kind = assistant.embedder.text, number % 4
        if kind == 0:
            return tower.encode(texts).numpy().tolist()
        if kind == 1:
            return assistant.write(prompts)
        if kind == 2:
            return assistant.write(prompts, ["on", "off"] * (len(prompts) // 2) + ["on"] * (len(prompts) % 2))
        return list(assistant.chat(SHORT, plain=True).say("what is it"))

    alone = [work(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(8))) == alone * 2


def test_what_is_streamed_is_what_is_written(assistant, images):
    generator, how = assistant.generator, Writing(max_new_tokens=20)
    prompt = generator.asking([Turn(assistant.see(images[0]), "what is it")])
    (whole,) = generator.write([prompt], how)
    pieces = list(generator.stream(prompt, how))
    assert "".join(pieces) == whole and len(pieces) > 3
    drawn = Writing(max_new_tokens=20, temperature=1.0)
    assert ["".join(generator.stream(prompt, drawn, 7))] == generator.write([prompt], drawn, [7])
    stream = generator.stream(prompt, how)
    next(stream), stream.close()
    assert list(stream) == [] and not stream._thread.is_alive()


def test_a_chat_goes_through_the_template_and_remembers(chatting, images):
    chat = chatting.chat(SHORT)
    chat.show(image := chatting.see(images[0]))
    replies = ["".join(chat.say(text)) for text in ("what is it", "and now")]
    assert [turn.answer for turn in chat.turns] == replies
    assert [turn.image is None for turn in chat.turns] == [False, True]
    lm, told = chatting.generator.lm, f"\nwhat is it assistant {replies[0]} user and now reply "
    row = lm.row(["user ", image, told], begin=False)
    assert lm.text_of(lm.write([row], max_new_tokens=8)[0]).strip() == replies[1]
    chat.forget()
    assert not chat.turns and "".join(chat.say("what is it")) == replies[0]
    chat.forget(), chat.show(images[0])  # as it is, not yet seen
    assert "".join(chat.say("what is it")) == replies[0] and chatting.caption([]) == []
    with pytest.raises(WordsightError, match=r"gone.png .*give an image file"):
        chat.show("gone.png")


def test_the_beginning_of_a_long_chat_is_left_out_and_told(chatting, images, said):
    chat = chatting.chat(SHORT)
    chat.show(image := chatting.see(images[0]))
    for number in range(6):
        "".join(chat.say(f"{number} word word word"))
    assert len(chat.turns) < 6 and chat.turns[-1].question.startswith("5")
    assert chat.turns[0].image is image  # which stays
    assert any("its beginning is left out" in line for line in said)
    before = list(chat.turns)
    with pytest.raises(WordsightError, match="do not fit into the 96 positions"):
        chat.say("word " * 40)
    assert chat.turns == before


@pytest.mark.parametrize("plain", [True, False])
def test_a_chat_reads_only_what_is_new_and_says_what_the_whole_says(chatting, images, monkeypatch, plain):
    """Beside calls with adapters, which read by other weights; with an image in the middle, and past the
    LM's positions."""
    assistant, read = chatting, []
    write = PrefixedLM.write

    def counted(self, rows, **settings):
        past = settings.get("past_key_values")
        read.append((len(rows[0]) - (past.get_seq_length() if past else 0), len(rows[0])))
        return write(self, rows, **settings)

    def talk():
        chat = assistant.chat(SHORT, plain=plain)
        for number in range(6):
            if number in (0, 2):
                chat.show(assistant.see(images[number]))
            "".join(chat.say(f"so {number}"))
            if number == 1:
                assistant.embedder.text.encode([f"a wall {letter}" for letter in "abcdefgh"])
                assistant.write([["so"]], "on")
        return chat.turns, [turn.answer for turn in chat.turns]

    monkeypatch.setattr(PrefixedLM, "write", counted)
    turns, replies = talk()
    new, whole = map(sum, zip(*read))
    assert len(turns) < 6 and new < 0.85 * whole  # some were dropped: then all is read anew
    monkeypatch.setattr("wordsight.backbones.lm_generator.has_past", lambda lm: False)
    assert talk()[1] == replies


class Scripted(LMGenerator):
    """Writes what it is given, letter by letter."""

    chats = False

    def __init__(self, text):
        self.text, self.name = text, "scripted"

    def remembering(self):
        return self

    def fits(self, prompt, how):
        return True

    def stream(self, prompt, how, seed=1):
        self.prompt = prompt
        return super(LMGenerator, self).stream(prompt, how, seed)

    def write(self, prompts, how, seeds=None):
        return [self.text]


@pytest.mark.parametrize("text", ["\n A Quiet dog.\nQ: What else?", "A Quiet dog. Q: what", " A Quiet dog. "])
def test_a_plain_reply_ends_before_the_next_question(text, monkeypatch):
    from wordsight.backbones.generator import Pieces

    generator = Scripted(text)
    monkeypatch.setattr(Generator, "stream", lambda self, *_: Pieces(text))
    pieces = list((chat := wordsight_chat(generator)).say("what is it"))
    assert "".join(pieces) == "A Quiet dog." == chat.turns[0].answer and len(pieces) > 5
    list(chat.say("and"))
    assert "".join(generator.prompt) == "Q: what is it A: A Quiet dog.\nQ: and A:"


def wordsight_chat(generator):
    from wordsight.assistant.chat import Chat

    return Chat(generator, plain=True)


@pytest.mark.slow
def test_a_folder_keeps_both_runs(assistant, own_lm, images, tmp_path, capsys):
    folder = assistant.save(tmp_path / "one")
    assert Assistant.open(folder).caption(images) == assistant.caption(images)
    assert main(["verify", str(folder), "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert {"adapters_off_logits", "lm_once", "assistant_logits", "assistant_tokens"} <= set(checks)
    with pytest.raises(WordsightError, match="already holds something"):
        assistant.save(folder)
    with replaced(own_lm), pytest.raises(WordsightError, match="was trained on another LM"):
        Assistant.open(folder)


def test_two_lms_are_refused(clamp, limber, tmp_path):
    other = shutil.copytree(limber, tmp_path / "other")
    config, lm = (other / "config.yaml").read_text(), Run.open(limber).facts.lm
    (other / "config.yaml").write_text(config.replace(lm, lm[::-1]))
    with pytest.raises(WordsightError, match="stand over different LMs"):
        Assistant.from_runs(clamp, other)
    with pytest.raises(WordsightError, match="give a two_tower run and a limber run"):
        Assistant.from_runs(limber, clamp)


@pytest.mark.slow
def test_one_run_or_an_lm_does_what_it_can(clamp, limber, own_lm, images):
    blind, seeing, bare = Assistant.open(clamp), Assistant.open(limber), Assistant.open(own_lm)
    assert seeing.caption(images[:1]) and list(blind.classify(images[:1], ["red", "blue"])[0])
    assert list(bare.chat(SHORT, plain=True).say("what")) == list(blind.chat(SHORT, plain=True).say("what"))
    with pytest.raises(WordsightError, match="has no image input"):
        blind.caption(images[:1])
    with pytest.raises(WordsightError, match="classify needs the text tower of a two_tower run"):
        seeing.classify(images[:1], ["red", "blue"])
    with pytest.raises(WordsightError, match="needs no folder"):
        bare.save("nowhere")
    (told,) = Session(blind, blind.chat()).react(f"/image {images[0]}")
    assert "has no image input, so it is for /classes alone" in told


def spoken(monkeypatch, capsys, text, *words):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    code = main(["chat", *map(str, words)])
    found = capsys.readouterr()
    return code, found.out, found.err


@pytest.mark.slow
def test_the_verb(clamp, limber, images, assistant, tmp_path, monkeypatch, capsys):
    lines = f"/image {images[0]}\n/caption\n/classes red, blue\n\nwhat is it\n/help\n/quit\n/caption\n"
    words = (clamp, limber, "--plain", "--max-new-tokens", "8", "--save", tmp_path / "folder")
    code, out, _ = spoken(monkeypatch, capsys, lines, *words)
    assert code == 0 and out.count("> ") == 5 and assistant.caption(images[:1])[0] in out
    chat = assistant.chat(SHORT, plain=True)
    chat.show(assistant.see(images[0]))
    assert f"> what is it\n{''.join(chat.say('what is it'))}\n" in out and "%  red" in out
    monkeypatch.setattr(Assistant, "open", lambda *_, **__: assistant)
    code, out, _ = spoken(monkeypatch, capsys, lines, *words[2:5], tmp_path / "folder", "--json")
    turns = json.loads(out)["turns"]
    assert code == 0 and [turn["you"] for turn in turns][2:4] == ["/classes red, blue", "what is it"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("hello", "has no chat template"),
        ("/caption", "there is no image yet that /caption"),
        ("/classes a,b", "there is no image yet that /classes"),
        ("/image", "give the path of an image"),
        ("/image nothing.png", "nothing.png cannot be read"),
        ("/imag a.png", "did you mean '/image'"),
        ("/image {image}\n/classes", "names no class"),
        ("/image {image}\n/classes red", "give at least 2"),
    ],
)
def test_a_line_that_cannot_be_is_told_and_the_chat_goes_on(
    limber, clamp, images, monkeypatch, capsys, assistant, line, says
):
    monkeypatch.setattr(Assistant, "from_runs", lambda *_, **__: assistant)
    lines = line.format(image=images[0]) + "\n/help\n"
    code, out, err = spoken(monkeypatch, capsys, lines, clamp, limber)
    assert code == 2 and says in err and "/image PATH" in out


def test_a_replaced_tokenizer_is_noticed(own_lm):
    """Of the same weights: letters that changed places are another LM."""
    before = PrefixedLM.from_base(own_lm).origin
    with replaced(own_lm):
        file = own_lm / "tokenizer.json"
        whole = json.loads(file.read_text())
        words = whole["model"]["vocab"]
        words["d"], words["z"] = words["z"], words["d"]
        file.write_text(json.dumps(whole))
        assert PrefixedLM.from_base(own_lm).origin != before


def test_what_is_no_text_or_name_is_refused(assistant, table):
    image = str(next(table.glob("*.png")))
    for call, says in (
        (lambda: assistant.embed(texts=[3]), "texts holds 3, a int"),
        (lambda: assistant.classify([image], ["", "cat"]), "classes has an empty name at place 1"),
        (lambda: assistant.classify([image], ["sea_lion", "Sea lion"]), "classes names a class twice"),
        (lambda: assistant.embed(texts=["caf\udce9"]), "is not UTF-8"),
    ):
        with pytest.raises(WordsightError, match=says):
            call()
