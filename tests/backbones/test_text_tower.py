"""The LM as text tower: eleven families, two ways that are equal, an LM that writes as before, and everything
silently wrong refused in words.
"""

import copy
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from standins import mostly_slow, without_digests
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from wordsight import losses, tower_settings
from wordsight.backbones import DTYPES, batches, readonly, text_encoding, text_tower, unit
from wordsight.backbones.text_tower import TextTower
from wordsight.backbones.verify import verify
from wordsight.config import WordsightError
from wordsight.tower_settings import TowerSettings

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
FAMILIES = {
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", GROUPED),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", GROUPED | {"head_dim": 8}),
    "smollm3": ("SmolLM3", GROUPED | {"no_rope_layers": [1, 0]}),
    "phi": ("Phi", SMALL),
    "olmo2": ("Olmo2", GROUPED),
    "opt": (
        "OPT",
        {
            "hidden_size": 32,
            "word_embed_proj_dim": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 48,
            "max_position_embeddings": 128,
        },
    ),
    "gemma3_text": (
        "Gemma3Text",
        GROUPED
        | {
            "head_dim": 8,
            "sliding_window": 120,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "gpt_neox": ("GPTNeoX", SMALL),
}
TEXTS = [
    "dog",
    "a tiger shark in the deep blue sea",
    "cat",
    "dog",
    "red panda",
    "ox",
    "an old steam train",
    "tea",
    "goldfish",
    "a kite",
]
LITTLE = {"prompts": 5, "dim": 12, "rank": 4, "heads": 4}


@pytest.fixture(scope="module")
def tokenizer():
    """A real byte-pair tokenizer of some three hundred pieces."""
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer, pieces.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    pieces.train_from_iterator([tower_settings.resolve_wrapper("vicuna", None)[0], *TEXTS] * 3, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces, bos_token="<s>", eos_token="</s>", model_max_length=100000
    )


def make(family: str = "llama", attention: str = "sdpa", dtype=torch.float32, **changes):
    name, config = FAMILIES[family]
    torch.manual_seed(0)
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=340, **special, **(config | changes), attn_implementation=attention
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    for (
        parameter
    ) in model.parameters():  # norms and biases are ones and zeros in a new model, which would hide mistakes
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.to(dtype).eval()


def tower(tokenizer, lm=None, **settings) -> TextTower:
    torch.manual_seed(1)
    made = TextTower(make() if lm is None else lm, tokenizer, TowerSettings(**(LITTLE | settings)))
    for (
        name,
        parameter,
    ) in made.named_parameters():  # LoRA's second matrix starts at zero, and would do nothing
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return made


def close(one, other, tolerance=2e-6):
    return torch.allclose(one, other, rtol=0, atol=tolerance)


def assert_passed(found):
    assert not {name: check for name, check in found.items() if not check.passed}


# Every family


@pytest.mark.parametrize(
    ("family", "attention"),
    mostly_slow(
        [
            *((family, "sdpa") for family in FAMILIES),
            *((family, "eager") for family in ("llama", "gpt2", "opt")),
        ],
        *(("llama", "sdpa"), ("gemma3_text", "sdpa"), ("gpt2", "eager")),
    ),
)
def test_every_family_embeds_both_ways_alike_and_passes_its_own_checks(tokenizer, family, attention):
    made = tower(tokenizer, make(family, attention))
    one, two = made.encode(TEXTS, "one"), made.encode(TEXTS, "two")
    assert one.shape == (len(TEXTS), 12) and close(one.norm(dim=1), torch.ones(len(TEXTS)))
    assert close(one, two) and close(
        one, made(TEXTS).detach()
    )  # the training pass shares no prefix and sorts nothing
    assert torch.equal(one[0], one[3]) and (one[0] - one[1]).abs().max() > 1e-3
    found = verify(made)
    assert {
        "read_only",
        "text_states",
        "adapters_off_logits",
        "adapters_off_tokens",
        "padding",
        "two_ways",
        "causal",
        "base_weights",
    } <= set(found)
    assert_passed(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_reaches_every_trained_tensor_and_no_frozen_one(tokenizer, family):
    made = tower(tokenizer, make(family)).train()
    made(TEXTS)[:, 0].sum().backward()
    trained = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in made.named_parameters() if parameter.grad is not None} == trained
    assert {name.split(".")[0] for name in trained} == {"prompts", "pool", "head", "lm"}
    layers = {name.rsplit(".lora_", 1)[0] for name in trained if name.startswith("lm.")}
    assert all(".lora_" in name for name in trained if name.startswith("lm."))
    assert len(layers) == 2 * len(tower_settings.TARGETS[family]) and not any(
        "mlp" in name or "fc" in name for name in layers
    )  # the attention alone


# The two ways, and what makes them cheap


def test_the_mask_says_who_sees_whom():
    mask = readonly.additive_mask(torch.tensor([3, 1]), 3, 2, both=True) == 0
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
    ]
    assert mask[1, 0, 3:].int().tolist() == [[1, 0, 0, 1, 1]] * 2  # padding is seen by nobody
    assert (readonly.additive_mask(torch.tensor([3]), 3, 2, both=False) == 0)[0, 0, 3].tolist() == [
        True,
        True,
        True,
        True,
        False,
    ]
    assert torch.equal(
        readonly.additive_mask(torch.tensor([3, 2]), 3, 2, past=2),
        readonly.additive_mask(torch.tensor([3, 2]), 3, 2)[:, :, 2:],
    )
    assert readonly.positions(torch.tensor([3, 1]), 3, 2).tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 1, 2]]


