"""The tree is what the design says: a file imports only what stands above it, every name resolves, every YAML
is read.
"""

import ast
import re
from pathlib import Path

import pytest

import wordsight
from wordsight.config import BACKBONES, METHODS, RunSettings, resolve
from wordsight.reader import read

ROOT = Path(wordsight.__file__).parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
# A package is one unit. A module that is not named here must find its place first.
ORDER = [
    "files",
    "digests",
    "extras",
    "names",
    "reader",
    "cluster",
    "train_settings",
    "settings",
    "tower_settings",
    "tables",
    "config",
    "early",
    "workers",
    "losses",
    "metrics",
    "text_metrics",
    "meter",
    "contrast",
    "backbones",
    "sentences",
    "data",
    "methods",
    "runs",
    "batches",
    "train",
    "fitted",
    "captioner",
    "asked",
    "teachers",
    "fitting",
    "tasks",
    "doubts",
    "answers",
    "folds",
    "fit_pairs",
    "fit_captions",
    "fit_prompted",
    "fit",
    "fit_likelihood",
    "model_card",
    "export",
    "push",
    "onnx",
    "estimator",
    "tell_apart",
    "report",
    "audit",
    "demo",
    "cost",
    "cells",
    "suite_settings",
    "plan",
    "suites",
    "prediction",
    "search",
    "coverage",
    "assistant",
    "serve",
    "labelling",
    "help",
    "hints",
    "terminal",
    "arguments",
    "verb_caption",
    "verb_ask",
    "verb_predict",
    "verb_chat",
    "verb_search",
    "verb_export",
    "verb_coverage",
    "verb_push",
    "verb_sentences",
    "verb_serve",
    "verb_audit",
    "verb_label",
    "cli",
    "__main__",
]


def unit_of(module: str) -> str | None:
    """The unit that an import of `module` reaches; None for what is not ours, and for the top, which holds
    the version alone.
    """
    parts = module.split(".")
    return parts[1] if parts[0] == "wordsight" and len(parts) > 1 else None


def imports(path: Path) -> list[str]:
    """Every module of ours that a file imports, at the top or inside a function."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "wordsight"
                else [node.module]
            )
            found += [name for name in names if name != "wordsight.__version__"]
    return [module for module in found if module.split(".")[0] == "wordsight"]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_stands_above_it(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if own == "__init__":
        assert imports(path) == []  # it forwards names lazily, so that `import wordsight` costs nothing
        return
    assert own in ORDER, f"{own} has no place in the order"
    for module in imports(path):
        reached = unit_of(module)
        assert reached in ORDER and (reached == own or ORDER.index(reached) < ORDER.index(own)), (
            f"{own} imports {module}, which stands below it"
        )


def test_config_and_cli_import_no_torch_at_the_top():
    for name in (
        "files",
        "digests",
        "reader",
        "extras",
        "train_settings",
        "settings",
        "tower_settings",
        "tables",
        "config",
        "early",
        "cluster",
        "workers",
        "names",
        "text_metrics",
        "help",
        "hints",
        "terminal",
        "cli",
        "__init__",
    ):
        tree = ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))
        tops = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        modules = {alias.name for node in tops if isinstance(node, ast.Import) for alias in node.names}
        modules |= {node.module for node in tops if isinstance(node, ast.ImportFrom)}
        assert not {"torch", "numpy", "yaml", "PIL", "transformers", "ray"} & {
            module.split(".")[0] for module in modules
        }, name


@pytest.mark.parametrize("name", METHODS)
def test_every_method_resolves_to_settings_that_stand_beside_it(name):
    kind = resolve(METHODS, name, "method")
    kind.Settings()
    assert kind.__doc__ and METHODS[name].summary


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_resolves(name):
    assert callable(resolve(BACKBONES, name, "backbone kind").from_pretrained) and BACKBONES[name].summary


def test_every_export_is_there():
    import wordsight.fit

    for name in wordsight.__all__:
        assert getattr(wordsight, name) is not None
    assert callable(wordsight.fit), "the function, not the module of that name"
    with pytest.raises(AttributeError, match="no attribute 'classify'"):
        wordsight.classify  # noqa: B018


def test_no_file_is_named_utils():
    assert [
        path
        for path in ROOT.rglob("*")
        if path.stem in ("utils", "util", "helpers", "common", "core", "misc")
    ] == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_yaml_is_read_to_the_last_setting(path):
    settings = read(RunSettings, {"data": "d"}, path)
    assert read(RunSettings, {"data": "d"}, path.stem) == settings  # by its name, from any folder


def test_there_are_settings_to_read():
    assert CONFIGS


def test_the_readme_s_tree_is_the_tree():
    """Every module and package at the top is named there, and every name there is one."""
    text = (ROOT.parents[1] / "README.md").read_text(encoding="utf-8")
    tree = text.partition("```\nsrc/wordsight/\n")[2].partition("docs/")[0]
    named = set(re.findall(r"\b(\w+)(?:\.py|/)", tree))
    there = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert named - {"configs"} == there - {"__init__", "__main__"}


def test_no_digest_is_made_of_a_repr():
    """Which differs with each Python's Unicode tables; `ascii` does not."""
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in ROOT.rglob("*.py")}
    makes = re.compile(r"\bhashlib\b|\bhash_of\b|\bfingerprint\(|\bdigest_of\(|\bcontent_hash\(|\bStore\(")
    digesting = [name for name, text in texts.items() if makes.search(text)]
    assert len(digesting) > 30 and "backbones/__init__.py" in digesting
    messages = {"fit.py", "files.py"}  # names in a sentence; digest_of has a test of its own
    found = {name for name in digesting if re.search(r"\brepr\(|\(repr\b", texts[name])}
    assert found == messages


def test_no_file_is_too_long():
    long = {path.name: n for path in ROOT.rglob("*.py") if (n := len(path.read_text().splitlines())) > 400}
    assert long == {}
