"""The feature cache: an image goes through the tower once, cached equals fresh, and nothing in it can be
stale.
"""

import math
import os
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from standins import Stub, encoded, pictures

import wordsight.data.features as features
from wordsight.backbones import load_backbone
from wordsight.config import WordsightError
from wordsight.data import Picture
from wordsight.data.features import evenly, image_features, text_features
from wordsight.data.images import content_digest, read_image, view_box


def test_cached_equals_fresh_in_any_batch(tmp_path):
    chosen = pictures(*map(encoded, range(40)))
    stub = Stub()
    first = image_features(stub, chosen, folder=tmp_path, batch_size=16)
    again = image_features(stub, chosen[::-1], folder=tmp_path)
    alone = image_features(Stub(), chosen, folder=tmp_path / "other", batch_size=1)
    assert stub.images == 40 and first.vectors.shape == (40, 1, 12) and first.vectors.dtype == torch.float32
    assert first.kept == list(range(40)) and first.skipped == []
    assert torch.equal(again.vectors, first.vectors.flip(0))
    torch.testing.assert_close(alone.vectors, first.vectors, atol=1e-6, rtol=0)
    direct = stub.encode_image(
        torch.stack([stub.preprocess(read_image(picture.load())) for picture in chosen])
    )
    torch.testing.assert_close(first.vectors[:, 0], direct, atol=1e-6, rtol=0)


def test_threads_setting_is_restored(tmp_path):
    before = torch.get_num_threads()
    image_features(Stub(), pictures(encoded()), folder=tmp_path)
    assert torch.get_num_threads() == before


def test_views(tmp_path):
    chosen = pictures(*map(encoded, range(6)))
    stub = Stub()
    three = image_features(stub, chosen, views=3, folder=tmp_path, batch_size=4).vectors
    assert three.shape == (6, 3, 12) and stub.images == 18
    assert (
        torch.equal(image_features(stub, chosen, views=3, folder=tmp_path).vectors, three)
        and stub.images == 18
    )
    torch.testing.assert_close(
        three[:, :1], image_features(stub, chosen, folder=tmp_path).vectors, atol=1e-6, rtol=0
    )
    assert (three[:, 1] - three[:, 2]).abs().max() > 1e-3
    other = tmp_path / "other"
    torch.testing.assert_close(
        image_features(Stub(), chosen[3:], views=3, folder=other).vectors, three[3:], atol=1e-6, rtol=0
    )
    assert not torch.equal(image_features(stub, chosen, views=3, seed=1, folder=tmp_path).vectors, three)
    straight = image_features(stub, chosen, views=3, flip=False, folder=tmp_path).vectors
    same = (straight - three).abs().amax(-1) < 1e-6
    mirrored = [
        [False] + [view_box((12, 9), content_digest(one.load()), view, 0)[1] for view in (1, 2)]
        for one in chosen
    ]
    assert torch.equal(same, ~torch.tensor(mirrored)) and same[:, 1:].any() and not same.all()
    with pytest.raises(WordsightError, match="views=0"):
        image_features(stub, chosen, views=0, folder=tmp_path)


def test_equal_images_are_encoded_once(tmp_path):
    stub = Stub()
    found = image_features(
        stub, pictures(encoded(1), encoded(2), encoded(1), *[encoded(1)] * 20), folder=tmp_path, batch_size=4
    )
    assert stub.images == 2 and len(found.vectors) == 23 and torch.equal(found.vectors[0], found.vectors[2])