def test_states_of_the_text_in_two_passes_are_the_base_lms_bit_for_bit(tokenizer):
    lm = make().requires_grad_(False)
    made, batch = tower(tokenizer, copy.deepcopy(lm), train="prompts"), tower(tokenizer).tokenise(TEXTS)
    states, cache = readonly.text_pass(made.trunk, {"input_ids": batch.ids}, batch.lengths)
    seen = (torch.arange(batch.ids.shape[1]) < batch.lengths[:, None]).long()
    expected = lm.model(input_ids=batch.ids, attention_mask=seen, use_cache=True)
    assert torch.equal(states, expected.last_hidden_state)
    filled = readonly.fill_cache(
        made.trunk, {"input_ids": batch.ids}, batch.lengths
    )  # stops in the last layer
    assert all(
        torch.equal(ours.values, theirs.values)
        for ours, theirs in zip(filled.layers, cache.layers, strict=True)
    )
    assert all(
        torch.equal(ours.keys, theirs.keys)
        for ours, theirs in zip(cache.layers, expected.past_key_values.layers)
    )


def test_both_ways_give_the_same_gradients_and_survive_gradient_checkpointing(tokenizer):
    made = tower(tokenizer, dropout=0.0).train()

    def gradients(way):
        made.zero_grad()
        made(TEXTS[:4], way)[:, 0].sum().backward()
        return torch.cat(
            [parameter.grad.flatten() for parameter in made.parameters() if parameter.requires_grad]
        )

    plain = gradients("one")
    assert close(gradients("two"), plain, 1e-5) and plain.abs().max() > 0.01
    made.trunk.activation_checkpointing_enable()
    assert close(gradients("one"), plain, 1e-6)
    with pytest.raises(WordsightError, match="gradient checkpointing in training"):
        made(TEXTS, "two")
    made.eval()
    assert close(made.encode(TEXTS, "two"), made.encode(TEXTS, "one"))


def test_auto_takes_the_faster_way(tokenizer):
    made = tower(tokenizer)
    with torch.no_grad():
        assert made._way("auto", 30, 1) == "one" and made._way("auto", 30, 100) == "two"
    assert made._way("auto", 30, 100) == "one"  # with gradient through the text


def test_a_frozen_text_takes_no_gradient_so_that_only_the_prompts_pass_is_kept(tokenizer):
    made = tower(tokenizer, train="prompts").train()
    auto, one = made(TEXTS), made(TEXTS, "one")
    grads = [torch.autograd.grad(vectors[:, 0].sum(), made.prompts)[0] for vectors in (auto, one)]
    assert made._way("auto", 30, 9) == "two" and close(auto, one) and close(*grads, 1e-5)
    made.trunk.activation_checkpointing_enable()
    assert made._way("auto", 30, 9) == "one"


@pytest.mark.parametrize("way", ["one", "two"])
def test_what_all_texts_begin_with_is_run_once_and_equal_texts_once(tokenizer, way, monkeypatch):
    made, tokens = tower(tokenizer), []
    plain = torch.cat([made.encode([text], way) for text in TEXTS])  # one text alone has no prefix
    embed = made.trunk.get_input_embeddings()
    embed.register_forward_hook(lambda module, given, output: tokens.append(given[0].numel()))
    shared = made.encode(TEXTS, way, tokens_per_batch=100)
    assert close(shared, plain) and len(tokens) > 3
    lengths = [len(ids) for ids in made._tokens(list(dict.fromkeys(TEXTS)))]
    prefix = tokens[0]
    assert prefix == len(tokenizer("USER: A photo of a")["input_ids"])
    assert sum(tokens) < sum(lengths) - (len(lengths) - 2) * prefix + 12 * len(lengths)
    assert made.encode([], way).shape == (0, 12)


@pytest.mark.slow
def test_folding_lora_into_copies_gives_the_same_vectors_and_every_bit_of_the_weights_back(tokenizer):
    for family in ("llama", "gpt2"):
        made = tower(tokenizer, make(family))
        many = [f"{text} {number}" for text in TEXTS for number in range(2)]
        weights = [parameter.detach().clone() for parameter in made.parameters()]
        plain = torch.cat([made.encode([text]) for text in many])
        assert len(many) >= text_encoding.FOLD and close(made.encode(many), plain)
        with pytest.raises(WordsightError, match="way='three'"):
            made.encode(many, "three")
        assert (
            all(torch.equal(before, now) for before, now in zip(weights, made.parameters()))
            and made.prompts.requires_grad
        )
        assert close(made.encode(["dog"]), plain.new_tensor(made(["dog"]).tolist()))
        with made.adapters(False):
            bare = made.encode(many)
        assert not close(bare, plain, 1e-3)  # inside, adapters stay off


