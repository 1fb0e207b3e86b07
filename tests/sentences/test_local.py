"""Local: a small random language model that writes here."""

import math
import shutil
import string
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from wordsight.backbones.sampling import Draws, drawn
from wordsight.files import WordsightError
from wordsight.sentences import local
from wordsight.sentences.writers import write_sentences
from wordsight.settings import WriterSettings

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


def locally(model: str, **changes) -> WriterSettings:
    settings = WriterSettings(
        model,
        local=True,
        questions=("Describe a(n) {}.", "What is a(n) {}?"),
        per_question=2,
        max_tokens=8,
        device="cpu",
    )
    return replace(settings, **changes)


@pytest.mark.slow
def test_a_local_model_is_deterministic_and_order_does_not_matter(tiny, tmp_path):
    settings, state = locally(tiny), torch.get_rng_state()
    one = write_sentences(["fox", "owl"], settings, tmp_path / "one.json")
    two = write_sentences(["owl", "fox"], settings, tmp_path / "two.json")
    assert one == two and list(two) == ["owl", "fox"] and len(set(one["fox"])) == 4
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state moved"
    assert write_sentences(["fox"], replace(settings, seed=50), tmp_path / "three.json")["fox"] != one["fox"]


def test_no_model_writes_whose_checkpoint_lacks_a_tensor(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "lm")
    file = tmp_path / "lm" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(WordsightError, match=r"lacks model\.layers\.0\.self_attn\.q_proj\.weight;"):
        write_sentences(["fox"], locally(str(tmp_path / "lm")), tmp_path / "one.json")


def test_each_answer_draws_from_its_own_seed_whatever_runs_beside_it(tiny, tmp_path, monkeypatch):
    together = write_sentences(["fox"], locally(tiny), tmp_path / "together.json")
    monkeypatch.setattr(local, "ROWS", 1)
    assert write_sentences(["fox"], locally(tiny), tmp_path / "alone.json") == together


def test_classes_share_a_batch_and_a_stop_between_batches_changes_no_byte(tiny, tmp_path, monkeypatch):
    names, sizes, real = ["fox", "owl", "cat"], [], local.local_ask
    monkeypatch.setattr(local, "ROWS", 8)  # four answers a class: two classes, then one

    def counting(settings, tower):
        ask = real(settings, tower)

        def counted(jobs):
            sizes.append(len(jobs))
            if len(sizes) == 2:
                raise KeyboardInterrupt
            return ask(jobs)

        return counted

    monkeypatch.setattr(local, "local_ask", counting)
    with pytest.raises(KeyboardInterrupt):
        write_sentences(names, locally(tiny), tmp_path / "stopped.json")
    write_sentences(names, locally(tiny), tmp_path / "stopped.json")
    assert sizes == [8, 4, 4]
    monkeypatch.setattr(local, "local_ask", real)
    write_sentences(names, locally(tiny), tmp_path / "whole.json")
    assert (tmp_path / "stopped.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


@pytest.mark.slow
def test_tokens_are_drawn_as_often_as_their_probability_says():
    scores, rows = torch.tensor([[2.0, 1.0, 0.0, -1.0]]), 20_000
    ids = torch.zeros(rows, 1, dtype=torch.long)
    chosen = Draws(0.5, range(rows))(ids, scores.expand(rows, -1)).argmax(1)
    found, wanted = chosen.bincount(minlength=4) / rows, (scores[0] / 0.5).softmax(0)
    assert torch.all((found - wanted).abs() < 4 * (wanted * (1 - wanted) / rows).sqrt())
    assert "logits_processor" not in drawn(0.0, [1])
    for temperature, seed in ((-1.0, 1), (math.nan, 1), (1.0, -1)):
        with pytest.raises(WordsightError, match="both are 0 or more"):
            drawn(temperature, [seed])


def test_temperature_zero_is_greedy(tiny, tmp_path):
    texts = write_sentences(["fox"], locally(tiny, temperature=0.0), tmp_path / "s.json")
    assert texts["fox"][0] == texts["fox"][1]


@pytest.fixture
def prompts(monkeypatch):
    """The prompts that a model was given, as text."""
    given, real = [], local._prompt

    def kept(tokenizer, *rest):
        given.append(tokenizer.decode(real(tokenizer, *rest)))
        return real(tokenizer, *rest)

    monkeypatch.setattr(local, "_prompt", kept)
    return given


def test_a_model_without_chat_template_is_asked_as_q_and_a(tmp_path, prompts):
    plain = save_tiny_writer(tmp_path / "plain", chat=False)
    assert write_sentences(["owl"], locally(plain), tmp_path / "s.json")["owl"]
    assert "Describe" in prompts[0] and "plain sentence" not in prompts[0] and prompts[0].endswith("A:")


def with_template(folder: Path, template: str) -> str:
    model = save_tiny_writer(folder, chat=True)
    (folder / "chat_template.jinja").write_text(template)
    return model


def test_a_chat_template_is_told_that_nothing_is_to_be_thought(tmp_path, prompts):
    template = "{{ messages[0].content }}{% if not (enable_thinking or thinking) %} at once{% endif %}"
    write_sentences(["owl"], locally(with_template(tmp_path / "lm", template)), tmp_path / "s.json")
    assert prompts[0].endswith("without lists or markup. at once")


def test_a_chat_template_that_refuses_is_told(tmp_path):
    model = with_template(tmp_path / "lm", "{{ raise_exception('a system message must come first') }}")
    with pytest.raises(WordsightError, match=r"chat template of .* cannot be used: a system message must"):
        write_sentences(["owl"], locally(model), tmp_path / "s.json")


def test_marks_of_thoughts_among_special_tokens_are_not_dropped_before_the_thought():
    class Reads:
        chat_template, eos_token_id, pad_token_id = "x", 1, 1

        def decode(self, tokens, skip_special_tokens=False):
            return "hm.red" if skip_special_tokens else "<think>hm.</think>red</s>"

    reply = local._reply(Reads(), [2, 3, 1], WriterSettings("m", local=True, max_tokens=3))
    assert reply.text == "<think>hm.</think>red</s>" and not reply.cut


def test_what_cannot_be_loaded_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WordsightError, match=r"model=.*none: LM folder '.*none' does not exist"):
        write_sentences(["fox"], locally(str(tmp_path / "none")), tmp_path / "s.json")
    pickled = Path(save_tiny_writer(tmp_path / "pickled", chat=True))
    weights = pickled / "model.safetensors"
    torch.save({}, pickled / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(WordsightError, match="which is never opened; save it with safetensors"):
        write_sentences(["fox"], locally(str(pickled)), tmp_path / "s.json")
    weights.write_bytes(b"x" * 30)
    with pytest.raises(WordsightError, match=r"model.safetensors cannot be read"):
        write_sentences(["fox"], locally(str(pickled)), tmp_path / "s.json")
    assert not list(tmp_path.glob("s.json*"))


def test_an_encoder_writes_nothing(tmp_path):
    from transformers import BertConfig, BertModel

    model = Path(save_tiny_writer(tmp_path / "lm", chat=False))
    shape = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=99, **shape)).save_pretrained(model)
    with pytest.raises(WordsightError, match="bert is an encoder, which writes nothing"):
        write_sentences(["fox"], locally(str(model)), tmp_path / "s.json")


def test_what_does_not_fit_into_the_lm_is_told(tiny, tmp_path):
    with pytest.raises(WordsightError, match=r"max_tokens=4000 do not fit into the \d+ positions"):
        write_sentences(["fox"], locally(tiny, max_tokens=4000), tmp_path / "s.json")
