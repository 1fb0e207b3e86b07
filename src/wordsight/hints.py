"""Hints: what was probably meant, said by the verb at hand before it begins.

People type `--data photos/` where settings are `data=photos/`, a folder of photos where a run is expected,
or a verb of another program. Imports no torch, unless a verb's settings lie in a module that does."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from wordsight.config import MODELS, OURS, AskedSettings, WordsightError
from wordsight.early import (
    HUB_NAME,
    OF_RUN,
    check_described,
    check_finished,
    check_marks,
    check_place,
    check_reading,
    check_utf8,
    is_finished,
    is_graph,
    is_picture,
    is_run,
)
from wordsight.extras import is_there, missing
from wordsight.help import SETTINGS, settings_of
from wordsight.names import class_list
from wordsight.reader import SHOWN, nearest, nearest_path, read
from wordsight.settings import JoinSettings

OTHER_WORDS = {  # verbs of other programs
    "train": "fit",
    "finetune": "fit",
    "learn": "fit",
    "test": "eval",
    "evaluate": "eval",
    "validate": "eval",
    "score": "eval",
    "classify": "predict",
    "infer": "predict",
    "find": "search",
    "retrieve": "search",
    "query": "search",
    "inference": "predict",
    "compare": "report",
    "plot": "report",
    "benchmark": "suite",
    "bench": "suite",
    "describe": "show",
    "settings": "show",
    "methods": "list",
    "models": "list",
    "save": "export",
}
MISSING = {  # what to say where a word is missing
    "eval": "; as in `wordsight eval runs/photos`",
    "predict": "; the run comes first: `wordsight predict runs/photos new.jpg`",
    "report": "; as in `wordsight report runs/*`",
    "coverage": "; as in `wordsight coverage captions.parquet --classes classes.json`",
    "search": "; as in `wordsight search photos/ 'a dog in the snow'`",
    "audit": "; the run comes first: `wordsight audit runs/photos pool=new/`",
    "show": "; NAME is a method of `wordsight list`, run, train, fit, eval, search, audit, suite, join or "
    "sentences",
    "suite": "; as in `wordsight suite base-to-new data=photos/`",
    "generate": "; as in `wordsight generate runs/clamp 'An okapi'`",
}
TEXTS = ("ask", "generate", "search")  # verbs whose words may be texts
TABLES = (".csv", ".parquet", ".tar", ".tsv")
PACKAGES = {  # of methods and of ends of data's names: a package that an extra brings, and whose it is
    "two_tower": ("peft", "lm", "method=two_tower"),
    "limber": ("peft", "lm", "method=limber"),
    ".parquet": ("pyarrow", "datasets", "Parquet"),
}
QUICKLY_READ = 100_000_000  # bytes of a run that is opened once more than need be
OF_OURS = "wordsight_*.json"  # what marks a folder that is ours and no run: an assistant's, a backbone's
NESTED = ("settings.", "train.")  # keys of a run that hold settings of their own


def keys_of(verb: str) -> list[str]:
    """The settings that a verb takes as key=value."""
    return list(settings_of(verb)) if verb in SETTINGS else []


def verb_meant(word: str, verbs: Collection[str]) -> str:
    """' (did you mean ...?)' for a word that is no verb, or nothing."""
    if word.lower() in OTHER_WORDS and OTHER_WORDS[word.lower()] in verbs:
        return f" (did you mean {OTHER_WORDS[word.lower()]!r}?)"
    if "=" in word or _is_data(Path(word)):
        return f" (the verb comes first: `wordsight fit {word if '=' in word else f'data={word}'}`)"
    return nearest(word, verbs)


def said_of(error: OSError) -> str:
    """What the system says of a file or folder, in a sentence."""
    name = repr(str(error.filename)) if error.filename is not None else "a file"
    shown = name if len(name) <= SHOWN else f"{name[:SHOWN]}..."
    return f"{shown} cannot be used: {error.strerror or error}"


def check_homes(words: Iterable[str]) -> None:
    """Refuse `~` and `~name` where the system knows no such home."""
    for word in words:
        path = word.rpartition("=")[2]
        if not path.startswith("~"):
            continue
        try:
            Path(path).expanduser()
        except RuntimeError as error:
            raise WordsightError(
                f"{word!r} begins at a home folder that this machine does not know; give the whole path"
            ) from error


# -- options that are settings -------------------------------------------------------------------------------


def as_path(word: str) -> str:
    """A word that looks like an option and is a file's name (`*.png` may hold `-1.png`), as a path."""
    return f"./{word}" if word.startswith("-") and word != "-" and Path(word).is_file() else word