def test_batches_hold_rows_of_like_length_within_the_budget():
    lengths = [3, 9, 4, 9, 1, 8]
    found = list(batches(lengths, 1, 20))
    assert sorted(row for rows in found for row in rows) == list(range(6)) and found[0] == [1, 3]
    assert all(len(rows) * (max(lengths[row] for row in rows) + 1) <= 20 for rows in found)
    assert list(batches([50], 5, 20)) == [[0]]


@pytest.mark.slow
def test_causal_prompts_do_not_see_what_follows_them(tokenizer):
    made = tower(tokenizer, prompts_attend="causal")
    assert close(made.encode(TEXTS, "one"), made.encode(TEXTS, "two"))
    assert (
        verify(made)["prompts_see_one_another"].value == 0 and verify(made)["prompts_see_one_another"].passed
    )
    assert verify(tower(tokenizer))["prompts_see_one_another"].value > 0


@pytest.mark.slow
def test_prompt_only_lora_leaves_the_text_and_its_cache_to_the_base_lm(tokenizer):
    made = tower(tokenizer, prompt_only_lora=True)
    caches = []
    run = readonly.prompt_pass
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            readonly,
            "prompt_pass",
            lambda model, prompts, lengths, cache, **more: (
                caches.append(cache.layers[1].keys) or run(model, prompts, lengths, cache, **more)
            ),
        )
        made.train()(TEXTS)[:, 0].sum().backward()
    batch = made.tokenise(TEXTS)
    base = (
        make()
        .requires_grad_(False)
        .model(
            input_ids=batch.ids,
            attention_mask=(torch.arange(batch.ids.shape[1]) < batch.lengths[:, None]).long(),
            use_cache=True,
        )
    )
    assert torch.equal(caches[0], base.past_key_values.layers[1].keys) and not caches[0].requires_grad
    assert all(parameter.grad is not None for parameter in made.parameters() if parameter.requires_grad)
    assert close(made.eval().encode(TEXTS), made(TEXTS).detach())
    everywhere = tower(tokenizer)
    everywhere.load_state_dict(made.state_dict())
    assert not close(everywhere.encode(TEXTS), made.encode(TEXTS), 1e-3)
    assert_passed(verify(made))
    with pytest.raises(WordsightError, match="needs way='two'"):
        made.encode(TEXTS, "one")
    made.trunk.activation_checkpointing_enable()
    with pytest.raises(WordsightError, match="gradient checkpointing in training"):
        made.train()(TEXTS)


@pytest.mark.slow
def test_a_sliding_window_keeps_to_two_passes(tokenizer):
    made = tower(tokenizer, make("mistral", sliding_window=24))
    assert made._way("auto", 40, 9) == "two" and made._way("auto", 19, 9) == "one"  # with gradient
    with pytest.raises(WordsightError, match="sliding window of 24"):
        made.encode(TEXTS, "one")
    vectors = made.encode(TEXTS)
    assert close(vectors, made(TEXTS).detach())
    assert_passed(verify(made))
    wide = tower(tokenizer, make("mistral", sliding_window=None))
    wide.load_state_dict(made.state_dict())
    assert not close(wide.encode(TEXTS), vectors, 1e-3)
    assert readonly.window(make("qwen2", sliding_window=8, use_sliding_window=False).config) is None


@pytest.mark.slow
def test_bfloat16_agrees_with_float32(tokenizer, tmp_path):
    full = tower(tokenizer)
    half = tower(tokenizer, make(dtype=torch.bfloat16))
    half.load_state_dict(full.state_dict())
    assert half.encode(TEXTS).dtype == torch.float32 and half.prompts.dtype == torch.float32
    assert (half.encode(TEXTS) * full.encode(TEXTS)).sum(1).min() > 0.99
    assert_passed(verify(half))
    half.save(tmp_path / "tower")
    again = TextTower.load(tmp_path / "tower", dtype="bfloat16")
    assert close(
        again.encode(TEXTS), half.encode(TEXTS), 0.02
    )  # not equal: .to(bfloat16) rounds rotary frequencies too, loading does not
    again.save(tmp_path / "again")
    assert torch.equal(
        TextTower.load(tmp_path / "again", dtype="bfloat16").encode(TEXTS), again.encode(TEXTS)
    )
    TextTower.load(tmp_path / "tower").encode(TEXTS)


@pytest.mark.slow
def test_a_few_contrastive_steps_bring_captions_to_their_images(tokenizer):
    made, texts = tower(tokenizer).train(), list(dict.fromkeys(TEXTS))
    images = unit(torch.randn(len(texts), 12))
    trained = [parameter for parameter in made.parameters() if parameter.requires_grad]
    optimizer, log_scale, seen = torch.optim.AdamW(trained, lr=8e-3), torch.tensor(2.0), []
    batch, frozen = made.tokenise(texts), made.sketch
    for _ in range(50):
        loss = losses.info_nce(images, made(batch), log_scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < 0.5 * seen[0]
    assert ((made.encode(texts) @ images.T).argmax(1) == torch.arange(len(texts))).all()
    assert text_tower.sketch(text_tower.untouched(made.plain)) == frozen
    assert_passed(verify(made))


# Other settings


@pytest.mark.parametrize(
    "settings", [{"pooling": "mean"}, {"pooling": "last"}, {"pooling": "attention"}], ids=str
)
@pytest.mark.parametrize("front", [0, 3])
def test_without_prompts_the_text_itself_is_pooled(tokenizer, settings, front):
    made = tower(tokenizer, prompts=0, front=front, **settings)
    alone = torch.cat([made(made.tokenise([text])) for text in TEXTS]).detach()
    assert close(made.encode(TEXTS), alone) and close(made(TEXTS).detach(), alone)
    _, keep = made._states(made.tokenise(TEXTS), "auto", None)
    assert keep.sum(1).tolist() == made.tokenise(TEXTS).lengths.tolist()
    if settings["pooling"] == "last":
        row = made.tokenise(["dog"])
        assert close(made._pooled(row)[0], made._states(row, "auto", None)[0][0, -1])
    made.train()(TEXTS)[:, 0].sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters() if parameter.requires_grad)


