"""Jobs on real servers that are killed again and again: is everything there in the end, once each?

    python -m tests.kill [--kills 6] [--seed 1] [--rows 600]

Two replicas share a PostgreSQL database, and one has an SQLite file. While jobs are handed in, looked at and fetched,
replicas are killed with SIGKILL at random moments, while they start too, and started again; PostgreSQL crashes and is
started again in between. Every job must end, with the very bytes of a run that nothing disturbed; handed in again under
its `Idempotency-Key` it must be the same job; its callback must be called, and not before its end; and once all jobs
are deleted, none of their files may be left.

The moments follow from the seed, which is printed; what they hit depends on the machine as well.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from signal import SIGKILL
from typing import Annotated, Any

import httpx
import typer
from sqlalchemy import update

from service.jobs.callbacks import SIGNATURE, TIMESTAMP, signed
from service.store import removals, tables
from service.store.store import Store
from tests.conftest import COLOURS, SHAPES, draw
from tests.deployment.processes import Replica, running
from tests.service.databases import PostgreSQL, running_postgresql

IMAGES = 200

CALM_SECONDS = 0.3, 8.0
"""Before a kill."""

EARLY = 0.25
"""Share of the kills that don't wait until the replica is ready."""

KILLS_BETWEEN_CRASHES = 3
"""Of replicas, before PostgreSQL crashes."""

PATIENCE_SECONDS = 600.0
"""A job that has not ended so long after the last kill never will, on the slowest of machines: a lease that a dead
replica held lasts 30 s."""

SECRET = "what signs callbacks"  # noqa: S105 - of the test

FORMS = ("csv", "jsonl")

LOGS = Path("build/kill")

BUGS = " CRITICAL ", "a shard has failed", "jobs go on after an error"
"""What the log has for errors that nobody has foreseen."""

Results = dict[str, bytes]


class LostError(Exception):
    """Something is missing, there twice, or another than it should be."""


# ── what is handed in ───────────────────────────────────────────────────────────────────────────────────────


