"""The app: lifespan, routers, error handlers."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI
from worker.jobs.db import Database
from worker.jobs.settings import Settings

from . import errors
from .auth import Keys, RequireKey, bearer
from .certifying import certify
from .middleware import RequestContext
from .predictor import Predictor
from .resolving import Resolver
from .routes import (
    batch,
    checkpoints,
    control,
    datasets,
    exports,
    health,
    jobs,
    logs,
    metrics,
    models,
    parity,
    predict,
    report,
    v2,
)
from .yielding import give_way

_JSON_BYTES = 2**20
_DESCRIPTION = "Turns *train this network on these pictures* into HTTP."


def create_app(settings: Settings) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        db = Database(settings.resolved_database_url)
        db.migrate()
        predictor = Predictor(settings)
        app.state.settings, app.state.db, app.state.predictor = settings, db, predictor
        app.state.keys, app.state.resolver = Keys(settings, db), Resolver(db)
        predictor.start()
        background = [asyncio.create_task(each) for each in (certify(db, predictor), give_way(db, predictor))]
        gc.collect()
        gc.freeze()  # going through all that start-up has left takes 80 ms each time, in which nobody is answered
        yield
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await predictor.stop()
        db.close()

    app = FastAPI(
        title="epochd",
        version=version("epochd"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        dependencies=[Depends(bearer)],
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        responses=errors.everywhere(),
    )
    for room in (jobs, control, metrics, report, logs, checkpoints, parity, models, health):
        app.include_router(room.router, max_body_size=_JSON_BYTES)
    for room in (predict, v2):
        app.include_router(room.router, max_body_size=settings.max_image_bytes)
    app.router.routes.insert(0, predict.lean(settings.max_image_bytes))
    for room in (batch, exports, datasets):
        app.include_router(room.router, max_body_size=settings.max_dataset_bytes)
    errors.install(app)
    app.add_middleware(RequireKey)
    app.add_middleware(RequestContext)  # the outermost
    return app