def test_soft_tokens_at_the_front_and_layernorms_are_trained_instead_of_lora(tokenizer):
    made = tower(tokenizer, train="layernorms", front=3, keep_generation=False, pooling="mean")
    trained = {
        name
        for name, parameter in made.named_parameters()
        if parameter.requires_grad and name.startswith("lm.")
    }
    assert (
        trained and all("norm" in name for name in trained) and not made.adapted and made.front.requires_grad
    )
    assert close(made.encode(TEXTS, "one"), made.encode(TEXTS, "two")) and close(
        made.encode(TEXTS), made(TEXTS).detach()
    )
    assert_passed(verify(made))
    with pytest.raises(WordsightError, match="changed the LM itself"):
        made.generate("dog")
    assert isinstance(made.generate("dog", "on", max_new_tokens=2), str)


@pytest.mark.parametrize("family", mostly_slow(("llama", "gpt2", "opt"), "llama"))
def test_layernorms_of_an_lm_in_bfloat16_are_moved_by_steps_that_bfloat16_would_round_away(
    tokenizer, tmp_path, family
):
    settings = {"train": "layernorms", "front": 3, "keep_generation": False, "pooling": "mean"}
    full, half = (tower(tokenizer, make(family, dtype=dtype), **settings) for dtype in DTYPES.values())
    assert (half.encode(TEXTS) * full.encode(TEXTS)).sum(1).min() > 0.99
    before = {name: value.detach().clone() for name, value in half.named_parameters() if value.requires_grad}
    assert {value.dtype for value in before.values()} == {torch.float32}
    assert half.trunk.get_input_embeddings().weight.dtype == torch.bfloat16
    half.train()(TEXTS)[:, 0].sum().backward()
    torch.optim.AdamW(half.parameters(), lr=1e-5, weight_decay=0).step()
    norms = [name for name in before if name.startswith("lm.")]
    assert norms and all(not torch.equal(half.get_parameter(name), before[name]) for name in norms)
    rounded = half.get_parameter(norms[0]).bfloat16() == before[norms[0]].bfloat16()
    assert rounded.float().mean() > 0.8
    assert_passed(verify(half.eval()))
    assert isinstance(half.generate("dog", "on", max_new_tokens=2), str)
    half.save(tmp_path / "tower")
    again = TextTower.load(tmp_path / "tower", dtype="bfloat16")
    assert all(torch.equal(value, again.own_tensors()[name]) for name, value in half.own_tensors().items())


@pytest.mark.parametrize("settings", [{"train": "all"}, {"bias": "all"}, {"bias": "lora_only"}], ids=str)
def test_what_bfloat16_would_round_away_is_not_trained_in_it(tmp_path, settings):
    ((name, value),) = settings.items()
    asked = TowerSettings(**LITTLE, **settings, keep_generation=False)
    with pytest.raises(WordsightError, match=f"{name}={value} trains the LM's own .* set dtype=float32"):
        TextTower.from_base(tmp_path, asked, dtype="bfloat16")


def test_a_frozen_lm_under_an_mlp_can_be_trained_from_cached_features(tokenizer):
    made = tower(tokenizer, train="head", prompts=0, pooling="mean", depth=3)
    assert {name.split(".")[0] for name, parameter in made.named_parameters() if parameter.requires_grad} == {
        "head"
    }
    assert torch.equal(unit(made.head(made.features(TEXTS))), made.encode(TEXTS)) and len(made.head) == 5


def test_full_tuning_trains_everything(tokenizer):
    made = tower(tokenizer, train="all", keep_generation=False).train()
    made(TEXTS)[:, 0].sum().backward()
    missing = {name for name, parameter in made.named_parameters() if parameter.grad is None}
    assert missing == {"lm.lm_head.weight"} and all(
        parameter.requires_grad for parameter in made.parameters()
    )


def test_the_frozen_lms_own_dropout_is_off_in_training_and_loras_is_on(tokenizer):
    made = tower(tokenizer, make("gpt2"), train="prompts").train()
    assert torch.equal(made(TEXTS), made(TEXTS))
    made = tower(tokenizer, make("opt"), dropout=0.5).train()
    assert not torch.equal(made(TEXTS), made(TEXTS))
    made.encode(TEXTS)
    assert made.training


ENCODERS = {
    "bert": ("Bert", SMALL),
    "roberta": ("Roberta", SMALL),
    "mpnet": ("MPNet", SMALL),
    "distilbert": (
        "DistilBert",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 128},
    ),
    "modernbert": ("ModernBert", SMALL | {"reference_compile": False, "cls_token_id": 0, "sep_token_id": 1}),
}


