"""The console script. Each command imports what it needs when it runs, so that `--help` is fast.

A user's mistake is reported in one line on standard error with exit status 2, never as a traceback.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from model.errors import ConfigError, ModelError
from model.threads import settle_threads
from service.commands import audit, check, compare, evaluation, label, purge, reviews, training
from service.commands.arguments import Attributes, EngineSetting, split_names
from service.settings import PREFIX, Settings, configured_threads, load_settings

TRAINING_MODULES = ("cleanlab", "matplotlib", "open_clip", "scipy", "tensorboard", "timm", "torch", "torchvision")

EXTRAS = {**dict.fromkeys(TRAINING_MODULES, "train"), "nncf": "compile"}
"""Which extra installs a module that serving on CPUs does not need."""

app = typer.Typer(
    name="cma-clip",
    help="Predicts product attributes from images and titles, with certified precision.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for _command in (
    check.check,
    training.pretrain,
    training.train,
    evaluation.calibrate,
    evaluation.evaluate,
    evaluation.compile,
    compare.compare,
    audit.audit,
    label.label,
    reviews.reviews,
    purge.purge,
):
    app.command()(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cma-clip {version('cma-clip')}")
        raise typer.Exit


TRAINED_TOGETHER = ("pretrain", "train")
"""The commands that processes share; of any other, each would do all of it, and write the same files."""


@app.callback()
def _options(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Declare the options that stand before a command, and check that it may run in several processes where it does."""
    command, processes = context.invoked_subcommand, os.environ.get("WORLD_SIZE", "1")
    if processes != "1" and command not in TRAINED_TOGETHER:
        raise ConfigError(
            f"{command} runs in one process, and WORLD_SIZE says {processes}: start it without torchrun; several "
            f"processes can {' and '.join(TRAINED_TOGETHER)}"
        )
    settle_threads(configured_threads())  # before the command imports torch


def main() -> None:
    """Run the command line."""
    try:
        app()
    except ModelError as error:
        print(f"cma-clip: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        extra = f"cma-clip[{EXTRAS[error.name]}]"
        print(f"cma-clip: this needs {error.name}; install the extra: pip install '{extra}'", file=sys.stderr)
        sys.exit(2)


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Turn a command that takes `settings` into one with a flag for each setting."""

    def with_settings(**flags: Any) -> None:
        given = {name: flags.pop(name) for name in Settings.model_fields}
        command(load_settings(**given), **flags)

    own = list(inspect.signature(command).parameters.values())[1:]
    flags = []
    for name, field in Settings.model_fields.items():
        # Texts that the settings themselves check, so that a flag and its variable are refused in the same words.
        kind = bool if field.annotation is bool else str
        default = ", ".join(map(str, field.default)) if isinstance(field.default, tuple) else str(field.default)
        option = typer.Option(
            help=field.description, show_default=default or "none", metavar=_metavar(field.annotation)
        )
        flags.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
            )
        )
    with_settings.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
    with_settings.__name__, with_settings.__doc__ = command.__name__, command.__doc__
    return with_settings


def _metavar(annotation: Any) -> str | None:
    """Return how the help shows a setting's type; None for a flag that takes no value."""
    if annotation is bool:
        return None
    if get_origin(annotation) is tuple:
        return "LIST"
    kinds = [each for each in (get_args(annotation) or (annotation,)) if each is not type(None)]
    return {int: "INTEGER", float: "FLOAT", Path: "PATH"}.get(kinds[0], "TEXT")


@app.command()
@takes_settings
def serve(settings: Settings) -> None:
    """Serve a checkpoint over HTTP.

    Each setting comes from its flag, else from the environment variable CMA_CLIP_ and its name in capitals, else from
    its default.
    """
    from service.app import check_checkpoint, create_app, load_predictor  # noqa: PLC0415
    from service.http import server  # noqa: PLC0415
    from service.observability import logs  # noqa: PLC0415

    print(_in_use(settings), file=sys.stderr, flush=True)
    logs.configure(settings.log_format)
    check_checkpoint(settings)  # before the log says that the server listens
    failure = server.serve(create_app(settings, load_predictor), settings)
    if isinstance(failure, ModelError):
        raise failure
    if failure is not None:
        raise ModelError(f"the model could not be loaded: {type(failure).__name__} (the log says more)")


def _in_use(settings: Settings) -> str:
    """One line per setting; of the keys only their names."""
    shown = {name: value for name, value in settings if name != "api_keys"}
    shown["api_keys"] = tuple(key.name for key in settings.api_keys) or "none: open to all"
    return "\n".join(
        f"{PREFIX}{name.upper():<26} {', '.join(map(str, value)) or 'none' if isinstance(value, tuple) else value}"
        for name, value in ((name, shown[name]) for name in type(settings).model_fields)
    )


@app.command()
def predict(  # noqa: PLR0917 - typer passes by name
    image: Annotated[Path | None, typer.Argument(help="an image file", show_default=False)] = None,
    title: Annotated[str | None, typer.Option(help="the listing's title", show_default=False)] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="checkpoint folder", show_default=False)] = None,
    target_precision: Annotated[float | None, typer.Option(help="0.90, 0.95, …", show_default=False)] = None,
    engine: EngineSetting = None,
    top_k: Annotated[int, typer.Option(min=1, help="candidates per attribute")] = 3,
    explain: Annotated[bool, typer.Option("--explain", help="tint the title's words by weight")] = False,
    heat_map: Annotated[
        Path | None, typer.Option(help="write a PNG of what in the image each label is based on", show_default=False)
    ] = None,
    attributes: Attributes = None,
    as_json: Annotated[bool, typer.Option("--json", help="print what the service would answer")] = False,
) -> None:
    """Predict one listing's attributes from an image, a title, or both."""
    from service.commands.predict import draw, predict_one  # noqa: PLC0415

    settings = load_settings(checkpoint=checkpoint, target_precision=target_precision, engine=engine)
    reply = predict_one(
        settings,
        image=image,
        title=title,
        top_k=top_k,
        attributes=split_names(attributes),
        explain=explain,
        heat_map_file=heat_map,
    )
    if as_json:
        print(json.dumps(reply.model_dump(mode="json", exclude_unset=True), ensure_ascii=False, indent=2))
    else:
        draw(reply)


