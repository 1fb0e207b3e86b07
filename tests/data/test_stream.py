"""The same (seed, position) gives the same samples from any source, whatever was read before, here or over
HTTP; and bad data is answered in words.
"""

import csv
import io
import itertools
import json
import shutil
import tarfile
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from standins import COLOURS, fill_folder, paint

from wordsight.backbones.text_tower import TextBatch
from wordsight.config import WordsightError
from wordsight.data import ahead as ahead_module
from wordsight.data import fetch as fetch_module
from wordsight.data import shards as shards_module
from wordsight.data import stream as stream_module
from wordsight.data.features import image_features, text_features
from wordsight.data.pairs import open_pairs
from wordsight.data.shards import Rows
from wordsight.data.stream import StreamBatches, check_weights, needs_stream, open_stream
from wordsight.data.tars import shards_of


def png(colour, seed):
    buffer = io.BytesIO()
    paint(colour, seed).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def captioned(shard, count):
    """A shard's members: every second caption is in JSON."""
    members = []
    for index, (name, colour) in zip(range(count), itertools.cycle(COLOURS.items())):
        text = f"{name} {shard} {index}"
        words = ("txt", text.encode()) if index % 2 else ("json", json.dumps({"caption": text}).encode())
        members += [
            (f"{index:03d}.png", png(colour, 100 * shard + index)),
            (f"{index:03d}.{words[0]}", words[1]),
        ]
    return members


COUNTS = (5, 7, 4, 6)  # samples of each shard


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    for shard, count in enumerate(COUNTS):
        write_tar(folder / f"x-{shard:03d}.tar", captioned(shard, count))
    return str(folder / "x-{000..003}.tar")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    rows = [["path", "caption_1", "caption_2"]]
    for index, (name, colour) in zip(range(9), itertools.cycle(COLOURS.items())):
        paint(colour, index).save(folder / f"{index}.png")
        rows.append([f"{index}.png", f"{name} paint {index}", f"a wall {index}" if index % 2 else ""])
    with open(folder / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(folder / "captions.csv")


class Server(BaseHTTPRequestHandler):
    def __init__(self, folder, asked, *args):
        self.folder, self.asked = folder, asked
        super().__init__(*args)

    def do_GET(self):
        self.asked.append(self.path)
        file = self.folder / self.path.lstrip("/")
        code = 503 if self.path.startswith("/busy") else 200 if file.is_file() else 404
        content = file.read_bytes() if code == 200 else b""
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def web(tars, monkeypatch):
    """The address of a server of the tars on this machine, and what was asked of it."""
    monkeypatch.setattr(fetch_module, "WAITS", (0.01, 0.01))
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, Path(tars).parent, asked))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def tokenise(texts):
    rows = [torch.tensor([ord(letter) for letter in text]) for text in texts]
    return TextBatch(
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor(list(map(len, rows)))
    )


def untokenise(batch):
    texts = [
        "".join(map(chr, ids[:length]))
        for ids, length in zip(batch["ids"].tolist(), batch["lengths"].tolist())
    ]
    return [texts[row] for row in batch["text_of"].tolist()]


def only(spec, **place):
    return open_stream(spec, **place).sources[0]


def taken(source, start, count):
    return [captions for _, captions in itertools.islice(source.samples(start), count)]


def batches_of(spec, backbone, batch_size=6, weights=None, place=None, **settings):
    return StreamBatches(
        open_stream(spec, weights, **(place or {})),
        batch_size,
        backbone=backbone,
        tokenise=tokenise,
        **settings,
    )


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def fails(*words, call, **settings):
    with pytest.raises(WordsightError) as error:
        call(**settings)
    for word in words:
        assert word in str(error.value), str(error.value)


# ---- sources