def encoder(family: str):
    torch.manual_seed(0)
    name, config = ENCODERS[family]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=340, pad_token_id=1, bos_token_id=0, eos_token_id=1, **config
    )
    return getattr(transformers, f"{name}Model")(config).eval()


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("family", mostly_slow(ENCODERS, "bert", "mpnet"))
def test_an_encoder_is_a_text_tower_by_the_same_class(tokenizer, family, pooling, tmp_path):
    made = tower(tokenizer, encoder(family), kind="encoder", wrapper="plain", prompts=0, pooling=pooling)
    alone = torch.cat([made.encode([text]) for text in TEXTS])
    assert close(made.encode(TEXTS), alone) and close(made(TEXTS).detach(), alone)
    assert_passed(verify(made))
    made.train()(TEXTS)[:, 0].sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters() if parameter.requires_grad)
    with pytest.raises(WordsightError, match="cannot generate"):
        made.generate("dog")
    if pooling == "attention":  # which has more to save
        made.save(tmp_path / "tower")
        assert torch.equal(TextTower.load(tmp_path / "tower").encode(TEXTS), made.encode(TEXTS))


# Wrapper and texts


def test_the_wrapper_is_vicunas_the_chat_templates_plain_or_your_own(tokenizer):
    assert (
        tower(tokenizer).wrapper
        == "USER: A photo of a {}. A {} has the following visual attributes. ASSISTANT: 1."
    )
    assert (
        tower(tokenizer, wrapper="it is {}!").wrapper == "it is {}!"
        and tower(tokenizer, wrapper="plain").wrapper == "{}"
    )
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = (
        "<s>{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}{% if "
        "add_generation_prompt %}[assistant] {% endif %}"
    )
    made = tower(chatty, wrapper="chat")
    assert (
        made.wrapper == "<s>[user] A photo of a {}. A {} has the following visual attributes. [assistant] 1."
    )
    assert made.tokenise(["dog"]).ids[0, 0] == 0 and made.tokenise(["{}"]).lengths[0] > 0
    with pytest.raises(WordsightError, match="no chat template"):
        tower(tokenizer, wrapper="chat")
    with pytest.raises(WordsightError, match=r"did you mean 'vicuna'"):
        tower(tokenizer, wrapper="vicunia")


def test_a_long_caption_loses_its_end_but_the_wrapper_keeps_its_own(tokenizer):
    made = tower(tokenizer, max_tokens=60)
    long = "red " * 40 + "end"
    batch = made.tokenise(["dog", long, "x" * 300])
    assert made.truncated_texts == 2 and batch.ids.shape[1] <= 60
    assert made.truncated(["dog", long, "x" * 300]) == [False, True, True] and made.truncated([]) == []
    for row, whole in ((1, "red red"), (2, "xxx")):
        read = tokenizer.decode(batch.ids[row, : batch.lengths[row]])
        assert read.endswith("has the following visual attributes. ASSISTANT: 1.") and whole in read
        assert read == made.wrapper.replace("{}", read.split("photo of a ")[1].split(".")[0])
    assert batch.lengths[1] > 50  # no more is lost than must be
    room = FAMILIES["llama"][1]["max_position_embeddings"] - 5
    assert tower(tokenizer).max_tokens == room and tower(tokenizer).tokenise([long * 9]).ids.shape[1] <= room


@pytest.mark.parametrize("texts", [["dog", ""], ["dog", " \n"], ["dog", None]])
def test_an_empty_caption_is_refused(tokenizer, texts):
    with pytest.raises(WordsightError, match="caption 1 is"):
        tower(tokenizer).encode(texts)
    with pytest.raises(WordsightError, match="where a list of texts"):
        tower(tokenizer).encode("dog")


# Writing as before


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, torch.float32) for family in ("llama", "qwen3", "gpt2", "opt")),
        ("llama", torch.bfloat16),
        ("gpt2", torch.bfloat16),
    ],
)
def test_with_adapters_off_tokens_and_logits_are_the_untouched_lms(tokenizer, family, dtype):
    base = make(family, dtype=dtype).requires_grad_(
        False
    )  # frozen: requires_grad alone changes float32 logits
    made = tower(tokenizer, copy.deepcopy(base))
    made.encode(TEXTS)
    made.train()(TEXTS)[:, 0].sum().backward()
    ids = torch.tensor([tokenizer("A photo of")["input_ids"]])
    asked = {
        "max_new_tokens": 12,
        "do_sample": False,
        "pad_token_id": 1,
        "attention_mask": torch.ones_like(ids),
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    expected = base.generate(ids, **asked)
    assert torch.equal(
        made.generate_tokens(ids.tolist(), max_new_tokens=12)[0], expected.sequences[0, ids.shape[1] :]
    )
    trained = [parameter.requires_grad for parameter in made.parameters()]
    made.eval()
    with made.adapters(False):
        found = made.plain.generate(ids, **asked)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.logits, expected.logits)) and len(
        found.logits
    ) == len(expected.logits)
    assert trained == [parameter.requires_grad for parameter in made.parameters()]
    with torch.no_grad():
        assert not torch.equal(made.plain(ids).logits, base(ids).logits)  # on, they do something


