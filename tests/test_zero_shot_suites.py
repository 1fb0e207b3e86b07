"""Suites of words alone: the 24 datasets, retrieval, shards, and what CLIP_benchmark reads of them."""

import csv
import io
import json
import tarfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import DatasetInfo
from standins import COLOURS, ColourBackbone, paint

from wordsight import cells
from wordsight.cli import main
from wordsight.config import WordsightError
from wordsight.data.features import text_features
from wordsight.data.zeroshot24 import entries, found_in, key_of, table
from wordsight.report import read_rows
from wordsight.report.clip_benchmark import as_csv
from wordsight.report.zero_shot import zero_shot
from wordsight.runs import Run
from wordsight.suite_settings import SuiteSettings
from wordsight.suites import run_suite
from wordsight.tasks import evaluate

NAMES = ("red", "green", "blue", "yellow", "purple", "orange")
TEMPLATES = ("a photo of a {c}.", "the colour {c}.", "{c}")


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def png(colour, seed) -> bytes:
    buffer = io.BytesIO()
    paint(colour, seed).save(buffer, "PNG")
    return buffer.getvalue()


def tree(root, fields, names=NAMES, kind=None, templates=TEMPLATES):
    """A tree in CLIP_benchmark's layout of one image each: (colour, what its field ends in, its content)."""
    (root / "test").mkdir(parents=True)
    with tarfile.open(root / "test" / "0.tar", "w") as tar:
        for number, (colour, end, content) in enumerate(fields):
            add(tar, f"s{number}.png", png(COLOURS[colour], number))
            add(tar, f"s{number}{end}", content)
    lists = {"test/nshards.txt": ["1"], "classnames.txt": names, "dataset_type.txt": [kind] if kind else ()}
    lists["zeroshot_classification_templates.txt"] = templates
    for name, lines in lists.items():
        if lines:
            (root / name).write_text("\n".join(lines) + "\n")
    return root


def labelled(count=12, classes=5):
    colours = list(COLOURS)
    places = [place % classes for place in range(count)]
    return [(colours[place], ".cls", str(place).encode()) for place in places]