@app.command()
def bench(  # noqa: PLR0917 - typer passes by name
    url: Annotated[str, typer.Argument(help="a running service")] = "http://127.0.0.1:8000",
    image: Annotated[
        Path | None, typer.Option(help="an image, or a folder of images sent in turn", show_default=False)
    ] = None,
    title: Annotated[list[str] | None, typer.Option(help="a title; several: sent in turn", show_default=False)] = None,
    titles: Annotated[Path | None, typer.Option(help="a file of titles, one a line", show_default=False)] = None,
    callers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="send one request after the other from each (16)")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=0.01, help="send so many requests per second, answered or not", show_default=False),
    ] = None,
    duration: Annotated[float, typer.Option(min=0.1, help="seconds")] = 10.0,
    requests: Annotated[int | None, typer.Option(min=1, help="stop after so many", show_default=False)] = None,
    listings: Annotated[int, typer.Option(min=1, help="listings per request; more than one: as batches")] = 1,
    upload: Annotated[bool, typer.Option("--upload", help="send multipart forms instead of JSON")] = False,
    api_key: Annotated[str | None, typer.Option(help="API key", show_default=False)] = None,
    timeout_ms: Annotated[int | None, typer.Option(min=1, help="deadline of each", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print figures as JSON")] = False,
) -> None:
    """Load a running service; print statuses, throughput and latency percentiles."""
    from service.commands.bench import Bodies, Load, draw, read_listings, read_titles, run  # noqa: PLC0415

    if rate is not None and (callers is not None or requests is not None):
        raise ConfigError("--rate says by itself how much is sent; leave out --callers and --requests")
    if upload and listings > 1:
        raise ConfigError("--upload sends one listing per request; leave out --listings")
    found = read_listings(image, [*(title or ()), *(read_titles(titles) if titles else ())])
    if upload:
        bodies = Bodies.forms(found)
    else:
        bodies = Bodies.single(found) if listings == 1 else Bodies.batches(found, listings)
    load = Load(
        url=url, bodies=bodies, callers=callers or 16, rate=rate, seconds=duration, limit=requests, api_key=api_key,
        timeout_ms=timeout_ms,
    )  # fmt: skip
    figures = run(load)
    if as_json:
        print(json.dumps(figures.summary(), indent=2))
    else:
        draw(figures)
