"""What an attacker would see of rows of its own, sent through the codecs; and what an oracle shows it of known ones.

Where the attacker lacks a client's key it takes one of its own making: of public states, and of its own seed.
Shapes: T rows, D hidden width.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from elsa_ray.codecs.chain import CodecChain, Memory, matching_memory
from elsa_ray.codecs.codec import CodecContext, Maker
from elsa_ray.codecs.ssop import Ssop
from elsa_ray.privacy.capture import Observed, Truth, role_memory
from elsa_ray.tasks.seeds import derive_seed
from elsa_ray.training.recipe import Recipe
from elsa_ray.world.plan import WorkKey
from elsa_ray.world.roles import Role

NUM_KEYS = 32
"""Keys of its own that an attacker learns from; it tries its settings on one more."""

_ALL = frozenset(Maker)


class OwnChannel:
    """The codecs as the attacker can run them itself.

    Args:
        recipe: codecs and the public seeds of their hashes; never the seed of the run's secrets.
        observed: the keys and bases that the attacker has.
        public_TD: public states, of which it makes keys of its own.
        seed: the attacker's own.
    """

    def __init__(self, recipe: Recipe, observed: Observed, public_TD: Tensor, seed: int) -> None:
        self._recipe, self._observed = recipe, observed
        chain = recipe.chains.activation
        contexts = [own_context(seed, number) for number in range(NUM_KEYS + 1)] if chain.is_calibrated else []
        self._own = [chain.calibrate(public_TD, context, (), _ALL) for context in contexts]

    def seen(self, role: Role, rows_TD: Tensor, work: WorkKey, number: int, *, key_known: bool = False) -> Tensor:
        """Return what the attacker would see of rows, had they been sent in a work item under its own keys.

        Args:
            role: ``activation_up`` or ``gradient_up``.
            rows_TD: to send.
            work: whose bases and public hashes serve.
            number: which of the attacker's keys stands in for what it lacks, 0 to ``NUM_KEYS``.
            key_known: decode with these keys too, as an attacker who has got hold of the client's.
        """
        chains, held = self._recipe.chains, self._observed.works[work].held
        chain, memory = chains.of_step(role), role_memory(chains, held, role)
        filled = memory
        if self._own:
            own = self._own[number]
            own = own if role is Role.ACTIVATION_UP else matching_memory(chains.activation, chains.gradient, own)
            filled = _filled(memory, own)
        # Each number is another message, so that hashes that are fresh for each message are drawn anew too.
        context = self._recipe.context(work, role, number)
        return through(chain, rows_TD, context, filled, filled if key_known else memory)


def own_context(seed: int, number: int) -> CodecContext:
    """Return the moment that the attacker's own key of some number is drawn from: of its own seed, not of the run's."""
    return CodecContext(seed=derive_seed(seed, "attacker", number), client=number)


def through(chain: CodecChain, rows_TD: Tensor, context: CodecContext, sender: Memory, receiver: Memory) -> Tensor:
    """Return rows [T, D] as a receiver decodes what a sender has encoded, each with what it holds."""
    num_rows, width = rows_TD.shape
    return chain.decode(chain.encode(rows_TD, context, sender), num_rows, width, context, receiver)


def known_pairs(recipe: Recipe, observed: Observed, truth: Truth, work: WorkKey, plain_KD: Tensor) -> Tensor:
    """Return what the attacker saw of known plaintexts that the client has sent under its own key.

    This is granted by an oracle: it alone applies the secret key, and shows the outcome only.
    """
    chain, held = recipe.chains.activation, observed.works[work].held
    context = recipe.context(work, Role.ACTIVATION_UP, 0)
    return through(chain, plain_KD, context, truth.keys[work], held.first)


def hidden_rank(chain: CodecChain, held: Memory) -> int | None:
    """Return the rank of SS-OP's rotation, where it turns the states themselves and the attacker lacks its key."""
    if not chain.stages or not isinstance(chain.stages[0], Ssop):
        return None
    return None if held and held[0] else int(chain.stages[0].config.rank)


def true_rotation(recipe: Recipe, truth: Truth, work: WorkKey, rows_TD: Tensor) -> Tensor:
    """Return rows under the client's true key: for the error of a recovered one."""
    context = recipe.context(work, Role.ACTIVATION_UP, 0)
    stage, memory = recipe.chains.activation.stages[0], truth.keys[work][0]
    return stage.encode(rows_TD, replace(context, memory=memory)).values


def _filled(memory: Memory, own: Memory) -> Memory:
    """Put the attacker's own where it holds nothing."""
    return tuple(known or made for known, made in zip(memory or ((),) * len(own), own, strict=True))
