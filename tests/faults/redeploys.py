"""R22: a node that is redeployed again and again under load: `python -m tests.faults.redeploys --times 20`.

A real node with the command line of an operator. Its clients do what every client does: they try again what was not
answered, or answered 503, with the same idempotency key.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import httpx
import msgspec

from tests.faults.reconcile import Record, record, told
from tests.support.node import NodeUnderTest

_CLIENTS: Final = 2
"""Of each kind."""
_PAUSE_S: Final = 0.1
_NOTHING_ENDS_S: Final = 60.0
"""So long without a run that ends, and what has not ended by then is lost; while some end, others wait for their turn."""
_TIMES: Final = 20
_EXAMPLES: Final = 5
_TOLD: Final = 1_000
"""Characters of what a redeploy that failed said last."""
_DONE: Final = frozenset({"succeeded", "failed", "cancelled"})


class Load:
    """Clients that create runs and ask the gateway until told to stop, and remember what they were promised.

    Half of them keep their connections, half come with a new one each time: both can be cut off by a server that leaves.
    """

    def __init__(self, node: NodeUnderTest, *, looks: int = 0) -> None:
        self._node = node
        self._looks = looks
        """Requests about each run that a client creates, before its next: they cost the node much less than a run."""
        self._ends = asyncio.Event()
        self.acked: list[str] = []
        self.answers: Counter[int] = Counter()
        self.refused = 0
        """Requests that met no listener."""
        self.unanswered: Counter[str] = Counter()
        """Requests that were cut off, by the error."""

    def end(self) -> None:
        self._ends.set()

    async def create(self, client: int) -> None:
        async with self._client(self._node.stack_a, keep=client % 2 == 0) as http:
            number = 0
            while not self._ends.is_set():
                number += 1
                headers = {"Idempotency-Key": f"redeploy-{client}-{number}"}
                body = {"input": "What is 6 * 7?"}
                answer = await self._answered(http, "/v1/agents/agt_demo/runs", body, headers, httpx.codes.ACCEPTED)
                self.acked.append(run_id := answer.json()["run_id"])
                for _ in range(self._looks):
                    await asyncio.sleep(_PAUSE_S)
                    if self._ends.is_set():
                        break
                    await self._answered(http, f"/v1/runs/{run_id}", None, {}, httpx.codes.OK)
                await asyncio.sleep(_PAUSE_S)

    async def chat(self, client: int) -> None:
        async with self._client(self._node.stack_b, keep=client % 2 == 0) as http:
            while not self._ends.is_set():
                body = {"model": "agentos-demo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 50}
                await self._answered(http, "/v1/chat/completions", body, {}, httpx.codes.OK)
                await asyncio.sleep(_PAUSE_S)

    def _client(self, base_url: str, *, keep: bool) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=base_url,
            headers={"Authorization": f"Bearer {self._node.app_key()}"},
            timeout=10,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=None if keep else 0),
        )

    async def _answered(
        self,
        http: httpx.AsyncClient,
        path: str,
        body: Mapping[str, object] | None,
        headers: Mapping[str, str],
        wanted: int,
    ) -> httpx.Response:
        """To a GET without a body."""
        while True:
            try:
                answer = await http.request("GET" if body is None else "POST", path, json=body, headers=headers)
            except httpx.ConnectError:
                self.refused += 1
                await asyncio.sleep(_PAUSE_S)
                continue
            except httpx.TransportError as error:
                self.unanswered[f"{path} {type(error).__name__}: {error}"] += 1
                await asyncio.sleep(_PAUSE_S)
                continue
            self.answers[answer.status_code] += 1
            if answer.status_code == wanted:
                return answer
            await asyncio.sleep(float(answer.headers.get("Retry-After", _PAUSE_S)))

    async def unfinished(self) -> dict[str, str]:
        """Runs that were promised and are not there, or have no end when no others end any more, with how they stand."""
        left = dict.fromkeys(self.acked, "not asked")
        over = time.monotonic() + _NOTHING_ENDS_S
        async with httpx.AsyncClient(
            base_url=self._node.stack_a, headers={"Authorization": f"Bearer {self._node.app_key()}"}, trust_env=False
        ) as http:
            while left and time.monotonic() < over:
                for run_id in list(left):
                    answer = await http.get(f"/v1/runs/{run_id}")
                    left[run_id] = answer.json().get("status", f"answered {answer.status_code}")
                    if left[run_id] in _DONE:
                        del left[run_id]
                        over = time.monotonic() + _NOTHING_ENDS_S
                await asyncio.sleep(1)
            for run_id in list(left)[:_EXAMPLES]:
                steps = (await http.get(f"/v1/runs/{run_id}/steps")).json().get("items") or [{}]
                last = {what: steps[-1].get(what) for what in ("n", "name", "status", "started_at")}
                left[run_id] = f"{left[run_id]} {len(steps)} steps, {last} at {datetime.now(UTC):%T}"
        return left


async def redeployed(node: NodeUnderTest, times: int, *, looks: int = 0) -> Record:
    load = Load(node, looks=looks)
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(ask(client)) for ask in (load.create, load.chat) for client in range(_CLIENTS)]
        failed: list[str] = []
        for _ in range(times):
            done = await asyncio.to_thread(node.agentos, "redeploy")
            if done.returncode:
                failed.append(done.stderr[-_TOLD:])
        load.end()
        await asyncio.wait(clients)
    ended = time.monotonic()
    left = await load.unfinished()
    answered = load.answers.total()
    errors = sum(count for status, count in load.answers.items() if status >= 500)
    return record(
        "R22",
        {
            "lost": len(left),
            "share_of_5xx": errors / answered if answered else 1.0,
            "refused": load.refused,
            "cut_off": load.unanswered.total(),
            "redeploys_failed": len(failed),
        },
        limits={"share_of_5xx": 0.001},
        redeploys=times,
        acked=len(load.acked),
        twice=len(load.acked) - len(set(load.acked)),
        answers=", ".join(f"{status}={count}" for status, count in sorted(load.answers.items())),
        left=", ".join(
            f"{status}={count}" for status, count in Counter(how.split()[0] for how in left.values()).items()
        ),
        seconds=round(ended - began, 1),
        settled_s=round(time.monotonic() - ended, 1),
        failed=failed[:_EXAMPLES],
        examples=[*(f"{run_id} {status}" for run_id, status in left.items()), *load.unanswered][:_EXAMPLES],
    )


def entitle(node: NodeUnderTest) -> None:
    """What is asked of the node is what it is able to do, not what a tenant may."""
    more = ("--runs-per-minute", "1000000", "--max-queued-runs", "1000000", "--tokens-per-day", "1000000000")
    done = node.agentos("tenant", "quota", "tnt_demo", *more)
    assert done.returncode == 0, done.stderr


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.redeploys", description=__doc__)
    parser.add_argument("--times", type=int, default=_TIMES, help="redeploys (%(default)s)")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="agentos-redeploys-") as place:
        node = NodeUnderTest(Path(place) / "home")
        try:
            node.up()
            entitle(node)
            found = asyncio.run(redeployed(node, given.times))
        finally:
            node.agentos("nuke", "--hard", "--yes-really")
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    sys.stdout.flush()
    sys.stderr.write(told(found) + "\n")
    return 0 if found.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
