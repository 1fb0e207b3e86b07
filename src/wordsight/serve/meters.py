"""Meters: what Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
KIND = CONTENT_TYPE_LATEST


class Meters:
    """Counts of one server."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter(
            "wordsight_requests", "Requests by route and status", ["route", "status"], registry=own
        )
        self.seconds = Histogram(
            "wordsight_request_seconds",
            "Time from a request's head to the end of its answer",
            ["route"],
            buckets=SECONDS,
            registry=own,
        )
        self.under_way = Gauge("wordsight_requests_under_way", "Requests under way", registry=own)
        self.batch = Histogram(
            "wordsight_batch_size", "Items that passed through a model together", ["model"],
            buckets=SIZES, registry=own,
        )  # fmt: skip
        self.images = Counter("wordsight_images", "Images by what became of them", ["result"], registry=own)
        self.waiting = Gauge("wordsight_queue_length", "Items that wait for a model", ["model"], registry=own)

    def told(self, model: str) -> Callable[[int], None]:
        """What a model's worker tells its batches' sizes."""
        return self.batch.labels(model).observe

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
