"""Tiny image-text-to-text models with random weights, in the layout in which the hub has them."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name
from transformers.models.auto.modeling_auto import AutoModelForImageTextToText

TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
SEES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 4,
}
QWEN_SEES = {
    "depth": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
QWEN_OWN = {
    "qwen2_vl": {"embed_dim": 16, "mlp_ratio": 2},
    "qwen2_5_vl": {
        "out_hidden_size": 16,
        "intermediate_size": 24,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    },
}
CHAT = (
    "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def tokenizer(*special):
    """Of single letters, and these tokens, which stand for images and what is around them."""
    words = ["<unk>", "<s>", "</s>", "<pad>", *" abcdefghijklmnopqrstuvwxyz.:?\n"]
    whole = Tokenizer(models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="<unk>"))
    whole.normalizer = normalizers.Lowercase()
    whole.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    ends = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    made = PreTrainedTokenizerFast(tokenizer_object=whole, **ends)
    made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


def pixels(kind, **settings):
    return get_image_processor_class_from_name(f"{kind}ImageProcessorPil")(**settings)


def llava():
    tokens = tokenizer("<image>")
    config = {
        "vision_config": {**SEES, "model_type": "clip_vision_model"},
        "text_config": {**TEXT, "model_type": "llama", "vocab_size": len(tokens)},
        "image_token_index": tokens.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -1,
    }
    images = pixels("CLIP", size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    facts = {"processor_class": "LlavaProcessor", "patch_size": 4, "num_additional_image_tokens": 1}
    return config, tokens, images, facts | {"vision_feature_select_strategy": "default"}


def qwen(kind):
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    tokens = tokenizer(*(f"<|{name}|>" for name in names))
    ids = [tokens.convert_tokens_to_ids(f"<|{name}|>") for name in names]
    keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = {
        "vision_config": QWEN_SEES | QWEN_OWN[kind],
        "text_config": {**TEXT, "vocab_size": len(tokens), "rope_parameters": rope},
        **dict(zip(keys, ids)),
    }
    size = {"shortest_edge": 64, "longest_edge": 256}
    images = pixels("Qwen2VL", patch_size=4, merge_size=2, temporal_patch_size=2, size=size)
    name = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor"}[kind]
    return config, tokens, images, {"processor_class": name}


def smolvlm(kind="smolvlm", name="SmolVLM"):
    tokens = tokenizer(
        "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<video>"
    )
    config = {
        "vision_config": SEES,
        "text_config": {**TEXT, "model_type": "llama", "vocab_size": len(tokens)},
        "image_token_id": tokens.convert_tokens_to_ids("<image>"),
        "scale_factor": 2,
        "pad_token_id": 3,
    }
    side = {"longest_edge": 16}
    images = pixels(name, size=side, max_image_size=side, do_image_splitting=False)
    return config, tokens, images, {"processor_class": f"{name}Processor", "image_seq_len": 4}


def idefics2():
    tokens = tokenizer("<image>", "<fake_token_around_image>", "<end_of_utterance>")
    perceiver = {"hidden_size": 16, "resampler_n_latents": 3, "resampler_depth": 1, "resampler_n_heads": 2}
    config = {
        "vision_config": SEES,
        "text_config": {**TEXT, "model_type": "mistral", "vocab_size": len(tokens)},
        "perceiver_config": {**perceiver, "resampler_head_dim": 8, "num_key_value_heads": 2},
        "image_token_id": tokens.convert_tokens_to_ids("<image>"),
    }
    size = {"shortest_edge": 8, "longest_edge": 16}
    images = pixels("Idefics2", size=size, do_image_splitting=False)
    return config, tokens, images, {"processor_class": "Idefics2Processor", "image_seq_len": 3}


def paligemma():
    tokens = tokenizer("<image>")
    text = {**TEXT, "model_type": "gemma", "vocab_size": len(tokens) + 1200, "head_dim": 8}
    config = {
        "vision_config": {**SEES, "model_type": "siglip_vision_model", "vision_use_head": False},
        "text_config": text,
        "image_token_index": tokens.convert_tokens_to_ids("<image>"),
        "projection_dim": 16,
        "hidden_size": 16,
    }
    images = pixels("Siglip", size={"height": 16, "width": 16})
    images.image_seq_length = 16
    return config, tokens, images, {"processor_class": "PaliGemmaProcessor"}


FAMILIES = {
    "llava": llava,
    "qwen2_vl": lambda: qwen("qwen2_vl"),
    "qwen2_5_vl": lambda: qwen("qwen2_5_vl"),
    "smolvlm": smolvlm,
    "idefics3": lambda: smolvlm("idefics3", "Idefics3"),
    "idefics2": idefics2,
    "paligemma": paligemma,
}


def write_mllm(family: str, folder: Path, chat: bool = False) -> Path:
    """A model of this family with its tokenizer and processor, in a new folder."""
    config, tokens, images, facts = FAMILIES[family]()
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(CONFIG_MAPPING[family](**config))
    with torch.no_grad():
        for parameter in model.parameters():  # so that its tokens are not all equally likely
            parameter.mul_(6 if parameter.ndim > 1 else 1)
        # and letters are likelier than what stands for no text
        model.get_output_embeddings().weight[tokens.all_special_ids] = 0
    if chat:
        tokens.chat_template = CHAT
    for part in (model, tokens, images):
        part.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(facts))
    return folder