def test_renamed_is_found_and_edited_is_encoded_anew(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(encoded(1))
    stub, cache = Stub(), tmp_path / "cache"
    before = image_features(stub, [Picture("a", file.read_bytes)], folder=cache).vectors
    moved = file.rename(tmp_path / "b.png")
    assert (
        torch.equal(image_features(stub, [Picture("b", moved.read_bytes)], folder=cache).vectors, before)
        and stub.images == 1
    )
    stamp = moved.stat()
    moved.write_bytes(encoded(2))
    os.utime(moved, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    after = image_features(stub, [Picture("b", moved.read_bytes)], folder=cache).vectors
    assert stub.images == 2 and not torch.allclose(before, after)


def test_another_tower_has_another_folder(tmp_path):
    stub = Stub()
    image_features(stub, pictures(encoded()), folder=tmp_path)
    stub.image_fingerprint = "stub-2"
    image_features(stub, pictures(encoded()), folder=tmp_path)
    assert stub.images == 2 and len(list((tmp_path / "features").iterdir())) == 2


def test_vectors_of_cuda_lie_apart_where_tf32_could_matter(tmp_path, monkeypatch):
    image_features(tower := Stub(), pictures(encoded()), folder=tmp_path)
    text_features(tower, ["a dog"], tmp_path)
    monkeypatch.setattr(tower, "device", torch.device("cuda:1"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    for _ in range(2):
        image_features(tower, pictures(encoded()), folder=tmp_path)
        text_features(tower, ["a dog"], tmp_path)
    monkeypatch.setattr(tower, "device", torch.device("cuda:0"))
    image_features(tower, pictures(encoded()), folder=tmp_path)
    assert tower.images == 2 and tower.texts == 2


@pytest.mark.gpu
@pytest.mark.parametrize(("tf32", "tolerance"), [(False, 1e-5), (True, 5e-3)])
def test_vectors_of_a_card_are_those_of_the_cpu(card, tiny_clip, tmp_path, monkeypatch, tf32, tolerance):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(9)]
    texts = ["a dog", "two cats", "nobody"]
    for name in (tiny_clip, "micro"):
        here, there = (load_backbone(name, device=device) for device in ("cpu", card))
        found = [
            (image_features(one, pictures(*images), views=2, folder=tmp_path).vectors, one.encode_text(texts))
            for one in (here, there)
        ]
        for ours, theirs in zip(*found):
            torch.testing.assert_close(theirs.cpu(), ours, rtol=0, atol=tolerance)
    folders = list((tmp_path / "features").iterdir())
    assert len(folders) == 4  # of two towers on two devices


def test_an_interrupted_call_goes_on_where_it_was(tmp_path):
    chosen = pictures(*map(encoded, range(64)))
    stub = Stub()
    stub.fail_after = 5
    with pytest.raises(KeyboardInterrupt):
        image_features(stub, chosen, folder=tmp_path, batch_size=4)
    assert stub.images == 20 and not list(tmp_path.rglob("*.part"))
    stub.fail_after = None
    resumed = image_features(stub, chosen, folder=tmp_path, batch_size=4)
    assert stub.images == 64
    torch.testing.assert_close(
        resumed.vectors, image_features(Stub(), chosen, folder=tmp_path / "other").vectors, atol=1e-6, rtol=0
    )


def test_what_is_no_unit_vector_is_never_kept(tmp_path):
    stub, chosen = Stub(), pictures(*map(encoded, range(4)))
    whole = stub.encode_image

    def broken(pixels):
        return whole(pixels) * torch.tensor([[1.0], [math.nan], [3.0], [1.0]])

    stub.encode_image = broken
    found = image_features(stub, chosen, folder=tmp_path, batch_size=4)
    assert found.kept == [0, 3] and [name for name, _ in found.skipped] == ["picture 1", "picture 2"]
    assert "not finite" in found.skipped[0][1] and "another length than one" in found.skipped[1][1]
    stub.encode_image = whole
    again = image_features(stub, chosen, folder=tmp_path)
    assert again.kept == [0, 1, 2, 3] and torch.equal(again.vectors[[0, 3]], found.vectors)
    stub.encode_text = lambda texts: torch.full((len(texts), 12), math.inf)
    with pytest.raises(WordsightError, match="backbone 'stub' gives a vector that is not finite: 'a cat'"):
        text_features(stub, ["a cat"], folder=tmp_path)


def test_a_limit_of_pixels_holds_for_cached_images_too(tmp_path, monkeypatch):
    stub, chosen = Stub(), pictures(encoded(1, (4, 3)), encoded(2, (5, 5)))
    assert image_features(stub, chosen, folder=tmp_path).kept == [0, 1]
    small = image_features(stub, chosen, max_pixels=20, folder=tmp_path)
    assert small.kept == [0] and "5 x 5 pixels are more than max_pixels=20" in small.skipped[0][1]
    monkeypatch.setattr(features, "MAX_PIXELS", 20)
    for _ in range(2):
        assert image_features(stub, chosen, max_pixels=30, folder=tmp_path / "other").kept == [0, 1]
        assert image_features(stub, chosen, folder=tmp_path / "other").kept == [0]


def test_unreadable_pictures_are_listed(tmp_path):
    def missing():
        raise FileNotFoundError("no such file")

    whole = encoded(3, (200, 200), "JPEG")
    bad = [
        b"",
        b"plain text",
        whole[: len(whole) // 2],
        encoded(4)[:60],
        np.zeros((3, 3)),
        np.zeros((0, 4), np.uint8),
    ]
    chosen = [
        *pictures(encoded(1), *bad),
        Picture("gone", missing),
        Picture("last", partial(encoded, 2)),
        Picture("copy", lambda: b"plain text"),
    ]
    stub = Stub()
    found = image_features(stub, chosen, folder=tmp_path, batch_size=3)
    assert found.kept == [0, 8] and stub.images == 2 and len(found.vectors) == 2
    reasons = dict(found.skipped)
    assert list(reasons) == [f"picture {row}" for row in range(1, 7)] + ["gone", "copy"]
    assert (
        "0 bytes" in reasons["picture 1"]
        and "not an image" in reasons["picture 2"] == reasons["copy"]
        and "truncated" in reasons["picture 3"]
    )
    assert "float64" in reasons["picture 5"] and "no such file" in reasons["gone"]
    with pytest.raises(
        WordsightError, match=r"none of 2 images could be read; the first: picture 0: empty \(0 bytes\)"
    ):
        image_features(Stub(), pictures(b"", b"x"), folder=tmp_path)


def test_no_pictures_at_all(tmp_path):
    assert image_features(Stub(), [], folder=tmp_path).vectors.shape == (0, 1, 12)
    assert text_features(Stub(), [], folder=tmp_path).shape == (0, 12)


def test_arrays_and_pil_images_are_addressed_by_content(tmp_path):
    array = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    stub = Stub()
    image_features(
        stub, pictures(array, array.copy(), array.reshape(2, 8, 3), Image.fromarray(array)), folder=tmp_path
    )
    assert stub.images == 3
    image_features(stub, pictures(Image.fromarray(array).copy(), array[::1]), folder=tmp_path)
    assert stub.images == 3


def test_texts(tmp_path):
    stub = Stub()
    first = text_features(stub, ["a", "b", "a", ""], folder=tmp_path)
    assert stub.texts == 3 and torch.equal(first[0], first[2])
    again = text_features(stub, ["", "ant", "a"], folder=tmp_path)
    assert stub.texts == 4 and torch.equal(again[0], first[3]) and torch.equal(again[2], first[0])
    image_features(stub, pictures(encoded()), folder=tmp_path)
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_texts_that_lose_their_ends_are_told_each_time(tmp_path, said):
    stub = Stub()
    stub.max_tokens, stub.truncated = 3, lambda texts: [len(text) > 3 for text in texts]
    for _ in range(2):
        text_features(stub, ["a", "four", "four", "five5"], folder=tmp_path)
    assert said == ["2 of 3 texts are longer than the 3 tokens that stub reads; their ends are cut off"] * 2
    assert stub.texts == 3


def test_every_worker_has_as_many_batches():
    assert [evenly(images, 2, 32) for images in (0, 1, 3, 64, 65, 96, 10_000)] == [1, 1, 2, 32, 17, 24, 32]
    for images in range(1, 300):
        for workers in (1, 2, 3, 16):
            batches = math.ceil(images / evenly(images, workers, 32))
            rounds = math.ceil(images / (workers * 32))
            assert evenly(images, workers, 32) <= 32 and batches <= workers * rounds
