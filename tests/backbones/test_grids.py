"""Grids of patches: which states they are, and how they are averaged."""

import numpy as np
import pytest
import torch
from standins import ColourBackbone, encoded, pictures

from wordsight.backbones import load_backbone
from wordsight.backbones.grids import grid_of, pooled, pooled_size
from wordsight.config import WordsightError
from wordsight.data import store
from wordsight.data.grids import grid_features


def test_the_sizes_of_the_papers():
    assert pooled_size(14, 14, 49) == (7, 7) and pooled_size(14, 14, 144) == (12, 12)
    assert pooled_size(7, 7, 49) == (7, 7) and pooled_size(16, 16, 1) == (1, 1)
    assert pooled_size(10, 40, 100) == (5, 20) and pooled_size(1, 50, 7) == (1, 7)


def test_neighbours_are_averaged_row_by_row():
    grid = torch.arange(16.0).view(1, 1, 4, 4)
    assert pooled(grid, 4).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(pooled(grid, 16).flatten(), torch.arange(16.0))


def test_tokens_before_the_patches_are_left_out():
    states = torch.arange(6.0)[None, :, None]  # a class token, a register, four patches
    assert grid_of(states, 8, 8, 4, "vit").flatten().tolist() == [2, 3, 4, 5]
    swin = torch.arange(9.0)[None, :, None]  # of 4x4 patches of 2 pixels, joined on their way
    assert grid_of(swin, 24, 24, 2, "swin").shape == (1, 1, 3, 3)
    with pytest.raises(WordsightError, match="no grid"):
        grid_of(torch.zeros(1, 5, 2), 24, 24, 2, "odd")


def test_towers_give_their_patches(tiny_clip, vit):
    for folder, width in ((tiny_clip, 16), (vit, 12)):
        tower = load_backbone(folder, device="cpu", text=False)
        pixels = torch.randint(0, 255, (2, 3, 8, 8), dtype=torch.uint8)
        assert tower.encode_grid(pixels, 49).shape == (2, 4, width)
        assert tower.encode_grid(pixels, 1).shape == (2, 1, width)
    vision = tower.vision.model(pixel_values=tower.vision.transform.normalise(pixels, torch.float32))
    assert torch.allclose(tower.encode_grid(pixels, 4), vision.last_hidden_state[:, 1:])


def test_a_tower_of_vectors_alone_says_so():
    with pytest.raises(WordsightError, match=r"'colours' .* no grid of patches"):
        grid_features(ColourBackbone(), pictures(encoded()), 4)


def test_grids_stay_on_the_disk_and_are_found_again(vit, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_BYTES", 3 * 4 * 12 * 2)  # three grids
    tower, chosen = load_backbone(vit, device="cpu", text=False), pictures(*map(encoded, range(8)))
    grids = grid_features(tower, [*chosen, *pictures(b"none")], 4, folder=tmp_path, batch_size=1)
    rows, views = torch.arange(8), torch.zeros(8, dtype=torch.long)
    assert len(grids) == 8 and grids.shape == (4, 12) and [name for name, _ in grids.skipped]
    assert grids[rows, views].dtype == torch.float16
    with monkeypatch.context() as patch:
        patch.setattr(type(tower), "encode_grid", lambda self, pixels, tokens: torch.ones(len(pixels), 4, 12))
        again = grid_features(tower, chosen, 4, folder=tmp_path)
    assert torch.equal(again[rows, views], grids[rows, views])
    assert not any(row.flags.owndata for row in again.rows) and len(list(tmp_path.rglob("*.safetensors"))) > 1


def test_a_damaged_grid_is_computed_again(vit, tmp_path, said):
    tower, chosen = load_backbone(vit, device="cpu", text=False), pictures(*map(encoded, range(3)))
    before = np.stack(grid_features(tower, chosen, 4, folder=tmp_path).rows)
    (shard,) = tmp_path.rglob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-60] ^= 1
    shard.write_bytes(content)
    assert np.array_equal(np.stack(grid_features(tower, chosen, 4, folder=tmp_path).rows), before)
    assert "damaged" in said.text