def check_blank(verb: str, words: Sequence[str]) -> None:
    """Refuse words that hold nothing, as a variable in quotes that is not set: as a path such a word would be
    the folder that one stands in, and an option would be passed over. And texts of another encoding."""
    for before, word in zip([verb, *words], words):
        empty = re.fullmatch(r"--[a-z-]+=\s*", word) is not None
        option = word if empty else before
        if verb in TEXTS and not os.path.exists(word):
            check_utf8(word)
        if (empty or not word.strip()) and verb not in TEXTS:
            what = f"{option} has no value" if option.startswith("--") else f"a word behind {option} is blank"
            raise WordsightError(f"{what} (a variable that is not set?); give one, or leave it out")


def check_options(verb: str, words: Sequence[str], options: Collection[str]) -> None:
    """Refuse what stands behind dashes and is no option of the verb, with what would be right."""
    for place, word in enumerate(words):
        if word == "--":
            return
        name, equals, value = word.partition("=")
        if not re.match(r"--?[A-Za-z]", word) or _is_option(name, options):
            continue
        following = words[place + 1] if place + 1 < len(words) else ""
        if not equals and following and "=" not in following and not following.startswith("-"):
            value = following
        raise WordsightError(_instead(verb, name, value, options))


def _is_option(name: str, options: Collection[str]) -> bool:
    """Whether argparse knows it: in full, shortened, or with a number at once, as -k5."""
    return (
        name in options
        or (name.startswith("--") and sum(option.startswith(name) for option in options) == 1)
        or (re.fullmatch(r"-[a-z]\d+", name) is not None and name[:2] in options)
    )


def _instead(verb: str, name: str, value: str, options: Collection[str]) -> str:
    key, keys = name.lstrip("-").replace("-", "_"), keys_of(verb)  # options hold dashes, settings do not
    shown = value if value and not re.search(r"\s", value) else repr(value) if value else "..."
    if key.startswith("no_") and key[3:] in keys:
        return f"{verb} takes settings as key=value, without dashes: {key[3:]}=false"
    meant = key if _is_key(key, keys) else _nearest_one(key, [*keys, *options])
    if meant.startswith("-"):
        return f"{name} is no option of {verb} (did you mean {meant!r}?)"
    if meant:
        return f"{verb} takes settings as key=value, without dashes: {meant}={shown}"
    if verb == "predict" and key in ("data", "images", "input", "folder"):
        return (
            f"{name} is no option of predict, which takes images and folders: wordsight predict RUN {shown}"
        )
    if not keys and key in keys_of("fit"):
        return (
            f"{name} is no option of {verb}; {key}={shown} is a setting of `wordsight fit`. "
            f"{_listed(verb, options)}"
        )
    return f"{name} is no option of {verb}. {_listed(verb, options, keys)}"


def _is_key(key: str, keys: Sequence[str]) -> bool:
    return key in keys or (key.startswith(NESTED) and "settings" in keys)


def _nearest_one(word: str, choices: Iterable[str]) -> str:
    """The choice that a word is nearest to, dashes aside; '' where none is near."""
    bare = {choice.lstrip("-"): choice for choice in choices}
    close = difflib.get_close_matches(word, bare, n=1, cutoff=0.6)
    return bare[close[0]] if close else ""


def _listed(verb: str, options: Iterable[str], keys: Iterable[str] = ()) -> str:
    known = [*sorted(name for name in options if name.startswith("--")), *(f"{key}=..." for key in keys)]
    return f"{verb} takes {', '.join(known)}"


# -- words in a place where others are expected --------------------------------------------------------------


