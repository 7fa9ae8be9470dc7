"""Reviews through the real application: captured, handed out unseen, decided, and the promise that they check."""

from __future__ import annotations

import asyncio
import io
import time
import zipfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text, update

from model.situations import Situation
from service.reviews import capture as capture_module
from service.reviews.pairs import Model, Promise
from service.reviews.records import Records
from service.reviews.reviews import Reviews
from service.store.store import Store
from service.store.tables import review_accepted as accepted
from service.store.tables import review_items as items
from service.store.tables import review_listings as listings
from tests.service.conftest import Client, as_base64, encoded, in_process, until
from tests.service.fake_predictor import INFO, TASKS, FakePredictor
from tests.service.test_jobs import ended, hand_in, rows_of
from tests.service.test_label_sets import SetPredictor
from tests.service.test_routes import check_problem

PNG = {"base64": as_base64(encoded())}
MODEL = Model(INFO.version, INFO.engine, INFO.calibration)
UNSEEN: dict[str, Any] = {"label": None, "confidence": None, "abstention": None, "candidates": []}
ANNA = {"reviewer": "anna"}


Reviewing = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture
def reviewing(store_url: str, store: Store, tmp_path: Path) -> Reviewing:
    """Runs the application on the store's database, with the settings given."""

    def run(share: float = 1.0, **settings: Any) -> AbstractAsyncContextManager[Client]:
        return in_process(store=store_url, store_files=str(tmp_path / "files"), review_share=share, **settings)

    return run


def reviews_of(client: Client) -> Reviews:
    assert client.pipeline.reviews is not None
    return client.pipeline.reviews


def count(store: Store, table: Any) -> int:
    with store.database.snapshot() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def rename(store: Store, table: str, name: str) -> None:
    """Give a table another name, so that nothing can be captured."""
    with store.database.transaction() as connection:
        connection.execute(text(f"ALTER TABLE {table} RENAME TO {name}"))


async def classify_some(client: Client, number: int, **options: Any) -> list[dict[str, Any]]:
    """Classify listings, wait until they are captured, and return the answers."""
    replies = [(await client.classify(id=f"sku-{n}", title=f"Shirt {n}", **options)).json() for n in range(number)]
    await reviews_of(client).flush()
    return replies


async def next_items(client: Client, **query: Any) -> list[dict[str, Any]]:
    response = await client.get("/v1/reviews/next", params={**ANNA, "count": 20, **query})
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["items"]
    return found


async def decide(client: Client, item: int, decision: str, **more: Any) -> Any:
    return await client.post("/v1/reviews", json={**ANNA, "item": item, "decision": decision, **more})


async def judge_all(client: Client, answers: list[dict[str, Any]], *, right: bool) -> int:
    """Judge all that waits, as the model answered or otherwise; return how many pairs."""
    labels = {task.name: task.labels for task in TASKS}
    given = {answer["id"]: answer["attributes"] for answer in answers}
    judged = 0
    while found := await next_items(client):
        for each in found:
            name = each["attribute"]
            label = given[each["id"]][name]["label"]
            other = next(text for text in labels[name] if text != label)
            assert (await decide(client, each["item"], "label", label=label if right else other)).status_code == 200
            judged += 1
    return judged


# ── capturing ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_random_share_is_handed_out_without_the_models_answer(reviewing: Reviewing) -> None:
    async with reviewing() as client:
        await client.classify(id="sku-1", title="Navy shirt", image=PNG)
        await reviews_of(client).flush()
        found = await next_items(client)
        assert {each["attribute"] for each in found} == {"baseColour", "season"}
        for each in found:
            assert each["kind"] == "random"
            assert {name: each[name] for name in UNSEEN} == UNSEEN
            assert (each["id"], each["title"], each["image"]) == ("sku-1", "Navy shirt", PNG)


