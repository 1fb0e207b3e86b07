"""What an LM read stays: what follows is that of the whole row, and only what is new is read."""

import pytest
import torch
from standins import letters, mostly_slow
from transformers import AutoConfig, AutoModelForCausalLM

from wordsight.backbones.generator import Writing
from wordsight.backbones.lm_generator import LMGenerator
from wordsight.backbones.past import Past, has_past
from wordsight.backbones.prefixed import PrefixedLM
from wordsight.serve.written import Said, Talk, Writer

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
    "vocab_size": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "qwen2": SIZES,
    # a window that every row here is longer than
    "gemma3_text": SIZES
    | {"sliding_window": 6, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 96, "vocab_size": 40},
}


def base(family):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(12 if parameter.ndim > 1 else 1)
    return PrefixedLM(model, letters())


@pytest.fixture
def read(monkeypatch):
    """How many vectors passed through the LM at the beginning of each call."""
    found, write = [], PrefixedLM.write

    def counted(self, rows, **settings):
        began = settings["past_key_values"].get_seq_length() if "past_key_values" in settings else 0
        found.append(len(rows[0]) - began)
        return write(self, rows, **settings)

    monkeypatch.setattr(PrefixedLM, "write", counted)
    return found


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, "gpt2", "gemma3_text"))
def test_what_follows_is_that_of_the_whole_row(family, read):
    lm = base(family)
    past, image, length = Past(lm), torch.randn(5, lm.width), {"max_new_tokens": 6, "min_new_tokens": 6}
    row, new = lm.row(["what is it ", image, " a dog"]), []
    for text in (" and now", "", " who is it", " and where"):
        ((*tokens,),) = past.write(row, **length)
        assert [tokens] == lm.write([row], **length)
        told = lm.embed(torch.tensor([tokens]))[0]
        cut = told if text != " and where" else told[:2]  # a reply that was cut
        row, before = torch.cat([row, cut, lm.row([text], begin=False)]), len(row)
        new.append(len(row) - before - len(cut) + 1)  # and the last token, which was written and not read
    assert read[2::2] == new[:-1] and read[0] > 12
    assert past.write(row, **length) == lm.write([row], **length)
    assert read[-2] == len(lm.row([" and where"], begin=False))  # all of what stayed of the reply was read
    other = lm.row(["what is it ", torch.randn(5, lm.width), " a dog and a cat"])
    assert past.write(other, **length) == lm.write([other], **length) and read[-2] == len(other) - 11
    again = other[:-3]
    assert past.write(again, **length) == lm.write([again], **length) and read[-2] == 1
    assert past.write(image, **length) == lm.write([image], **length) and read[-2] == len(image)


def test_a_failure_leaves_nothing_behind(monkeypatch):
    lm = base("qwen2")
    past, row = Past(lm), lm.row(["a dog is here"])
    past.write(row, max_new_tokens=4)
    with monkeypatch.context() as patch:
        patch.setattr(PrefixedLM, "write", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            past.write(row, max_new_tokens=4)
    assert past._kept is None and past.write(row, max_new_tokens=4) == lm.write([row], max_new_tokens=4)


def test_layers_that_keep_no_keys_have_no_past():
    lm = base("qwen2")
    assert has_past(lm)
    lm.lm.config.layer_types = ["linear_attention", "full_attention", "full_attention"]
    assert not has_past(lm)
    lm = base("gemma3_text")
    assert has_past(lm)
    lm.lm.config.rope_parameters["full_attention"]["rope_type"] = "longrope"
    assert not has_past(lm)


def test_a_server_reads_of_a_chat_what_is_new(read):
    lm = base("qwen2")
    lm.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    writer, how = Writer(LMGenerator(lm, name="lm")), Writing(max_new_tokens=4)
    first = Said("what is it " * 4)
    (reply,) = writer.replies([Talk([], first, how, 1, str)])
    talk = Talk([(first, reply.text)], Said("a dog"), how, 1, str)
    (again,) = writer.replies([talk])
    assert read[1] < read[0] and again.prompt_tokens > read[0]
    (alone,) = Writer(LMGenerator(lm, name="lm")).replies([talk])
    assert alone == again
