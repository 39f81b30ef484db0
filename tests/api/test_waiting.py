"""Following jobs: how often many followers look, and that the end is told at once."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from pipeline.api.waiting import LOOKS_PER_S, CompletionWaiter, Followers
from tests.api.conftest import Deployment

USUAL_S = 0.4


def test_the_followers_of_a_keys_jobs_look_a_bounded_number_of_times_and_delay_no_others(
    deployment: Deployment,
) -> None:
    followers = Followers(CompletionWaiter(deployment.service.store, poll_s=0.05), pause_s=USUAL_S)
    looks: list[float] = []
    with ExitStack() as stack:
        for count in range(1, 1001):
            stack.enter_context(followers.joined("busy"))
            looks.append(count / followers.pause_s("busy"))
        assert followers.pause_s("another") == USUAL_S
    assert followers.pause_s("busy") == USUAL_S and looks[0] == 1 / USUAL_S
    assert max(looks) <= LOOKS_PER_S + 1e-9


def test_a_long_pause_ends_with_the_job(deployment: Deployment) -> None:
    store = deployment.service.store
    job = store.get(deployment.submit()["id"], api_key_id=None)
    followers = Followers(CompletionWaiter(store, poll_s=0.05), pause_s=USUAL_S)

    async def follow() -> None:
        with ExitStack() as stack:
            for _ in range(100_000):
                stack.enter_context(followers.joined(job.api_key_id))
            pause = asyncio.create_task(followers.pause(job))
            await asyncio.sleep(0.2)
            assert not pause.done()
            await asyncio.to_thread(deployment.finish, job.id)
            await pause

    asyncio.run(asyncio.wait_for(follow(), 60))