@pytest.mark.slow
def test_verify_tells_a_changed_base_and_a_mask_that_leaks(tokenizer, monkeypatch):
    made = tower(tokenizer)
    next(made.plain.parameters()).data += 1e-3
    assert not verify(made)["base_weights"].passed
    made = tower(tokenizer)
    monkeypatch.setattr(
        readonly,
        "additive_mask",
        lambda lengths, width, prompts, past=0, both=True, dtype=None: torch.zeros(
            len(lengths), 1, width + prompts - past, width + prompts
        ),
    )
    found = verify(made)
    assert (
        not found["read_only"].passed and not found["padding"].passed and found["adapters_off_logits"].passed
    )


def test_adapters_stay_frozen_when_they_were(tokenizer):
    made = tower(tokenizer).requires_grad_(False)
    with made.adapters(False), made.adapters(True):
        pass
    made.generate("dog", max_new_tokens=1)
    assert not any(parameter.requires_grad for parameter in made.parameters())


def test_base_and_adapter_rows_share_a_batch_and_embedding_goes_on_between(tokenizer):
    made = tower(tokenizer)
    before = made.encode(TEXTS)
    asked = {"max_new_tokens": 10, "min_new_tokens": 10}
    mixed = made.generate_tokens([[5, 60, 7], [5, 60, 7]], ["off", "on"], **asked)
    assert torch.equal(mixed[0], made.generate_tokens([[5, 60, 7]], "off", **asked)[0])
    assert torch.equal(mixed[1], made.generate_tokens([[5, 60, 7]], "on", **asked)[0]) and not torch.equal(
        mixed[0], mixed[1]
    )
    assert torch.equal(made.encode(TEXTS), before)
    assert made.generate(["dog", "a cat"], "on", max_new_tokens=3) == [
        made.generate(text, "on", max_new_tokens=3) for text in ("dog", "a cat")
    ]
    with pytest.raises(WordsightError, match="on or off"):
        made.generate("dog", ["maybe"])
    with pytest.raises(WordsightError, match="nothing to write on"):
        made.generate([])


def test_a_server_embeds_and_writes_from_several_threads(tokenizer):
    made = tower(tokenizer)
    vectors, written = made.encode(TEXTS), made.generate("A photo", max_new_tokens=5)
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(made.encode, TEXTS)
            if number % 2
            else pool.submit(made.generate, "A photo", max_new_tokens=5)
            for number in range(12)
        ]
    for number, job in enumerate(jobs):
        assert torch.equal(job.result(), vectors) if number % 2 else job.result() == written


def test_an_error_inside_leaves_adapters_as_they_were(tokenizer):
    made = tower(tokenizer).requires_grad_(False)
    before = made.encode(TEXTS)
    with pytest.raises(KeyError), made.adapters(False):
        raise KeyError
    assert torch.equal(made.encode(TEXTS), before) and not any(
        parameter.requires_grad for parameter in made.parameters()
    )


def test_merging_before_generating_is_refused(tokenizer):
    made = tower(tokenizer)
    made.lm.merge_adapter()
    for call in (lambda: made.generate("dog"), lambda: made.encode(["dog"])):
        with pytest.raises(WordsightError, match="merged"):
            call()


def test_a_bias_in_lora_is_refused_where_generation_is_kept(tokenizer):
    with pytest.raises(WordsightError, match="bias='all'"):
        tower(tokenizer, bias="all")
    made = tower(tokenizer, make("phi"), bias="all", keep_generation=False)
    with pytest.raises(WordsightError, match="say adapters=on"):
        made.generate("dog")
    with pytest.raises(WordsightError, match="keep_generation=false"):
        tower(tokenizer, train="all")


# Saving


@pytest.fixture(scope="module")
def kept(tokenizer, tmp_path_factory):
    """A tower and its folder, which no test changes."""
    made, folder = tower(tokenizer), tmp_path_factory.mktemp("kept") / "tower"
    made.save(folder)
    return made, folder


@pytest.fixture
def saved(kept, tmp_path):
    """The same, in a folder of the test's own."""
    return kept[0], shutil.copytree(kept[1], tmp_path / "tower")


@pytest.mark.slow
def test_a_saved_tower_gives_the_same_vectors_and_words(saved):
    made, folder = saved
    again = TextTower.load(folder)
    assert (
        torch.equal(again.encode(TEXTS), made.encode(TEXTS))
        and again.settings == made.settings
        and again.wrapper == made.wrapper
    )
    assert again.generate("A photo", "on", max_new_tokens=6) == made.generate(
        "A photo", "on", max_new_tokens=6
    )
    assert again.fingerprint() == made.fingerprint()
    assert_passed(verify(again))
    assert set(load_file(folder / "tower.safetensors")) == set(made.own_tensors()) and "lm" not in {
        name.split(".")[0] for name in made.own_tensors()
    }
    with pytest.raises(WordsightError, match="already holds something"):
        made.save(folder)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's
def test_peft_and_transformers_read_the_parts_by_themselves(saved):
    made, folder = saved
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    untouched = make()
    ids = torch.tensor([[5, 60, 7, 9]])
    with torch.no_grad():
        assert torch.equal(
            base.requires_grad_(False)(ids).logits, untouched.requires_grad_(False)(ids).logits
        )
        adapted = peft.PeftModel.from_pretrained(base, folder / "adapter")
        assert close(adapted(ids).logits, made.plain(ids).logits)


