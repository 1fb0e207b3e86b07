"""The store of vectors: damaged is never used, killed is made up for, and two may write at once."""

import errno
import math
import os
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save
from standins import Stub, encoded, pictures, shards

import wordsight.data.features as features
import wordsight.data.store as store
from wordsight.backbones import unit
from wordsight.config import WordsightError
from wordsight.data.features import image_features
from wordsight.data.images import content_digest
from wordsight.files import DIGEST, cache_folder, digest_of, held
from wordsight.workers import each

KEY = ("image", "stub-1", "centre", features.PIXEL_RECIPE)  # of the stub's store


DIGESTS = torch.frombuffer(bytearray(content_digest(encoded(1))), dtype=torch.uint8)[None]


def test_shards_are_written_as_it_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_ROWS", 8)
    image_features(Stub(), pictures(*map(encoded, range(30))), folder=tmp_path, batch_size=4)
    assert len(shards(tmp_path)) >= 3
    stub = Stub()
    image_features(stub, pictures(*map(encoded, range(30))), folder=tmp_path)
    assert stub.images == 0


def test_small_shards_are_merged(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MERGE_SHARDS", 4)
    stub = Stub()
    for number in range(11):
        image_features(stub, pictures(encoded(number)), folder=tmp_path)
    assert len(shards(tmp_path)) <= 5
    image_features(stub, pictures(*map(encoded, range(11))), folder=tmp_path)
    assert stub.images == 11


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-40], lambda content: b"", lambda content: b"\xff" * 200]
)
def test_a_damaged_shard_is_removed_and_computed_again(tmp_path, said, damage):
    stub, chosen = Stub(), pictures(encoded(1), encoded(2))
    before = image_features(stub, chosen, folder=tmp_path).vectors
    (shard,) = shards(tmp_path)
    shard.write_bytes(damage(shard.read_bytes()))
    assert torch.equal(image_features(stub, chosen, folder=tmp_path).vectors, before)
    assert stub.images == 4 and not shard.exists() and len(shards(tmp_path)) == 1
    assert "damaged" in said.text and str(shard) in said.text


def test_a_full_disk_is_told_and_harms_nothing(tmp_path, monkeypatch):
    stub = Stub()
    image_features(stub, pictures(encoded(1)), folder=tmp_path)
    held = shards(tmp_path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WordsightError, match="No space left on device; what it held is intact"):
            image_features(stub, pictures(encoded(1), encoded(2)), folder=tmp_path)
    assert shards(tmp_path) == held and not list(tmp_path.rglob("*.part"))
    assert len(image_features(stub, pictures(encoded(1), encoded(2)), folder=tmp_path).vectors) == 2


def test_a_cache_that_is_a_file_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WordsightError, match="WORDSIGHT_CACHE"):
        image_features(Stub(), pictures(encoded()), folder=tmp_path / "file")


def test_what_a_killed_process_left_is_swept_at_once_and_what_is_being_written_is_not(tmp_path):
    image_features(Stub(), pictures(encoded()), folder=tmp_path)
    other = tmp_path / "features" / "of another tower"
    other.mkdir()
    left, written, old = shards(tmp_path)[0].with_name("x.part"), other / "new.part", other / "old.part"
    for part in (left, written, old):
        part.write_bytes(b"")
    os.utime(old, (time.time() - 7200,) * 2)
    with held(other, shared=True):
        image_features(Stub(), pictures(encoded()), folder=tmp_path)
    assert not left.exists() and written.exists() and not old.exists()
    image_features(Stub(), pictures(encoded()), folder=tmp_path)
    assert not written.exists()


def test_one_flipped_bit_anywhere_is_noticed(tmp_path, said):
    def opened():
        return store.Store(tmp_path, (2, 3), "tower")

    rows = {bytes([row]) * 16: np.eye(3, dtype=np.float32)[[row, 0]] for row in range(3)}
    first = opened()
    for digest, row in rows.items():
        first.add(digest, row)
    first.flush()
    (shard,) = shards(tmp_path)
    content = shard.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        shard.write_bytes(damaged)
        said.clear()
        again = opened()
        again.find(rows)
        assert not again.rows and not shard.exists(), place
        assert "damaged" in said.text, place
    shard.write_bytes(content)
    again = opened()
    again.find(rows)
    assert again.rows.keys() == rows.keys()
    assert all(np.array_equal(again.rows[digest], row) for digest, row in rows.items())


