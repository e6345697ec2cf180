"""Tests run and kill this as a separate process: it asks in batches without Ray and prints the outcome.

python -m tests.support.batch_driver LEDGER_URI CONFIG_JSON COUNT OWNER
"""

import asyncio
import json
import sys

from actors.ledger.store import LedgerStore
from actors.teachers.batch import BatchTeacherActor
from actors.teachers.batch_job import BatchOptions
from potstill.config.teacher import OpenAITeacher
from tests.support.batch_requests import requests
from tests.support.near import NearLedger, NearLimiter


async def drive(uri: str, config: OpenAITeacher, count: int, owner: str) -> None:
    """Answer ``count`` requests."""
    options = BatchOptions(gather_s=0.2, unsure_s=20.0)
    actor = BatchTeacherActor(config, NearLedger(LedgerStore(uri)), owner, NearLimiter(config), options)
    print("STARTED", flush=True)
    answers = await actor.answer(requests(config, count))
    print("ANSWERS", json.dumps([[one.response.error, one.reused] for one in answers]), flush=True)
    await actor.close()


if __name__ == "__main__":
    place, settings, number, name = sys.argv[1:]
    asyncio.run(drive(place, OpenAITeacher(**json.loads(settings)), int(number), name))