@pytest.mark.parametrize("kind", ["tars", "table", "photos"])
def test_a_position_decides_the_sample_and_a_pass_gives_each_once(kind, request):
    spec = str(request.getfixturevalue(kind))
    source = only(spec, seed=3)
    count = {"tars": sum(COUNTS), "table": 9, "photos": 18}[kind]
    through = [picture.name for picture, _ in itertools.islice(source.samples(0), 4 * count)]
    passes = [through[at : at + count] for at in range(0, 3 * count, count)]
    assert all(len(set(each)) == count for each in passes) and passes[0] != passes[1]
    for start in (0, 1, 5, count - 1, count, 2 * count + 3):
        fresh = only(spec, seed=3)
        assert [picture.name for picture, _ in itertools.islice(fresh.samples(start), 8)] == through[
            start : start + 8
        ]
    assert [picture.name for picture, _ in itertools.islice(only(spec, seed=4).samples(0), count)] != passes[
        0
    ]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("kind", ["tars", "table"])
def test_ranks_are_disjoint_and_together_complete(kind, world, request):
    spec = request.getfixturevalue(kind)
    whole = set(taken(only(spec), 0, {"tars": sum(COUNTS), "table": 9}[kind]))
    parts = []
    for rank in range(world):
        source = only(spec, rank=rank, world=world)
        own = len(range(rank, 9, world)) if kind == "table" else sum(COUNTS[rank::world])
        parts.append(taken(source, 0, own))
        if kind == "tars":  # a rank's part is the same in every pass; that of a table is drawn anew
            assert set(taken(source, own, own)) == set(parts[-1])
    assert set().union(*parts) == whole and sum(map(len, parts)) == len(whole)


def test_known_sizes_spare_reading_whole_shards(tars, tmp_path, monkeypatch):
    sizes = tmp_path / "state/shards.json"
    source = only(tars, sizes=sizes)
    through = taken(source, 0, 40)
    source.sizes.save()
    read = []
    monkeypatch.setattr(
        shards_module, "fetch", lambda path, real=shards_module.fetch: read.append(path) or real(path)
    )
    resumed = only(tars, sizes=sizes)
    assert read == []
    assert taken(resumed, 30, 1) == through[30:31] and len(read) == 1
    del read[:]
    assert (
        taken(only(tars), 30, 1) == through[30:31] and len(set(read)) == 4
    )  # not known: they are counted first


def test_the_sizes_show_that_data_has_changed(tmp_path, table):
    for shard in range(3):
        write_tar(tmp_path / f"t/{shard}.tar", captioned(shard, 3))
    spec, sizes = str(tmp_path / "t"), tmp_path / "state/shards.json"
    source = only(spec, sizes=sizes)
    taken(source, 0, 9)
    source.sizes.save()
    fails("began with 1 processes and has 2", call=open_stream, spec=spec, sizes=sizes, world=2)
    write_tar(tmp_path / "t/1.tar", captioned(1, 40))
    fails("1.tar", "is not what it was", "(3 then)", call=open_stream, spec=spec, sizes=sizes)
    write_tar(tmp_path / "t/3.tar", captioned(3, 3))
    fails("its shards", "is not what it was", call=open_stream, spec=spec, sizes=sizes)
    rows = open_pairs(table)
    rows = list(zip(rows.pictures, rows.captions))
    Rows("rows", rows, (0,), sizes=source.sizes)
    fails(
        "'rows' is not what it was",
        call=Rows,
        name="rows",
        rows=[(rows[0][0], ("other",)), *rows[1:]],
        seed=(0,),
        sizes=source.sizes,
    )
    sizes.write_text("{")
    fails("cannot be read", "delete it", call=open_stream, spec=spec, sizes=sizes)


