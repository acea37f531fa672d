"""What is done when the training of a cohort fails: once more, without some members, or not at all."""

from __future__ import annotations

from collections.abc import Collection

from elsa_ray.config.failure import ClientFailureConfig
from elsa_ray.runtime.failure import WorkerError, WorkerLostError, times
from elsa_ray.training.cohort import Cohort
from elsa_ray.training.failure import ClientError, ClientFailure, ClientHangError, clients_text
from elsa_ray.world.plan import WorkKey

MEMORY_HINT = (
    "if its node ran out of memory, lower numerics.cohort, runtime.in_flight or runtime.pools; Ray's logs tell more"
)


class Attempts:
    """Decides for one cohort, failure after failure; each decision is a function of the failures so far.

    Args:
        cohort: whose training it is.
        policy: what is done about clients.
        retries: how often the same work is done again.
        gone: clients that were dropped earlier in the round: they may lack what that work was to leave behind.
    """

    def __init__(self, cohort: Cohort, policy: ClientFailureConfig, retries: int, gone: Collection[int] = ()) -> None:
        self._cohort, self._policy, self._retries = cohort, policy, retries
        self._again = 0
        self._deaths = 0
        self.failures: dict[WorkKey, ClientFailure] = {}
        for member in cohort.members:
            if member.key.client in gone:
                self._drop((member.key,), f"training: {clients_text([member.key])}: dropped earlier in the round")

    @property
    def failed(self) -> frozenset[WorkKey]:
        """Members that are left out from now on."""
        return frozenset(self.failures)

    def after_client(self, error: ClientError) -> str:
        """Decide what follows an error of clients, and return it in words.

        Raises:
            WorkerError: the run stops.
        """
        hangs = isinstance(error, ClientHangError)
        field, action = "hangs" if hangs else "raises", self._policy.hangs if hangs else self._policy.raises
        if action == "drop":
            self._drop(error.keys, str(error))
            return f"{error}; dropped from this round"
        if action == "retry" and self._again < self._retries:
            self._again += 1
            return f"{error}; once more ({self._again} of {self._retries})"
        tried = f"; tried {self._again + 1} times" if self._again else ""
        hint = f"protocol.client_failure.{field}: drop goes on without the client"
        raise WorkerError(f"{error}{tried} ({hint})", error.cause_traceback)

    @property
    def wants_to_be_alone(self) -> bool:
        """Whether the cohort has lost a pool: if the next one dies too, no other cohort shall be suspected."""
        return self._deaths > 0

    def after_death(self, loss: WorkerLostError, *, was_alone: bool) -> str:
        """Decide what follows the death of the pool that trained the cohort, and return it in words.

        Args:
            loss: of the pool.
            was_alone: whether the pool trained nothing else. Who was not may have no part in it, and is not dropped:
                that would make the numbers depend on who shares a pool with whom.

        Raises:
            WorkerError: the run stops.
        """
        self._deaths += 1
        if self._deaths <= self._retries:
            return f"{loss}; its work is done again ({self._deaths} of {self._retries})"
        keys = tuple(member.key for member in self._cohort.members if member.key not in self.failures)
        text = (
            f"cohort {self._cohort.name} ({clients_text(keys)}): the worker that trained it died "
            f"{times(self._deaths)} in a row (runtime.retries: {self._retries}); the last time: {loss}"
        )
        if self._policy.kills_worker == "drop" and was_alone:
            self._drop(keys, text)
            return f"{text}; dropped from this round"
        raise WorkerError(f"{text}; {MEMORY_HINT}", loss.cause_traceback)

    def after_divergence(self, diverged: tuple[WorkKey, ...]) -> None:
        """Decide what follows from numbers that are not finite.

        Raises:
            WorkerError: the run stops.
        """
        if diverged and self._policy.diverges == "stop":
            raise WorkerError(
                f"training: {clients_text(diverged)}: the loss or the adapters are not finite "
                "(protocol.client_failure.diverges: drop goes on without the client)"
            )

    def _drop(self, keys: tuple[WorkKey, ...], reason: str) -> None:
        self.failures |= {key: ClientFailure(key, reason) for key in keys}
