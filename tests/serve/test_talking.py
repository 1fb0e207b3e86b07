"""Captions, answers and chats over HTTP equal what the library gives."""

import json

import pytest
from PIL import Image
from serving import files_of, refused, said_with

from wordsight.assistant import Assistant
from wordsight.backbones.generator import Writing
from wordsight.captioner import caption

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def talker(served, assistant_runs):
    return served(*(assistant_runs[name] for name in ("clamp", "limber", "both")))


def test_each_run_can_what_it_is_made_for(talker):
    cards = talker.get("/v1/models").json()["data"]
    assert {card["id"]: card["abilities"] for card in cards} == {
        "two_tower": ["classify", "embed", "chat"],
        "limber": ["caption", "answer", "chat"],
        "both": ["classify", "embed", "caption", "answer", "chat"],
    }


def test_captions_and_answers_are_those_of_the_library(talker, assistant_runs):
    images = assistant_runs["images"][:3]
    answer = talker.post("/v1/caption", files=[*files_of(images), ("images", ("x.png", b"x"))]).json()
    assert answer["model"] == "limber"
    expected = [one.text for one in caption(assistant_runs["limber"], list(map(str, images)))]
    assert [one["caption"] for one in answer["results"][:3]] == expected
    assert "not an image" in answer["results"][3]["error"]
    assistant = Assistant.open(assistant_runs["both"])
    question = {"question": "what is\n it", "model": "both"}
    (said,) = talker.post("/v1/answer", files=files_of(images[:1]), data=question).json()["results"]
    assert said["answer"].startswith(assistant.answer(images[0], "what is it"))
    assert "it is blank" in refused(
        talker, 422, "/v1/answer", files=files_of(images[:1]), data={"question": " "}
    )


def test_a_two_tower_classifies_by_the_names_of_a_request(talker, assistant_runs):
    images = assistant_runs["images"][:2]
    assert "none of its own" in refused(talker, 422, files=files_of(images))
    answer = talker.post("/v1/classify", files=files_of(images), data={"classes": ["red", "blue"]}).json()
    expected = Assistant.open(assistant_runs["clamp"]).classify(list(map(str, images)), ["red", "blue"])
    for one, chances in zip(answer["results"], expected):
        assert {c["class"]: pytest.approx(c["probability"], abs=2e-4) for c in one["classes"]} == chances


def test_a_chat_is_that_of_the_library(talker, assistant_runs):
    image = assistant_runs["images"][0]
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": said_with(image, "what is it")},
    ]
    asked = {"model": "both", "messages": turns, "max_tokens": 8}
    answer = talker.post("/v1/chat/completions", json=asked).json()
    chat = Assistant.open(assistant_runs["both"]).chat(Writing(max_new_tokens=8), plain=True)
    chat.show(chat.generator.see([Image.open(image).convert("RGB")])[0])
    reply = chat.say("be brief\n\nwhat is it")
    assert answer["choices"][0]["message"]["content"] == "".join(reply)
    assert answer["usage"]["prompt_tokens"] == reply.prompt_tokens > 8
    assert answer["usage"]["completion_tokens"] <= 8
    lines = talker.post("/v1/chat/completions", json=asked | {"stream": True}).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines[:-2]]
    assert "".join(one.get("content", "") for one in deltas) == answer["choices"][0]["message"]["content"]


def test_what_a_chat_cannot_be_is_said(talker, assistant_runs):
    def why(code, messages, **more):
        return refused(talker, code, "/v1/chat/completions", json={"messages": messages} | more)

    hello = [{"role": "user", "content": "hello"}]
    assert "before each reply" in why(422, [{"role": "assistant", "content": "hi"}])
    assert "before each reply" in why(422, [*hello, {"role": "assistant", "content": "hi"}])
    assert "no image input" in why(
        422, [{"role": "user", "content": said_with(assistant_runs["images"][0], "?")}], model="two_tower"
    )
    link = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/a.png"}}]
    assert "no host is allowed" in why(400, [{"role": "user", "content": link}], model="limber")
    assert "leave it out" in why(422, hello, tools=[{"type": "function"}])
    assert "do not fit" in why(400, [{"role": "user", "content": "a" * 500}], model="limber")
    assert "one reply" in why(422, hello, n=2)
    assert "control character" in why(422, [{"role": "user", "content": "a\0"}])
