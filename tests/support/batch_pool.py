"""Tests run this as a separate process: a pool in batch mode on the Ray at RAY_ADDRESS; prints its answers as JSON.

python -m tests.support.batch_pool LEDGER_URI CONFIG_JSON COUNT
"""

import json
import sys

import ray

from actors.ledger.handle import Ledger
from actors.teachers.pool import TeacherPool
from potstill.config.teacher import OpenAITeacher
from tests.support.batch_requests import requests

if __name__ == "__main__":
    uri, config, count = sys.argv[1:]
    teacher = OpenAITeacher(**json.loads(config))
    ray.init(log_to_driver=False)
    with TeacherPool(teacher, Ledger(uri)) as pool:
        table = pool.ask(requests(teacher, int(count)))
    print("ANSWERS", json.dumps(table.select(["request_id", "text", "error", "reused"]).to_pylist()))