async def test_without_a_share_abstentions_alone_wait_with_what_the_model_answered(reviewing: Reviewing) -> None:
    async with reviewing(share=0.0) as client:
        answers = await classify_some(client, 8)
        abstained = {
            (answer["id"], name): found
            for answer in answers
            for name, found in answer["attributes"].items()
            if not found["accepted"]
        }
        found = await next_items(client)
        assert {(each["id"], each["attribute"]) for each in found} == set(abstained)
        leads = []
        for each in found:
            answer = abstained[each["id"], each["attribute"]]
            assert each["kind"] == "abstained"
            assert (each["label"], each["abstention"]) == (answer["label"], "low_confidence")
            assert each["candidates"][0] == answer["candidates"][0]
            leads.append(answer["candidates"][0]["confidence"] - answer["candidates"][1]["confidence"])
        assert leads == sorted(leads)  # the least certain ones first


async def test_a_listing_that_is_sent_again_is_asked_once(reviewing: Reviewing, store: Store) -> None:
    async with reviewing() as client:
        for _ in range(3):
            await client.classify(id="sku-1", title="Navy shirt", image=PNG)
        await reviews_of(client).flush()
        assert (count(store, items), count(store, listings)) == (2, 1)


async def test_every_route_is_captured(reviewing: Reviewing) -> None:
    async with reviewing() as client:
        await client.post("/v1/classify/batch", json={"listings": [{"title": "Shirt one"}, {"title": "Shirt two"}]})
        await client.post("/v1/classify/upload", data={"title": "Shirt three"}, files={"image": ("a.png", encoded())})
        await reviews_of(client).flush()
        assert {each["title"] for each in await next_items(client)} == {"Shirt one", "Shirt two", "Shirt three"}


async def test_jobs_are_captured(reviewing: Reviewing) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("a.png", encoded())
    async with reviewing() as client:
        table = "id,title,image\nsku-1,Shirt one,a.png\nsku-2,Shirt two,\n"
        await ended(client, (await hand_in(client, table, images=packed.getvalue())).json()["id"])
        await client.classify(title="Shirt one", image=PNG)  # the same listing
        await reviews_of(client).flush()
        found = {
            (each["id"], each["title"], each["image"] and each["image"]["base64"]) for each in await next_items(client)
        }
        assert found == {("sku-1", "Shirt one", PNG["base64"]), ("sku-2", "Shirt two", None)}


async def test_no_text_keeps_a_listing_from_being_captured(reviewing: Reviewing) -> None:
    async with reviewing() as client:
        await client.classify(id="a\0b", title="Shirt \0 with a NUL")
        await reviews_of(client).flush()
        first, _ = await next_items(client)
        assert (first["id"], first["title"]) == ("a\ufffdb", "Shirt \ufffd with a NUL")
        assert await client.metric("cma_clip_reviews_dropped_total") == 0


async def test_a_store_that_fails_fails_no_classification_and_what_is_lost_is_counted(
    reviewing: Reviewing, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "RETRY_SECONDS", 0.01)
    async with reviewing() as client:
        rename(store, "review_starts", "gone")
        response = await client.classify(title="Navy shirt")
        assert response.status_code == 200
        await reviews_of(client).flush()
        assert await client.metric("cma_clip_reviews_dropped_total") == 1
        rename(store, "gone", "review_starts")
        await classify_some(client, 1)
        assert await next_items(client)


async def test_a_full_queue_drops_listings_and_delays_none(
    reviewing: Reviewing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "MAX_QUEUE", 1)
    stuck = asyncio.Event()
    real, loop = Records.add, asyncio.get_running_loop()

    def slow(*args: Any) -> None:
        asyncio.run_coroutine_threadsafe(stuck.wait(), loop).result(10)
        real(*args)

    monkeypatch.setattr(Records, "add", slow)
    async with reviewing() as client:
        replies = [await client.classify(title=f"Shirt {number}") for number in range(5)]
        assert [reply.status_code for reply in replies] == [200] * 5
        assert await client.metric("cma_clip_reviews_dropped_total") >= 3
        stuck.set()