def rows_of(path):
    with open(path, newline="") as file:
        return sorted(sorted(row.items()) for row in csv.DictReader(file))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three of the 24, one of them a folder of class folders without templates, and other things beside."""
    root = tmp_path_factory.mktemp("root")
    tree(root / "wds_vtab-cifar10", labelled())
    tree(root / "wds_mnist_test", labelled(10, 4), NAMES[:4], templates=TEMPLATES[:1])
    for name in ("red", "green"):
        (root / "vtab-dtd" / name).mkdir(parents=True)
        paint(COLOURS[name], 3).save(root / "vtab-dtd" / name / "a.png")
    (root / "notes").mkdir()
    return root


@pytest.fixture(scope="module")
def done(root, tmp_path_factory):
    """The folder that the suite was run in, and what came of it."""
    folder = tmp_path_factory.mktemp("done")
    return folder, run_suite(asked(root, folder), backbone=ColourBackbone())


def asked(root, tmp_path, suite="zeroshot-24", **changes):
    given = {"data": (str(root),), "backbone": "colours", "out": str(tmp_path / "out"), "device": "cpu"}
    return SuiteSettings(suite, **given | changes)


# -- the table -----------------------------------------------------------------------------------------------


def test_the_table_s_columns_average_to_what_is_printed():
    assert len(entries()) == 24 and sum(entry.metric != "acc1" for entry in entries().values()) == 4
    for row, said in table()["rows"].items():
        mean = sum(entry.published[row] for entry in entries().values()) / 24
        assert round(mean, 1) == pytest.approx(said["mean"], abs=0.051), row


@pytest.mark.parametrize(
    "data, key",
    [
        ("x/wds_vtab-cifar10", "vtab/cifar10"),
        ("x/wds_cifar10_test/", "vtab/cifar10"),
        ("clip-benchmark/wds_imagenet1k", "imagenet1k"),
        ("x/vtab/pcam", "vtab/pcam"),
        ("x/vtab-dtd.parquet", "vtab/dtd"),
        ("x/dtd", None),
        ("x/caltech101", None),
    ],
)
def test_a_dataset_is_known_by_its_name(data, key):
    """Keys without vtab/ are other, larger test parts."""
    assert key_of(data) == key


def test_a_root_holds_what_lies_there_and_a_pattern_may_be_of_the_hub(root):
    assert list(found_in(str(root))) == ["mnist", "vtab/cifar10", "vtab/dtd"]
    assert list(found_in(f"{root}/wds_{{dataset_cleaned}}")) == ["vtab/cifar10"]
    hub = found_in("clip-benchmark/wds_{dataset_cleaned}")
    assert len(hub) == 24 and hub["vtab/cifar10"] == "clip-benchmark/wds_vtab-cifar10"


# -- the suite -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_template_and_the_ensemble_are_rows_of_each_dataset(root, done):
    folder, result = done
    assert (result["runs"], result["fitted"], len(result["absent"])) == (6, 5, 21)
    assert [failed["run"].split()[0] for failed in result["failed"]] == ["vtab-dtd"]
    assert "brings none" in result["failed"][0]["says"], "a folder without templates has no ensemble"
    whole = Run.open(folder / "out" / "colours" / "wds_vtab-cifar10" / "data_templates-seed1")
    event = whole.events("eval")[-1]
    assert event["images"] == 12 and event["templates"] == 3 and len(event["class_names_hash"]) == 16
    single = Run.open(whole.folder.parent / "zero_shot-seed1").events("eval")[-1]
    assert single["class_names_hash"] == event["class_names_hash"]
    assert single["templates"] == 1 and single["templates_hash"] != event["templates_hash"]
    assert "(published)" not in result["markdown"] and "CLAMP" in result["markdown"]
    again = run_suite(asked(root, folder), backbone=ColourBackbone())
    assert again["fitted"] == 0 and again["markdown"] == result["markdown"]


@pytest.mark.slow
def test_the_ensemble_is_clip_benchmark_s(done):
    """Each template's vector of length one, their mean, scaled to length one again."""
    backbone = ColourBackbone()
    run = Run.open(done[0] / "out" / "colours" / "wds_vtab-cifar10" / "data_templates-seed1")
    cells.source.cache_clear()
    whole = cells.whole_of(run.settings)
    found = cells.encode_classes(backbone, run.facts, whole.class_names, run.sentences).means()
    for name, vector in zip(whole.class_names, found):
        rows = text_features(backbone, [one.replace("{c}", name) for one in TEMPLATES])
        mean = torch.nn.functional.normalize(rows, dim=-1).mean(0)
        assert torch.allclose(vector, mean / mean.norm(), atol=1e-6)


class Counting(ColourBackbone):
    """Counts what goes through its towers; `text` tells its text tower from others over the same images."""

    def __init__(self, text):
        super().__init__()
        self.text_fingerprint, self.images, self.calls = text, 0, 0

    def encode_image(self, pixels):
        self.images += len(pixels)
        return super().encode_image(pixels)

    def encode_text(self, texts):
        self.calls += 1
        return super().encode_text(texts)


def test_an_image_goes_through_a_tower_once_whatever_reads_its_vector(root, tmp_path, monkeypatch):
    towers = {name: Counting(name) for name in ("one", "two")}
    monkeypatch.setenv("WORDSIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cells, "tower_of", lambda settings: towers[settings.backbone])
    data = (str(root / "wds_vtab-cifar10"),)
    result = run_suite(asked(root, tmp_path, data=data, backbone="one,two", jobs=1))
    assert (result["runs"], towers["one"].images, towers["two"].images) == (4, 12, 0)
    assert towers["two"].calls == 2, "all classes and templates of a dataset at once"
    assert result["markdown"].count("| one ") == result["markdown"].count("| two ")


def test_a_tree_that_cannot_be_read_is_listed_and_the_rest_is_done(tmp_path):
    tree(tmp_path / "root" / "wds_cars", labelled())
    (tree(tmp_path / "root" / "wds_gtsrb", labelled()) / "test" / "nshards.txt").write_text("2")
    result = run_suite(asked(tmp_path / "root", tmp_path), backbone=ColourBackbone())
    (failed,) = result["failed"]
    assert failed["run"] == "wds_gtsrb" and "1.tar is missing" in failed["says"] and result["runs"] == 2


def test_equal_text_vectors_are_told(tmp_path, said):
    """Of names that the text tower reads alike, as the stand-in does capitals and full stops."""
    tree(tmp_path / "root" / "wds_cars", labelled(), ("red", "green.", "blue", "yellow", "purple", "green"))
    run_suite(asked(tmp_path / "root", tmp_path, methods=("zero_shot",)), backbone=ColourBackbone())
    assert "1 pair of 6 classes have one text vector" in said.text and "'green.' and 'green'" in said.text


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data": ()}, "give the folder that holds them: data=ROOT"),
        ({"data": ("{}/notes",)}, "holds none of the 24 datasets"),
        ({"shard": "17/16"}, "shard=17/16 is no part"),
        ({"shard": "0/2"}, "give shard=3/16"),
        ({"methods": ("linear_probe",)}, "learns from labels, and zeroshot-24 draws none"),
        ({"backbone": "one,one"}, "have the same folder name"),
        ({"suite": "cost", "backbone": "one,two"}, "is measured on one backbone"),
        ({"suite": "retrieval", "data": ("{}/wds_vtab-cifar10",)}, "is measured on captions"),
    ],
)
def test_mistakes_are_said_before_any_work(changes, words, root, tmp_path):
    data = tuple(one.format(root) for one in changes.get("data", (str(root),)))
    with pytest.raises(WordsightError, match=words):
        run_suite(asked(root, tmp_path, **changes | {"data": data}))
    assert not (tmp_path / "out").exists()


