import json
import math
import os
import socket
import string
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from wordsight.config import WordsightError
from wordsight.reader import build, to_dict
from wordsight.sentences import generated, read_sentences
from wordsight.sentences.generated import (
    Draws,
    WriterSettings,
    article,
    ask_about,
    clean,
    drawn,
    read_questions,
    write_sentences,
)

CHAT = "{% for message in messages %}<s>{{ message['content'] }}{% endfor %}"


def save_tiny_writer(folder: Path, chat: bool) -> str:
    """A random Llama that writes letters: enough for a server to sample from."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    trainer = trainers.BpeTrainer(
        vocab_size=200,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=list(string.printable[:94]),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["A fox is a small red animal with a long tail. What does it look like?"], trainer
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.chat_template = CHAT if chat else None
    fast.save_pretrained(folder)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    shape = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=len(fast), max_position_embeddings=512, **shape, **ids)
        )
    model.generation_config = GenerationConfig(
        do_sample=True, **ids
    )  # `transformers serve` is greedy without do_sample, whatever the temperature
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return save_tiny_writer(tmp_path_factory.mktemp("writer"), chat=True)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    """The address of `transformers serve` over the tiny model: a real OpenAI-compatible server, on
    loopback.
    """
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    command = [
        str(Path(sys.executable).parent / "transformers"),
        "serve",
        tiny,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        try:
            until = time.monotonic() + 90
            while not healthy(port):
                assert process.poll() is None and time.monotonic() < until, (
                    f"transformers serve did not start:\n{log.read_text()[-3000:]}"
                )
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def replies(status: int, body: str, kind: str = "application/json"):
    """A server that gives one reply to everything, and the requests it saw: for what a real server does only
    on a bad day.
    """
    seen: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(
                {
                    "key": self.headers["Authorization"],
                    **json.loads(self.rfile.read(int(self.headers["Content-Length"]))),
                }
            )
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}/v1", seen
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def completion(text: str | None) -> str:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return json.dumps(
        {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    )


def locally(model: str, **changes) -> WriterSettings:
    questions = "Describe a(n) {}.", "What is a(n) {}?"
    return replace(
        WriterSettings(model, local=True, questions=questions, per_question=2, max_tokens=8, device="cpu"),
        **changes,
    )


def write(names, settings, path):
    return write_sentences(names, settings, path, progress=False)


# questions, articles, answers


def test_every_question_set_is_well_formed():
    sets = json.loads(generated.QUESTIONS.read_text())
    assert set(sets) == {
        "generic",
        "texture",
        "satellite",
        "pets",
        "flowers",
        "aircraft",
        "cars",
        "food",
        "scenes",
        "actions",
    }
    for name in sets:
        assert len(read_questions(name)) >= 3 and all(
            "(n)" not in ask_about(question, "old owl") for question in read_questions(name)
        )


def test_questions_fail_in_words():
    with pytest.raises(WordsightError, match=r"'flower' is not known \(did you mean 'flowers'\?\)"):
        read_questions("flower")
    for bad in (["Describe it."], ["{} or {}?"], [3]):
        with pytest.raises(WordsightError, match="must be text that holds"):
            read_questions(bad)
    with pytest.raises(WordsightError, match="empty"):
        read_questions([])


def test_articles_follow_the_sound():
    an = (
        "owl ant hour heirloom umbrella urchin F-16 F/A-18 MD-80 A320 A340-200 ERJ_135 Il-76 MG SUV 8-ball "
        "11 1850 x-ray uninhabited_isle emu"
    )
    a = (
        "cat unicycle euphonium ewer one-man_band U-2 USB BMW FIAT RAM 737-200 C-130 DHC-6 T-shirt 110 "
        "2012_FIAT yin_yang utility_pole user ukulele _"
    )
    assert [word for word in an.split() if article(word) != "an"] == [] and [
        word for word in a.split() if article(word) != "a"
    ] == []
    assert (
        ask_about("Describe a(n) {}.", "old_owl") == "Describe an old owl."
        and ask_about("A(n) {}?", "owl") == "An owl?"
    )
    assert ask_about("What is {} food?", "apple_pie") == "What is apple pie food?"


def test_answers_are_cleaned():
    assert clean("  It has\n\n a tail. ") == "It has a tail."
    assert clean("It has a tail. It is re", cut=True) == "It has a tail."
    assert clean('It says "yes." and 3.5 m', cut=True) == 'It says "yes."'
    assert clean("It has a long", cut=True) == "It has a long"
    assert (
        clean("<think>hm. a fox</think>A fox.") == "A fox." and clean("<think>never ends. so", cut=True) == ""
    )
    assert clean("half \ud83d pair") == "half pair"


def test_settings_are_checked_and_survive_the_strict_reader():
    settings = WriterSettings("m", base_url="http://x/v1", questions=("What is {}?",))
    assert build(WriterSettings, to_dict(settings)) == settings
    assert build(WriterSettings, {"model": "m", "questions": "pets"}).questions == "pets"
    with pytest.raises(WordsightError, match="per_question=0 is too small"):
        WriterSettings("m", per_question=0)
    with pytest.raises(WordsightError, match="give one of them"):
        WriterSettings("m", base_url="http://x/v1", local=True)


# a real server


@pytest.fixture(scope="module")
def served(server, tiny) -> WriterSettings:
    return WriterSettings(
        tiny,
        base_url=server,
        questions=("Describe a(n) {}.", "What is a(n) {}?"),
        per_question=3,
        max_tokens=10,
    )


def test_a_server_writes_and_the_cache_is_readable(served, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)  # a server of one's own needs no key
    path = tmp_path / "deep" / "sentences.json"
    texts = write(["fox", "old_owl"], served, path)
    assert list(texts) == ["fox", "old_owl"] and all(
        len(group) == 6 and all(group) for group in texts.values()
    )
    assert len(set(texts["fox"])) > 1, "every seed gave one text"
    cache = json.loads(path.read_text())
    assert (
        cache["format"] == "wordsight-sentences-1"
        and cache["model"] == served.model
        and cache["temperature"] == 0.99
    )
    first = cache["sentences"]["old_owl"][0]
    assert (first["question"], first["seed"], first["text"]) == (
        "Describe an old owl.",
        1,
        texts["old_owl"][0],
    )
    assert read_sentences(path, ["Old Owl", "fox"]) == {"Old Owl": texts["old_owl"], "fox": texts["fox"]}
    assert not list(path.parent.glob("*.tmp"))


def test_what_is_cached_is_never_asked_again(served, tmp_path):
    path = tmp_path / "s.json"
    first = write(["fox"], served, path)
    elsewhere = replace(
        served, base_url="http://127.0.0.1:9/v1", retries=0
    )  # where nothing listens: any request would fail
    before = path.stat().st_mtime_ns
    assert write(["fox"], elsewhere, path) == first and path.stat().st_mtime_ns == before
    with pytest.raises(WordsightError, match=r"no server answers at http://127.0.0.1:9/v1"):
        write(["fox", "owl"], elsewhere, path)
    both = write(["owl", "fox"], served, path)
    assert list(both) == ["owl", "fox"] and both["fox"] == first["fox"]


def test_a_model_that_the_server_does_not_have_is_named_with_the_address(served, tmp_path):
    with pytest.raises(WordsightError, match=r"http://127.0.0.1:\d+/v1 .*'/nowhere/model'"):
        write(["fox"], replace(served, model="/nowhere/model"), tmp_path / "s.json")
    assert write(["fox"], served, tmp_path / "s.json")[
        "fox"
    ]  # the failed call left nothing that binds the next


def test_an_address_without_v1_says_so(served, tmp_path):
    with pytest.raises(WordsightError, match="usually ends in /v1"):
        write(["fox"], replace(served, base_url=served.base_url.removesuffix("/v1")), tmp_path / "s.json")


# a server's bad days


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "refused the API key in environment variable WORDSIGHT_TEST_KEY"),
        (403, "refused the API key"),
        (404, "does not know model 'm'"),
        (429, "still limits requests after 0 retries"),
        (500, "did not answer for model 'm'"),
    ],
)
def test_a_refusal_is_told_with_the_address_and_without_the_key(tmp_path, monkeypatch, status, said):
    monkeypatch.setenv("WORDSIGHT_TEST_KEY", "sk-secret")
    with replies(status, '{"error": {"message": "no, sk-secret"}}') as (url, seen):
        settings = WriterSettings("m", base_url=url, api_key_env="WORDSIGHT_TEST_KEY", retries=0)
        with pytest.raises(WordsightError, match=said) as error:
            write(["fox"], settings, tmp_path / "s.json")
        assert url in str(error.value) and "sk-secret" not in str(error.value)
        assert seen[0]["key"] == "Bearer sk-secret"


def test_a_web_page_is_not_an_answer(tmp_path):
    with (
        replies(200, "<html>welcome</html>", "text/html") as (url, _),
        pytest.raises(WordsightError, match="not as an OpenAI-compatible server does"),
    ):
        write(["fox"], WriterSettings("m", base_url=url, retries=0), tmp_path / "s.json")
    with (
        replies(200, "{broken") as (url, _),
        pytest.raises(WordsightError, match="not as an OpenAI-compatible server does"),
    ):
        write(["fox"], WriterSettings("m", base_url=url, retries=0), tmp_path / "s.json")


def test_empty_answers_are_asked_again_with_other_seeds_and_then_an_error(tmp_path):
    with (
        replies(200, completion(None)) as (url, seen),
        pytest.raises(WordsightError, match="only empty answers about class 'fox'"),
    ):
        write(
            ["fox"],
            WriterSettings("m", base_url=url, questions=("What is a(n) {}?",), per_question=2, workers=1),
            tmp_path / "s.json",
        )
    assert [request["seed"] for request in seen] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert seen[0]["messages"][0]["content"].startswith("What is a fox? Answer in one plain sentence")
    assert seen[0]["max_tokens"] == 60 and seen[0]["temperature"] == 0.99 and "n" not in seen[0]


def test_one_answer_for_all_seeds_is_warned_of(tmp_path):
    with (
        replies(200, completion("A fox.")) as (url, _),
        pytest.warns(UserWarning, match="same answer for every seed"),
    ):
        texts = write(["fox"], WriterSettings("m", base_url=url, per_question=2), tmp_path / "s.json")
    assert set(texts["fox"]) == {"A fox."}


def test_without_key_and_without_server_the_variable_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(WordsightError, match=r"OPENAI_API_KEY is not set.*base_url=.*local=true"):
        write(["fox"], WriterSettings("m"), tmp_path / "s.json")


# a model run here


def test_a_local_model_is_deterministic_and_order_does_not_matter(tiny, tmp_path):
    settings, state = locally(tiny), torch.get_rng_state()
    one = write(["fox", "owl"], settings, tmp_path / "one.json")
    two = write(["owl", "fox"], settings, tmp_path / "two.json")
    assert one == two and list(two) == ["owl", "fox"] and len(set(one["fox"])) == 4
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state moved"
    assert write(["fox"], replace(settings, seed=50), tmp_path / "three.json")["fox"] != one["fox"]


def test_each_answer_draws_from_its_own_seed_whatever_runs_beside_it(tiny, tmp_path, monkeypatch):
    together = write(["fox"], locally(tiny), tmp_path / "together.json")
    monkeypatch.setattr(generated, "ROWS", 1)
    assert write(["fox"], locally(tiny), tmp_path / "alone.json") == together


def test_tokens_are_drawn_as_often_as_their_probability_says():
    scores, rows = torch.tensor([[2.0, 1.0, 0.0, -1.0]]), 20_000
    chosen = Draws(0.5, range(rows))(None, scores.expand(rows, -1)).argmax(1)
    found, wanted = chosen.bincount(minlength=4) / rows, (scores[0] / 0.5).softmax(0)
    assert torch.all((found - wanted).abs() < 4 * (wanted * (1 - wanted) / rows).sqrt())
    assert "logits_processor" not in drawn(0.0, [1])
    for temperature, seed in ((-1.0, 1), (math.nan, 1), (1.0, -1)):
        with pytest.raises(WordsightError, match="both are 0 or more"):
            drawn(temperature, [seed])


def test_temperature_zero_is_greedy(tiny, tmp_path):
    texts = write(["fox"], locally(tiny, temperature=0.0), tmp_path / "s.json")
    assert texts["fox"][0] == texts["fox"][1]


def test_a_model_without_chat_template_is_asked_as_q_and_a(tmp_path, monkeypatch):
    plain = save_tiny_writer(tmp_path / "plain", chat=False)
    asked = []
    real = generated._prompt

    def kept(tokenizer, *rest):
        asked.append(tokenizer.decode(real(tokenizer, *rest)))
        return real(tokenizer, *rest)

    monkeypatch.setattr(generated, "_prompt", kept)
    assert write(["owl"], locally(plain), tmp_path / "s.json")["owl"]
    assert "Describe" in asked[0] and "plain sentence" not in asked[0] and asked[0].endswith("A:")


def test_a_killed_call_resumes_where_it_stopped(tiny, tmp_path, monkeypatch):
    settings, path = locally(tiny), tmp_path / "s.json"
    whole = write(["fox", "owl", "cat"], settings, tmp_path / "whole.json")
    asked: list[str] = []
    real = generated._local

    def counted(stop_at: str | None):
        def local(settings):
            ask = real(settings)

            def counting(jobs):
                if stop_at and stop_at in jobs[0][0]:
                    raise KeyboardInterrupt
                asked.extend(question for question, _ in jobs)
                return ask(jobs)

            return counting

        return local

    monkeypatch.setattr(generated, "_local", counted("owl"))
    with pytest.raises(KeyboardInterrupt):
        write(["fox", "owl", "cat"], settings, path)
    assert list(json.loads(path.read_text())["sentences"]) == ["fox"]
    asked.clear()
    monkeypatch.setattr(generated, "_local", counted(None))
    assert write(["fox", "owl", "cat"], settings, path) == whole
    assert not any("fox" in question for question in asked) and len(asked) == 8


def test_some_empty_answers_are_left_out_counted_and_warned_of(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(
        generated,
        "_local",
        lambda settings: (
            lambda jobs: [
                (" " if asked.startswith("What") else f"It is {seed}.", False) for asked, seed in jobs
            ]
        ),
    )
    with pytest.warns(UserWarning, match="2 answers were empty 4 times over"):
        assert write(["fox"], locally(tiny), tmp_path / "s.json") == {"fox": ("It is 1.", "It is 2.")}
    assert json.loads((tmp_path / "s.json").read_text())["empty"] == {"fox": 2}


def test_other_settings_in_the_same_file_are_refused_and_shown(tiny, tmp_path):
    path = tmp_path / "s.json"
    write(["fox"], locally(tiny), path)
    with pytest.raises(
        WordsightError,
        match=r"other settings \(temperature: 0.99 in the file, 0.5 asked for; seed: 1 in the file, 2 asked "
        r"for\)",
    ):
        write(["fox"], locally(tiny, temperature=0.5, seed=2), path)
    with pytest.raises(WordsightError, match="questions: "):
        write(["fox"], locally(tiny, questions="pets"), path)


def test_a_foreign_file_is_not_overwritten(tiny, tmp_path):
    path = tmp_path / "cupl.json"
    path.write_text('{"fox": ["red"]}')
    with pytest.raises(WordsightError, match="will not be overwritten"):
        write(["fox"], locally(tiny), path)
    with pytest.raises(WordsightError, match="is a folder"):
        write(["fox"], locally(tiny), tmp_path)
    with pytest.raises(WordsightError, match="cannot be written"):
        write(["fox"], locally(tiny), path / "below.json")
    assert path.read_text() == '{"fox": ["red"]}'


def test_a_local_model_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WordsightError, match=r"model '.*none' cannot be loaded"):
        write(["fox"], locally(str(tmp_path / "none")), tmp_path / "s.json")
