"""A model as it is used over the network: whatever crosses its cuts passes the codecs, one way, without training.

Shapes: N texts, S tokens, D hidden width, T real and padding tokens together.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from elsa_ray.codecs.codec import CodecContext
from elsa_ray.codecs.wire import decode_calibrations, decode_hidden, encode_calibrations, encode_hidden
from elsa_ray.model.split import Split
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.training.memory import CutMemory
from elsa_ray.training.messages import MAKERS, made_by_client
from elsa_ray.training.recipe import Recipe
from elsa_ray.world.roles import Role


def logits_over_cuts(
    model: TripartiteModel,
    adapters: Mapping[str, Tensor],
    recipe: Recipe,
    split: Split,
    ids_NS: Tensor,
    mask_NS: Tensor,
    number: int,
) -> Tensor:
    """Return the logits of a client that uses a split model through its edge, both cuts behind the activations' chain.

    Keys and bases are made of these very texts, as in a client's first message.

    Args:
        model: the frozen backbone.
        adapters: a whole set, stacked [1, ...].
        recipe: seed and chains.
        split: where the model is cut.
        ids_NS, mask_NS: the texts, on the model's device.
        number: of the batch; fresh randomness depends on it.
    """
    client, edge = CutMemory(), CutMemory()
    h1_NSD = model.front(ids_NS, mask_NS, adapters, split)
    sent_NSD, client, edge = _over(recipe, Role.ACTIVATION_UP, h1_NSD, mask_NS, number, client, edge)
    h2_NSD = model.middle(sent_NSD, mask_NS, adapters, split)
    sent_NSD, edge, client = _over(recipe, Role.ACTIVATION_DOWN, h2_NSD, mask_NS, number, edge, client)
    return model.back(sent_NSD, mask_NS, adapters, split)


def _over(
    recipe: Recipe,
    role: Role,
    hidden_NSD: Tensor,
    mask_NS: Tensor,
    number: int,
    sender: CutMemory,
    receiver: CutMemory,
) -> tuple[Tensor, CutMemory, CutMemory]:
    """Send hidden states; returns what arrives, and what sender and receiver then hold."""
    chain, width = recipe.chains.activation, hidden_NSD.shape[-1]
    context = CodecContext(recipe.seed, 0, 0, number, -1, role.label)
    is_up = role is Role.ACTIVATION_UP
    held = [() if is_up else end.second for end in (sender, receiver)]
    own = chain.calibrate(hidden_NSD[mask_NS].cpu(), context, held[0], MAKERS[role])
    shipped = encode_calibrations(chain, own, width, MAKERS[role], context)
    others = decode_calibrations(chain, shipped, held[1], width, MAKERS[role], context)
    lengths_N = mask_NS.sum(dim=1).cpu() if is_up else None
    payload = encode_hidden(chain, role, hidden_NSD, context, lengths_N, own)
    arrived_NSD, _ = decode_hidden(chain, role, payload, context, others)
    after = [CutMemory(memory, made_by_client(chain, memory)) if is_up else CutMemory() for memory in (own, others)]
    return arrived_NSD.to(hidden_NSD.device, hidden_NSD.dtype), after[0], after[1]