def test_a_tree_on_the_hub_is_fetched_for_its_test_part(root, tmp_path, monkeypatch):
    asked_for = []

    def fetch(name, repo_type, allow_patterns):
        asked_for.append((name, repo_type, set(allow_patterns) & {"test/*", "classnames.txt", "*.txt"}))
        return str(root / "wds_vtab-cifar10")

    def known(self, name, timeout):
        if name != "clip-benchmark/wds_cars":
            raise OSError("no such dataset")
        return DatasetInfo(id=name, siblings=[{"rfilename": "test/nshards.txt"}])

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", known)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    pattern = "clip-benchmark/wds_{dataset_cleaned}"
    result = run_suite(asked(root, tmp_path, data=(pattern,)), backbone=ColourBackbone())
    assert result["runs"] == 2 and len(result["failed"]) == 23 and result["absent"] == []
    assert asked_for == [("clip-benchmark/wds_cars", "dataset", {"test/*", "classnames.txt"})]


# -- several classes, and captions ---------------------------------------------------------------------------


def test_images_of_several_classes_have_a_mean_average_precision(tmp_path):
    def shows(*places):
        buffer = io.BytesIO()
        np.save(buffer, np.isin(np.arange(6), places).astype(np.int64))
        return buffer.getvalue()

    fields = [("red", ".npy", shows(0, 5)), ("green", ".npy", shows(1)), ("blue", ".npy", shows())]
    data = str(tree(tmp_path / "voc", fields, kind="multilabel"))
    result = run_suite(asked(tmp_path, tmp_path, data=(data,)), backbone=ColourBackbone())
    assert result["failed"] == [] and "| voc" in result["markdown"]
    (event,) = Run.open(tmp_path / "out" / "colours" / "voc" / "zero_shot-seed1").events("multilabel")
    known = [one for one in event["average_precision"].values() if one is not None]
    assert event["average_precision"]["blue"] is None and len(known) == 3 and min(known) >= 100 / 3
    assert event["mean_average_precision"] == pytest.approx(sum(known) / 3)
    assert event["chance"] == pytest.approx(100 / 3)
    files = [path for path in (tmp_path / "out" / "clip_benchmark").glob("voc*zero*.json")]
    assert list(json.loads(files[0].read_text())["metrics"]) == ["mean_average_precision"]


