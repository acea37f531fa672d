"""What becomes of a client whose own computation fails, and what the user sees of it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from elsa_ray.cli import run_command
from elsa_ray.runtime import ray_executor
from elsa_ray.runtime.failure import WorkerError
from elsa_ray.runtime.watch import Watch
from tests.runtime.fragile_codec import chains
from tests.runtime.runs import Finished, execute, same_adapters, small_config
from tests.runtime.test_executors_agree import assert_same_run, assert_same_timeline

RAISES = {"what": "raise", "client": 1, "round": 0, "step": 1}
FEW_ACTORS = ("runtime.pools=1", "numerics.edges_per_group=2", "topology.clients=5")


def run(
    data: Path,
    *incidents: dict[str, Any],
    policy: dict[str, str] | None = None,
    set_: Any = (),
    executor: str = "inline",
) -> Finished:
    protocol = {"rounds": 2, "edge_rounds": 2, "codec": chains(*incidents), "client_failure": policy or {}}
    return execute(small_config(data, *FEW_ACTORS, *set_, **protocol), executor)


class TestAnError:
    def test_it_stops_the_run_and_names_the_one_client(self, topic_data: Path) -> None:
        message = (
            r"^training: round 0, client 1: activation_up of step 1: ValueError: a planted fault "
            r"\(protocol\.client_failure\.raises: drop goes on without the client\)$"
        )
        with pytest.raises(WorkerError, match=message) as caught:
            run(topic_data, RAISES)
        assert "fragile_codec.py" in caught.value.cause_traceback

    def test_what_is_wrong_with_its_message_is_its_error_at_the_edge_too(self, topic_data: Path) -> None:
        """The edge encodes for it there; nobody else has to do with it."""
        with pytest.raises(
            WorkerError, match=r"^edge backward, step 0: round 1, client 3: gradient_down of step 0: Value"
        ):
            run(topic_data, {"what": "raise", "client": 3, "round": 1, "role": "gradient_down"})

    def test_dropped_it_has_no_weight_in_the_whole_round_and_costs_what_was_planned(
        self, topic_data: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """With one client a cohort the others' numbers are those of a run in which it sends nothing of value."""
        alone = ("numerics.cohort=1",)
        dropped = run(topic_data, RAISES, policy={"raises": "drop"}, set_=alone)
        worthless = run(topic_data, set_=(*alone, "world.misbehaviour=[{kind: nan_payload, clients: [1]}]"))
        first, second = dropped.rounds
        assert same_adapters(Finished(dropped.prepared, [first]), Finished(worthless.prepared, [worthless.rounds[0]]))
        assert [report.failed for report in (first.report, second.report)] == [(1,), ()]
        assert {failure.key.edge_round: failure.reason for failure in first.results.failures} == {
            0: "training: round 0, client 1: activation_up of step 1: ValueError: a planted fault",
            1: "training: round 0, client 1: dropped earlier in the round",
        }
        assert {key.client for key in first.results.losses} == {0, 2, 3, 4}
        assert_same_timeline(dropped, run(topic_data, executor="none"))
        assert "a planted fault; dropped from this round" in caplog.text and "fragile_codec.py" in caplog.text

    def test_dropped_it_hardly_touches_the_members_of_its_cohort(self, topic_data: Path) -> None:
        """Its rows are empty, so that the others may be padded to another length: other bits, the same numbers."""
        dropped = run(topic_data, RAISES, policy={"raises": "drop"})
        worthless = run(topic_data, set_=["world.misbehaviour=[{kind: nan_payload, clients: [1]}]"])
        ours, theirs = (finished.rounds[0].state.adapters for finished in (dropped, worthless))
        assert all(torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6) for name in theirs)

    def test_where_all_are_dropped_the_model_stays(self, topic_data: Path) -> None:
        incidents = [{**RAISES, "client": client} for client in range(5)]
        first, second = run(topic_data, *incidents, policy={"raises": "drop"}).rounds
        assert first.report.failed == (0, 1, 2, 3, 4) and first.report.train_loss is None
        before, after = first.state.adapters, second.state.adapters
        assert any(not torch.equal(before[name], after[name]) for name in before), "all are there again"

    def test_whose_keys_were_to_be_made_then_makes_them_later(self, topic_data: Path) -> None:
        codec = chains(RAISES)
        codec["activation"] = [{"kind": "subspace", "rank": 16, "refresh_rounds": 3}, *codec["activation"]]
        protocol = {"rounds": 2, "codec": codec, "client_failure": {"raises": "drop"}}
        finished = execute(small_config(topic_data, *FEW_ACTORS, **protocol), "inline")
        assert [sorted(each.state.calibrated.items()) for each in finished.rounds] == [
            [(0, 0), (2, 0), (3, 0), (4, 0)],
            [(0, 0), (1, 1), (2, 0), (3, 0), (4, 0)],
        ]
        assert finished.rounds[1].report.failed == ()

    def test_tried_again_it_may_succeed_without_a_trace(self, topic_data: Path, tmp_path: Path) -> None:
        once = {**RAISES, "once": str(tmp_path / "raised")}
        tried_again = run(topic_data, once, policy={"raises": "retry"})
        assert (tmp_path / "raised").exists()
        assert_same_run(tried_again, run(topic_data))

    def test_tried_again_in_vain_it_stops_the_run(self, topic_data: Path) -> None:
        with pytest.raises(
            WorkerError, match=r"a planted fault; tried 3 times \(protocol\.client_failure\.raises: drop"
        ):
            run(topic_data, RAISES, policy={"raises": "retry"}, set_=["runtime.retries=2"])


