"""Writes docs/api.md from the service's own OpenAPI document, and the measured figures into docs/explanations.md.

python -m docs.generate
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docs.blocks import between
from service.app import create_app
from service.errors import ServiceError
from service.http.jobs import job_routes
from service.settings import Settings, load_settings

PAGE = Path(__file__).parent / "api.md"
EXPLANATIONS = PAGE.with_name("explanations.md")
FAITHFULNESS = PAGE.parents[1] / "research" / "results" / "faithfulness.json"

HEAD = """\
<!-- Written by `python -m docs.generate` from the service's OpenAPI document. Don't edit it here. -->

# API reference

JSON in, JSON out. A running service publishes the same reference as an OpenAPI document at `/openapi.json` and as a
page at `/docs`.

- **API keys.** If API keys are configured, each request to a path under `/v1` must carry one: `Authorization: Bearer
  KEY` or `X-API-Key: KEY`.
- **Request IDs.** Each response has the header `X-Request-ID`: the caller's own ID, if one was sent (up to 128 letters,
  digits and `._~:/+=@-`), or else a new one. The service's log contains it too.
- **Deadlines.** `X-Request-Timeout-Ms` tells the service how long the caller will wait. A request that cannot be
  answered in that time is refused on arrival. The service's own timeout is the upper limit.
- **Titles that say nothing** count as none: placeholders such as `nan`, `N/A` and `-`, the listing's own `id`, and text
  without a letter. With an image, the answer is from the image, with the warning `title_ignored`; without one, 422.
- **Images in text.** Base64 may be standard or URL-safe, padded or not, broken into lines, or a `data:` URL, which may
  also be sent as `url`. White space around a URL is ignored, and so is a byte-order mark before JSON.
- **Limits.** What is too large is refused with 413, naming the limit and the setting of the service that it is from.
"""

ERRORS = """\
## Errors