def test_retrieval_is_measured_on_a_tree_and_on_karpathy_s_file(tmp_path):
    colours = [name for name in COLOURS if name != "purple"]
    said = [(name, ".txt", f"{name}\na photo of {name}".encode()) for name in colours]
    data = str(tree(tmp_path / "flickr30k", said, (), "retrieval", ()))
    (tmp_path / "coco" / "val2014").mkdir(parents=True)
    images = []
    for name in colours:
        paint(COLOURS[name], 1).save(tmp_path / "coco" / "val2014" / f"{name}.png")
        entry = {"filepath": "val2014", "filename": f"{name}.png", "split": "test"}
        images.append(entry | {"sentences": [{"raw": f"{name}"}]})
    other = tmp_path / "coco" / "dataset_coco.json"
    other.write_text(json.dumps({"images": images}))
    settings = asked(tmp_path, tmp_path, "retrieval", data=(data, str(other)))
    result = run_suite(settings, backbone=ColourBackbone())
    assert (result["runs"], result["fitted"], result["failed"]) == (2, 2, [])
    (event,) = Run.open(tmp_path / "out" / "colours" / "flickr30k" / "zero_shot-seed1").events("retrieval")
    assert (event["images"], event["captions"]) == (4, 8) and event["image_to_text"]["recall@5"] == 100
    assert "**Retrieval**" in result["markdown"] and "i→t @1" in result["markdown"]
    files = (Path(path) for path in result["files"][:-1])
    found, coco = sorted((json.loads(path.read_text()) for path in files), key=lambda one: one["dataset"])
    assert (found["dataset"], coco["dataset"]) == ("flickr30k", "mscoco_captions")
    assert found["task"] == "zeroshot_retrieval" and found["metrics"]["image_retrieval_recall@10"] == 1.0
    assert run_suite(settings, backbone=ColourBackbone())["fitted"] == 0


def test_what_retrieval_leaves_out_is_told(tmp_path, said):
    texts = [("red", ".txt", b"red\n"), ("green", ".txt", b"green\n"), ("blue", ".txt", b" \n")]
    data = tree(tmp_path / "flickr30k", texts, (), "retrieval", ())
    result = run_suite(asked(tmp_path, tmp_path, "retrieval", data=(str(data),)), backbone=ColourBackbone())
    assert result["failed"] == [] and "left out 1 of 3" in said.text


def test_a_later_figure_of_some_classes_is_not_the_table_s(tmp_path):
    data = str(tree(tmp_path / "toys", labelled()))
    run_suite(asked(tmp_path, tmp_path, data=(data,)), backbone=ColourBackbone())
    folder = tmp_path / "out" / "colours" / "toys" / "zero_shot-seed1"
    before = zero_shot(read_rows([folder])).records
    (figures,) = evaluate(folder, classes="base", backbone=ColourBackbone())
    assert figures["images"] < 12
    assert zero_shot(read_rows([folder])).records == before


@pytest.mark.slow
def test_the_command_line_says_the_figure_of_images_of_several_classes(tmp_path, capsys):
    buffer = io.BytesIO()
    np.save(buffer, np.isin(np.arange(6), (0, 5)).astype(np.int64))
    data, out = (
        tree(tmp_path / "voc", [("red", ".npy", buffer.getvalue())], kind="multilabel"),
        tmp_path / "a",
    )
    words = ["method=zero_shot", "backbone=micro", "shots=null", f"data={data}", f"out={out}"]
    for said in (["fit", *words], ["eval", str(out)]):
        assert main(said) == 0
        assert "all: mAP 100.0%  (1 test images, chance 100.0%)" in capsys.readouterr().out


def files_of(result):
    return [path.rsplit("/", 1)[1] for path in result["files"]]


# -- shards --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 5, 9])
def test_shards_are_disjoint_and_together_all(root, tmp_path, parts):
    from wordsight.plan import plan, shard_of
    from wordsight.suite_settings import places

    settings = asked(root, tmp_path, backbone="one,two")
    data, _ = places(settings)
    settings = SuiteSettings(**vars(settings) | {"data": data})
    whole = plan(settings, settings.kind, {})
    shards = [
        shard_of(SuiteSettings(**vars(settings) | {"shard": f"{part}/{parts}"}), whole)
        for part in range(1, parts + 1)
    ]
    assert [cell for part in shards for cell in part] == whole and len(whole) == 12
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.slow
def test_a_call_without_a_shard_tells_of_all(root, tmp_path):
    data = (str(root / "wds_mnist_test"), str(root / "vtab-dtd"))
    parts = [
        run_suite(asked(root, tmp_path, data=data, shard=f"{part}/3"), backbone=ColourBackbone())
        for part in (3, 1)
    ]
    assert [part["fitted"] for part in parts] == [1, 1] and "benchmark.csv" not in files_of(parts[0])
    whole = run_suite(asked(root, tmp_path, data=data), backbone=ColourBackbone())
    assert (whole["runs"], whole["fitted"]) == (4, 1) and files_of(whole)[-1] == "benchmark.csv"
    empty = run_suite(asked(root, tmp_path, data=data[:1], shard="1/9"), backbone=ColourBackbone())
    assert empty["runs"] == 0 and empty["markdown"] == ""


