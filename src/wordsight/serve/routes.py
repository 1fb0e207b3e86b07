"""Routes: what the models are asked under /v1.

Annotations are values here, and not texts as elsewhere: FastAPI reads limits out of them."""

from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette import datastructures

from wordsight.serve import forms
from wordsight.serve.incoming import images_of, names_in, sentences_in, text_of
from wordsight.serve.refused import Refused
from wordsight.serve.service import Service, over_of
from wordsight.serve.settings import MB, Limits

MORE = 1000  # fields beyond what is allowed that are still read, so that they are counted in words

Images = Annotated[list[UploadFile], File(description="Image files")]
Urls = Annotated[list[str], Form(description="URLs of images, on hosts that are allowed")]
Names = Annotated[list[str], Form(description="Names, one a field, or one JSON list of them")]
ModelName = Annotated[str | None, Form(description="By default the first that can")]


def form_limits(limits: Limits) -> dict[str, int]:
    """How much of a form is read at all."""
    return {
        "max_files": limits.max_images + MORE,
        "max_fields": limits.max_classes + MORE,
        "max_part_size": MB,
    }


def add_routes(app: FastAPI, service: Service) -> None:
    """All of /v1."""
    _add_models(app, service)
    _add_classify(app, service)
    _add_embed(app, service)


def fetch(url: str) -> bytes:
    raise Refused(400, "urls: no host is allowed; the server's --allow-url names some")


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", response_model=forms.ModelList)
    async def models() -> JSONResponse:
        """The models that are served, and what each can."""
        return JSONResponse({"object": "list", "data": service.cards()})


def _add_classify(app: FastAPI, service: Service) -> None:
    limits = service.limits

    @app.post("/v1/classify", response_model=forms.Classes)
    async def classify(
        images: Images = [],  # noqa: B006 (FastAPI copies it)
        urls: Urls = [],  # noqa: B006
        classes: Names = [],  # noqa: B006
        add: Names = [],  # noqa: B006
        sentences: Annotated[str | None, Form(description="JSON: {class: [sentence, ...]}")] = None,
        top: Annotated[int, Form(ge=1, le=limits.max_results)] = 5,
        explain: Annotated[int, Form(ge=0, le=20, description="Sentences with each answer")] = 0,
        model: ModelName = None,
    ) -> JSONResponse:
        """The likeliest classes of images: among the model's own, or those of `classes`, and of `add`."""
        found = service.model(model, "classify")
        sent = images_of(images, urls, limits, fetch)
        named, added = names_in(classes, "classes", limits), names_in(add, "add", limits)
        told = sentences_in(sentences, (*(named or found.class_names), *added), limits)
        over = over_of(found, named, added, told, explain)
        return JSONResponse(await service.classify(found, sent, over, top))


def _add_embed(app: FastAPI, service: Service) -> None:
    limits = service.limits

    @app.post("/v1/embed", response_model=forms.Embeddings, openapi_extra=_EMBED)
    async def embed(request: Request) -> JSONResponse:
        """Unit vectors of images (a form) or of texts (JSON), which meet in one space."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            return await embed_texts(await request.body())
        if kind != "multipart/form-data":
            raise Refused(415, "send images as multipart/form-data, or texts as application/json")
        async with request.form(**form_limits(limits)) as form:  # pyright: ignore[reportArgumentType]
            images = [one for one in form.getlist("images") if isinstance(one, datastructures.UploadFile)]
            name = form.get("model")
            found = service.model(name if isinstance(name, str) else None, "embed")
            sent = images_of(images, [], limits, fetch)
            return JSONResponse(await service.embed_images(found, sent))

    async def embed_texts(body: bytes) -> JSONResponse:
        try:
            asked = forms.Texts.model_validate_json(body)
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from error
        found = service.model(asked.model, "embed")
        if not 0 < len(asked.texts) <= limits.max_classes:
            raise Refused(413, f"texts: {len(asked.texts)} were sent; send 1 to {limits.max_classes}")
        texts = [text_of(text, "texts", limits.max_text) for text in asked.texts]
        return JSONResponse(await service.embed_texts(found, texts))


_EMBED: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "model": {"type": "string"},
                    },
                }
            },
            "application/json": {"schema": forms.Texts.model_json_schema()},
        },
    }
}