def test_classes_become_captions(tmp_path):
    for shard in range(2):
        members = [(f"{i}.png", png((9, 9, 9), i)) for i in range(2)] + [
            ("0.cls", b"1"),
            ("1.json", b'{"label": 0}'),
        ]
        write_tar(tmp_path / f"n/{shard}.tar", members)
    fails("are numbers", "classnames.txt", call=open_stream, spec=str(tmp_path / "n"))
    (tmp_path / "classnames.txt").write_text("red_fox\nant\n")
    assert set(taken(only(str(tmp_path / "n")), 0, 4)) == {("a photo of a ant.",), ("a photo of a red fox.",)}
    (tmp_path / "s.json").write_text(json.dumps({"ant": ["an ant is small."]}))
    mixture = open_stream(str(tmp_path / "n"), template="one {}", sentences=str(tmp_path / "s.json"))
    assert set(taken(mixture.sources[0], 0, 4)) == {("one ant", "an ant is small."), ("one red fox",)}
    assert "1 of 2 classes" in mixture.account.remarks[0]
    (tmp_path / "classnames.txt").write_text("ant\n")
    fails("label 1", "outside its classnames.txt of 1", call=open_stream, spec=str(tmp_path / "n"))
    write_tar(tmp_path / "w/0.tar", [("a/0.png", png((9, 9, 9), 0)), ("a/0.cls", b"grey wall")])
    assert taken(only(str(tmp_path / "w")), 0, 1) == [("a photo of a grey wall.",)]


def test_shards_are_named_in_many_ways(tars, tmp_path):
    folder = tars.rsplit("/", 1)[0]
    every = [f"{folder}/x-{number:03d}.tar" for number in range(4)]
    assert (
        shards_of(tars)
        == shards_of(folder)
        == shards_of(f"{folder}/*.tar")
        == shards_of(f"{folder}/x-???.tar")
        == every
    )
    assert shards_of(f"{folder}/x-{{001,003}}.tar") == [every[1], every[3]]
    assert shards_of("s3://b/{a,b}-{8..10}.tar")[:4] == [
        "s3://b/a-8.tar",
        "s3://b/a-9.tar",
        "s3://b/a-10.tar",
        "s3://b/b-8.tar",
    ]
    assert shards_of("https://h/x.tar?token=1") == ["https://h/x.tar?token=1"]
    assert needs_stream(f"digits::{tars}") and needs_stream("https://h/x.tar") and needs_stream(folder)
    assert not needs_stream(f"digits::{tmp_path}") and not needs_stream("pairs.csv")
    fails("does not exist", call=shards_of, source=f"{folder}/x-{{000..004}}.tar")
    fails("commands are not run", call=shards_of, source="pipe:cat x.tar")
    fails("no .tar", call=shards_of, source="x.tar.gz")
    fails("no .tar", call=shards_of, source="s3://b/captions.parquet")
    fails("only in local folders", call=shards_of, source="s3://b/*.tar")


# ---- from elsewhere


def test_http_gives_what_the_disk_gives(tars, web):
    address, asked = web
    remote = only(f"{address}/x-{{000..003}}.tar")
    assert taken(remote, 3, 30) == taken(only(tars), 3, 30)
    assert remote.total is None and asked[-1] == "/sizes.json"


def test_a_url_that_does_not_answer_is_an_error_and_one_that_is_not_there_is_left_out(web, tars):
    address, asked = web
    fails("/busy.tar does not answer", "503", call=open_stream, spec=f"{address}/busy.tar")
    assert asked.count("/busy.tar") == 3
    fails("does not answer", call=open_stream, spec="http://127.0.0.1:9/x.tar")
    fails("none of the 2 shards", "HTTP 404", call=open_stream, spec=f"{address}/none-{{0..1}}.tar")
    partly = only(f"{address}/x-{{003..004}}.tar")
    assert len(set(taken(partly, 0, 12))) == 6
    assert "1 shard of" in " ".join(partly.account.notes()) and "x-004.tar (HTTP 404" in " ".join(
        partly.account.notes()
    )


def test_s3_goes_through_fsspec(tars, monkeypatch):
    import fsspec

    asked = []

    def opened(url, mode):
        asked.append(url)
        if url.endswith("9.tar"):
            raise FileNotFoundError(url)
        return open(tars.rsplit("/", 1)[0] + "/" + url.rsplit("/", 1)[1], mode)

    monkeypatch.setattr(fsspec, "open", opened)
    assert len(set(taken(only("s3://bucket/x-{000..001}.tar"), 0, 12))) == 12
    assert set(asked) == {"s3://bucket/x-000.tar", "s3://bucket/x-001.tar"}
    fails("none of the 1 shard", call=open_stream, spec="s3://bucket/9.tar")

    def absent(url, mode):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "open", absent)
    fails("Install s3fs", call=open_stream, spec="s3://bucket/x.tar")