@pytest.mark.slow
def test_a_named_base_is_referred_to_and_must_still_be_the_same(tokenizer, tmp_path):
    make().save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    made = TextTower.from_base(tmp_path / "lm", TowerSettings(**LITTLE))
    made.save(tmp_path / "tower")
    assert not (tmp_path / "tower" / "base").exists()
    assert torch.equal(TextTower.load(tmp_path / "tower").encode(TEXTS), made.encode(TEXTS))
    TextTower.load(tmp_path / "tower", dtype="bfloat16").encode(TEXTS)
    tensors = load_file(tmp_path / "lm" / "model.safetensors")
    save_file(
        {key: value + 0.01 for key, value in tensors.items()},
        tmp_path / "lm" / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(WordsightError, match="another LM"):
        TextTower.load(tmp_path / "tower")
    random = TextTower.from_base(
        tmp_path / "lm", TowerSettings(**LITTLE, train="all", keep_generation=False), random={}
    )
    random.save(tmp_path / "random")
    assert torch.equal(TextTower.load(tmp_path / "random").encode(TEXTS), random.encode(TEXTS))
    with pytest.raises(WordsightError, match="weights must be saved"):
        random.save(tmp_path / "other", copy_base=False)


def test_trained_layernorms_are_kept_beside_a_named_base(tokenizer, tmp_path):
    make().save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    made = TextTower.from_base(
        tmp_path / "lm", TowerSettings(**LITTLE, train="layernorms", front=2, keep_generation=False)
    )
    for parameter in made.parameters():
        parameter.data += 0.1 * parameter.requires_grad
    for copied in (None, True):
        made.save(tmp_path / f"tower{copied}", copy_base=copied)
        assert torch.equal(TextTower.load(tmp_path / f"tower{copied}").encode(TEXTS), made.encode(TEXTS))


def spoil_tensors(change):
    def spoil(folder):
        tensors = load_file(folder / "tower.safetensors")
        change(tensors)
        save_file(tensors, folder / "tower.safetensors")

    return spoil


def spoil_facts(**changes):
    def spoil(folder):
        facts = json.loads((folder / "tower.json").read_text())
        (folder / "tower.json").write_text(json.dumps(facts | changes))

    return spoil


def spoil_adapter(folder):
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    save_file(dict(list(tensors.items())[1:]), folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "tower.json").unlink(), "not a text tower's folder"),
        (lambda folder: (folder / "tower.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "tower.json").write_text("[]"), "holds a list; expected a JSON object"),
        (spoil_facts(format=9), "format 9"),
        (spoil_facts(settings={"promts": 3}), "did you mean 'prompts'"),
        (lambda folder: (folder / "tower.safetensors").unlink(), "does not exist"),
        (lambda folder: (folder / "tower.safetensors").write_bytes(b"x"), "cannot be read"),
        (spoil_tensors(lambda tensors: tensors.pop("prompts")), "lacks prompts"),
        (spoil_tensors(lambda tensors: tensors.update(more=torch.zeros(1))), "too many: more"),
        (spoil_tensors(lambda tensors: tensors.update(prompts=torch.zeros(1))), "prompts as"),
        (spoil_tensors(lambda tensors: tensors["prompts"].fill_(torch.nan)), "not finite"),
        (spoil_adapter, "adapter_model.safetensors of .* lacks"),
        (
            lambda folder: (folder / "base" / "model.safetensors").rename(
                folder / "base" / "pytorch_model.bin"
            ),
            "a pickle",
        ),
    ],
)
def test_a_spoilt_folder_is_refused(saved, spoil, says):
    spoil(without_digests(saved[1]))
    with pytest.raises(WordsightError, match=says):
        TextTower.load(saved[1])


# What would be silently wrong


@pytest.mark.parametrize(
    "mask", [torch.ones(1, 1, 1, 1, dtype=torch.bool), torch.ones(1, 1, 1, 1, dtype=torch.long)]
)
def test_a_mask_that_eager_attention_would_add_as_zero_and_one_is_refused(tokenizer, mask):
    made = tower(tokenizer, make(attention="eager"))
    batch = made.tokenise(TEXTS)
    side = batch.ids.shape[1] + 5
    with pytest.raises(WordsightError, match="silently wrong"):
        made(batch, mask=mask.expand(1, 1, side, side))
    with pytest.raises(WordsightError, match="has shape"):
        made(batch, mask=torch.zeros(side, side))
    additive = readonly.additive_mask(batch.lengths, batch.ids.shape[1], 5)
    assert torch.equal(made(batch, mask=additive), made(batch))
    sdpa = tower(tokenizer)
    assert close(sdpa(batch, mask=additive == 0), sdpa(batch))


@pytest.mark.parametrize("how", ["flex_attention", "flash_attention_2"])
def test_attentions_that_cannot_take_the_mask_are_refused(tokenizer, how):
    lm = make()
    lm.config._attn_implementation_internal = how
    with pytest.raises(WordsightError, match=how):
        tower(tokenizer, lm)