async def test_what_is_accepted_is_listed(reviewing: Reviewing, store: Store) -> None:
    async with reviewing() as client:
        answers = await classify_some(client, 6)
        found = {row.id: row.labels for row in Records(store.database).accepted(since=0, attribute=None)}
        assert found == {
            answer["id"]: {
                name: [[each["label"], pytest.approx(each["confidence"])]]
                for name, each in answer["attributes"].items()
                if each["accepted"]
            }
            for answer in answers
            if any(each["accepted"] for each in answer["attributes"].values())
        }
        assert 0 < len(found) <= count(store, accepted)


# ── judging ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_two_reviewers_get_different_pairs(reviewing: Reviewing) -> None:
    async with reviewing() as client:
        await classify_some(client, 3)
        anna, ben = await next_items(client, count=3), await next_items(client, reviewer="ben")
        assert len({each["item"] for each in anna} | {each["item"] for each in ben}) == 6
        assert await next_items(client, reviewer="carl") == []
        check_problem(await decide(client, ben[0]["item"], "skip"), 409, "already_reviewed")


async def test_a_decision_can_be_undone_and_made_again(reviewing: Reviewing) -> None:
    async with reviewing() as client:
        await classify_some(client, 1)
        first, _ = await next_items(client)
        assert (await decide(client, first["item"], "none")).json() == {"item": first["item"], "undone": None}
        assert len(await next_items(client)) == 1
        assert (await decide(client, first["item"], "undo")).json() == {"item": first["item"], "undone": first}
        assert len(await next_items(client)) == 2


async def test_reviewers_are_known_by_their_api_key_too(reviewing: Reviewing, store: Store) -> None:
    async with reviewing(api_keys=("team:right",)) as client:
        check_problem(await client.get("/v1/reviews/next", params=ANNA), 401, "unauthorized")
        client.headers["X-API-Key"] = "right"
        await classify_some(client, 1)
        for each in await next_items(client):
            await decide(client, each["item"], "skip")
        with store.database.snapshot() as connection:
            assert set(connection.scalars(select(items.c.decided_by))) == {"team/anna"}


async def test_the_name_of_an_api_key_is_enough(reviewing: Reviewing, store: Store) -> None:
    async with reviewing(api_keys=("anna:right",)) as client:
        client.headers["X-API-Key"] = "right"
        await classify_some(client, 1)
        reply = (await client.get("/v1/reviews/next")).json()
        assert reply["reviewer"] == "anna"
        decision = {"item": reply["items"][0]["item"], "decision": "skip"}
        assert (await client.post("/v1/reviews", json=decision)).status_code == 200
        with store.database.snapshot() as connection:
            assert "anna" in connection.scalars(select(items.c.decided_by)).all()


async def test_only_keys_that_may_review_see_what_others_sent(reviewing: Reviewing) -> None:
    async with reviewing(api_keys=("shop:wrong", "anna:right"), review_keys=("anna",)) as client:
        client.headers["X-API-Key"] = "wrong"
        await classify_some(client, 1)
        for path in ("/v1/reviews/next", "/v1/reviews/next?reviewer=anna"):
            check_problem(await client.get(path), 403, "forbidden")
        check_problem(await decide(client, 1, "skip"), 403, "forbidden")
        assert (await client.get("/v1/reviews/precision")).status_code == 200
        client.headers["X-API-Key"] = "right"
        assert await next_items(client)


async def test_without_keys_a_reviewer_has_a_name(reviewing: Reviewing) -> None:
    async with reviewing() as client:
        response = await client.get("/v1/reviews/next")
        assert "reviewer" in check_problem(response, 422, "invalid_request")["detail"]