# ---- what is wrong with data


@pytest.mark.parametrize(
    "cut, left", [(2500, 1), (3 * 1024, 1), (4 * 1024, 2), (12 * 1024, 6)]
)  # inside a member, or at its end
def test_a_truncated_shard_gives_what_can_be_read(tmp_path, cut, left):
    whole = write_tar(tmp_path / "t/0.tar", captioned(0, 6)).read_bytes()
    (tmp_path / "t/0.tar").write_bytes(whole[:cut])
    write_tar(tmp_path / "t/1.tar", captioned(1, 2))
    source = only(str(tmp_path / "t"))
    seen = set(taken(source, 0, 40))
    assert len(seen) == left + 2 and {("red 0 0",), ("red 1 0",)} <= seen
    assert "1 shard of" in " ".join(source.account.notes()) and "0.tar" in " ".join(source.account.notes())
    assert taken(only(str(tmp_path / "t")), 7, 9) == taken(source, 7, 9)


def test_damage_inside_a_shard_is_seen(tmp_path):
    path = write_tar(tmp_path / "0.tar", captioned(0, 4))
    content = bytearray(path.read_bytes())
    content[4 * 512 : 5 * 512] = b"\xff" * 512  # the second sample's header
    path.write_bytes(content)
    source = only(str(path))
    assert set(taken(source, 0, 5)) == {("red 0 0",)} and "damaged at byte 2,048" in " ".join(
        source.account.notes()
    )


