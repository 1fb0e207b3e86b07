"""Forms: what the API takes and gives, as its OpenAPI schema says it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Told(BaseModel):
    """Why there is no answer."""

    message: str
    type: str
    code: int


class Failed(BaseModel):
    """Every error has this form."""

    error: Told


class Health(BaseModel):
    """Whether the process answers, or the models are loaded."""

    status: str


class ModelCard(BaseModel):
    """A model that is served. `class_names` is empty where a request names the classes."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "wordsight"
    abilities: list[str]
    class_names: list[str]
    method: str
    unsure: bool
    least_error: float | None
    limits: dict[str, float]


class ModelList(BaseModel):
    object: str = "list"
    data: list[ModelCard]


class Chance(BaseModel):
    class_: str = Field(alias="class")
    probability: float


class Near(BaseModel):
    class_: str = Field(alias="class")
    sentence: str
    cosine: float


class Classified(BaseModel):
    """What is said of one image, or why it cannot be read. `set` are the classes that cannot be ruled out,
    `unlike` says whether it is unlike all that the model was fitted to.
    """

    model_config = ConfigDict(extra="allow")

    image: str
    classes: list[Chance] | None = None
    unsure: bool | None = None
    set: list[str] | None = None
    unlike: bool | None = None
    sentences: list[Near] | None = None
    decisive: dict[str, Any] | None = None
    error: str | None = None


class Classes(BaseModel):
    model: str
    class_names: list[str]
    results: list[Classified]


class Match(BaseModel):
    """An image that was found. `copies` are other names of the same content, `url` is where to see it."""

    image: str
    score: float
    copies: list[str]
    url: str


class Matches(BaseModel):
    model: str
    images: int
    results: list[Match]


class Captioned(BaseModel):
    image: str
    caption: str | None = None
    error: str | None = None


class Captions(BaseModel):
    model: str
    results: list[Captioned]


class Answered(BaseModel):
    image: str
    answer: str | None = None
    error: str | None = None


class Answers(BaseModel):
    model: str
    results: list[Answered]


class Corrected(BaseModel):
    """Under which name an image is kept, with which label, and how many are."""

    image: str
    label: str
    kept: int


class Texts(BaseModel):
    """Texts to embed."""

    model_config = ConfigDict(extra="forbid")

    texts: list[str]
    model: str | None = None


class Embeddings(BaseModel):
    """One vector of length one for each image or text, in their order; null for an image that cannot be
    read, which `errors` names.
    """

    model: str
    dim: int
    embeddings: list[list[float] | None]
    errors: list[Classified] = []


ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": Failed, "description": told}
    for code, told in {
        400: "What was asked cannot be",
        401: "No such key",
        403: "Another site, or another Host",
        404: "No such model, or none that can",
        408: "The request took too long to arrive",
        413: "Too large, or too many",
        422: "A field is missing, or of another form",
        429: "Busy: ask again after Retry-After seconds",
        500: "An error that nobody foresaw",
        503: "Starting, or ending",
    }.items()
}
