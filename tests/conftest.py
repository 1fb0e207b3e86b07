"""Fixtures that every test may use: real data where it is there, and tiny stand-ins for a backbone and for
photographs.
"""

import gc
import importlib.util
import logging
import os
import shutil
from pathlib import Path

import pytest
from shapes import check_shapes

check_shapes("wordsight")  # in what is imported from here on, which is all of it
# Towers and matrices this small lose more to threads than they win, torch's and NumPy's alike. Read when
# these are imported, here and in every process that tests start.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# What waits or computes for seconds, begun first, so that no processor idles beside it at the end; in
# front, what shares something that takes seconds to make, so that one process makes it.
LONG = (
    "test_demo.py",
    "test_export.py",
    "test_one_two_and_three_processes_train_the_same_and_resume",
    "test_ctrl_c_stops_all_workers_and_the_same_command_ends_in_the_same_bits",
    "test_ctrl_c_and_the_same_command_end_in_the_same_bits",
    "test_processes_together_give_one_process_loss_and_gradients",
    "test_a_killed_command_goes_on_and_a_second_one_is_told",
    "test_zero_shot_on_real_images",
    "test_readme.py",
)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Nothing of what imports make is garbage: it need not be searched for any, now or while tests run, and
    seldom what tests make.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(100_000)
        gc.enable()


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(
        key=lambda item: min((places[name] for name in LONG if name in item.nodeid), default=len(LONG))
    )


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """No test reads or fills the user's feature cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORDSIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class Said(list):
    @property
    def text(self) -> str:
        return "\n".join(self)


@pytest.fixture
def said():
    """The sentences that the library says to the user meanwhile, as a list that grows, and as one `text`."""
    lines, log = Said(), logging.getLogger("wordsight")
    handler, level = logging.Handler(), log.level
    handler.emit = lambda record: lines.append(handler.format(record))
    log.addHandler(handler), log.setLevel(logging.INFO)
    yield lines
    log.removeHandler(handler), log.setLevel(level)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the repository, or $WORDSIGHT_SHARED; the test is skipped where it is
    absent.
    """
    folder = Path(os.environ.get("WORDSIGHT_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real data is not at {folder}; set WORDSIGHT_SHARED")
    return folder


@pytest.fixture(scope="session")
def card() -> str:
    """A CUDA device, for tests marked gpu; the test is skipped where there is none."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device is at hand")
    return "cuda"


@pytest.fixture(scope="session")
def backbone():
    from standins import ColourBackbone

    return ColourBackbone()


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Class folders of six tiny images each. Tests read it and do not write to it."""
    from standins import fill_folder

    return fill_folder(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory) -> Path:
    """A random CLIP with a few thousand numbers, in transformers' layout: for the command line, which knows
    backbones by folder.
    """
    import torch
    from standins import LETTERS
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    words = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = tower | {"vocab_size": len(words), "eos_token_id": len(words) - 1, "bos_token_id": len(words) - 2}
    model = CLIPModel(
        CLIPConfig(
            text_config=text, vision_config=tower | {"image_size": 8, "patch_size": 4}, projection_dim=12
        )
    )
    tokenizer = CLIPTokenizer({word: row for row, word in enumerate(words)}, [], model_max_length=77)
    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    for part in (model, tokenizer, CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=8)):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lm(tmp_path_factory) -> Path:
    """A random Llama in transformers' layout."""
    import torch
    from standins import letters
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 96,
    }
    folder = tmp_path_factory.mktemp("lm") / "llama"
    LlamaForCausalLM(
        LlamaConfig(**sizes, vocab_size=31, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    ).save_pretrained(folder)
    letters().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vit(tmp_path_factory) -> Path:
    """A random image encoder alone in transformers' layout, as wide as the tiny CLIP's vectors."""
    import torch
    from transformers import ViTConfig, ViTModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 8,
        "patch_size": 4,
    }
    folder = tmp_path_factory.mktemp("vit") / "vit"
    ViTModel(ViTConfig(**sizes), add_pooling_layer=False).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=8).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def stories_converter():
    """benchmarks/clamp/stories.py, which no package holds."""
    spec = importlib.util.spec_from_file_location(
        "stories", Path(__file__).parents[1] / "benchmarks" / "clamp" / "stories.py"
    )
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


@pytest.fixture(scope="session")
def stories(shared, stories_converter, tmp_path_factory) -> Path:
    """A real, very small Llama that writes children's stories, in transformers' layout."""
    return stories_converter.convert(shared / "data", tmp_path_factory.mktemp("lm") / "stories")


@pytest.fixture(scope="module")
def own_lm(lm, tmp_path_factory) -> Path:
    """The LM with larger numbers, so that its tokens are not all equally likely; a test may replace it."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = shutil.copytree(lm, tmp_path_factory.mktemp("lm") / "own")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    model.save_pretrained(folder)
    return folder
