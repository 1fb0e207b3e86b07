"""Session: a folder that is being labelled: its images, the labels so far, and a method that is fitted to
them in the background and says what to label next."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from wordsight.audit.next_labels import choose_next, worth
from wordsight.backbones import Backbone
from wordsight.config import RunSettings, WordsightError
from wordsight.data import Picture
from wordsight.data.features import Features, image_features
from wordsight.data.images import MAX_PIXELS, hash_of, read_image, small_jpeg
from wordsight.data.labels import check_distinct
from wordsight.data.pictures import NoneReadable
from wordsight.files import nfc, printable
from wordsight.labelling.kept import Kept
from wordsight.labelling.learner import Accuracy, Learned, Learner
from wordsight.workers import progress

AT_ONCE = 64  # images that are encoded before it is asked whether to end
AHEAD = 64  # images that are ranked at a time
TOP = 5  # classes that are named with an image
SIZES = range(16, 2049)  # pixels of a side that an image is shown at

log = logging.getLogger("wordsight")


class Session:
    """Labels by the images' ids. Every method may be called from any thread; each is quick, but for `open`.

    `names` are the classes; a label that stands in the CSV and is none of them joins them."""

    def __init__(self, folder: Path, pictures: Sequence[Picture], kept: Kept, names: Sequence[str]):
        self.folder, self.kept = folder, kept
        self.pictures = {id_of(picture.name): picture for picture in pictures}
        inside = kept.path.parent.absolute() == folder.absolute()  # else paths must lead there from anywhere
        stand = {_whole(kept.path.parent, cell): cell for cell in kept.paths}  # however somebody wrote them
        wholes = {one: _whole(folder, picture.name) for one, picture in self.pictures.items()}
        self.cells = {  # paths as they stand in the CSV
            one: stand.get(wholes[one], picture.name if inside else wholes[one])
            for one, picture in self.pictures.items()
        }
        self.ids = {cell: one for one, cell in self.cells.items()}
        self.names = list(dict.fromkeys([*names, *kept.labels.values()]))
        self.order = list(self.pictures)  # what to label next, the most useful first
        self.rows: dict[str, int] = {}  # of the images that could be read, once they are encoded
        self.unreadable: dict[str, str] = {}
        self.skipped: dict[str, None] = {}
        self.undone: list[tuple[str, str | None]] = []  # what can be taken back: id and the label before
        self.learned: Learned | None = None
        self.accuracy: Accuracy | None = None
        self.history: list[dict[str, float]] = []
        self.notes: list[str] = []
        self.revision = 0  # grows with every change
        self.method = ""  # that is fitted, once the images are encoded
        self.max_pixels = MAX_PIXELS  # of an image that is read
        self._learner: Learner | None = None
        self._lock = threading.RLock()
        self._wanted = threading.Condition(self._lock)
        self._fitting = self._closed = False
        self._fitted_to: dict[int, int] | None = None
        self._thread: threading.Thread | None = None

    # -- what is asked ---------------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """What it is, in the form that `serve` says it in."""
        able = {"id": self.folder.name, "abilities": ["label"], "method": self.method}
        return able | {"class_names": list(self.names), "unsure": False, "least_error": None, "limits": {}}

    def state(self) -> dict[str, Any]:
        """Where it stands."""
        with self._lock:
            self._look()
            labels = self._labels()
            counts = Counter(labels.values())
            return {
                "folder": self.folder.name,
                "csv": self.kept.path.name,
                "classes": list(self.names),
                "counts": {name: counts.get(name, 0) for name in self.names},
                "images": len(self.pictures),
                "encoded": len(self.rows),
                "labelled": len(labels),
                "skipped": len(self.skipped),
                "unreadable": len(self.unreadable),
                "fitting": self._fitting or self._due(),
                "fitted_to": 0 if self.learned is None else self.learned.labels,
                "accuracy": None if self.accuracy is None else _rounded(asdict(self.accuracy)),
                "history": list(self.history),
                "conflicts": [one._asdict() for one in self.kept.conflicts],
                "notes": [*self.notes, *self.kept.notes][-5:],
                "undo": bool(self.undone),
                "revision": self.revision,
            }

    def next(self, count: int) -> dict[str, Any]:
        """The images to label next, with what the method thinks they show."""
        with self._lock:
            self._look()
            labels = self._labels()
            left = [
                one
                for one in self.order
                if one not in labels and one not in self.skipped and one not in self.unreadable
            ]
            left = left or [one for one in self.skipped if one not in labels]  # those are asked again, last
            return {"images": [self._entry(one) for one in left[:count]], "left": len(left)}

    def labelled(self, last: int | None = None) -> list[dict[str, Any]]:
        """All images with a label, or the `last` ones, the newest last."""
        with self._lock:
            self._look()
            chosen = [*self._labels()][-last if last else 0 :]
            return [self._entry(one) for one in chosen]

    def copy(self, one: str, size: int) -> bytes:
        """An image as JPEG, no side longer than `size`. Errors: Unreadable."""
        return small_jpeg(read_image(self._picture(one).read()[0], self.max_pixels), size)

    # -- what is said ----------------------------------------------------------------------------------------

    def label(self, one: str, name: str) -> dict[str, Any]:
        """Keep a label. Errors: WordsightError for an image that is not there or a class that is none."""
        name = nfc(name.strip())
        with self._lock:
            self._picture(one)
            if name not in self.names:
                raise WordsightError(
                    f"{name!r} is none of the classes; they are {', '.join(self.names[:20])}"
                )
            before = self.kept.set(self.cells[one], name)
            self.undone.append((one, before))
            self.skipped.pop(one, None)
            self._changed()
            return self.state()

    def add_class(self, name: str) -> dict[str, Any]:
        """One class more, known by its name, or its name in the template set that stands for sentences.
        Errors: WordsightError for a blank name, or one that is there."""
        name = nfc(name.strip())
        if not name or name != printable(name) or set(name) & {"\n", "\t"}:
            raise WordsightError(
                f"{name!r} is no class name; give a word or more, without control characters"
            )
        with self._lock:
            if name in self.names:
                raise WordsightError(f"{name!r} is a class already")
            check_distinct([*self.names, name], "the list of classes")  # as `fit` would
            if self._learner is not None:
                self._learner = self._learner.with_class(name)
            self.names.append(name)
            self._fitted_to = None
            self._changed()
            return self.state()

    def skip(self, one: str) -> dict[str, Any]:
        """Ask for it last."""
        with self._lock:
            self._picture(one)
            self.skipped[one] = None
            self.revision += 1
            return self.state()

    def undo(self) -> dict[str, Any]:
        """Take the last label back. Errors: WordsightError where there is none."""
        with self._lock:
            if not self.undone:
                raise WordsightError("nothing has been labelled that could be taken back")
            one, before = self.undone[-1]
            self.kept.set(self.cells[one], before)
            self.undone.pop()
            self._changed()
            return {**self.state(), "image": self._entry(one)}

    # -- in the background -----------------------------------------------------------------------------------

    def open(
        self,
        backbone: Backbone,
        settings: RunSettings,
        sentences: Mapping[str, tuple[str, ...]],
        more: Sequence[Picture] = (),
    ) -> None:
        """Encode the images, which takes a while where they are many, and begin to fit, unless it is closed
        meanwhile."""
        known, most = list(self.pictures.items()), settings.max_pixels
        features = self._encoded(backbone, [picture for _, picture in known], most)
        further = self._encoded(backbone, more, most) if features is not None and more else None
        if features is None or (more and further is None):
            return
        names = [one for one, _ in known]
        ids = {self.pictures[one].name: one for one in names}
        others = None if further is None else further.vectors[:, 0]
        learner = Learner(settings, backbone, self.names, sentences, features.vectors[:, 0], others)
        with self._lock:
            self.rows = {names[place]: row for row, place in enumerate(features.kept)}
            self.unreadable = {ids[name]: reason for name, reason in features.skipped}
            self._learner, self.method = learner, settings.method
            self.max_pixels = most or MAX_PIXELS
            for name in self.names[len(learner.names) :]:  # added meanwhile
                self._learner = self._learner.with_class(name)
            self._changed()
            if not self._closed:
                self._thread = threading.Thread(target=self._work, name="labelling", daemon=True)
                self._thread.start()

    def _encoded(
        self, backbone: Backbone, pictures: Sequence[Picture], max_pixels: int | None
    ) -> Features | None:
        """As `image_features`, some at a time; None where it was closed meanwhile."""
        vectors, kept, skipped = [], [], []
        with progress("images", len(pictures)) as advance:
            for start in range(0, len(pictures), AT_ONCE):
                if self._closed:
                    return None
                some = pictures[start : start + AT_ONCE]
                try:
                    found = image_features(backbone, some, max_pixels=max_pixels)
                except NoneReadable as error:
                    skipped += error.skipped
                else:
                    vectors.append(found.vectors)
                    kept += [start + place for place in found.kept]
                    skipped += found.skipped
                advance(len(some))
        if not kept:
            raise NoneReadable(skipped)
        return Features(torch.cat(vectors), kept, skipped)

    def close(self) -> None:
        """End the background's work, once what is under way is done."""
        with self._lock:
            self._closed = True
            self._wanted.notify_all()
        if self._thread is not None:
            self._thread.join()

    def settled(self, seconds: float = 60.0) -> bool:
        """Wait until the method is fitted to all labels; whether it is."""
        with self._lock:
            return self._wanted.wait_for(lambda: not (self._due() or self._fitting), seconds)

    def _work(self) -> None:
        while True:
            with self._lock:
                self._wanted.wait_for(lambda: self._due() or self._closed)
                if self._closed:
                    return
                self._fitting, labels, learner = True, self._by_row(), self._learner
            assert learner is not None  # there is something to fit
            try:
                self._learn(learner, labels)
            except WordsightError as error:
                with self._lock:
                    self.notes.append(str(error))
            except Exception as error:  # labels must be kept whatever a fit does
                log.error("fitting failed", exc_info=error)
                with self._lock:
                    self.notes.append("the last fit failed; labels are kept, and the next label tries again")
            finally:
                with self._lock:
                    # else a class was added meanwhile, and all is fitted anew
                    self._fitting, self._fitted_to = False, labels if learner is self._learner else None
                    self.revision += 1
                    self._wanted.notify_all()

    def _learn(self, learner: Learner, labels: dict[int, int]) -> None:
        """Fit, rank what is left, and only then measure, which takes as long as several fits."""
        learned = learner.fit(labels)
        order = self._ranked(learner, learned, labels)
        with self._lock:
            self.learned, self.order = learned, order
            self.revision += 1
        accuracy = learner.accuracy(labels)
        with self._lock:
            self.accuracy = accuracy
            if accuracy is not None:
                self.history.append({"labels": len(labels), "accuracy": round(accuracy.mean, 2)})

    def _ranked(self, learner: Learner, learned: Learned, labels: Mapping[int, int]) -> list[str]:
        """Ids of the images without a label, the most useful first, then the others in their order."""
        ids = {row: one for one, row in self.rows.items()}
        rows = torch.tensor([row for row in ids if row not in labels], dtype=torch.int64)
        if not len(rows):
            return []
        counts = torch.tensor(list(labels.values()), dtype=torch.int64).bincount(minlength=len(learner.names))
        vectors, chances = learner.vectors, learned.chances[rows]
        picks = choose_next(
            vectors[rows],
            AHEAD,
            weights=worth(chances, counts),
            labelled=vectors[torch.tensor(list(labels), dtype=torch.int64)],
        )
        first = [int(rows[pick.row]) for pick in picks]
        rest = [row for row in rows.tolist() if row not in set(first)]
        return [ids[row] for row in [*first, *rest]]

    # -- inside ----------------------------------------------------------------------------------------------

    def _picture(self, one: str) -> Picture:
        if one not in self.pictures:
            raise WordsightError("there is no such image in the folder")
        return self.pictures[one]

    def _labels(self) -> dict[str, str]:
        """Labels of the folder's images by id."""
        return {self.ids[cell]: label for cell, label in self.kept.labels.items() if cell in self.ids}

    def _by_row(self) -> dict[int, int]:
        place = {name: label for label, name in enumerate(self.names)}
        return {
            self.rows[one]: place[name]
            for one, name in self._labels().items()
            if one in self.rows and name in place
        }

    def _due(self) -> bool:
        return self._learner is not None and self._by_row() != self._fitted_to

    def _changed(self) -> None:
        self.revision += 1
        self._wanted.notify_all()

    def _look(self) -> None:
        """Take over what others did to the CSV meanwhile."""
        try:
            changed = self.kept.refresh()
        except WordsightError as error:
            if str(error) not in self.notes:
                self.notes.append(str(error))
            return
        if changed:
            unknown = sorted(set(self.kept.labels.values()) - set(self.names))
            if unknown:
                self.notes.append(
                    f"{self.kept.path.name} has labels that are no classes: {', '.join(unknown[:5])}; "
                    f"start again with --classes that name them"
                )
            self._changed()

    def _entry(self, one: str) -> dict[str, Any]:
        picture = self.pictures[one]
        entry: dict[str, Any] = {"id": one, "image": picture.name, "url": f"/v1/label/images/{one}"}
        entry["label"] = self.kept.labels.get(self.cells[one])
        entry["predicted"] = self._predicted(one)
        return entry

    def _predicted(self, one: str) -> list[dict[str, Any]]:
        if self.learned is None or one not in self.rows:
            return []
        chances = self.learned.chances[self.rows[one]]
        values, places = chances.topk(min(TOP, len(chances)))
        return [
            {"class": self.names[place], "probability": round(value, 4)}
            for value, place in zip(values.tolist(), places.tolist())
        ]


def id_of(name: str) -> str:
    """An address without a path in it."""
    return hash_of(name.encode("utf-8", "surrogateescape")).hex()


def _whole(folder: Path, path: str) -> str:
    """A path that leads there from anywhere."""
    return os.path.normpath(os.path.join(folder.absolute(), path))


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 2) if isinstance(value, float) else value for name, value in values.items()}