def test_what_is_no_shard_is_answered_in_words(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.tar").write_bytes(b"this is no tar " * 100)
    fails(
        "none of the 2 shards",
        "not readable as an uncompressed tar",
        "0.tar",
        "1.tar",
        call=open_stream,
        spec=str(tmp_path),
    )
    fails("none of the 1 shard", call=open_stream, spec=str(write_tar(tmp_path / "empty.tar", [])))
    silent = write_tar(
        tmp_path / "silent.tar",
        [("0.png", png((1, 1, 1), 0)), ("0.json", b'{"caption": " "}'), ("1.png", b""), ("1.txt", b"\xff")],
    )
    fails(
        "silent.tar",
        "left out 1 of 2 images without a caption: 0.png",
        "1 of 2 images whose label or caption cannot be read: 1.png",
        "key.txt",
        call=open_stream,
        spec=str(silent),
    )
    half = write_tar(tmp_path / "half.tar", [*captioned(0, 2), ("9.png", b"")])
    source = only(str(half))
    assert len(set(taken(source, 0, 4))) == 2 and "1 of 3 images without a caption: 9.png" in " ".join(
        source.account.notes()
    )


def test_a_rank_without_shards_is_refused(tars, table):
    for rank in range(5):
        fails("has 4 shards for 5 processes", call=open_stream, spec=tars, rank=rank, world=5)
    fails("has 9 pairs for 10 processes", call=open_stream, spec=table, rank=9, world=10)


def test_tables_are_answered_in_words(tmp_path):
    paint((1, 2, 3), 0).save(tmp_path / "0.png")
    (tmp_path / "a.csv").write_text("path,captoin\n0.png,a wall\n")
    fails("no caption column", "did you mean 'caption'", call=open_stream, spec=str(tmp_path / "a.csv"))
    fails("no caption column", call=open_pairs, spec=str(tmp_path / "a.csv"))
    (tmp_path / "b.csv").write_text("path,caption\n0.png,\n")
    fails("holds no image-caption pair", call=open_stream, spec=str(tmp_path / "b.csv"))
    fails("names no source", call=open_stream, spec="::")


def test_weights_are_checked(tars, table):
    assert (
        check_weights("0.7, 0.3", "ab") == (0.7, 0.3)
        and check_weights([1], "a") == (1.0,)
        and check_weights(None, "ab") is None
    )
    assert check_weights([0.1] * 10, "abcdefghij")
    for given, word in (
        ("0.7,0.2", "add up to 0.9"),
        ("0.5", "1 for 2 sources"),
        ("1.5,-0.5", "0 or more"),
        ("a,b", "not numbers"),
        ("nan,1", "0 or more"),
    ):
        fails(word, call=check_weights, weights=given, sources=["a", "b"])
        fails(word, call=open_stream, spec=f"{tars}::{table}", weights=given)
    fails("nobody knows how many samples", "settings.weights", call=open_stream, spec=f"{tars}::{table}")


# ---- batches


def test_positions_are_the_sum_of_what_was_drawn_and_follow_the_weights(tars, table, backbone, monkeypatch):
    monkeypatch.setattr(stream_module, "BLOCK", 16)
    batches = batches_of(f"{tars}::{table}", backbone, 10, "0.7,0.3", max_steps=9)
    counts = np.array([batches.counts(step) for step in range(200)])
    assert (counts.sum(1) == 10).all() and abs(counts[:, 0].mean() - 7) < 0.3
    for step in (0, 1, 15, 16, 17, 100, 3, 199):
        assert (batches.positions(step) == counts[:step].sum(0)).all()
    other = batches_of(f"{tars}::{table}", backbone, 10, "0.7,0.3", {"seed": 2}, max_steps=9)
    assert not (counts == [other.counts(step) for step in range(200)]).all()
    never = batches_of(f"{tars}::{table}", backbone, 10, "0,1", max_steps=9)
    assert (np.array([never.counts(step) for step in range(20)]) == [0, 10]).all()


@pytest.mark.parametrize("features", ["stream", "store"])
@pytest.mark.parametrize("views", [1, 3])
def test_a_resumed_run_sees_the_same_batches(tars, table, backbone, features, views, tmp_path):
    opened = partial(
        batches_of,
        f"{tars}::{table}",
        backbone,
        8,
        "0.6,0.4",
        features=features,
        views=views,
        teacher=backbone,
        max_steps=5,
    )
    with opened(place={"sizes": tmp_path / "state/shards.json"}) as batches:
        through = [batches.batch(0, step) for step in range(12)]
        assert equal(batches.batch(0, 3), through[3]) and equal(batches.batch(1, 0), through[5])
    assert json.loads((tmp_path / "state/shards.json").read_text())["world"] == 1
    for start, place in ((7, {"sizes": tmp_path / "state/shards.json"}), (11, {})):
        with opened(place=place) as batches:
            for step in range(start, 12):
                assert equal(batches.batch(0, step), through[step])
    assert not equal(through[0], through[1])


@pytest.mark.slow
def test_a_batch_holds_what_pair_batches_would(table, backbone):
    pairs = open_pairs(table)
    vectors = image_features(backbone, pairs.pictures).vectors[:, 0]
    row_of = {text: row for row, texts in enumerate(pairs.captions) for text in texts}
    drawn = set()
    for features in ("stream", "store"):
        with batches_of(
            table,
            backbone,
            9,
            features=features,
            teacher=backbone,
            per_caption={"pooled": lambda texts: torch.ones(len(texts), 2)},
        ) as batches:
            assert len(batches) == 1
            for epoch in range(12):
                batch = batches.batch(epoch, 0)
                texts = untokenise(batch)
                rows = [row_of[text] for text in texts]
                assert sorted(rows) == list(range(9))
                assert torch.allclose(batch["images"], vectors[rows], atol=1e-6) and torch.equal(
                    batch["images"], batch["teacher_images"]
                )
                assert torch.allclose(
                    batch["teacher_texts"][batch["text_of"]], text_features(backbone, texts), atol=1e-6
                )
                assert batch["pooled"].shape == (len(batch["ids"]), 2) and not any(
                    tensor.is_inference() for tensor in batch.values()
                )
                drawn |= set(texts)
    assert drawn == set(row_of)  # every caption is drawn at some time


def test_equal_captions_stand_once(photos, backbone):
    with batches_of(str(photos), backbone, 12) as batches:
        batch = batches.batch(0, 0)
    assert (
        len(batch["ids"]) == 3
        and len(batch["text_of"]) == 12
        and set(untokenise(batch)) == {f"a photo of a {c}." for c in ("red", "green", "blue")}
    )


def test_views_in_the_stream_are_those_of_the_store(table, backbone):
    both = [batches_of(table, backbone, 9, features=features, views=3) for features in ("stream", "store")]
    for step in range(3):
        one, other = (batches.batch(0, step) for batches in both)
        assert torch.allclose(one["images"], other["images"], atol=1e-6) and torch.equal(
            one["text_of"], other["text_of"]
        )
    for batches in both:
        batches.close()


@pytest.mark.parametrize("features", ["stream", "store"])
def test_unreadable_images_are_replaced_and_positions_stay(tmp_path, backbone, features):
    members = dict(captioned(0, 12))
    members |= {"002.png": b"", "005.png": b"no image", "006.png": png((1, 2, 3), 0)[:-30]}
    path = write_tar(tmp_path / "0.tar", members.items())
    opened = partial(batches_of, str(path), backbone, 4, features=features, max_steps=6)
    with opened() as batches:
        through = [batches.batch(0, step) for step in range(6)]
        assert [name.split("/")[-1] for name in sorted(batches.skipped)][:2] == ["002.png", "005.png"]
        assert (
            f"skipped {len(batches.skipped)} unreadable images" in batches.notes()[-1]
            and "002.png: empty" in batches.notes()[-1]
        )
    bad = {int(name.split("/")[-1][:3]) for name in batches.skipped}
    shown = {text for batch in through for text in untokenise(batch)}
    assert shown == {text for (text,) in taken(only(str(path)), 0, 12) if int(text.split()[-1]) not in bad}
    with opened() as resumed:
        assert all(equal(resumed.batch(0, step), through[step]) for step in range(2, 6))


@pytest.mark.parametrize("features", ["stream", "store"])
def test_a_source_of_unreadable_images_stops_in_the_main_thread(tmp_path, backbone, features, monkeypatch):
    monkeypatch.setattr(ahead_module, "MANY_BAD", 12)
    path = write_tar(
        tmp_path / "0.tar", [(f"{i}.{kind}", b"words") for i in range(4) for kind in ("png", "txt")]
    )
    with batches_of(str(path), backbone, 4, features=features, max_steps=6) as batches:
        fails("12 images", "could not be read", "not an image", call=batches.batch, epoch=0, index=0)
    assert not threads()


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "wordsight-stream"]


