"""`cma-clip purge`: deletes jobs and reviews from a store, with their files."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from model.errors import ConfigError
from service.errors import Unavailable
from service.settings import DAY, load_settings

StoreUrl = Annotated[
    str | None, typer.Option(help="sqlite:///FILE or postgresql://…; default: CMA_CLIP_STORE", show_default=False)
]
StoreFiles = Annotated[
    str | None, typer.Option(help="where its files are; default: CMA_CLIP_STORE_FILES", show_default=False)
]
Days = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="what ended or was decided longer ago; default: CMA_CLIP_KEEP_DAYS for jobs, CMA_CLIP_REVIEW_DAYS for "
        "reviews",
        show_default=False,
    ),
]
JobIds = Annotated[list[str] | None, typer.Option("--job", help="this job alone; may be repeated", show_default=False)]
Everything = Annotated[bool, typer.Option("--all", help="all jobs, running ones too, and all reviews")]


def purge(
    *,
    store: StoreUrl = None,
    store_files: StoreFiles = None,
    days: Days = None,
    job: JobIds = None,
    everything: Everything = False,
) -> None:
    """Delete old jobs and reviews from a store, or jobs by their id, or all of it."""
    from service.jobs import queue  # noqa: PLC0415 - SQLAlchemy takes time to import
    from service.reviews.records import Records  # noqa: PLC0415
    from service.store import removals  # noqa: PLC0415
    from service.store.store import Store  # noqa: PLC0415

    if sum((days is not None, bool(job), everything)) > 1:
        raise ConfigError("--days, --job and --all exclude each other")
    settings = load_settings(store=store, store_files=store_files)
    if settings.store is None:
        raise ConfigError("there is no store: give --store, or set CMA_CLIP_STORE")
    try:
        opened = Store.open(settings.store.get_secret_value(), settings.files_of_store)
    except Unavailable as error:
        raise ConfigError(f"CMA_CLIP_STORE: {error.detail}") from error
    database = opened.database
    try:
        with database.transaction() as connection:
            if everything or job:
                wanted = job or queue.all_ids(connection)
                gone = {each: queue.delete_any(connection, each) for each in wanted}
                if missing := [each for each, there in gone.items() if not there]:
                    raise ConfigError(f"there is no job {missing[0]}; nothing was deleted")
                count = len(gone)
            else:
                count = queue.purge(connection, older_than=(settings.keep_days if days is None else days) * DAY)
        said = [f"{count:,} jobs"]
        if not job:
            kept = settings.review_days if days is None else days
            # Whatever other machines' clocks say, all was before tomorrow.
            reviewed = Records(database).purge(time.time() + (DAY if everything else -kept * DAY))
            said += [f"{number:,} {what}" for what, number in reviewed.items()]
        swept = removals.sweep(database, opened.files)
        print(f"deleted: {', '.join(said)}; {swept:,} folders of files")
    finally:
        opened.close()
