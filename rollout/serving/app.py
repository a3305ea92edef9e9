"""The web application: vLLM's own handlers of OpenAI's protocol, with a model name for each run, behind a token."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from types import SimpleNamespace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException
from vllm.entrypoints.openai.chat_completion.api_router import router as chat_router
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.api_router import router as completion_router
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.models.api_router import router as models_router
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.handlers.http import http_exception_handler
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.entrypoints.serve.instrumentator.health import router as health_router
from vllm.lora.request import LoRARequest
from vllm.renderers.online_renderer import OnlineRenderer

from .run_engine import RunEngine, ServedModel

BASE = "base"
"""Model name of the untouched base."""
TEMPLATE_FORMAT = "auto"
TOOL_CALLS = {"enable_auto_tools": True, "tool_parser": "hermes"}
"""Form of tool calls that is read in responses to requests with tools; that of Qwen too, and of our environments."""


class _KnownNames:
    """Mixin of vLLM's handlers: the error about an unknown model names those that there are."""

    async def _check_model(self, request: Any) -> ErrorResponse | None:
        if await super()._check_model(request) is None:
            return None
        return self.create_error_response(
            _unknown(request.model, [BASE, *self.models.lora_requests]),
            err_type="NotFoundError",
            status_code=HTTPStatus.NOT_FOUND,
            param="model",
        )


class RunCompletions(_KnownNames, OpenAIServingCompletion):
    """Handler of /v1/completions."""


class RunChat(_KnownNames, OpenAIServingChat):
    """Handler of /v1/chat/completions."""


one_model = APIRouter()
"""Route that vLLM lacks."""


@one_model.get("/v1/models/{name}")
async def show_model(name: str, request: Request) -> dict[str, Any]:
    """Handle what `client.models.retrieve` asks for."""
    models = await request.app.state.openai_serving_models.show_available_models()
    cards = {card.id: card for card in models.data}
    if name not in cards:
        raise HTTPException(HTTPStatus.NOT_FOUND, _unknown(name, cards))
    return cards[name].model_dump()


def _unknown(name: str, known: Iterable[str]) -> str:
    return f"The model `{name}` does not exist; there are {', '.join(known)}"


def make_app(
    engine: RunEngine,
    folder: str,
    models: Sequence[ServedModel],
    token: str | None,
    chat_template: str | None = None,
    template_arguments: Mapping[str, Any] | None = None,
) -> FastAPI:
    """Make the application.

    Args:
        engine: with all models loaded.
        folder: of the base.
        models: those beside the base.
        token: that requests must bear; None lets everybody in.
        chat_template: Jinja text in place of the model's own template.
        template_arguments: further variables of the template.
    """
    app = FastAPI(title="layersweep", docs_url=None, redoc_url=None, openapi_url=None)
    arguments = dict(template_arguments or {})
    names = OpenAIServingModels(engine, [BaseModelPath(BASE, folder)])
    names.lora_requests = {
        model.name: LoRARequest(model.name, number, "+".join(model.files))
        for number, model in enumerate(models, start=1)
    }
    renderer = OnlineRenderer(
        engine.model_config,
        engine.renderer,
        request_logger=None,
        chat_template=chat_template,
        chat_template_content_format=TEMPLATE_FORMAT,
        default_chat_template_kwargs=arguments,
        **TOOL_CALLS,
    )
    state = app.state
    state.engine_client, state.openai_serving_models = engine, names
    state.openai_serving_completion = RunCompletions(engine, names, online_renderer=renderer, request_logger=None)
    state.openai_serving_chat = RunChat(
        engine,
        names,
        "assistant",
        online_renderer=renderer,
        request_logger=None,
        chat_template=chat_template,
        chat_template_content_format=TEMPLATE_FORMAT,
        default_chat_template_kwargs=arguments,
        **TOOL_CALLS,
    )
    state.openai_serving_chat_batch = None
    state.args = SimpleNamespace(log_error_stack=False, sse_keep_alive_interval=0)  # what vLLM's handlers look at
    guards = [] if token is None else [Depends(_bearer_of(token))]
    for router in (models_router, one_model, completion_router, chat_router):
        app.include_router(router, dependencies=guards)
    app.include_router(health_router)
    init_exception_handler(app)
    app.add_exception_handler(StarletteHTTPException, http_exception_handler)  # of unknown paths
    return app


def _bearer_of(token: str) -> Any:
    """Make a dependency that lets a request pass if it bears the token."""

    def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]) -> None:
        if given is None or not secrets.compare_digest(given.credentials.encode(), token.encode()):
            raise HTTPException(
                HTTPStatus.UNAUTHORIZED, "the request must bear the token that `layersweep serve` printed at its start"
            )

    return check
