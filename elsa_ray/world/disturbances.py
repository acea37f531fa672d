"""What disturbs one round, drawn before it is played: slow clients, clients that give up, spoilt payloads, faults.

Every draw has a seed hashed from the run's, its purpose, the round and the client (or the row of the plan), so it is
the same with every executor, whatever else is on.

Shapes: A activities of a plan, W its work items, N clients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from elsa_ray.config.faults import FaultsConfig, FixedSlowdown, LognormalSlowdown, ParetoSlowdown, StragglersConfig
from elsa_ray.world.draws import uniforms
from elsa_ray.world.faults import Spell
from elsa_ray.world.plan import ActivityKind, Floats, Ints, Plan
from elsa_ray.world.roles import Role
from elsa_ray.world.troubles import Cause, Troubles


@dataclass(frozen=True)
class Disturbances:
    """What disturbs the playing of one plan.

    Attributes:
        troubles: of the plan's activities, in order; None where nothing happens to any.
        off_seconds: when each client [N] goes off, in absolute seconds; None where none ever does.
        spells: faults of links, edges and the cloud.
    """

    troubles: Troubles | None = None
    off_seconds: Floats | None = None
    spells: tuple[Spell, ...] = ()


UNDISTURBED = Disturbances()


def slowdowns(config: StragglersConfig, num_clients: int, seed: int, round_index: int) -> Floats:
    """Return how many times as long each client's [N] computations take in a global round."""
    u = uniforms(np.arange(num_clients), seed, "stragglers", round_index)
    match config:
        case LognormalSlowdown():
            drawn = np.exp(config.sigma * ndtri(u))
        case ParetoSlowdown():
            drawn = u ** (-1.0 / config.shape)
        case FixedSlowdown():
            return np.where(u < config.share, config.factor, 1.0)
    factors: Floats = np.minimum(drawn, config.max_factor)
    return factors


def troubles_of(
    config: FaultsConfig, plan: Plan, client_nodes: Ints, seed: int, slowdown: Floats | None
) -> Troubles | None:
    """Draw what happens to a plan's activities; None where nothing can.

    Args:
        config: what may happen.
        plan: of the round.
        client_nodes: node [N] of each client.
        seed: the run's.
        slowdown: of the clients [N], if any is slowed.
    """
    dropout, corruption = config.dropout, config.corruption
    drops = dropout.before + dropout.during + dropout.after > 0
    if slowdown is None and corruption is None and not drops:
        return None
    troubles, activities = Troubles.none(len(plan.activities)), plan.activities
    of_work = activities.work >= 0
    if slowdown is not None:
        own = of_work & (activities.kind == ActivityKind.COMPUTE)
        own &= activities.source == client_nodes[np.where(of_work, activities.client, 0)]
        troubles.slowdown[own] = slowdown[activities.client[own]]
    if corruption is not None:
        is_sent = of_work & (activities.kind == ActivityKind.TRANSFER) & (activities.source != activities.target)
        sent = np.flatnonzero(is_sent)
        u = uniforms(sent, seed, "corruption", plan.round_index)
        # So many sendings are spoilt one after the other: a geometric draw.
        spoilt = np.floor(np.log(u) / np.log(corruption.probability)).astype(np.int64)
        troubles.spoilt[sent] = np.minimum(spoilt, corruption.max_tries)
        troubles.is_lost[sent] = spoilt >= corruption.max_tries
    if drops and len(plan.work):
        _draw_dropouts(config, plan, client_nodes, seed, troubles)
    return troubles


def _draw_dropouts(config: FaultsConfig, plan: Plan, client_nodes: Ints, seed: int, troubles: Troubles) -> None:
    """Mark where work stops, by one draw for each work item."""
    dropout, work, activities = config.dropout, plan.work, plan.activities
    u_W, share_W = np.zeros(len(work)), np.zeros(len(work))
    for edge_round in np.unique(work.edge_round).tolist():
        own = work.edge_round == edge_round
        purpose = (plan.round_index, edge_round)
        u_W[own] = uniforms(work.client[own], seed, "dropout", *purpose)
        share_W[own] = uniforms(work.client[own], seed, "dropout_share", *purpose)
    before_W = u_W < dropout.before
    during_W = ~before_W & (u_W < dropout.before + dropout.during)
    after_W = ~before_W & ~during_W & (u_W < dropout.before + dropout.during + dropout.after)
    of_work = activities.work >= 0
    item = np.where(of_work, activities.work, 0)
    is_transfer = of_work & (activities.kind == ActivityKind.TRANSFER)
    for stops_W, role, cause in (
        (before_W, Role.ADAPTER_DOWN, Cause.BEFORE_TRAINING),
        (after_W, Role.ADAPTER_UP, Cause.AFTER_TRAINING),
    ):
        rows = is_transfer & (activities.label == role) & stops_W[item]
        troubles.stop_share[rows] = 1.0
        troubles.cause[rows] = cause
    computes = of_work & (activities.kind == ActivityKind.COMPUTE) & during_W[item]
    rows = np.flatnonzero(computes & (activities.source == client_nodes[work.client[item]]))
    rows = rows[np.argsort(activities.work[rows], kind="stable")]
    if not len(rows):
        return
    flops, own = activities.flops[rows].astype(np.float64), activities.work[rows]
    done = np.cumsum(flops)
    first = np.searchsorted(own, own, side="left")
    last = np.searchsorted(own, own, side="right") - 1
    before_own = done[first] - flops[first]
    wanted = before_own + share_W[own] * (done[last] - before_own)
    hits = (wanted >= done - flops) & (wanted < done)
    troubles.stop_share[rows[hits]] = ((wanted - (done - flops)) / np.maximum(flops, 1.0))[hits]
    troubles.cause[rows[hits]] = Cause.DURING_TRAINING
