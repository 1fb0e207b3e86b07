"""Settings of a server: where it listens, and how much one request may ask for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from wordsight.config import WordsightError

MB = 2**20
LAST_PORT = 65_535


@dataclass(frozen=True)
class Limits:
    """How much a request may ask for. Whatever is more is refused in words, before memory is spent on it."""

    max_body_mb: int = 64  # a request
    max_json_mb: int = 12  # a request that is JSON, images in it included
    max_json_parts: int = 50_000  # commas and brackets in it
    max_held_mb: int = 512  # all requests that are under way, together
    max_image_mb: int = 20  # an image's file
    max_pixels: int = 50_000_000  # an image, width times height
    max_images: int = 32  # images of a request
    max_classes: int = 1000  # class names of a request, or texts to embed
    max_sentences: int = 2000  # sentences of a request, of all classes
    max_name: int = 200  # signs of a class name, or of a file's name
    max_text: int = 4000  # signs of a question, a query, a sentence
    max_results: int = 100  # of a search, or of the likeliest classes
    max_tokens: int = 512  # of a reply
    max_corrections: int = 10_000  # images whose corrected labels are kept
    max_queue: int = 256  # images that wait for a model; texts for an LM wait in a queue a quarter as long
    max_requests: int = 128  # under way at once
    max_connections: int = 512  # open at once
    max_batch: int = 64  # images that pass through a model together
    wait_ms: float = 5.0  # how long an image waits for others to pass through with
    body_seconds: float = 30.0  # in which a request's head, and then its body, must have arrived
    drain_seconds: float = 30.0  # in which requests are finished once the server is told to end

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 0 or (value == 0 and field.name not in ("wait_ms", "drain_seconds")):
                raise WordsightError(f"{field.name}={value} lets nothing through; give a number above 0")

    def to_dict(self) -> dict[str, float]:
        """What a client has to keep to."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Settings:
    """What `wordsight serve` takes beside the runs."""

    host: str = "127.0.0.1"
    port: int = 8000
    search: str | None = None  # a folder of images to search, or any data that `search` takes
    corrections: str | None = None  # a CSV that corrected labels are kept in
    keys: tuple[str, ...] = ()  # of clients; none: everybody is answered
    allow_urls: tuple[str, ...] = ()  # hosts whose images may be named by their URL
    allow_private: bool = False  # whether these may be hosts of this machine or network
    allow_hosts: tuple[str, ...] = ()  # names that the server is called by; none: any
    device: str | None = None  # of the models; by default each run's
    limits: Limits = dataclasses.field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= LAST_PORT:
            raise WordsightError(
                f"--port {self.port} is no port; give a number from 0 (any free one) to {LAST_PORT}"
            )