@pytest.mark.parametrize(
    ("decision", "named"),
    [
        ({"decision": "label"}, "label"),
        ({"decision": "skip", "label": "Blue"}, "label"),
        ({"decision": "label", "label": "Chartreuse"}, "label"),
        ({"decision": "label", "label": "Blue", "labels": ["Blue"]}, "label"),
        ({"decision": "label", "labels": []}, "labels"),
        ({"decision": "label", "labels": ["Summer", "Winter"]}, "label"),
        ({"decision": "perhaps"}, "decision"),
        ({"decision": "skip", "reviewer": ""}, "reviewer"),
        ({"decision": "skip", "item": 0}, "item"),
    ],
)
async def test_a_decision_that_says_nothing_is_refused(
    reviewing: Reviewing, decision: dict[str, Any], named: str
) -> None:
    async with reviewing() as client:
        await classify_some(client, 1)
        first, _ = await next_items(client)
        response = await client.post("/v1/reviews", json={**ANNA, "item": first["item"], **decision})
        assert named in check_problem(response, 422, "invalid_request")["detail"]


async def test_an_item_that_is_not_there_is_not_found(reviewing: Reviewing) -> None:
    async with reviewing() as client:
        for more in ({"decision": "skip"}, {"decision": "undo"}, {"decision": "label", "label": "Blue"}):
            response = await client.post("/v1/reviews", json={**ANNA, "item": 99, **more})
            check_problem(response, 404, "not_found")


async def test_reviews_are_off_without_a_store(client: Client) -> None:
    for path in ("/v1/reviews/next?reviewer=anna", "/v1/reviews/precision"):
        assert "CMA_CLIP_STORE" in check_problem(await client.get(path), 404, "not_found")["detail"]
    check_problem(await decide(client, 1, "skip"), 404, "not_found")


# ── the promise ─────────────────────────────────────────────────────────────────────────────────────────────────


async def precision(client: Client) -> dict[str, Any]:
    response = await client.get("/v1/reviews/precision")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_precision_is_of_accepted_labels_at_every_target_that_accepts_them(reviewing: Reviewing) -> None:
    async with reviewing() as client:
        answers = await classify_some(client, 12)
        await judge_all(client, answers, right=True)
        report = await precision(client)
        assert report["model"]["version"] == INFO.version
        assert report["confidence_level"] == 0.95
        assert len(report["promises"]) == len(TASKS) * 3 * len(Situation)
        for promise in report["promises"]:
            threshold = FakePredictor.threshold(promise["attribute"], promise["target"])
            confidences = [answer["attributes"][promise["attribute"]]["confidence"] for answer in answers]
            expected = sum(threshold is not None and confidence >= threshold for confidence in confidences)
            if promise["situation"] != "title":
                expected = 0
            assert (promise["judged"], promise["right"], promise["wrong"]) == (expected, expected, 0)
            assert promise["precision"] == (1 if expected else None)
            assert 0 <= promise["lower_bound"] <= promise["upper_bound"] == 1
            assert not promise["broken"]


async def test_metrics_say_what_was_found(reviewing: Reviewing) -> None:
    async with reviewing() as client:
        answers = await classify_some(client, 12)
        await judge_all(client, answers, right=False)
        await precision(client)
        of = {"attribute": "season", "situation": "title", "target": "0.9"}
        wrong = await client.metric("cma_clip_reviewed_total", **of, verdict="wrong")
        assert wrong > 0
        assert await client.metric("cma_clip_reviewed_total", **of, verdict="right") == 0
        assert await client.metric("cma_clip_reviewed_precision", **of) == 0
        assert 0 < await client.metric("cma_clip_reviewed_precision_upper_bound", **of) < 1
        assert await client.metric("cma_clip_reviewed_precision_lower_bound", **of) == 0
        assert await client.metric("cma_clip_reviewed_target_precision", **of) == 0.9


