"""All attacks on what one attacker reads of one run.

Keys are a client's own, so each victim is attacked by itself where it can be, and the outcomes are pooled. Special
tokens do not count: they stand where anybody knows them to stand.
Shapes: T tokens, M public texts, N texts of a victim, K known pairs, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import fmean

import torch
from torch import Tensor

from elsa_ray.codecs.chain import CodecChain
from elsa_ray.codecs.subspaces import leading_directions
from elsa_ray.model.split import Split
from elsa_ray.privacy.capture import Attacker, Observed, Truth, ships_keys
from elsa_ray.privacy.channel import NUM_KEYS, OwnChannel, hidden_rank, known_pairs, true_rotation
from elsa_ray.privacy.inverter import InverterBudget, learned_inversion, own_pairs, trained_inverter
from elsa_ray.privacy.label_inference import (
    gradient_directions,
    label_inference_by_clusters,
    label_inference_from_public_texts,
)
from elsa_ray.privacy.linear_probe import linear_probe
from elsa_ray.privacy.neighbours import (
    Dictionary,
    adapted_inversion,
    chosen_directions,
    dictionary_of,
    nearest_neighbour_inversion,
)
from elsa_ray.privacy.procrustes import RecoveredKey, aligned_key, key_error, procrustes_key_recovery
from elsa_ray.privacy.public_text import PublicText
from elsa_ray.privacy.rows import TokenRows, mean_by_text
from elsa_ray.privacy.success import Success, pooled
from elsa_ray.privacy.table import AttackRow
from elsa_ray.privacy.victims import Victim, earlier_work, victims_of
from elsa_ray.records.human import NOTHING
from elsa_ray.tasks.seeds import derive_seed, numpy_generator
from elsa_ray.training.recipe import Recipe
from elsa_ray.world.plan import WorkKey
from elsa_ray.world.roles import Role

NUM_PAIRS = (8, 64, 512)
"""Known plaintexts from which keys are recovered: tokens of public text."""

_FEW_KEYS = 8
"""Of the attacker's own: enough where only a mean over them is wanted."""

_LEAST_TEXTS = 4
"""Of a client, for a probe within it: half of them to learn from."""


