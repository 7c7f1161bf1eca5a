"""What /health and /metrics promise: the truth about each part, and numbers Prometheus can read."""

from __future__ import annotations

import json
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from storage.records import Role
from tests.app.places import Place, place, promote
from tests.serving.adapters import grouped


def test_health_tells_each_part(tmp_path: Path) -> None:
    """All is ok while the champion answers; 503 when its adapter is missing or vLLM is down; no address is shown."""
    with place(tmp_path / "data") as here, here.client(None) as client:
        assert client.get("/health").json() == {
            "status": "ok",
            "web": "ok",
            "database": "ok",
            "champion": "assistant@0",
            "replicas": [{"healthy": True, "champion_loaded": True}],
        }
        name = promote(here.store, here.users[Role.ADMIN], here.fake, tmp_path)
        assert client.get("/health").json()["champion"] == name
        here.fake.adapters.clear()
        missing = client.get("/health")
        assert missing.status_code == 503
        assert missing.json()["replicas"] == [{"healthy": True, "champion_loaded": False}]
        here.fake.stop()
        down = client.get("/health")
        assert (down.status_code, down.json()["status"]) == (503, "unavailable")
        assert down.json()["replicas"] == [{"healthy": False, "champion_loaded": False}]
        assert here.fake.url.rpartition(":")[2] not in down.text


def test_a_champion_that_lacks_an_adapter_is_not_loaded(tmp_path: Path) -> None:
    """With instruction groups a replica is ready once it has every group's adapter."""
    with place(tmp_path / "data") as here, here.client(None) as client:
        first, _ = (promote(here.store, here.users[Role.ADMIN], here.fake, tmp_path) for _ in range(2))
        manifest = {"groups": grouped(tmp_path, ["a", "b"], [1, None])}
        here.store.database.run(
            "UPDATE generations SET manifest = ? WHERE number = 2", [json.dumps(manifest)]
        )
        assert client.get("/health").json()["status"] == "ok"
        del here.fake.adapters[first]
        assert client.get("/health").json()["replicas"] == [{"healthy": True, "champion_loaded": False}]


def test_metrics_count_what_happened(here: Place) -> None:
    """Replies, tokens, refusals, queue and champion appear with their values."""
    with here.client(Role.ADMIN) as client:
        client.post(
            "/v1/chat/completions",
            json={"model": "assistant", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4},
        ).raise_for_status()
        unknown = {"model": "assistant@7", "messages": [{"role": "user", "content": "Hi"}]}
        client.post("/v1/chat/completions", json=unknown)
        text = client.get("/metrics").text
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["llaca_replies_total", "assistant@0", "complete"] == 1
    assert found["llaca_tokens_total", "completion"] == 4
    assert found["llaca_refused_chats_total", "unknown_generation"] == 1
    assert found["llaca_first_token_seconds_count",] == 1
    assert found["llaca_chats_running",] == 0
    assert found["llaca_datasets", "queued"] == 0
    assert found["llaca_champion_generation",] == 0


def test_metrics_follow_accuracy_and_forgetting(tmp_path: Path) -> None:
    """Per task: the champion's score, and how much better a served generation once was."""
    with place(tmp_path / "data") as here, here.client(Role.ADMIN) as client:
        for scores in ({1: 0.9}, {1: 0.6, 2: 0.8}):
            promote(here.store, here.users[Role.ADMIN], here.fake, tmp_path)
            number = here.store.generations.champion()
            for dataset, score in scores.items():
                row = here.store.datasets.rows(dataset)[0].id
                here.store.database.insert(
                    "answers",
                    {
                        "round_id": number,
                        "generation": number,
                        "dataset_id": dataset,
                        "row_id": row,
                        "answer": "x",
                        "score": score,
                    },
                )
        lines = client.get("/metrics").text.splitlines()
    assert 'llaca_task_accuracy{dataset="1"} 0.6' in lines
    assert any(line.startswith('llaca_task_forgetting{dataset="1"} 0.3') for line in lines)
    assert 'llaca_task_forgetting{dataset="2"} 0.0' in lines
