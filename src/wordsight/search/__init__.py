"""Search: the images of a folder, or of any other data, that are closest to a text or to an image.

Every image is compared with the query, so the answer is exact: no approximate index is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wordsight.backbones import OWN_FILE, Backbone, as_given, load_backbone
from wordsight.config import AUTO, DEFAULT_BACKBONE, WordsightError, is_vectors
from wordsight.data.account import Account
from wordsight.data.features import image_features, text_features
from wordsight.data.pictures import NoneReadable, pictures_of
from wordsight.data.rows import why_not
from wordsight.fitted import open_backbone
from wordsight.runs import Run
from wordsight.search.kept import Images, folder_images, source_images

SCORES_AT_ONCE = 2**22  # scores that are held at a time, 16 MB, however many queries and images there are
SHARED_FROM = 50_000  # vectors, from which threads pay for one query


class Match(NamedTuple):
    """An image that was found."""

    image: str
    score: float  # the cosine of its vector and the query's
    copies: tuple[str, ...] = ()  # names under which the same content lies there, too


class Index:
    """Images by their unit vectors, open for any number of searches. `unreadable` has (name, reason) of each
    that could not be read, `account` what a folder held beside images.
    """

    def __init__(self, backbone: Backbone, images: Images, account: Account | None = None):
        self.backbone, self.account = backbone, account or Account()
        self.vectors, self.names, self.unreadable = images

    @classmethod
    def open(
        cls,
        data: str | Path,
        backbone: Backbone | str = AUTO,
        *,
        device: str = "auto",
        dtype: str = "float32",
        max_pixels: int | None = None,  # of the largest image that is read
    ) -> Index:
        """The index of `data`: a folder (all images at any depth), or any source of `fit`'s data=.

        A folder's vectors are kept in the cache, so only images that are new or have changed are read; of
        other sources each image is read, and encoded where the feature cache lacks it. `backbone` is one, or
        its name or folder, or a run, whose backbone it is; `auto` is CLIP ViT-B/16, or the data itself where
        that is a file of vectors. Errors: WordsightError where there is no image, or none can be read."""
        given = as_given(backbone)
        if not isinstance(given, Backbone):
            given = _backbone(str(data), given or AUTO, device, dtype)
        account, folder = Account(), Path(data).expanduser()
        images_of = folder_images if folder.is_dir() else source_images
        images = images_of(data, given, max_pixels, account)
        account.tell()
        return cls(given, images, account)

    def __len__(self) -> int:
        return len(self.names)

    def search(self, query: Any, k: int = 10) -> list[Match]:
        """The `k` images closest to a query, the closest first; all, where there are fewer.

        A query is a text or an image: a path, a PIL image or a uint8 array. A string that ends as an image's
        name does (.jpg, ...) is a path. Errors: WordsightError for an empty text, an image that cannot be
        read, k below 1."""
        return self.search_many([query], k)[0]

    def search_many(self, queries: Sequence[Any], k: int = 10) -> list[list[Match]]:
        """The same for several queries, which are compared together: less work than one after another."""
        if k < 1:
            raise WordsightError(f"k={k} finds nothing; give 1 or more")
        if isinstance(queries, (str, bytes)):
            raise WordsightError(f"{queries!r:.80} is one query; give a list of them, or ask `search`")
        if not len(queries):
            return []
        vectors = torch.stack([self._vector(query) for query in queries])
        scores, rows = closest(vectors, self.vectors, k)
        return [
            [self._match(row, score) for row, score in zip(*found)]
            for found in zip(rows.tolist(), scores.tolist())
        ]

    def _match(self, row: int, score: float) -> Match:
        first, *copies = self.names[row]
        return Match(first, score, tuple(copies))

    def _vector(self, query: Any) -> Float[Tensor, " D"]:
        if isinstance(query, str) and why_not(query) is not None:
            if not query.strip():
                raise WordsightError("the query is empty; give a text, as 'a dog in the snow', or an image")
            return text_features(self.backbone, [query.strip()])[0]
        try:
            return image_features(self.backbone, pictures_of([query])).vectors[0, 0]
        except NoneReadable as error:
            ((name, reason),) = error.skipped
            raise WordsightError(f"the query image {name!r} cannot be used: {reason}") from error


def search(
    data: str | Path, query: Any, k: int = 10, *, backbone: Backbone | str = AUTO, **more: Any
) -> list[Match]:
    """The `k` images of `data` closest to a text or an image: `search("photos/", "a dog in the snow")`.

    Arguments as of `Index.open` and `Index.search`; an Index that is kept open spares opening it again.
    """
    return Index.open(data, backbone, **more).search(query, k)


def closest(
    queries: Float[Tensor, "Q D"], vectors: Float[Tensor, "N D"], k: int
) -> tuple[Float[Tensor, "Q K"], Int[Tensor, "Q K"]]:
    """Scores and rows of the `k` vectors with the largest product with each query, the largest first.

    Goes over the vectors in blocks and keeps the best so far, so it holds SCORES_AT_ONCE scores at most and
    not Q x N. Equals the plain product's topk, but for the order of equal scores."""
    block = max(k, SCORES_AT_ONCE // len(queries))
    best, rows = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    for start, part in zip(range(0, len(vectors), block), vectors.split(block)):
        scores, places = _products(queries, part).topk(min(k, len(part)))
        best, rows = torch.cat([best, scores], 1), torch.cat([rows, places + start], 1)
        best, order = best.topk(min(k, best.shape[1]))
        rows = rows.gather(1, order)
    return best, rows


def _products(queries: Float[Tensor, "Q D"], part: Float[Tensor, "N D"]) -> Float[Tensor, "Q N"]:
    """Of one query with many vectors a processor's library uses one core; here each takes its share."""
    threads = torch.get_num_threads()
    if len(queries) > 1 or part.device.type != "cpu" or len(part) < SHARED_FROM or threads == 1:
        return queries @ part.T
    with ThreadPoolExecutor(threads) as pool:
        shares = pool.map(torch.mv, part.chunk(threads), repeat(queries[0]))
    return torch.cat(list(shares))[None]


def _backbone(data: str, name: str, device: str, dtype: str) -> Backbone:
    """The backbone behind a name, or the one that a run over classes was fitted on. It may lack a text tower,
    which images as queries do not need.
    """
    if name == AUTO:
        name = data if is_vectors(data) else DEFAULT_BACKBONE
    folder = Path(name).expanduser()
    if (folder / "config.yaml").is_file() and not (folder / OWN_FILE).exists():
        return open_backbone(Run.open(folder), device=device)
    return load_backbone(name, device=device, dtype=dtype, text=False)