def check_words(verb: str, words: Sequence[str]) -> None:
    """Refuse a word that is neither key=value nor a YAML file, with what was probably meant."""
    for word, following, after in zip(words, [*words[1:], ""], [*words[2:], "", ""]):
        value = following.lstrip("=") or after
        if "=" not in word and value and word in keys_of(verb):
            raise WordsightError(f"{word!r} needs its value beside it, without blanks: {word}={value}")
        if word.endswith("=") and value and "=" not in value and Path(value).exists():
            raise WordsightError(f"{word!r} needs its value beside it, without blanks: {word}{value}")
        if "=" not in word:
            _check_path(verb, word)


def _check_path(verb: str, word: str) -> None:
    path = Path(word).expanduser()
    if is_run(path):
        raise WordsightError(
            f"{word!r} is a run and no setting of {verb}: `wordsight eval {word}` gives its figures, "
            f"`wordsight predict {word} IMAGES` uses it"
        )
    if _is_data(path):
        raise WordsightError(f"{word!r} is data; give it as data={word}")
    if path.suffix == ".json" and path.is_file():
        raise WordsightError(f"{word!r} is neither key=value nor a YAML file; sentences are sentences={word}")


def check_run(verb: str, word: str) -> None:
    """Refuse at once what cannot be a run, with what would be: what opens one takes seconds to import."""
    path = Path(word).expanduser()
    if word.startswith("hf:"):
        return
    if is_run(path):
        return check_finished(path)
    if "=" in word and not path.exists():
        raise WordsightError(f"{word!r} is no run; the run comes first: `wordsight {verb} RUN {word}`")
    if not path.exists():
        raise WordsightError(
            f"{word!r} does not exist{nearest_path(path)}; give a run folder that `wordsight fit` made, or "
            f"hf:org/name"
        )
    if is_graph(path):
        raise WordsightError(
            f"{word!r} is an ONNX graph, which predicts alone: `wordsight predict {word} IMAGES`; {verb} "
            "takes the run that it was made of"
        )
    if path.is_file():
        inside = f"; its run is {path.parent}" if is_run(path.parent) else ""
        first = f"; the run comes first: `wordsight {verb} RUN {word}`" if is_picture(path) else ""
        raise WordsightError(f"{word!r} is a file and no run folder{inside or first}")
    if runs := sorted(str(below.parent) for below in path.glob("*/config.yaml")):
        more = f" and {len(runs) - 5} more" if len(runs) > 5 else ""
        raise WordsightError(
            f"{word!r} holds runs and is none itself; give one of {', '.join(runs[:5])}{more}"
        )
    if _is_data(path):
        use = f"`wordsight eval RUN data={word}`" if verb == "eval" else f"`wordsight predict RUN {word}`"
        raise WordsightError(
            f"{word!r} holds images and is no run folder: `wordsight fit data={word}` makes a run, and {use} "
            "takes that and these images"
        )


def check_kept(word: str) -> None:
    """Refuse a run that is damaged or of another version before torch is imported, where it is small; it is
    opened again."""
    path = Path(word).expanduser()
    files = [path / name for name in OF_RUN]
    if is_run(path) and sum(file.stat().st_size for file in files if file.is_file()) < QUICKLY_READ:
        from wordsight.runs import Run

        Run.open(path)


def check_run_or_model(verb: str, word: str) -> None:
    """As `check_run`, but for a folder of transformers or of ours (an assistant, a backbone), a GGUF file or
    a name that can only be a hub's."""
    path = Path(word).expanduser()
    if word in MODELS or any(path.glob(OF_OURS)):
        return
    if not is_run(path) and ((path / "config.json").is_file() or path.suffix == ".gguf"):
        return
    hub_name = rf"((hf|huggingface)\.co/)?{HUB_NAME}(:[\w.-]+)?"  # owner/name, owner/name:Q8_0
    if re.fullmatch(hub_name, word) and not path.parent.exists():
        return
    check_run(verb, word)