def table_of(rows: int) -> bytes:
    """A table of titles and images, of which some rows are no listings and some images are none."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["id", "title", "image"])
    for row in range(rows):
        colour, shape = COLOURS[row % 4], SHAPES[row // 4 % 2]
        image = ("", f"{row % IMAGES}.png", "absent.png", "torn.png")[0 if row % 3 else 1 + (row % 17 == 0)]
        writer.writerow(["" if row % 101 == 100 else f"sku-{row}", f"Plain {colour} {shape} number {row}", image])
    return text.getvalue().encode()


def images() -> bytes:
    """A zip of small images."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for number in range(IMAGES):
            image = io.BytesIO()
            draw(COLOURS[number % 4], SHAPES[number // 4 % 2], number).save(image, "PNG")
            file.writestr(f"{number}.png", image.getvalue())
        file.writestr("torn.png", b"no image")
    return packed.getvalue()


# ── a caller who does not give up ───────────────────────────────────────────────────────────────────────────


class Caller:
    """Asks one replica after the other until one answers."""

    def __init__(self, replicas: Sequence[Replica], receiver: Receiver) -> None:
        self._replicas, self._receiver = replicas, receiver
        self._asked = 0

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Return the answer to a request, which is sent again where a replica is gone or busy."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        said = ""
        while time.monotonic() < deadline:
            self._asked += 1
            replica = self._replicas[self._asked % len(self._replicas)]
            try:
                answer = httpx.request(method, f"http://{replica.address}{path}", timeout=30, **options)
            except httpx.TransportError as error:
                said = repr(error)
            else:
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    return answer
                said = answer.text
            time.sleep(0.2)
        raise LostError(f"{method} {path} is not answered: {said}")

    def hand_in(self, table: bytes, packed: bytes, key: str) -> str:
        """Hand a job in, twice; return its id."""
        files = {"table": ("table.csv", table), "images": ("images.zip", packed)}
        headers = {"Idempotency-Key": key}
        fields = {"callback_url": self._receiver.url}
        answers = [self.send("POST", "/v1/jobs", files=files, data=fields, headers=headers) for _ in range(2)]
        for answer in answers:
            expect(answer.status_code == httpx.codes.ACCEPTED, f"handing in: {answer.status_code} {answer.text}")
        first, second = (str(answer.json()["id"]) for answer in answers)
        expect(first == second, f"one Idempotency-Key made the jobs {first} and {second}")
        return first

    def wait_for(self, job: str, calm: Callable[[], bool]) -> dict[str, Any]:
        """Return a job once it has ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        done = 0
        while True:
            found: dict[str, Any] = self.send("GET", f"/v1/jobs/{job}").json()
            now = int(found["rows"]["done"])
            expect(done <= now <= found["rows"]["total"], f"rows done went from {done} to {now} of {found['rows']}")
            done = now
            if found["status"] not in {"queued", "running"}:
                return found
            if not calm():
                deadline = time.monotonic() + PATIENCE_SECONDS
            expect(time.monotonic() < deadline, f"the job does not end: {found}")
            time.sleep(0.25)

    def wait_for_callback(self, job: str) -> None:
        """Wait until a job's end has been told."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while job not in self._receiver.told:
            expect(not self._receiver.trouble, f"a callback says {self._receiver.trouble}")
            found = self.send("GET", f"/v1/jobs/{job}").json()["callback"]
            expect(time.monotonic() < deadline, f"the callback does not come: {found}")
            time.sleep(0.25)

    def results(self, job: str) -> Results:
        """Return a job's results in each form."""
        found: Results = {}
        for form in FORMS:
            answer = self.send("GET", f"/v1/jobs/{job}/results?format={form}")
            expect(answer.status_code == httpx.codes.OK, f"results: {answer.status_code} {answer.text}")
            found[form] = answer.content
        return found

    def delete(self, job: str) -> None:
        """Delete a job; a request that is repeated may find it gone."""
        answer = self.send("DELETE", f"/v1/jobs/{job}")
        expect(answer.status_code in {httpx.codes.NO_CONTENT, httpx.codes.NOT_FOUND}, f"deleting: {answer.text}")
        expect(self.send("GET", f"/v1/jobs/{job}").status_code == httpx.codes.NOT_FOUND, f"{job} is not deleted")


def expect(holds: bool, otherwise: str) -> None:
    """Raise `LostError` where something does not hold."""
    if not holds:
        raise LostError(otherwise)


class Receiver:
    """Is told of ends by callbacks."""

    def __init__(self) -> None:
        self.told: Counter[str] = Counter()
        self.trouble: list[str] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.take(self.headers, body)
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, headers: Message, body: bytes) -> None:
        job = json.loads(body)
        if headers[SIGNATURE] != signed(SECRET, body, int(headers[TIMESTAMP]))[SIGNATURE]:
            self.trouble.append("what is not signed")
        if job["status"] != "done":
            self.trouble.append(f"{job['id']} is {job['status']}")
        self.told[job["id"]] += 1

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


# ── who kills ───────────────────────────────────────────────────────────────────────────────────────────────


class Killer(threading.Thread):
    """Kills replicas until it has killed enough, and starts those that have ended until it is told to stop."""

    def __init__(self, replicas: Sequence[Replica], database: PostgreSQL | None, kills: int, chance: Random) -> None:
        super().__init__(name="killer", daemon=True)
        self._replicas, self._database, self._wanted, self._chance = replicas, database, kills, chance
        self.kills = self.crashes = 0
        self.given_up = threading.Event()

    @property
    def done(self) -> bool:
        """Whether it kills no more."""
        return self.kills >= self._wanted

    def run(self) -> None:
        while self.kills < self._wanted and not self.given_up.is_set():
            replica = self._chance.choice(self._replicas)
            if self._chance.random() >= EARLY:
                self._wait_until(replica.answers)
            self._pause(self._chance.uniform(*CALM_SECONDS))
            replica.signal(SIGKILL)
            self.kills += 1
            if self._database is not None and self.kills % KILLS_BETWEEN_CRASHES == 0:
                self._pause(self._chance.uniform(*CALM_SECONDS) / 4)
                self._database.stop()
                self._pause(self._chance.uniform(0.0, 2.0))
                self._database.start()
                self.crashes += 1
        while not self.given_up.wait(0.1):
            self._tend()

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self._wait_until(lambda: time.monotonic() >= end)

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition() and not self.given_up.wait(0.05):
            self._tend()

    def _tend(self) -> None:
        """Start replicas that have ended, as Compose and Kubernetes do; one that finds no database ends by itself."""
        for replica in self._replicas:
            if not replica.running:
                replica.start()


# ── one run ─────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def replicas_on(store: str, folder: Path, count: int) -> Iterator[Sequence[Replica]]:
    """Run replicas that share a store."""
    settings = {
        "store": store,
        "store_files": folder / "files",
        "callback_secret": SECRET,
        "allow_private_image_hosts": True,
        "log_format": "text",
    }
    replicas = [Replica(folder, **settings) for _ in range(count)]
    with running(*replicas):
        yield replicas


def undisturbed(folder: Path, table: bytes, packed: bytes, receiver: Receiver) -> Results:
    """Return what a job gives that nothing disturbs."""
    with replicas_on(f"sqlite:///{folder / 'store.db'}", folder, 1) as replicas:
        caller = Caller(replicas, receiver)
        job = caller.hand_in(table, packed, "undisturbed")
        ended = caller.wait_for(job, lambda: True)
        expect(ended["status"] == "done", f"undisturbed, the job is {ended}")
        return caller.results(job)


def disturbed(caller: Caller, killer: Killer, work: tuple[bytes, bytes], expected: Results) -> int:
    """Hand in one job after the other while replicas are killed; return the number of jobs."""
    jobs = 0
    killer.start()
    try:
        while not jobs or not killer.done:
            job = caller.hand_in(*work, f"job {jobs}")
            ended = caller.wait_for(job, lambda: killer.done)
            expect(ended["status"] == "done", f"the job is {ended}")
            found = caller.results(job)
            for form in FORMS:
                expect(found[form] == expected[form], difference(found[form], expected[form]))
            caller.wait_for_callback(job)
            caller.delete(job)
            jobs += 1
    finally:
        killer.given_up.set()
        killer.join()
    return jobs


def difference(found: bytes, expected: bytes) -> str:
    """Say where results differ from those that nothing disturbed."""
    one, other = found.splitlines(), expected.splitlines()
    differing = [(at, *pair) for at, pair in enumerate(zip(one, other, strict=False), start=1) if pair[0] != pair[1]]
    first = "; in line {}\n  {!r} is, undisturbed,\n  {!r}".format(*differing[0]) if differing else ""
    return f"{len(one):,} lines of {len(other):,}, {len(differing):,} of them differ{first}"


def check_nothing_is_left(store: str, folder: Path) -> None:
    """Remove at once what is noted to be removed in a minute, and see that this was all."""
    opened = Store.open(store, str(folder / "files"))
    try:
        with opened.database.transaction() as connection:
            connection.execute(update(tables.removals).values(due=0.0))
        removals.sweep(opened.database, opened.files)
    finally:
        opened.close()
    left = [path for path in (folder / "files" / "jobs").rglob("*") if path.is_file()]
    expect(not left, f"{len(left)} files of deleted jobs are left, such as {left[:1]}")


def complaints(folder: Path) -> list[str]:
    """Return the lines of the replicas' logs that tell of a bug, and not of a database that is gone."""
    lines = (line for log in folder.glob("*.log") for line in log.read_text(errors="replace").splitlines())
    return [line for line in lines if any(bug in line for bug in BUGS)]


def keep_logs(folder: Path) -> None:
    """Keep the replicas' logs: what they say is all there is to go by."""
    LOGS.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.log"):
        shutil.copy(log, LOGS)
    print(f"the replicas' logs are in {LOGS}", file=sys.stderr)


def main(
    kills: Annotated[int, typer.Option(min=1, help="of replicas, with each kind of database")] = 6,
    seed: Annotated[int, typer.Option(help="another one kills at other moments")] = 1,
    rows: Annotated[int, typer.Option(min=1, help="of each job's table")] = 600,
) -> None:
    """Print what was survived; exit status 1 where something was lost, or is there twice."""
    work = table_of(rows), images()
    print(f"seed {seed}", flush=True)
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cma-clip-kill-")))
        folders = {name: root / name for name in ("undisturbed", "PostgreSQL", "SQLite")}
        for folder in folders.values():
            folder.mkdir()
        receiver = stack.enter_context(closing(Receiver()))
        expected = undisturbed(folders["undisturbed"], *work, receiver)
        server = stack.enter_context(running_postgresql())
        sqlite = f"sqlite:///{folders['SQLite'] / 'store.db'}"
        stores = {"PostgreSQL": (server.new_database(), 2, server), "SQLite": (sqlite, 1, None)}
        for name, (url, count, database) in stores.items():
            folder, begin = folders[name], time.monotonic()
            with replicas_on(url, folder, count) as replicas:
                killer = Killer(replicas, database, kills, Random(f"{seed} {name}"))
                try:
                    jobs = disturbed(Caller(replicas, receiver), killer, work, expected)
                    check_nothing_is_left(url, folder)
                except LostError as error:
                    keep_logs(folder)
                    sys.exit(f"failed with {name}, after {killer.kills} kills and {killer.crashes} crashes: {error}")
            crashed = f" and {killer.crashes} crashes of the database" if database else ""
            print(
                f"{name}, {count} replica{'s' if count > 1 else ''}: {killer.kills} kills{crashed} in "
                f"{time.monotonic() - begin:.0f} s; {jobs} jobs of {rows:,} rows, each as if nothing had happened",
                flush=True,
            )
            again = sum(receiver.told.values()) - len(receiver.told)
            print(f"  callbacks: one for each job, and {again} more in all", flush=True)
            if found := complaints(folder):
                keep_logs(folder)
                sys.exit("failed; the replicas complain:\n  " + "\n  ".join(found[:20]))


if __name__ == "__main__":
    typer.run(main)
