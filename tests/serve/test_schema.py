"""The OpenAPI schema is true: whatever it allows, and much that it does not, is answered as it says, and
nothing makes the server fail.
"""

import pytest
from serving import HERE

from wordsight.serve.settings import Limits

pytestmark = pytest.mark.slow
EXAMPLES = 60  # of each operation, and of each kind
TAKE_NOTHING = ("GET /", "GET /health", "GET /ready", "GET /metrics", "GET /v1/models")  # that could be wrong


@pytest.fixture(scope="module")
def fuzzed(served, digits_run, assistant_runs, digit_files, tmp_path_factory):
    """A server with everything on."""
    limits = Limits(max_body_mb=4, max_corrections=20, max_tokens=3)
    kept = tmp_path_factory.mktemp("kept") / "new.csv"
    runs = (digits_run, assistant_runs["limber"])
    return served(*runs, search=str(digit_files[0].parent), corrections=str(kept), limits=limits)


def already_begun(app):
    """The application, which nobody begins or ends a second time."""

    async def answer(scope, receive, send):
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})

    return answer


@pytest.mark.parametrize("kind", ["positive", "negative"])
def test_whatever_is_asked_is_answered_as_the_schema_says(fuzzed, kind):
    hypothesis = pytest.importorskip("hypothesis")
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis import checks

    held = [
        checks.not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
        checks.response_headers_conformance,
    ]
    fixed = hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    schema = schemathesis.openapi.from_asgi("/openapi.json", already_begun(fuzzed.app))
    mode = schemathesis.GenerationMode(kind)
    asked = []
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode.is_negative and operation.label in TAKE_NOTHING:
            continue

        @fixed
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def hold(case):
            asked.append(case.operation.label)
            case.call_and_validate(checks=held, base_url=HERE)

        hold()
    assert len(set(asked)) >= 8