# -- what others read ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_clip_benchmark_s_files_are_those_of_its_build(done):
    """Its `build`, as its README has it: the metrics, the rest, and both names of the model in one."""
    _, result = done
    *files, table = result["files"]
    assert "vtab_cifar10_data_templates_colours_en_zeroshot_classification.json" in files_of(result)
    loaded = [json.loads(Path(path).read_text(), parse_constant=pytest.fail) for path in files]
    assert all(
        list(one) == ["dataset", "model", "pretrained", "task", "metrics", "language"] for one in loaded
    )
    by_name = {(one["dataset"], one["pretrained"]): one["metrics"] for one in loaded}
    assert by_name["mnist", "zero_shot"]["acc5"] is None, "of four classes there is no fifth"
    cifar10 = by_name["vtab/cifar10", "zero_shot"]
    assert 0 <= cifar10["acc1"] <= cifar10["acc5"] <= 1 and len(cifar10) == 3
    built = []
    for one in loaded:
        row = one["metrics"] | one | {"model_fullname": f"{one['model']} {one['pretrained']}"}
        del row["metrics"]
        built.append(sorted((key, "" if value is None else str(value)) for key, value in row.items()))
    assert rows_of(table) == sorted(built)


def test_clip_benchmark_builds_its_table_of_our_files(done, tmp_path):
    reason = "clip_benchmark is not installed"
    cli = pytest.importorskip("clip_benchmark.cli", reason=reason, exc_type=ImportError)
    *files, table = done[1]["files"]
    cli.main_build(Namespace(files=files, output=str(tmp_path / "theirs.csv")))
    assert rows_of(table) == rows_of(tmp_path / "theirs.csv")


def test_the_table_has_datasets_as_columns_and_means_over_what_all_rows_have(done):
    found = zero_shot(read_rows([done[0] / "out"]))
    columns = ("backbone", "method", "MNIST", "CIFAR-10", "DTD", "mean of 2")
    assert found is not None and found.table.columns == columns
    single, ensemble, *printed = found.table.rows
    assert (single[1], ensemble[1], ensemble[4]) == ("zero_shot", "data_templates", "–")
    assert float(single[5]) == pytest.approx((float(single[2]) + float(single[3])) / 2, abs=0.1)
    clamp = dict(zip(columns, printed[3]))
    assert clamp["method"] == "CLAMP" and clamp["mean of 2"] in ("67.0", "67.1") and clamp["DTD"] == "49.3"
    assert "CIFAR-10 12 images of 6 classes for 10,000 of 10" in " ".join(found.notes)
    line = dict(zip(found.each.columns, found.each.rows[0]))
    assert (line["data"], line["classes"], line["top-5"], line["chance"]) == ("MNIST", "4", "–", "25.0")
    assert as_csv([]).startswith("dataset,model,pretrained")


def test_a_class_without_a_name_is_measured(tmp_path):
    """CLEVR's: it is known by its template alone."""
    names = ("red", "green", "blue", "", "purple", "brown")
    tree(tmp_path / "wds_vtab-clevr_closest_object_distance", labelled(), names)
    data = (str(tmp_path / "wds_vtab-clevr_closest_object_distance"),)
    result = run_suite(
        asked(tmp_path, tmp_path, data=data, methods=("zero_shot",)), backbone=ColourBackbone()
    )
    assert result["failed"] == [] and result["runs"] == 1


def test_two_folders_of_one_dataset_are_two_and_what_is_not_read_is_told(root, tmp_path, said):
    for name in ("wds_vtab-cifar10", "wds_cifar10_test"):
        tree(tmp_path / name, labelled())
    data = tuple(str(tmp_path / name) for name in ("wds_vtab-cifar10", "wds_cifar10_test"))
    run_suite(asked(tmp_path, tmp_path, data=data, methods=("zero_shot",)), backbone=ColourBackbone())
    assert len(rows_of(tmp_path / "out" / "clip_benchmark" / "benchmark.csv")) == 2
    run_suite(asked(root, tmp_path / "two", methods=("zero_shot",)), backbone=ColourBackbone())
    assert "none of the datasets is called so: notes" in said.text