async def test_of_several_labels_all_that_fit_are_named_and_each_accepted_one_counts(
    store_url: str, tmp_path: Path
) -> None:
    async with in_process(
        SetPredictor(), store=store_url, store_files=str(tmp_path / "files"), review_share=1.0
    ) as client:
        await classify_some(client, 3, attributes=["material"])  # wool and cotton are accepted
        found = await next_items(client)
        assert [(each["attribute"], each["multi_valued"], each["label"]) for each in found] == [
            ("material", True, None)
        ] * 3
        wrong = await decide(client, found[0]["item"], "label", labels=["Wool", "Silk"])
        assert "material" in check_problem(wrong, 422, "invalid_request")["detail"]
        for each, labels in zip(found, (["Linen", "Wool"], ["Cotton", "Wool", "Wool"], ["Linen"]), strict=True):
            assert (await decide(client, each["item"], "label", labels=labels)).status_code == 200
        report = {
            (each["attribute"], each["situation"], each["target"]): each
            for each in (await precision(client))["promises"]
        }
        promise = report["material", "title", 0.95]
        assert (promise["judged"], promise["right"], promise["wrong"]) == (6, 3, 3)
        of = {"attribute": "material", "situation": "title", "target": "0.95"}
        assert await client.metric("cma_clip_reviewed_total", **of, verdict="wrong") == 3


@pytest.mark.parametrize("auto_abstain", [False, True])
async def test_a_broken_promise_is_withdrawn_where_that_is_configured(reviewing: Reviewing, auto_abstain: bool) -> None:
    async with reviewing(auto_abstain=auto_abstain) as client:
        answers = await classify_some(client, 60)
        await judge_all(client, answers, right=False)
        broken = [each for each in (await precision(client))["promises"] if each["broken"]]
        assert {(each["attribute"], each["target"]) for each in broken} >= {("season", 0.9), ("season", 0.95)}
        assert all(each["withdrawn"] is auto_abstain for each in broken)
        seasons = [answer["attributes"]["season"] for answer in await classify_some(client, 60)]
        thresholds = (await client.get("/v1/attributes")).json()["attributes"]["season"]["thresholds"]
        assert {each["abstention"] for each in seasons} == {"not_certified" if auto_abstain else None}
        assert thresholds["title"]["0.95"] == (None if auto_abstain else 0.5)
        assert thresholds["image"]["0.95"] == 0.5


async def test_a_replica_that_starts_knows_what_is_withdrawn(reviewing: Reviewing, store: Store) -> None:
    Records(store.database).withdraw([Promise("season", Situation.TITLE, 0.95)], MODEL, time.time())
    async with reviewing(auto_abstain=True) as client:
        await until(lambda: reviews_of(client).withdrawn)
        assert (await classify_some(client, 1))[0]["attributes"]["season"]["abstention"] == "not_certified"


async def test_a_withdrawn_promise_is_not_given_to_jobs(reviewing: Reviewing, store: Store) -> None:
    Records(store.database).withdraw([Promise("season", Situation.TITLE, 0.95)], MODEL, time.time())
    async with reviewing(auto_abstain=True) as client:
        await until(lambda: reviews_of(client).withdrawn)
        job = (await hand_in(client, "id,title\n" + "".join(f"{n},Shirt {n}\n" for n in range(20)))).json()["id"]
        await ended(client, job)
        rows = await rows_of(client, job)
        assert {row["season_abstention"] for row in rows} == {"not_certified"}
        assert "" in {row["baseColour_abstention"] for row in rows}


async def test_what_is_old_is_deleted(reviewing: Reviewing, store: Store) -> None:
    async with reviewing() as client:
        await classify_some(client, 1)
    with store.database.transaction() as connection:
        connection.execute(update(items).values(captured=0))
        connection.execute(update(listings).values(captured=0))
    async with reviewing():
        async with asyncio.timeout(10):
            while await asyncio.to_thread(count, store, listings):  # noqa: ASYNC110 - the database tells no event
                await asyncio.sleep(0.01)


async def test_the_page_is_served(client: Client) -> None:
    response = await client.get("/review")
    assert response.status_code == 200
    assert "default-src 'none'" in response.headers["content-security-policy"]
