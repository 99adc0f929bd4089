"""The app: lifespan, routers, error handlers."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import structlog
from fastapi import Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware
from worker.jobs.db import Database
from worker.jobs.settings import Settings

from . import errors, pages
from .auth import Keys, RequireKey, bearer
from .certifying import certify
from .feed import Feed
from .limits import Limits
from .measures import Measures
from .middleware import RequestContext
from .openapi import describe
from .pages.addresses import STATIC
from .pages.files import Files
from .pages.rendering import FILES, as_page
from .predictor import Predictor
from .resolving import Resolver
from .routes import (
    batch,
    checkpoints,
    compare,
    control,
    datasets,
    deliveries,
    exports,
    health,
    jobs,
    logs,
    metrics,
    models,
    parity,
    pictures,
    predict,
    prometheus,
    report,
    sweeps,
    v2,
)
from .webhooks import Sender, deliver
from .yielding import give_way

_log = structlog.get_logger()
_DESCRIPTION = "Turns *train this network on these pictures* into HTTP."


def create_app(settings: Settings) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        db = Database(settings.resolved_database_url)
        db.migrate()
        predictor = Predictor(settings)
        app.state.settings, app.state.db, app.state.predictor = settings, db, predictor
        app.state.keys, app.state.resolver = keys, _ = Keys(settings, db), Resolver(db)
        app.state.feed = feed = Feed(db, settings.max_streams)
        predictor.start()
        ours = (certify(db, predictor), give_way(db, predictor), keys.keep_looking())
        background = [asyncio.create_task(each) for each in ours]
        if settings.webhooks and settings.webhook_secret is not None:
            sender = Sender(settings.webhook_secret.get_secret_value())
            background.append(asyncio.create_task(deliver(db, sender)))
        if keys.is_open:
            _log.warning("open_to_this_machine", hint="`epochd keys create` makes a key, and closes it to who has none")
        gc.collect()
        gc.freeze()  # going through all that start-up has left takes 80 ms each time, in which nobody is answered
        yield
        feed.close()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await predictor.stop()
        db.close()

    measures = Measures()
    app = FastAPI(
        title="epochd",
        version=version("epochd"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        dependencies=[Depends(bearer)],
        docs_url=None,  # `pages.docs` has it
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        responses=errors.everywhere(),
        generate_unique_id_function=lambda route: route.name,
        telemetry=measures.telemetry(),
    )
    app.state.measures = measures
    measures.watch(app.state)
    documents = (jobs, control, metrics, report, compare, logs, deliveries, checkpoints, parity, models, sweeps)
    for room in (*documents, pictures, health, prometheus):
        app.include_router(room.router, max_body_size=settings.max_json_bytes)
    for room in (predict, v2):
        app.include_router(room.router, max_body_size=settings.max_image_bytes)
    app.router.routes.insert(0, predict.lean(settings.max_image_bytes))
    for room in (batch, exports, datasets):
        app.include_router(room.router, max_body_size=settings.max_dataset_bytes)
    app.include_router(pages.router, max_body_size=settings.max_json_bytes)
    app.mount(STATIC, Files(directory=FILES), name="static")
    describe(app)
    errors.install(app, as_page)
    app.add_middleware(RequireKey, origins=settings.cors_origins)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "If-None-Match"],
            expose_headers=["Location", "Retry-After", "ETag", "X-Request-Id", "Server-Timing"],
        )
    app.add_middleware(Limits, settings=settings)
    app.add_middleware(RequestContext)  # the outermost
    return app