def check_fit(words: Sequence[str]) -> None:
    """Refuse settings of a run that cannot be, and names of what is not there."""
    check_words("fit", words)
    asked = read(AskedSettings, *words)
    for name in (asked.method, Path(asked.data).suffix):
        package, extra, what = PACKAGES.get(name, ("", "", ""))
        if package and not is_there(package):
            raise WordsightError(missing(extra, what, package))
    for name in asked.data.split("::"):
        check_data(name.strip())
    if asked.unlabelled not in (None, *OURS["unlabelled"]):
        check_data(asked.unlabelled, "unlabelled")
    for key in ("sentences", "aliases"):
        check_texts(key, getattr(asked, key))
    if "@" not in asked.backbone:
        check_place(asked.backbone, "backbone")


def check_texts(key: str, value: str | None) -> None:
    """Refuse a JSON file that is not there; {data} in its name is of a suite."""
    path = Path(value or "").expanduser()
    if path.suffix == ".json" and "{data}" not in str(value) and not path.exists():
        raise WordsightError(f"{key}={value!r} does not exist{nearest_path(path)}; give a JSON file")


def check_join(settings: JoinSettings) -> None:
    """Refuse encoders and files that are not there."""
    if not settings.vision.endswith(".safetensors"):
        check_place(settings.vision, "image encoder")
    check_place(settings.text, "text encoder")
    for name in ("images", "captions"):
        check_data(getattr(settings, name), name)


def check_predict(options: argparse.Namespace) -> None:
    """Refuse what `predict` cannot do, whatever the model."""
    if options.top < 1:
        raise WordsightError(f"--top {options.top} names no class; give 1 or more")
    if not is_graph(options.run):
        check_run("predict", options.run)
    check_images(options.images)
    for words in filter(None, (options.classes, options.add)):
        class_list(words)
    check_marks(options.unsure, options.error)
    check_reading(options.max_pixels, options.csv, options.images)
    check_described(bool(options.classes or options.add), options.sentences)
    check_kept(options.run)


def check_data(name: str | None, key: str = "") -> None:
    """Refuse data that is not there; `key` is what asked for it, where that is not data=."""
    if name is not None and name != "digits" and (not name or not Path(name).expanduser().exists()):
        from wordsight.data.sources import check_there

        try:
            check_there(name)
        except WordsightError as error:
            raise WordsightError(f"{key}={name}: {error}" if key else str(error)) from None


def check_images(words: Sequence[str]) -> None:
    """Refuse what is no path of an image, and images of which none is there; some that are not are skipped
    and told."""
    for word in words:
        if not word.strip():
            raise WordsightError("one of the images has no name (a variable that is not set?); leave it out")
        if re.match(r"(data|images)=.", word) and not Path(word).exists():
            raise WordsightError(
                f"{word!r} is no image; predict takes paths: `wordsight predict RUN {word.partition('=')[2]}`"
            )
    gone = [word for word in words if not Path(word).expanduser().exists()]
    if gone and len(gone) == len(words):
        raise WordsightError(
            f"none of {len(gone)} images could be read; the first: {gone[0]!r} does not exist"
            f"{nearest_path(Path(gone[0]).expanduser())}; give image files, or folders of them"
        )


def check_runs(words: Sequence[str]) -> None:
    """Refuse folders of which none holds a run; where some do, the report names the others."""
    if not any(Path(word).expanduser().exists() for word in words):
        check_run("report", words[0])
    runs = [Path(word).expanduser() for word in words if is_run(word)]
    if len(runs) == len(words) and not any(map(is_finished, runs)):
        check_finished(runs[0])
    empty = [word for word in words if _holds_no_run(Path(word).expanduser())]
    if empty and len(empty) == len(words):
        more = f": `wordsight fit data={empty[0]}` makes one" if _is_data(Path(empty[0]).expanduser()) else ""
        raise WordsightError(
            f"{empty[0]!r} holds no run, at no depth{more or '; `wordsight fit` makes some'}"
        )


def _holds_no_run(folder: Path) -> bool:
    return folder.is_dir() and not is_run(folder) and not any(folder.rglob("config.yaml"))


def _is_data(path: Path) -> bool:
    """Whether `data=` could take this path: a table, or a folder with a picture not far below it."""
    if not path.is_dir():
        return path.suffix.lower() in TABLES and path.is_file()
    levels = (path.glob(pattern) for pattern in ("*", "*/*", "*/*/*"))
    return any(is_picture(found) for level in levels for found, _ in zip(level, range(1000)))
