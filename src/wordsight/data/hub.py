"""Hub: Hugging Face datasets, by name or kept with `save_to_disk`, as the columns of one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from wordsight.config import WordsightError
from wordsight.data import Picture, catalogue
from wordsight.data.account import Account, few
from wordsight.data.columns import Columns, table_of
from wordsight.data.labels import CLASSNAMES, LABEL_KEYS, PARTS, unknown_parts
from wordsight.data.rows import Table, Want, read_file
from wordsight.data.tars import read_tars, tars_in
from wordsight.data.trees import COUNT, KIND, TEMPLATES
from wordsight.extras import needed

TREE = f"test/{COUNT}"  # a file that says of a dataset that it is in CLIP_benchmark's layout
TREE_FILES = ["test/*", CLASSNAMES, TEMPLATES, KIND]  # what of it is fetched
OTHER_SPLIT = "in a split of another name"


def read_hub(name: str, spec: str, want: Want, label: str | None = None) -> Table:
    """A dataset of the hub, `name` or `name@config`. Errors: as `opened_hub`."""
    opened = opened_hub(name, spec)
    if not isinstance(opened, Path):
        return _table(opened, spec, want, label, catalogue.hints(name.partition("@")[0]))
    table = read_tars(tars_in(opened), spec, want, label)
    table.account.remark(f"of {spec} the test part was fetched, and is all that is read")
    return table


def opened_hub(name: str, spec: str) -> Any:
    """A dataset of the hub, `name` or `name@config`, as `datasets` has it, or the folder of one in
    CLIP_benchmark's layout, whose test part is fetched. Errors: WordsightError where it cannot be fetched or
    read.
    """
    with needed("datasets", "a Hugging Face dataset"):
        import datasets
        import datasets.config
    from huggingface_hub import HfApi, snapshot_download

    name, _, config = name.partition("@")
    try:
        if not (Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___").lower()).is_dir():
            # one quick question instead of half a minute of retries
            files = HfApi().dataset_info(name, timeout=10).siblings or ()
            if TREE in {file.rfilename for file in files}:
                return Path(snapshot_download(name, repo_type="dataset", allow_patterns=TREE_FILES))
        return datasets.load_dataset(name, config or None)
    except Exception as error:  # the hub's client raises errors of six libraries
        raise WordsightError(
            f"{spec!r} is neither a path here nor a Hugging Face dataset that could be read: "
            f"{_first_line(error)}. Check the name and the network; or download it elsewhere, keep it with "
            f"`save_to_disk(folder)` or as .parquet, and give that path; or set HF_ENDPOINT to a mirror you "
            f"reach"
        ) from error


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


def read_saved(folder: Path, spec: str, want: Want, label: str | None = None) -> Table:
    """A dataset kept with `save_to_disk`. Errors: as `opened_saved`."""
    return _table(opened_saved(folder, spec), spec, want, label)


def opened_saved(folder: Path, spec: str) -> Any:
    """A dataset kept with `save_to_disk`. Errors: WordsightError where it cannot be read."""
    with needed("datasets", "a Hugging Face dataset"):
        import datasets

    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # of a damaged file, whatever reads it
        raise WordsightError(
            f"{spec!r} looks like a dataset kept with save_to_disk, but cannot be read: {_first_line(error)}"
            + "; is one of its splits empty?" * isinstance(error, IndexError)
        ) from error


def _table(
    loaded: Any, spec: str, want: Want, label: str | None, hints: catalogue.Hints | None = None
) -> Table:
    hints = hints or catalogue.Hints()
    parts = dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}
    account = Account("row")
    known = _known_parts(parts, hints.splits or PARTS, account, spec)
    image = _image_column(known, spec)
    pictures = [picture for split, part in known.items() for picture in _pictures(part, split, image)]
    account.seen += len(pictures)
    columns = _columns(known, spec, hints)
    if isinstance(loaded, Mapping):
        meaning = hints.splits or PARTS
        of_row = [meaning[split.lower()] for split, part in known.items() for _ in range(len(part))]
        columns = replace(columns, part_of_row=of_row)
    return table_of(columns, pictures, account, want, label)


def _known_parts(
    parts: Mapping[str, Any], meaning: Mapping[str, str], account: Account, spec: str
) -> dict[str, Any]:
    """The splits that are train, val or test; others are told. Errors: WordsightError where there is none, or
    two are the same.
    """
    known = {split: part for split, part in parts.items() if split.lower() in meaning}
    if not known:
        raise unknown_parts(list(parts), repr(spec))
    known = {split: part for split, part in known.items() if len(part)}
    if not known:
        raise WordsightError(f"{spec!r} holds no rows")
    for split in known:
        same = [other for other in known if meaning[other.lower()] == meaning[split.lower()]]
        if len(same) > 1:
            raise WordsightError(f"{spec!r} has splits that mean the same part: {few(same)}; keep one")
    for split, part in parts.items():
        if split.lower() not in meaning:
            account.seen += len(part)
            account.leave(OTHER_SPLIT, split, len(part))
    return known


def _image_column(known: Mapping[str, Any], spec: str) -> str:
    """The column of images, by the same name in all splits."""
    import datasets

    first = next(iter(known.values())).features
    found = next((name for name, kind in first.items() if isinstance(kind, datasets.Image)), None)
    if found is None:
        raise WordsightError(f"{spec!r} has no image column; its columns are {', '.join(first)}")
    _check_columns(known, [found], spec)
    return found


def _check_columns(known: Mapping[str, Any], names: Sequence[str], spec: str) -> None:
    """Errors: WordsightError naming the split that lacks one of these columns."""
    for split, part in known.items():
        lacking = [name for name in names if name not in part.features]
        if lacking:
            raise WordsightError(
                f"split {split} of {spec!r} has no column {lacking[0]!r}, which the first split has; its "
                f"columns are {', '.join(part.features)}"
            )


def _columns(known: Mapping[str, Any], spec: str, hints: catalogue.Hints) -> Columns:
    import datasets

    first = next(iter(known.values())).features
    classed = {name: kind.names for name, kind in first.items() if isinstance(kind, datasets.ClassLabel)}
    _check_columns(known, list(classed), spec)
    for split, part in known.items():
        other = [name for name, names in classed.items() if _names(part.features.get(name)) != names]
        if other:
            raise WordsightError(
                f"split {split} of {spec!r} has other class names in column {other[0]}, or none"
            )
    usual = [key for key in (hints.label, *LABEL_KEYS, "labels", "fine_label", *classed) if key]
    if hints.names:
        classed |= dict.fromkeys((name for name in usual if name in first), hints.names)
    return Columns(
        repr(spec),
        sum(map(len, known.values())),
        {name: partial(_cells, list(known.values()), name, spec) for name in first},
        class_names=classed,
        label_keys=usual,
        spoken=hints.named or "classname",
        in_order=hints.named is not None,
        template=hints.template,
    )


def _names(feature: Any) -> Sequence[str] | None:
    return getattr(feature, "names", None)


def _cells(parts: Sequence[Any], name: str, spec: str) -> list[Any]:
    try:
        return list(chain.from_iterable(part[name][:] for part in parts))
    except Exception as error:  # of a damaged file, whatever reads it
        raise WordsightError(f"column {name} of {spec!r} cannot be read: {_first_line(error)}") from error


def _pictures(part: Any, split: str, column: str) -> list[Picture]:
    import datasets

    rows = part.cast_column(column, datasets.Image(decode=False)).select_columns([column])
    return [Picture(f"{split}[{row}]", partial(_read_row, rows, column, row)) for row in range(len(part))]


def _read_row(rows: Any, column: str, row: int) -> bytes:
    cell = rows[row][column]
    if cell is None:
        raise ValueError("the cell holds no image")
    return cell["bytes"] if cell["bytes"] is not None else read_file(cell["path"])


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