def test_the_thread_ends(tars, backbone):
    batches = batches_of(tars, backbone, 4, max_steps=6)
    assert not threads()
    batches.batch(0, 0)
    assert len(threads()) == 1
    batches.batch(0, 5)
    assert len(threads()) == 1  # the first has ended
    batches.close()
    batches.close()
    assert not threads()


def test_errors_and_interrupts_leave_no_thread(tars, backbone, monkeypatch):
    def broken(texts):
        raise RuntimeError("a tokenizer that fails")

    batches = StreamBatches(open_stream(tars), 4, backbone=backbone, tokenise=broken, max_steps=6)
    with pytest.raises(RuntimeError, match="a tokenizer that fails"):
        batches.batch(0, 0)
    assert not threads()
    batches = batches_of(tars, backbone, 4, max_steps=6)
    batches.batch(0, 0)

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(batches._producer, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        batches.batch(0, 1)
    assert not threads()
    assert equal(batches.batch(0, 1), batches.batch(0, 1))
    batches.close()


def test_the_length_of_an_epoch(tars, table, backbone, tmp_path):
    assert len(batches_of(table, backbone, 4)) == 2 and len(batches_of(table, backbone, 50)) == 1
    assert len(batches_of(tars, backbone, 4, max_steps=7)) == 7
    with pytest.raises(WordsightError, match=r"train\.max_steps=10000"):
        len(batches_of(tars, backbone, 4))
    for shard in range(2):
        write_tar(tmp_path / f"{shard}.tar", captioned(shard, 6))
    (tmp_path / "sizes.json").write_text(json.dumps({"0.tar": 6, "1.tar": 6}))
    assert len(batches_of(str(tmp_path), backbone, 4, max_steps=7)) == 3
    mixed = batches_of(f"{tmp_path}::{table}", backbone, 7)
    assert len(mixed) == 3 and mixed.mixture.weights == (12 / 21, 9 / 21)


def test_ranks_share_a_batch(tars, table, backbone):
    spec = f"{tars}::{table}"
    fails(
        "train.batch_size=5 cannot be shared by 2",
        call=batches_of,
        spec=spec,
        backbone=backbone,
        batch_size=5,
        weights="0.5,0.5",
        place={"world": 2},
    )
    seen = []
    for rank in range(2):
        with batches_of(spec, backbone, 6, "0.5,0.5", {"rank": rank, "world": 2}, max_steps=4) as batches:
            each = [batches.batch(0, step) for step in range(4)]
            assert all(len(batch["images"]) == 3 for batch in each)
            seen.append({text for batch in each for text in untokenise(batch) if text.split()[1].isdigit()})
    assert not seen[0] & seen[1] and all(seen)


def test_a_small_source_is_told_of_and_the_mean_is_of_the_stream(tmp_path, backbone, table, monkeypatch):
    monkeypatch.setattr(stream_module, "MEAN_OF", 90)
    fill_folder(tmp_path / "few", count=1)
    with batches_of(f"{tmp_path / 'few'}::{table}", backbone, 10, "0.5,0.5") as batches:
        assert "has 3 pairs and a batch takes 5" in batches.notes()[-1]
    with batches_of(table, backbone, 9) as batches:
        whole = image_features(backbone, open_pairs(table).pictures).vectors[:, 0].mean(0)
        assert torch.allclose(batches.mean_image(), whole, atol=1e-5)


def test_the_images_of_all_batches_are_remembered_over_a_kill(tars, backbone, tmp_path):
    opened = partial(
        batches_of, tars, backbone, 4, max_steps=9, place={"sizes": tmp_path / "state/sizes.json"}
    )
    with opened() as batches:
        for step in range(2):
            batches.batch(0, step)
        first = batches.seen
    with opened() as batches:
        batches.batch(0, 2)
        assert first < batches.seen and {len(digest) for digest in batches.seen} == {16}
    with open(tmp_path / "state/given-0.bin", "ab") as file:
        file.write(b"cut")  # a kill inside a write
    with opened() as batches:
        for step in range(3, 9):
            batches.batch(0, step)
        pictures = [picture for picture, _ in itertools.islice(batches.mixture.sources[0].samples(0), 22)]
        assert {picture.digest for picture in pictures} <= batches.seen
    with batches_of(tars, backbone, 4, max_steps=9) as batches:
        batches.batch(0, 0)
        assert len(batches.seen) == 4


def test_a_resumed_stream_may_have_been_moved_but_not_changed(tars, tmp_path):
    folder = Path(shutil.copytree(Path(tars).parent, tmp_path / "here"))
    sizes = tmp_path / "state/sizes.json"
    source = only(str(folder), sizes=sizes)
    through = taken(source, 0, 30)
    source.sizes.save()
    moved = folder.rename(tmp_path / "there")
    assert taken(only(str(moved / "x-*.tar"), sizes=sizes), 5, 20) == through[5:25]
    content = bytearray((moved / "x-001.tar").read_bytes())
    content[600] ^= 1  # a pixel, or near it: as many bytes as before
    (moved / "x-001.tar").write_bytes(content)
    source = only(str(moved), sizes=sizes)
    fails("x-001.tar", "is not what it was", call=lambda: taken(source, 0, 30))


@pytest.mark.slow
def test_images_beyond_max_pixels_are_replaced(tars, backbone):
    with batches_of(tars, backbone, 4, max_steps=3, max_pixels=64) as batches:
        batches.batch(0, 0)
        assert not batches.skipped
    with batches_of(tars, backbone, 4, max_steps=3, max_pixels=63) as batches:
        fails("could not be read", "more than max_pixels=63", call=lambda: batches.batch(0, 0))
