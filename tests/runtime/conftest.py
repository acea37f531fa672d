import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

TOPICS = ("network", "tensor", "graph")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for all tests: an executor that finds it running must leave it running."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def topic_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short texts of unequal length about three topics, as JSON lines."""
    folder = tmp_path_factory.mktemp("topics")
    draw = random.Random(7)
    for name, count in (("train", 120), ("test", 40)):
        rows = []
        for _ in range(count):
            topic = draw.choice(TOPICS)
            words = [draw.choice([topic, "node", "value", "list", "a", "the"]) for _ in range(draw.randint(3, 14))]
            rows.append(json.dumps({"text": " ".join([topic, *words]), "label": topic}))
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return folder
