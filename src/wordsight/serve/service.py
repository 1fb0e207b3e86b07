"""Service: what a request asks of the models, from checked input to plain values."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from wordsight.answers import Answer, Predictions
from wordsight.backbones import Backbone
from wordsight.config import WordsightError
from wordsight.data.images import Unreadable
from wordsight.data.passing import pixels_of
from wordsight.serve.corrections import Corrections, Full
from wordsight.serve.fetching import Fetch
from wordsight.serve.found import Found
from wordsight.serve.incoming import Sent, linked, pixels_in
from wordsight.serve.meters import Meters
from wordsight.serve.models import Look, Model, Over, names_of, open_parts
from wordsight.serve.refused import Refused
from wordsight.serve.settings import MB, Settings
from wordsight.serve.worker import Work, Worker
from wordsight.serve.written import Shown, guarded

LARGE = 12_000_000  # pixels: larger images are decoded one at a time
FETCHERS = 8  # images that are read from other hosts at once


class Service:
    """The models of one server, and the threads that decode images for them."""

    def __init__(self, settings: Settings, meters: Meters):
        self.settings, self.limits, self.meters = settings, settings.limits, meters
        self.models: dict[str, Model] = {}
        self.created = int(time.time())
        self.decoders = ThreadPoolExecutor(os.cpu_count() or 1, "decoder")
        self.large = ThreadPoolExecutor(1, "large")  # of images that take much memory
        self.fetchers = ThreadPoolExecutor(FETCHERS, "fetcher")
        most = self.limits.max_image_mb * MB
        self.fetch = Fetch(settings.allow_urls, private=settings.allow_private, most=most)
        self.found: Found | None = None
        file = settings.corrections
        self.corrections = None if file is None else Corrections(file, self.limits.max_corrections)

    def open(self, runs: Sequence[str]) -> None:
        """Load what is served, one after another. Errors: WordsightError for what cannot be."""
        for name, run in names_of(runs).items():
            parts = open_parts(run, self.settings.device)
            self.models[name] = Model(name, parts, self.limits, self.meters.told(name))
        if self.settings.search is not None:
            self._open_search(self.settings.search)

    def _open_search(self, data: str) -> None:
        able = [model for model in self.models.values() if model.parts.backbone is not None]
        if not able:
            raise WordsightError(
                "--search needs a run over a backbone; none of those that are served has one"
            )
        backbone = able[0].parts.backbone
        assert backbone is not None
        self.found, able[0].search = Found(data, backbone, self.limits.max_pixels), True

    def close(self) -> None:
        """End once all that waits is done."""
        for model in self.models.values():
            model.close()
        for pool in (self.decoders, self.large, self.fetchers):
            pool.shutdown(cancel_futures=True)

    def cards(self) -> list[dict[str, Any]]:
        """The models as a client sees them."""
        return [
            {
                "id": model.id,
                "object": "model",
                "created": self.created,
                "owned_by": "wordsight",
                "abilities": model.abilities,
                "class_names": list(model.class_names),
                "method": model.parts.method,
                "unsure": model.parts.doubts.chances is not None,
                "least_error": model.parts.doubts.least_error,
                "limits": self.limits.to_dict(),
            }
            for model in self.models.values()
        ]

    def model(self, name: str | None, ability: str) -> Model:
        """The model of that name, or the first that can. Errors: Refused where none is it, or it cannot."""
        if name:
            if name not in self.models:
                raise Refused(404, f"model {name[:80]!r} is not served; {', '.join(self.models)} are")
            found = [self.models[name]]
        else:
            found = list(self.models.values())
        able = next((model for model in found if ability in model.abilities), None)
        if able is None:
            whose = f"the model {name!r} cannot" if name else "no model that is served can"
            raise Refused(404, f"{whose} {ability}")
        return able

    # -- what is asked --

    async def classify(self, model: Model, images: Sequence[Sent], over: Over, top: int) -> dict[str, Any]:
        """The classes of images."""
        predictions = await self._over(model, over)
        answers = await self._answers(model, images, predictions)
        results = [
            _failed(image, answer)
            if isinstance(answer, Exception)
            else predictions.entry(answer._replace(image=image.name), top)
            for image, answer in zip(images, answers)
        ]
        return {"model": model.id, "class_names": list(predictions.class_names), "results": results}

    async def embed_images(self, model: Model, images: Sequence[Sent]) -> dict[str, Any]:
        """Their unit vectors."""
        vectors = await self._looked(model, images, None)
        failed = [_failed(image, one) for image, one in zip(images, vectors) if isinstance(one, Exception)]
        rows = [None if isinstance(vector, Exception) else vector.numpy() for vector in vectors]
        return self._embedded(model, rows) | {"errors": failed}

    async def embed_texts(self, model: Model, texts: Sequence[str]) -> dict[str, Any]:
        """Their unit vectors, which meet the images' in one space. Errors: Refused without a text tower."""
        backbone = model.parts.backbone
        if backbone is None or not backbone.has_text:
            raise Refused(404, "this model has no text tower")
        return self._embedded(model, await self.done(model.words, model.texts, texts)) | {"errors": []}

    async def search(self, model: Model, query: str | Sent, k: int) -> dict[str, Any]:
        """The images of the searched folder closest to a text or an image."""
        assert self.found is not None  # of a model that can search
        if isinstance(query, str):
            (vector,) = await self.done(model.words, model.texts, [query])
        else:
            (looked,) = await self._looked(model, [query], None)
            if isinstance(looked, Exception):
                raise Refused(422, f"image: {looked}")
            vector = looked.numpy()
        results = await self.run(self.found.closest, vector, min(k, len(self.found)))
        return {"model": model.id, "images": len(self.found), "results": results}

    async def caption(self, model: Model, images: Sequence[Sent]) -> dict[str, Any]:
        """What images show."""
        assert model.written is not None
        return await self._said(model, images, model.written.captions, self._shown(images), "caption")

    async def answer(self, model: Model, images: Sequence[Sent], question: str) -> dict[str, Any]:
        """The answer to a question about each image."""
        assert model.written is not None
        asked = [(shown, question) for shown in self._shown(images)]
        return await self._said(model, images, model.written.answers, asked, "answer")

    async def correct(self, image: Sent, label: str, predicted: str) -> dict[str, Any]:
        """Keep a label that somebody gave."""
        if self.corrections is None:
            raise Refused(404, "corrections are not kept here; the server's --corrections FILE keeps them")

        def work(kept: Corrections) -> tuple[str, int]:
            return kept.keep(image.load(), label, predicted, self.limits.max_pixels)

        try:
            name, count = await self.run(work, self.corrections)
        except Full as error:
            raise Refused(413, str(error)) from error
        except WordsightError as error:  # a full disk
            raise Refused(503, str(error)) from error
        return {"image": name, "label": label, "kept": count}

    # -- images on their way --

    def linked(self, url: str) -> Sent:
        """The image behind a URL. Errors: Refused where its host is not allowed."""
        return linked(url, self.limits, self.fetch)

    async def fetched(self, images: Sequence[Sent]) -> list[Sent]:
        """The same images, of which those with a URL have been read."""
        return list(await asyncio.gather(*(self._fetched(image) for image in images)))

    async def run(self, work: Callable[..., Any], *given: Any) -> Any:
        """What takes long, but no model, beside other requests."""
        return await asyncio.get_running_loop().run_in_executor(self.decoders, work, *given)

    # -- inside --

    async def _fetched(self, image: Sent) -> Sent:
        if not image.linked:
            return image
        loop = asyncio.get_running_loop()
        got = await loop.run_in_executor(self.fetchers, guarded, image.load)
        return Sent(image.name, partial(_given, got))

    def _shown(self, images: Sequence[Sent]) -> list[Shown]:
        return [Shown(image.load, self.limits.max_pixels) for image in images]

    async def _said(
        self, model: Model, images: Sequence[Sent], work: Work, items: Sequence[Any], key: str
    ) -> dict[str, Any]:
        found = self._counted(await self._each(model.writer, work, items))
        results = [
            _failed(image, one) if isinstance(one, Exception) else {"image": image.name, key: one}
            for image, one in zip(images, found)
        ]
        return {"model": model.id, "results": results}

    def _embedded(self, model: Model, rows: Sequence[np.ndarray | None]) -> dict[str, Any]:
        assert model.parts.backbone is not None  # of what embeds
        listed = [None if row is None else [round(value, 6) for value in row.tolist()] for row in rows]
        return {"model": model.id, "dim": model.parts.backbone.dim, "embeddings": listed}

    async def _over(self, model: Model, over: Over) -> Predictions:
        known = model.known(over)
        if known is None:
            (known,) = await self.done(model.words, model.encode, [over])
        return known

    async def _answers(
        self, model: Model, images: Sequence[Sent], predictions: Predictions
    ) -> list[Answer | Exception]:
        if model.parts.asked is None:
            return await self._looked(model, images, predictions)
        items = [(shown, predictions) for shown in self._shown(images)]
        return self._counted(await self._each(model.writer, model.ask, items))

    async def _looked(
        self, model: Model, images: Sequence[Sent], predictions: Predictions | None
    ) -> list[Any]:
        """What becomes of each image in the image tower, or why it cannot be read."""
        assert model.parts.backbone is not None
        pixels = await asyncio.gather(*(self._pixels(model.parts.backbone, image) for image in images))
        looks = [Look(one, predictions) for one in pixels if not isinstance(one, Exception)]
        found = iter(await self._each(model.tower, model.look, looks))
        return self._counted([one if isinstance(one, Exception) else next(found) for one in pixels])

    async def _pixels(self, backbone: Backbone, image: Sent) -> Tensor | Exception:
        """An image as the tower reads it, or why it cannot be read."""
        try:
            found = await self.run(self._decoded, backbone, image, LARGE)
            if found is None:
                loop = asyncio.get_running_loop()
                found = await loop.run_in_executor(self.large, self._decoded, backbone, image, None)
                assert found is not None  # where no size is left for later
            return found
        except Unreadable as error:
            return error

    def _decoded(self, backbone: Backbone, image: Sent, most: int | None) -> Tensor | None:
        """An image as the tower reads it; None for one of more pixels than `most`, which waits."""
        content = image.load()
        if most is not None and most < pixels_in(content) <= self.limits.max_pixels:
            return None
        return pixels_of(backbone, content, self.limits.max_pixels)

    def _counted(self, results: list[Any]) -> list[Any]:
        bad = sum(isinstance(one, Exception) for one in results)
        self.meters.images.labels("unreadable").inc(bad)
        self.meters.images.labels("read").inc(len(results) - bad)
        return results

    async def _each(self, worker: Worker, work: Work, items: Sequence[Any]) -> list[Any]:
        """Results, Unreadable ones as such. Errors: any other of an item, and Busy."""
        futures = [asyncio.wrap_future(future) for future in worker.do(work, items)]
        try:
            found = await asyncio.gather(*futures, return_exceptions=True)
        except asyncio.CancelledError:
            for future in futures:
                future.cancel()
            raise
        for one in found:
            if isinstance(one, BaseException) and not isinstance(one, Unreadable):
                raise one
        return found

    async def done(self, worker: Worker, work: Work, items: Sequence[Any]) -> list[Any]:
        """Results. Errors: those of any item, and Busy."""
        found = await self._each(worker, work, items)
        for one in found:
            if isinstance(one, Exception):
                raise one
        return found


def _given(got: bytes | Exception) -> bytes:
    if isinstance(got, Exception):
        raise got
    return got


def _failed(image: Sent, error: Exception) -> dict[str, Any]:
    return {"image": image.name, "error": str(error)}


def checked_over(model: Model, over: Over) -> Over:
    """Errors: Refused for fewer than two classes, and for what a model cannot be asked."""
    if len(over.names) < 2:
        own = "" if model.class_names else "; this model has none of its own"
        raise Refused(422, f"classes: give at least 2 names to choose among{own}")
    if model.parts.asked is not None and (over.explain or over.sentences):
        field = "explain" if over.explain else "sentences"
        raise Refused(422, f"{field}: this model is asked by class names alone, and no sentence explains it")
    if over.error is not None and (set(over.names) != set(model.class_names) or over.sentences):
        raise Refused(422, "error: holds among the model's own classes and words alone; give unsure instead")
    return over