def shard_of(vectors: torch.Tensor, digests: torch.Tensor, checksum: bool = True) -> bytes:
    facts = store._facts(digests.numpy())
    tensors = {"vectors": vectors, "digests": digests}
    return save(tensors, metadata=facts | {DIGEST: digest_of(tensors, facts)} if checksum else facts)


@pytest.mark.parametrize(
    "content",
    [
        shard_of(torch.full((1, 1, 12), math.nan), DIGESTS),
        shard_of(torch.full((1, 1, 12), 2.0), DIGESTS),
        shard_of(torch.zeros(1, 1, 12), DIGESTS),
        shard_of(unit(torch.ones(1, 1, 12, dtype=torch.float64)), DIGESTS),
        shard_of(unit(torch.ones(1, 1, 12, dtype=torch.bfloat16)), DIGESTS),
        shard_of(unit(torch.ones(1, 2, 12)), DIGESTS),
        shard_of(unit(torch.ones(1, 13)), DIGESTS),
        shard_of(unit(torch.ones(1, 1, 12)), DIGESTS, checksum=False),
        shard_of(unit(torch.ones(1, 1, 12)), torch.tensor(7, dtype=torch.uint8)),
        save({"weight": torch.ones(3)}),
        b"PK\x03\x04 and so on",
    ],
)
def test_what_is_no_shard_of_these_vectors_is_never_used(tmp_path, content, said):
    stub, chosen = Stub(), pictures(encoded(1))
    wanted = image_features(stub, chosen, folder=tmp_path).vectors
    (shard,) = shards(tmp_path)
    shard.write_bytes(content)
    assert torch.equal(image_features(stub, chosen, folder=tmp_path).vectors, wanted)
    assert stub.images == 2 and "damaged" in said.text
    assert torch.equal(image_features(stub, chosen, folder=tmp_path).vectors, wanted) and stub.images == 2


def test_other_files_in_the_cache_do_no_harm(tmp_path):
    stub = Stub()
    image_features(stub, pictures(encoded(1)), folder=tmp_path)
    (shard,) = shards(tmp_path)
    fifo = shard.with_name(f"0001-{'0' * 32}.safetensors")
    os.mkfifo(fifo)  # whoever opens it waits for ever
    shard.with_name(f"0002-{'1' * 32}.safetensors").mkdir()
    mine = shard.with_name("weights.safetensors")
    mine.write_bytes(b"mine")
    image_features(stub, pictures(encoded(1)), folder=tmp_path)
    assert stub.images == 1 and fifo.exists() and mine.read_bytes() == b"mine"


def test_two_callers_fill_one_cache_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MERGE_SHARDS", 3)

    def fill(numbers):
        stub = Stub()
        for number in numbers:
            image_features(stub, pictures(encoded(number), encoded(number + 1)), folder=tmp_path)
        return stub.images

    counts = list(each(fill, [range(20), range(19, -1, -1)], jobs=2))
    assert max(counts) <= 21 <= sum(counts) <= 42
    stub = Stub()
    found = image_features(stub, pictures(*map(encoded, range(21))), folder=tmp_path)
    assert stub.images == 0 and len(shards(tmp_path)) < 20
    fresh = image_features(stub, pictures(*map(encoded, range(21))), folder=tmp_path / "other").vectors
    torch.testing.assert_close(found.vectors, fresh, atol=1e-6, rtol=0)


def test_what_another_process_merged_away_is_found_where_it_is_now(tmp_path):
    stub = Stub()
    image_features(stub, pictures(encoded(1)), folder=tmp_path)
    (shard,) = shards(tmp_path)
    opened = store.Store(tmp_path, (1, 12), *KEY)
    shard.rename(shard.with_name(f"0001-{'a' * 32}.safetensors"))
    opened.find([content_digest(encoded(1))])
    assert len(opened.rows) == 1


def test_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORDSIGHT_CACHE", str(tmp_path / "mine"))
    image_features(Stub(), pictures(encoded()))
    assert len(shards(tmp_path / "mine")) == 1
    monkeypatch.delenv("WORDSIGHT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "wordsight"


def test_a_cache_that_holds_nothing_but_a_killed_write_goes_on(tmp_path):
    made = image_features(Stub(), pictures(encoded(1)), folder=tmp_path)
    (shard,) = shards(tmp_path)
    shard.rename(shard.with_name(shard.name + ".part"))
    again = image_features(Stub(), pictures(encoded(1)), folder=tmp_path)
    assert torch.equal(again.vectors, made.vectors) and len(shards(tmp_path)) == 1
    assert not list(tmp_path.rglob("*.part"))