Each error is a [Problem](#problem), `application/problem+json` (RFC 9457), with a stable `code`; `detail` is a message
for people. A 429, a 503, and a 504 that is sent on arrival, has the header `Retry-After`: the number of seconds after
which to retry. An unknown path is a 404 `not_found`; a method that a path does not support is a 405
`method_not_allowed`. After a 408 the connection is closed: less than 12 KiB of the body arrived in three seconds.

The balancer of `deploy/nginx` answers in the same form. It adds two errors: 502 `replica_failed`, when the replica that
had the request ended before it answered (the request was not sent to another one, because it may be what ended the
replica), and 400 `malformed_request`, for what is not HTTP. Its 429 counts requests and connections of one address.
"""


def main() -> None:
    """Write the pages."""
    PAGE.write_text(render(openapi()), encoding="utf-8")
    found = json.loads(FAITHFULNESS.read_text(encoding="utf-8"))
    text = EXPLANATIONS.read_text(encoding="utf-8")
    EXPLANATIONS.write_text(with_figures(text, found), encoding="utf-8")
    print(PAGE, EXPLANATIONS, sep="\n")


def openapi() -> dict[str, Any]:
    """Return the OpenAPI document of the application; no model is loaded for it."""

    def no_model(_: Settings) -> Any:
        raise AssertionError("the application is described, not started")

    app = create_app(load_settings(), no_model)
    app.include_router(job_routes)  # as where a store is configured; none is opened for this
    return app.openapi()


def render(document: Mapping[str, Any]) -> str:
    """Return the page, in Markdown."""
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    lines = [HEAD, _row("operation", "description"), _row("---", "---")]
    for method, path, operation in operations:
        summary = operation["description"].split(". ")[0].removesuffix(".")
        lines.append(_row(f"[`{method} {path}`](#{_anchor(f'{method} {path}')})", _joined(summary)))
    for method, path, operation in operations:
        lines += ["", *_operation(method, path, operation)]
    lines += ["", ERRORS, *_errors(operations), "", "## Types"]
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += ["", *_schema(name, schema)]
    return "\n".join(lines) + "\n"


def _anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    kept = "".join(letter for letter in heading.lower() if letter.isalnum() or letter in " -_")
    return kept.replace(" ", "-")


def _joined(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"## `{method} {path}`"
    for paragraph in operation["description"].split("\n\n"):
        yield from ("", _joined(paragraph))
    yield ""
    for parameter in operation.get("parameters", ()):
        needed = "" if parameter["required"] else ", optional"
        said = f"; {parameter['description']}" if "description" in parameter else ""
        yield f"- {parameter['in'].capitalize()} `{parameter['name']}`{needed}: {_kind(parameter['schema'])}{said}."
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"- Request body: `{media_type}`, {_kind(content['schema'])}."
        yield from _fields(content["schema"])
    for status, response in operation["responses"].items():
        if _is_success(status):
            yield from _response(status, response)
    if refusals := [status for status in operation["responses"] if not _is_success(status)]:
        yield f"- [Errors](#errors): {', '.join(refusals)}."


def _is_success(status: str) -> bool:
    return status.startswith("2")


def _fields(schema: Mapping[str, Any]) -> Iterator[str]:
    """The fields of a form that is not one of the types below."""
    for name, value in schema.get("properties", {}).items() if "title" not in schema else ():
        needed = "" if name in schema["required"] else ", optional"
        yield f"  - `{name}`{needed}: {'; '.join(filter(None, (_kind(value), value.get('description'))))}."


def _response(status: str, response: Mapping[str, Any]) -> Iterator[str]:
    if "content" not in response:
        yield f"- Response {status}, without a body."
    for media_type, content in response.get("content", {}).items():
        schema = content.get("schema")
        yield f"- Response {status}: `{media_type}`" + (f", {_kind(schema)}." if schema else ".")


def _errors(operations: list[tuple[str, str, Mapping[str, Any]]]) -> Iterator[str]:
    """A row for each status that some path declares, with the codes of the error tree that have it."""
    reasons = {
        int(status): response["description"]
        for _, _, operation in operations
        for status, response in operation["responses"].items()
        if not _is_success(status)
    }
    codes: dict[int, list[str]] = {status: [] for status in reasons}
    for error in _tree(ServiceError):
        if error.status in codes and error.code not in codes[error.status]:
            codes[error.status].append(error.code)
    yield from (_row("status", "code", "when"), _row("---", "---", "---"))
    for status, reason in sorted(reasons.items()):
        named = ", ".join(f"`{code}`" for code in codes[status] if status == 500 or code != ServiceError.code)
        yield _row(str(status), named, _joined(reason))


def _tree(error: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield error
    for below in error.__subclasses__():
        yield from _tree(below)


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {name}"
    if description := schema.get("description"):
        yield from ("", _joined(description))
    if "enum" in schema:
        yield from ("", f"One of {', '.join(f'`{value}`' for value in schema['enum'])}.")
        return
    for word, choice in (("At least one", "anyOf"), ("Exactly one", "oneOf")):
        if alternatives := [f"`{each['required'][0]}`" for each in schema.get(choice, ())]:
            yield from ("", f"{word} of {' and '.join(alternatives)} is needed.")
    # What comes in admits nothing else, and may leave things out; what goes out is always whole.
    comes_in = "additionalProperties" in schema
    headings = ("field", "type", "default", "description") if comes_in else ("field", "type", "description")
    yield from ("", _row(*headings), _row(*["---"] * len(headings)))
    for field, value in schema["properties"].items():
        left_out = [_left_out(value, needed=field in schema.get("required", ()))] if comes_in else []
        yield _row(f"`{field}`", _kind(value), *left_out, _joined(value.get("description", "")))


def _left_out(value: Mapping[str, Any], *, needed: bool) -> str:
    if needed:
        return "required"
    return f"`{json.dumps(value['default'])}`" if value.get("default") is not None else ""


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _kind(schema: Mapping[str, Any]) -> str:  # noqa: PLR0911 - one for each kind
    """Say what a value looks like."""
    match schema:
        case {"$ref": str(reference)}:
            return _link(reference.rpartition("/")[2])
        case {"properties": _, "title": str(title)}:  # a listing inside a batch is spelt out there once more
            return _link(title)
        case {"anyOf": list(alternatives)}:
            return " or ".join(_kind(each) for each in alternatives)
        case {"type": "array", "items": item, "minItems": least, "maxItems": most} if least == most:
            return f"list of {most} {_several(item)}"
        case {"type": "array", "items": item}:
            return f"list of {_several(item)}" + (" (not empty)" if schema.get("minItems") else "")
        case {"type": "object", "additionalProperties": dict(values)}:
            return f"object of {_several(values)}"
        case {"enum": list(values)}:
            return " or ".join(f"`{value}`" for value in values)
        case {"type": "string"} if schema.get("format") == "binary" or "contentMediaType" in schema:
            return "file"
        case {"type": "string", "pattern": _, "description": str(description)}:
            return description
        case {"type": "string", "maxLength": length}:
            return f"string of at most {length:,} characters"
        case {"minimum": low, "maximum": high}:
            return f"{schema['type']} from {low:.0f} to {high:.0f}"
    return str(schema["type"])


def _several(schema: Mapping[str, Any]) -> str:
    return re.sub(r"^(string|number|integer|list|object)\b", r"\1s", _kind(schema))


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


# ── explanations ────────────────────────────────────────────────────────────────────────────────────────────

SHARE = "0.25"
PANELS = {
    "words, both": "words (image and title)",
    "words, title alone": "words (title alone)",
    "parts, both": "parts (image and title)",
    "parts, image alone": "parts (image alone)",
    "parts, grey, image alone": "parts (image alone), grey",
}
NAMES = {"served": "**occlusion, as served**", "left out one by one": "leave-one-out", "random": "random"}


def with_figures(text: str, found: Mapping[str, Any]) -> str:
    """Return docs/explanations.md with the tables of what `research.faithfulness` found."""
    times = found["milliseconds"]
    said = (
        f"{found['listings']:,} listings of {found['data']}, model `{found['model']['version']}`. *time*: the cost "
        f"of explaining one listing, as a multiple of one plain prediction ({times['plain answer']:.0f} ms); median of "
        f"{found['timed']} listings."
    )
    lines = [*_rivals(found), "", *_beside_chance(found["panels"]), "", said]
    return between(text, "faithfulness", "\n".join(lines), command="docs.generate")


def _rivals(found: Mapping[str, Any]) -> Iterator[str]:
    """What each method's first quarter costs the label, and how long it takes."""
    panels, times = found["panels"], found["milliseconds"]
    yield from (_row("", *PANELS.values(), "time"), _row("---", *["---:"] * len(PANELS), "---:"))
    for method in [*times, "random"]:
        if method == "plain answer":
            continue
        drops = [panels[panel]["methods"][method][SHARE]["drop"]["mean"] for panel in PANELS]
        time = f"{times[method] / times['plain answer']:.0f} ×" if method in times else ""
        yield _row(NAMES.get(method, method), *(f"{drop:.1f}" for drop in drops), time)


def _beside_chance(panels: Mapping[str, Any]) -> Iterator[str]:
    """What the service's first quarter costs the label, what a random one does, and the difference."""
    yield from (_row("as served", "confidence lost", "lost at random", "difference"), _row("---", *["---:"] * 3))
    for panel, name in PANELS.items():
        methods = panels[panel]["methods"]
        served, random = methods["served"][SHARE], methods["random"][SHARE]
        intervals = served["drop"], random["drop"], served["more_than_random"]
        yield _row(name, *map(_interval, intervals))


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['mean']:.1f} ({found['low']:.1f} to {found['high']:.1f})"


if __name__ == "__main__":
    main()
