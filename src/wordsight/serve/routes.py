"""Routes: what the models are asked under /v1.

Annotations are values here, and not texts as elsewhere: FastAPI reads limits out of them."""

from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette import datastructures

from wordsight.serve import forms
from wordsight.serve.chat import Asked, Completion, Conversation, check
from wordsight.serve.found import SIZES
from wordsight.serve.incoming import images_of, name_of, names_in, sentences_in, text_of, upload_of
from wordsight.serve.models import Over
from wordsight.serve.refused import Refused
from wordsight.serve.service import Service, checked_over
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
    _add_search(app, service)
    _add_written(app, service)
    _add_chat(app, service)
    _add_corrections(app, service)


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
        unsure: Annotated[
            float | None, Form(gt=0, le=1, description="Below it, an answer is not certain")
        ] = None,
        error: Annotated[float | None, Form(gt=0, lt=1, description="Or at which rate sets may err")] = None,
        model: ModelName = None,
    ) -> JSONResponse:
        """The likeliest classes of images: among the model's own, or those of `classes`, and of `add`."""
        found = service.model(model, "classify")
        sent = await service.fetched(images_of(images, urls, limits, service.fetch))
        names = dict.fromkeys(names_in(classes, "classes", limits) or found.class_names)
        names |= dict.fromkeys(names_in(add, "add", limits))
        told = sentences_in(sentences, list(names), limits)
        over = checked_over(found, Over(tuple(names), tuple(told.items()), explain, unsure, error))
        return JSONResponse(await service.classify(found, sent, over, top))


def _add_embed(app: FastAPI, service: Service) -> None:
    limits = service.limits

    @app.post("/v1/embed", response_model=forms.Embeddings, openapi_extra=_EMBED)
    async def embed(request: Request) -> JSONResponse:
        """Unit vectors of images (a form) or of texts (JSON), which meet in one space."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            return await embed_texts(request)
        if kind != "multipart/form-data":
            raise Refused(415, "send images as multipart/form-data, or texts as application/json")
        async with request.form(**form_limits(limits)) as form:  # pyright: ignore[reportArgumentType]
            images = [one for one in form.getlist("images") if isinstance(one, datastructures.UploadFile)]
            name = form.get("model")
            found = service.model(name if isinstance(name, str) else None, "embed")
            sent = images_of(images, [], limits, service.fetch)
            return JSONResponse(await service.embed_images(found, sent))

    async def embed_texts(request: Request) -> JSONResponse:
        try:
            asked = forms.Texts.model_validate_json(await request.body())
        except ValidationError as error:
            raise RequestValidationError(error.errors(include_url=False)) from error
        found = service.model(asked.model, "embed")
        if not 0 < len(asked.texts) <= limits.max_classes:
            raise Refused(413, f"texts: {len(asked.texts)} were sent; send 1 to {limits.max_classes}")
        texts = [text_of(text, "texts", limits.max_text) for text in asked.texts]
        return JSONResponse(await service.embed_texts(found, texts))


def _add_search(app: FastAPI, service: Service) -> None:
    limits = service.limits

    @app.post("/v1/search", response_model=forms.Matches)
    async def search(
        query: Annotated[str | None, Form(description="A text")] = None,
        image: Annotated[UploadFile | None, File(description="Or an image")] = None,
        k: Annotated[int, Form(ge=1, le=limits.max_results)] = 10,
        model: ModelName = None,
    ) -> JSONResponse:
        """The images of the searched folder closest to a text or an image."""
        found = service.model(model, "search")
        text = text_of((query or "").strip(), "query", limits.max_text)
        if bool(text) == (image is not None):
            raise Refused(422, "query: give a text, or an image as `image`, one of the two")
        sent = text if image is None else upload_of(image, "image", limits)
        return JSONResponse(await service.search(found, sent, k))

    @app.get(
        "/v1/images/{one}",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}},
    )
    async def image(one: str, size: Annotated[int, Query(ge=SIZES.start, lt=SIZES.stop)] = 256) -> Response:
        """A small copy of an image that a search found."""
        if service.found is None or one not in service.found.paths:
            raise Refused(404, "there is no such image")
        content = await service.run(service.found.copy, one, size)
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


def _add_written(app: FastAPI, service: Service) -> None:
    limits = service.limits

    @app.post("/v1/caption", response_model=forms.Captions)
    async def caption(images: Images = [], urls: Urls = [], model: ModelName = None) -> JSONResponse:  # noqa: B006
        """What images show."""
        found = service.model(model, "caption")
        sent = await service.fetched(images_of(images, urls, limits, service.fetch))
        return JSONResponse(await service.caption(found, sent))

    @app.post("/v1/answer", response_model=forms.Answers)
    async def answer(
        question: Annotated[str, Form(min_length=1)],
        images: Images = [],  # noqa: B006
        urls: Urls = [],  # noqa: B006
        model: ModelName = None,
    ) -> JSONResponse:
        """The answer to a question about each image."""
        found = service.model(model, "answer")
        text = " ".join(text_of(question, "question", limits.max_text).split())
        if not text:
            raise Refused(422, "question: it is blank; give a text, as 'What is the man holding?'")
        sent = await service.fetched(images_of(images, urls, limits, service.fetch))
        return JSONResponse(await service.answer(found, sent, text))


def _add_chat(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/chat/completions",
        response_model=Completion,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def chat(asked: Asked) -> Response:
        """The reply of a chat, as OpenAI's API gives it; with `stream`, in pieces as they are written."""
        check(asked, service.limits)
        talking = Conversation(service, service.model(asked.model, "chat"), asked)
        if asked.stream:
            return StreamingResponse(await talking.begun(), media_type="text/event-stream")
        return JSONResponse(await talking.whole())


def _add_corrections(app: FastAPI, service: Service) -> None:
    limits = service.limits

    @app.post("/v1/corrections", response_model=forms.Corrected)
    async def correct(
        image: Annotated[UploadFile, File(description="The image")],
        label: Annotated[str, Form(description="What it shows")],
        predicted: Annotated[str, Form(description="What was said instead")] = "",
    ) -> JSONResponse:
        """Keep an image with the label that somebody gave it, for the next `fit`."""
        own = name_of(label, "label", limits.max_name)
        said = text_of(predicted, "predicted", limits.max_name)
        return JSONResponse(await service.correct(upload_of(image, "image", limits), own, said))


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
