"""To which Ray a run goes."""

import socket

import pytest
import ray

from elsa_ray.config.errors import InputError
from elsa_ray.runtime.cluster import join_cluster


def test_a_process_that_is_connected_stays_with_its_cluster(ray_cluster: None) -> None:
    cluster = join_cluster(None)
    assert cluster.address == ray.get_runtime_context().gcs_address
    cluster.leave()
    assert ray.is_initialized(), "a cluster that was found is never shut down"


def test_another_address_than_the_connected_one_is_refused(ray_cluster: None) -> None:
    with pytest.raises(InputError, match=r"--address: found 127\.0\.0\.1:1; allowed: .* is connected to that cluster"):
        join_cluster("127.0.0.1:1")


def test_an_address_where_nobody_answers_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray itself would try for minutes"))
    with pytest.raises(InputError, match=r"--address: found 127\.0\.0\.1:1 \(.*refused\); allowed: the address of a"):
        join_cluster("127.0.0.1:1")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InputError, match=r"RAY_ADDRESS: found 127\.0\.0\.1:1"):
        join_cluster(None)


def test_a_cluster_that_refuses_is_told_from_one_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that asks for a token does not say so."""

    def refuse(**options: object) -> None:
        raise RuntimeError("Failed to connect to Ray cluster")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match=r"Failed to connect .*a token, set RAY_AUTH_MODE=token"):
            join_cluster(address)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        with pytest.raises(InputError, match=r"none to start one here$"):
            join_cluster(address)
    monkeypatch.delenv("RAY_AUTH_MODE")
    with pytest.raises(InputError, match=r"none to start one here$"):
        join_cluster(address)
