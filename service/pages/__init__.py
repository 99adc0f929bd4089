"""The dashboard: what the other routes answer for programs, as pages for people.

Pages are made here, kept up to date by htmx, and drawn on by the scripts in `static/`, which ask the same addresses as
any other client. Nothing is loaded from elsewhere, and nothing runs that is not one of these files.
"""

from fastapi import APIRouter

from . import compared, datasets, docs, home, job, new, sign_in, sweeps, try_it

router = APIRouter(include_in_schema=False)
for page in (home, job, compared, new, datasets, try_it, sweeps, docs, sign_in):
    router.include_router(page.router)