class Suite:
    """The attacks of one attacker on one run; ``rows`` carries them out.

    Args:
        name: of the codec, for the table.
        recipe: codecs and the public seeds of their hashes.
        observed: what the attacker reads.
        truth: for scoring, and for the oracle that shows known plaintexts under a client's key.
        public: what the attacker computes of its public text, by round and split.
        special_ids: tokens that do not count.
        num_labels: 0 for causal_lm.
        budget: of the trained inverter.

    Raises:
        InputError: nothing was sent through a cut.
    """

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        observed: Observed,
        truth: Truth,
        public: Callable[[int, Split], PublicText],
        *,
        special_ids: frozenset[int],
        num_labels: int,
        budget: InverterBudget | None = None,
    ) -> None:
        self._recipe, self._observed, self._truth = recipe, observed, truth
        self._chain, self._num_labels, self._budget = recipe.chains.activation, num_labels, budget
        self._special_ids = special_ids
        self._head = (name, keys_text(self._chain), attacker_text(self._chain, observed.attacker))
        self.victims = victims_of(observed, truth)
        self._public_of = partial(self._public_of_round, public)
        self._public = self._public_of(self.victims[0].work)
        self._tokens = self._public.states.without(special_ids)
        # The attacker draws from a seed of its own: the run's is what the clients' secrets are made of.
        self._seed = derive_seed(recipe.seed, "attacks")
        self._channel = OwnChannel(recipe, observed, self._public.states.rows_TD, self._seed)

    @property
    def covered_share(self) -> float:
        """Share of the private tokens that the public text has: no attack by public text can tell more."""
        ids_T = torch.cat([self._states(victim).ids_T for victim in self.victims])
        return float(torch.isin(ids_T, self._tokens.ids_T).double().mean())

    def rows(self) -> Iterator[AttackRow]:
        """Carry out one attack after the other."""
        yield from self._token_inversion()
        yield from self._key_recovery()
        yield from self._label_inference()
        yield from self._attribute_probes()

    def _token_inversion(self) -> Iterator[AttackRow]:
        """Attacks (a) and (b) of the card: nearest neighbours, as they are and adapted to the codec; an inverter."""
        outcomes = []
        for victim in self.victims:
            states, dictionary = self._states(victim), self._dictionary(self._tokens, victim.work, key_known=True)
            outcomes.append(nearest_neighbour_inversion(states.rows_TD, dictionary, states.ids_T))
        yield self._row("tokens: nearest neighbour", outcomes)
        basis_DR, outcomes = self._basis_chosen_on_public_text(key_known=False), []
        for victim in self.victims:
            states, dictionary = self._states(victim), self._dictionary(self._tokens, victim.work, key_known=False)
            outcomes.append(adapted_inversion(states.rows_TD, dictionary, basis_DR, states.ids_T))
        note = f"without {basis_DR.shape[1]} leading directions, as is best on public text"
        yield self._row("tokens: nearest neighbour, adapted", outcomes, note=note)
        pairs = own_pairs(self._tokens, self._states_seen, NUM_KEYS)
        inverter = trained_inverter(pairs, self._seed, self._budget)
        every = [self._states(victim) for victim in self.victims]
        outcomes = [learned_inversion(inverter, states.rows_TD, states.ids_T) for states in every]
        yield self._row("tokens: trained inverter", outcomes)

    def _key_recovery(self) -> Iterator[AttackRow]:
        """Attack (c): keys from nothing but what was seen, and from known plaintexts; tokens after undoing them."""
        rank = hidden_rank(self._chain, self._observed.works[self.victims[0].work].held.first)
        if rank is None:
            return
        basis_DR = self._basis_chosen_on_public_text(key_known=True)
        dictionaries = [self._dictionary(self._tokens, victim.work, key_known=True) for victim in self.victims]
        outcomes, errors = list[Success](), list[float]()
        for victim, dictionary in zip(self.victims, dictionaries, strict=True):
            seen_DR, _ = leading_directions(victim.states.rows_TD.double(), rank)
            key = aligned_key(self._states(victim).rows_TD, dictionary.states_VD, seen_DR)
            self._undo(key, victim, dictionary, basis_DR, outcomes, errors)
        yield self._row("tokens: key aligned, nothing known", outcomes, errors)
        for when, source_of in (("this round", _itself), ("earlier round", partial(earlier_work, self._observed))):
            for num_pairs in NUM_PAIRS:
                attack = f"tokens: key by {num_pairs} known, {when}"
                if len(self._tokens) < num_pairs:
                    yield self._row(attack, [], note=f"there are {len(self._tokens)} public tokens")
                    continue
                outcomes, errors = [], []
                for victim, dictionary in zip(self.victims, dictionaries, strict=True):
                    source = source_of(victim.work)
                    if source is not None:
                        key = self._recovered_key(source, num_pairs, rank)
                        self._undo(key, victim, dictionary, basis_DR, outcomes, errors)
                yield self._row(attack, outcomes, errors, note="" if outcomes else "there is no earlier round")

    def _undo(
        self,
        key: RecoveredKey,
        victim: Victim,
        dictionary: Dictionary,
        basis_DR: Tensor,
        outcomes: list[Success],
        errors: list[float],
    ) -> None:
        """Undo a key and invert what is left; add the outcome, and how far the key is from the true one."""
        states = self._states(victim)
        outcomes.append(adapted_inversion(key.undo(states.rows_TD), dictionary, basis_DR, states.ids_T))
        true_key = partial(true_rotation, self._recipe, self._truth, victim.work)
        errors.append(key_error(key, true_key, states.rows_TD.shape[1]))

    def _recovered_key(self, work: WorkKey, num_pairs: int, rank: int) -> RecoveredKey:
        """Return the key of a work item from public tokens that the client is known to have sent in it."""
        plain_TD = self._public_of(work).states.without(self._special_ids).rows_TD
        order = numpy_generator(self._seed, "known plaintexts").permutation(len(plain_TD))
        plain_KD = plain_TD[torch.from_numpy(order[:num_pairs])]
        shown_KD = known_pairs(self._recipe, self._observed, self._truth, work, plain_KD)
        return procrustes_key_recovery(plain_KD, shown_KD, min(rank, plain_KD.shape[1]))

    def _label_inference(self) -> Iterator[AttackRow]:
        """Attack (e): labels from the gradients that go up."""
        public, label_M = self._public.gradients, self._public.label_M
        labelled = [(victim, victim.label_N) for victim in self.victims if victim.label_N is not None]
        if public is None or label_M is None or not labelled:
            return
        num_texts = len(label_M)
        own_MD = torch.cat(
            [
                gradient_directions(self._gradients_seen(public.rows_TD, number), public.text_T, num_texts)
                for number in range(_FEW_KEYS)
            ]
        )
        seen = [gradient_directions(v.gradients.rows_TD, v.gradients.text_T, v.num_texts) for v, _ in labelled]
        true_N = torch.cat([label_N for _, label_N in labelled])
        outcome = label_inference_from_public_texts(own_MD, label_M.repeat(_FEW_KEYS), torch.cat(seen), true_N)
        yield self._row("labels: gradients against public texts", [outcome])
        outcomes = [
            label_inference_by_clusters(seen_ND, label_N, self._num_labels, self._seed)
            for seen_ND, (_, label_N) in zip(seen, labelled, strict=True)
        ]
        yield self._row("labels: gradient clusters", outcomes, note="upper bound: clusters get their true names")

    def _attribute_probes(self) -> Iterator[AttackRow]:
        """Attack (d): the label as a sensitive attribute, from the mean of a text's states."""
        labelled = [(victim, victim.label_N) for victim in self.victims if victim.label_N is not None]
        features = [mean_by_text(v.states.rows_TD, v.states.text_T, v.num_texts) for v, _ in labelled]
        if not labelled:
            return
        note = "granted: the attribute of half of the texts"
        everybody_ND, label_N = torch.cat(features), torch.cat([label_N for _, label_N in labelled])
        outcomes = [linear_probe(everybody_ND, label_N, self._seed)] if len(label_N) >= _LEAST_TEXTS else []
        yield self._row("attribute: probe across clients", outcomes, note=note)
        outcomes = [
            linear_probe(own_ND, label_N, self._seed)
            for own_ND, (_, label_N) in zip(features, labelled, strict=True)
            if len(label_N) >= _LEAST_TEXTS
        ]
        yield self._row("attribute: probe within clients", outcomes, note=note)

    def _states(self, victim: Victim) -> TokenRows:
        return victim.states.without(self._special_ids)

    def _public_of_round(self, public: Callable[[int, Split], PublicText], work: WorkKey) -> PublicText:
        return public(work.round_index, self._observed.works[work].split)

    def _dictionary(self, tokens: TokenRows, work: WorkKey, *, key_known: bool) -> Dictionary:
        """Return what the attacker expects to see of each token in a work item, by its own keys."""
        seen = partial(self._channel.seen, Role.ACTIVATION_UP, work=work, key_known=key_known)
        return dictionary_of(own_pairs(tokens, lambda rows_TD, number: seen(rows_TD, number=number), _FEW_KEYS))

    def _states_seen(self, rows_TD: Tensor, number: int) -> Tensor:
        return self._channel.seen(Role.ACTIVATION_UP, rows_TD, self._any_victim(number), number)

    def _gradients_seen(self, rows_TD: Tensor, number: int) -> Tensor:
        return self._channel.seen(Role.GRADIENT_UP, rows_TD, self._any_victim(number), number)

    def _any_victim(self, number: int) -> WorkKey:
        return self.victims[number % len(self.victims)].work

    def _basis_chosen_on_public_text(self, *, key_known: bool) -> Tensor:
        """Try what to leave out on one half of the public text, with the other half as known: no private text helps."""
        is_even_T, work = self._tokens.text_T % 2 == 0, self.victims[0].work
        known, tried = self._tokens.where(is_even_T), self._tokens.where(~is_even_T)
        seen_TD = self._channel.seen(Role.ACTIVATION_UP, tried.rows_TD, work, NUM_KEYS, key_known=key_known)
        dictionary = self._dictionary(known, work, key_known=key_known)
        plain_TD = self._public.states.rows_TD
        return chosen_directions(dictionary, TokenRows(seen_TD, tried.ids_T, tried.text_T), plain_TD)

    def _row(
        self, attack: str, outcomes: Sequence[Success], errors: Sequence[float] = (), *, note: str = ""
    ) -> AttackRow:
        return AttackRow(*self._head, attack, pooled(outcomes), fmean(errors) if errors else None, note)


def _itself(work: WorkKey) -> WorkKey | None:
    return work


def attackers_of(chain: CodecChain) -> tuple[Attacker, ...]:
    """Return the attackers who do not read the same: who lacks keys counts where keys travel."""
    return (Attacker.EDGE, Attacker.KEYLESS) if ships_keys(chain) else (Attacker.EDGE,)


def attacker_text(chain: CodecChain, attacker: Attacker) -> str:
    """Return who else reads what an attacker reads."""
    if attacker is Attacker.KEYLESS:
        return "eavesdropper without keys"
    return "edge, eavesdropper with keys" if ships_keys(chain) else "edge, eavesdropper"


def keys_text(chain: CodecChain) -> str:
    """Return who inverts a secret key, and whether each round has its own."""
    for stage in chain.stages:
        if stage.calibration is not None and stage.calibration.role is not Role.BASIS:
            holder = "edge" if stage.calibration.role is Role.KEY else "client"
            rounds = stage.calibration.refresh_rounds
            return f"invert={holder}, {'fresh' if rounds == 1 else 'reused'}"
    return NOTHING