def test_alibi_is_refused(tokenizer):
    bloom = transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=340, hidden_size=16, n_layer=1, n_head=2)
    )
    mpt = transformers.MptForCausalLM(
        transformers.MptConfig(vocab_size=340, d_model=16, n_layers=1, n_heads=2)
    )
    falcon = transformers.FalconForCausalLM(
        transformers.FalconConfig(
            vocab_size=340, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, alibi=True
        )
    )
    for lm in (bloom, mpt, falcon):
        with pytest.raises(WordsightError, match="ALiBi"):
            tower(tokenizer, lm)


def test_a_recurrent_lm_is_refused(tokenizer):
    lm = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=340, hidden_size=16, num_hidden_layers=1, state_size=4)
    )
    with pytest.raises(WordsightError, match="without keys and values"):
        tower(tokenizer, lm)


def test_an_encoder_named_as_decoder_and_the_reverse_are_refused(tokenizer):
    with pytest.raises(WordsightError, match="bert is an encoder, whose text would see the prompts"):
        tower(tokenizer, encoder("bert"))
    with pytest.raises(WordsightError, match="llama is no encoder"):
        tower(tokenizer, kind="encoder", prompts=0)
    with pytest.raises(WordsightError, match="set prompts=0"):
        tower(tokenizer, encoder("bert"), kind="encoder")
    t5 = transformers.T5Model(
        transformers.T5Config(vocab_size=340, d_model=16, num_layers=1, num_heads=2, d_ff=16, d_kv=8)
    )
    with pytest.raises(WordsightError, match="an encoder with a decoder"):
        tower(tokenizer, t5)


@pytest.mark.parametrize("size", [300, 5000])
def test_vocabularies_that_differ_are_refused(tokenizer, size):
    lm = make()
    lm.resize_token_embeddings(size, mean_resizing=False)
    with pytest.raises(WordsightError, match="vocabularies differ"):
        tower(tokenizer, lm)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"prompts": 100}, "longer than the LM's positions"),
        ({"max_tokens": 124}, "give at most 123"),
        ({"max_tokens": 10}, "longer than the LM's positions"),
        ({"width": 30}, "cannot be split into heads=4"),
        ({"prompts": -1}, "give at least 0"),
        ({"dropout": 1.0}, "less than 1"),
        ({"targets": ("q_proj", "nope")}, "targets nope do not occur"),
        ({"prompt_only_lora": True, "train": "prompts"}, "needs prompts, train=lora"),
    ],
)
def test_settings_that_cannot_be_are_refused(tokenizer, settings, says):
    with pytest.raises(WordsightError, match=says):
        tower(tokenizer, **settings)


@pytest.mark.parametrize("family", mostly_slow(("llama", "gemma3_text", "gpt2"), "llama"))
def test_the_first_layers_alone_are_an_lm_without_the_others(tokenizer, family):
    short = tower(tokenizer, make(family), layers=1)
    cut = make(family)
    layers = cut.base_model.h if family == "gpt2" else cut.base_model.layers
    del layers[1:]
    cut.config.num_hidden_layers = 1
    whole = tower(tokenizer, cut)
    assert torch.equal(short.encode(TEXTS), whole.encode(TEXTS))
    trained = [name for name, value in short.named_parameters() if value.requires_grad]
    assert any(".0." in name for name in trained) and not any(".1." in name for name in trained)
    assert all(check.passed for check in verify(short).values())
    uncut = tower(tokenizer, make(family))
    assert short.generate("dog", max_new_tokens=4) == uncut.generate("dog", max_new_tokens=4)


def test_layers_that_are_not_there(tokenizer):
    with pytest.raises(WordsightError, match="layers=3 of an LM of 2 layers is not possible; give 1 to 2"):
        tower(tokenizer, layers=3)
    with pytest.raises(WordsightError, match="which layers of opt come first is not known"):
        tower(tokenizer, make("opt"), layers=1).encode(["dog"])
    with pytest.raises(WordsightError, match="train=all trains every one"):
        tower(tokenizer, layers=1, train="all", keep_generation=False)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_prompts_start_as_tokens_or_at_their_size(tokenizer, family):
    lm = make(family)
    embed = lm.get_input_embeddings()
    ids = tokenizer(" red panda", add_special_tokens=False)["input_ids"]
    made = tower(tokenizer, lm, prompts=7, prompts_start=" red panda")
    repeated = torch.tensor((ids * 7)[:7])
    assert torch.equal(made.prompts, embed(repeated))
    random = tower(tokenizer, make(family), prompts=64, wrapper="plain").prompts
    assert 0.85 < float(random.detach().std() / embed(torch.arange(340)).detach().std()) < 1.15
    with pytest.raises(WordsightError, match="prompts=0; leave it out"):
        tower(tokenizer, prompts=0, pooling="mean", prompts_start="red panda")


def test_a_random_lm_of_fewer_layers_has_as_many_kinds_of_layers(tokenizer, tmp_path):
    make("gemma3_text").save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    asked = TowerSettings(**LITTLE, train="all", keep_generation=False)
    for count in (1, 3):
        made = TextTower.from_base(tmp_path / "lm", asked, random={"num_hidden_layers": count})
        assert len(made.trunk.layers) == len(made.trunk.config.layer_types) == count
        assert made.encode(["dog"]).isfinite().all()