def test_who_asks_for_more_memory_than_there_is_is_named_with_what_it_asked_for(topic_data: Path) -> None:
    exhausts = {**RAISES, "what": "exhaust"}
    message = (
        r"^training: round 0, client 1: activation_up of step 1: RuntimeError: .*can't allocate memory: you tried .*"
    )
    with pytest.raises(WorkerError, match=message + r" \(protocol\.client_failure\.raises: drop goes on") as caught:
        run(topic_data, exhausts)
    assert "\n" not in str(caught.value)
    dropped = run(topic_data, exhausts, policy={"raises": "drop"})
    assert_same_run(dropped, run(topic_data, RAISES, policy={"raises": "drop"}))


class TestNumbersThatAreNone:
    NAN = {"what": "nan", "client": 1, "round": 0, "step": 1}

    def test_by_default_the_client_has_no_weight(self, topic_data: Path) -> None:
        first = run(topic_data, self.NAN).rounds[0]
        assert first.report.failed == (1,)
        assert all(torch.isfinite(tensor).all() for tensor in first.state.adapters.values())
        assert first.report.train_loss is not None and first.report.train_loss < 10

    def test_the_run_can_stop_for_it(self, topic_data: Path) -> None:
        with pytest.raises(
            WorkerError, match=r"^training: round 0, client 1: the loss or the adapters are not finite \("
        ):
            run(topic_data, self.NAN, policy={"diverges": "stop"})

    def test_it_shows_even_where_the_update_hides_it(self, topic_data: Path) -> None:
        """Of an update the largest quarter is sent: NaN is not among it, but the client knows."""
        codec = {**chains(self.NAN), "update": [{"kind": "topk", "share": 0.25}, {"kind": "int8"}]}
        finished = execute(small_config(topic_data, *FEW_ACTORS, rounds=1, codec=codec), "inline")
        assert finished.rounds[0].report.failed == (1,)


def test_who_hangs_is_told_of_and_then_dropped_as_who_raises(
    topic_data: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(ray_executor, "Watch", lambda status: Watch(said.append))
    hangs, patience = {**RAISES, "what": "hang", "client": 3}, ["runtime.timeout_seconds=15 s", "runtime.in_flight=1"]
    by_ray = run(topic_data, hangs, policy={"hangs": "drop"}, set_=patience, executor="ray")
    assert_same_run(by_ray, run(topic_data, {**RAISES, "client": 3}, policy={"raises": "drop"}))
    assert by_ray.rounds[0].results.failures[0].reason == (
        "training: round 0, client 3: activation_up of step 1: no progress for 15 s (runtime.timeout_seconds)"
    )
    waits = r"waiting \d+ s for pool-0, cohort edge-group-0/0/1: training: activation_up of step 1 \(\d+ s\)"
    assert any(re.fullmatch(waits, text) for text in said), said


def test_whose_worker_is_killed_is_dropped_with_its_cohort(topic_data: Path, ray_cluster: None) -> None:
    """As by a lack of memory: nobody is left to tell which member it was."""
    policy, set_ = {"kills_worker": "drop"}, ["runtime.retries=0", "runtime.in_flight=1"]
    by_ray = run(topic_data, {**RAISES, "what": "die"}, policy=policy, set_=set_, executor="ray")
    assert_same_run(by_ray, run(topic_data, RAISES, {**RAISES, "client": 0}, policy={"raises": "drop"}))
    failures = by_ray.rounds[0].results.failures
    assert [failure.key.client for failure in failures] == [0, 1, 0, 1]
    assert failures[0].reason.startswith(
        "cohort edge-group-0/0/0 (round 0, client 0, 1): the worker that trained it died once in a row "
        "(runtime.retries: 0); the last time: pool-0 to train cohort edge-group-0/0/0: ActorDiedError: "
    )


def test_a_run_that_fails_keeps_its_rounds_and_says_why(
    topic_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    protocol = {"rounds": 3, "codec": chains({**RAISES, "round": 1}, {**RAISES, "round": 2, "client": 0})}
    config = small_config(topic_data, *FEW_ACTORS, "runtime.executor=inline", **protocol).model_dump(mode="json")
    config["protocol"]["client_failure"]["raises"] = "drop"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = ["run", str(tmp_path / "config.yaml"), "--out"]
    assert run_command([*command, str(tmp_path / "dropped")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "dropped" / "rounds.jsonl").read_text().splitlines()]
    reason = "training: round 1, client 1: activation_up of step 1: ValueError: a planted fault"
    assert lines[1]["failed"] == [1]
    assert lines[1]["failures"] == [{"round_index": 1, "edge_round": 0, "client": 1, "reason": reason}]
    assert "a planted fault" in (tmp_path / "dropped" / "run.log").read_text()

    config["protocol"]["client_failure"]["raises"] = "stop"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert run_command([*command, str(tmp_path / "stopped")]) == 1
    said = capfd.readouterr().err
    assert f"elsa-ray: {reason} (protocol.client_failure.raises: drop goes on without the client)" in said
    assert "fragile_codec.py" in said
    assert len((tmp_path / "stopped" / "rounds.jsonl").read_text().splitlines()) == 1
    summary = json.loads((tmp_path / "stopped" / "summary.json").read_text())
    assert (summary["rounds_completed"], summary["stop_reason"]) == (1, "failed")

    # No client has failed in what is finished: it can go on by another policy, and is then a run by that one.
    go_on = ["run", "--resume", str(tmp_path / "stopped"), "--set", "protocol.client_failure.raises=drop"]
    assert run_command(go_on) == 0
    resumed = [json.loads(line) for line in (tmp_path / "stopped" / "rounds.jsonl").read_text().splitlines()]
    for line in (*lines, *resumed):
        line.pop("wall_seconds")
    assert resumed == lines
