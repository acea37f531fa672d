"""Plans what the public probes cost: the set's way to the nodes, the models' answers, and the tables to the cloud.

With verified evidence the edge computes: it puts the submitted update together and runs the probes through the whole
model. With reported evidence the client does, through its edge's middle blocks, and sends what it says it found.

Shapes: W work items (the members).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from elsa_ray.codecs.wire import HEADER_BYTES
from elsa_ray.model.cost import Flops, forward_flops
from elsa_ray.model.split import Part, Split, whole
from elsa_ray.protocols.setting import Setting
from elsa_ray.protocols.split_steps import Members
from elsa_ray.training.evidence import report_num_bytes
from elsa_ray.training.inquiry import Inquiry
from elsa_ray.training.probing import probe_pieces, probe_set_num_bytes, probe_states_num_bytes
from elsa_ray.training.tables import TRUST_COLUMNS, table_num_bytes
from elsa_ray.world.plan import Ints, PlanBuilder, Stage
from elsa_ray.world.roles import Role


class ProbeSteps:
    """Plans the probing of one global round.

    Args:
        builder: takes the rows.
        setting: the run's circumstances; its inquiry says what is asked.
        holders: nodes that have the probe set already.
    """

    def __init__(self, builder: PlanBuilder, setting: Setting, holders: Collection[int]) -> None:
        assert setting.inquiry is not None
        self._builder, self._setting, self._inquiry = builder, setting, setting.inquiry
        self._holders = set(holders)

    def send_sets(self, nodes: Ints, groups: Ints) -> Ints:
        """Send the probe set to those of some nodes that lack it; returns a row each, -1 where nothing is sent."""
        rows = np.full(len(nodes), -1, np.int64)
        lacking = np.array([node not in self._holders for node in nodes.tolist()], bool)
        if lacking.any():
            self._holders.update(nodes[lacking].tolist())
            inquiry = self._inquiry
            size = probe_set_num_bytes(inquiry.probes, self._setting.shape.hidden_size, inquiry.dimensions)
            rows[lacking] = self._message(self._setting.cloud, nodes[lacking], Role.PROBE, size, groups[lacking])
        return rows

    def answer(self, members: Members, trained: Ints) -> Ints:
        """Let clients run the probes and report, where they do it themselves; returns the rows that uploads wait for.

        Args:
            members: who was trained.
            trained: their last rows [W].
        """
        if not self._inquiry.clients_report or not len(trained):
            return trained
        probes, width, last = self._inquiry.probes, self._setting.shape.hidden_size, trained
        edge = members.edges
        sets = self.send_sets(members.nodes, members.groups)
        for ordinal, size in enumerate(probe_states_num_bytes(probes, width)):
            last = self._compute(members, members.nodes, Part.FRONT, ordinal, last)
            if ordinal == 0:
                self._builder.depend(last, sets)
            last = self._states(members, members.nodes, edge, size, last)
            last = self._compute(members, edge, Part.MIDDLE, ordinal, last)
            last = self._states(members, edge, members.nodes, size, last)
            last = self._compute(members, members.nodes, Part.BACK, ordinal, last)
        size = report_num_bytes(self._inquiry.report_shapes(width))
        return self._builder.transfers(
            client=members.clients,
            source=members.nodes,
            target=edge,
            label=Role.FINGERPRINT,
            num_bytes=size,
            uncompressed_bytes=size - HEADER_BYTES,
            work=members.items,
            group=members.groups,
            after=last,
        )

    def verify(self, members: Members, uploads: Ints) -> Ints:
        """Let edges run the probes through what was uploaded, where they do; returns the rows that their gathers take.

        Args:
            members: who was trained.
            uploads: their uploads' rows [W].
        """
        if self._inquiry.clients_report or not len(uploads):
            return uploads
        edges, first_W, edge_W = np.unique(members.groups, return_index=True, return_inverse=True)
        checked = self._builder.computations(
            node=members.edges,
            client=members.clients,
            label=Stage.PROBING,
            flops=self._whole_flops(),
            work=members.items,
            group=members.groups,
            after=uploads,
        )
        self._builder.depend(checked, self.send_sets(members.edges[first_W], edges)[edge_W])
        return checked

    def tell_cloud(self, edges: Ints, num_clients: Ints, after: Ints) -> Ints:
        """Send the edges' tables of so many clients' fingerprints and standings to the cloud; returns their rows.

        Args:
            edges: nodes; the rows of the edge in place k have group k.
            num_clients: of each edge; one without any sends nothing.
            after: the row that each edge's tables wait for.
        """
        rows, telling = [np.zeros(0, np.int64)], np.flatnonzero(num_clients)
        columns = self._inquiry.fingerprint_columns(self._setting.shape.hidden_size)
        for role, width in ((Role.FINGERPRINT, columns), (Role.CONTROL, self._num_standings)):
            if width:
                size = table_num_bytes(num_clients[telling], width)
                rows.append(self._message(edges[telling], self._setting.cloud, role, size, telling, after[telling]))
        return np.concatenate(rows)

    def tell_edges(self, edges: Ints, num_clients: Ints) -> Ints:
        """Send edges the standings of so many clients; returns a row each, -1 where nothing is sent."""
        rows, told = np.full(len(edges), -1, np.int64), np.flatnonzero(num_clients)
        if self._num_standings:
            size = table_num_bytes(num_clients[told], self._num_standings)
            rows[told] = self._message(self._setting.cloud, edges[told], Role.CONTROL, size, told)
        return rows

    @property
    def _num_standings(self) -> int:
        """Columns of a table of standings; 0 where nobody is judged."""
        return TRUST_COLUMNS if self._inquiry.trust is not None else 0

    def _message(
        self,
        source: npt.ArrayLike,
        target: npt.ArrayLike,
        role: Role,
        size: npt.ArrayLike,
        group: Ints,
        after: Any = (),
    ) -> Ints:
        return self._builder.transfers(
            client=-1,
            source=source,
            target=target,
            label=role,
            num_bytes=size,
            uncompressed_bytes=np.asarray(size) - HEADER_BYTES,
            group=group,
            after=after,
        )

    def _states(self, members: Members, source: Ints, target: Ints, size: int, after: Ints) -> Ints:
        """Send the states of a piece of the probes over a cut, in the clear."""
        return self._builder.transfers(
            client=members.clients,
            source=source,
            target=target,
            label=Role.PROBE,
            num_bytes=size,
            uncompressed_bytes=size - HEADER_BYTES,
            work=members.items,
            group=members.groups,
            after=after,
        )

    def _compute(self, members: Members, node: Ints, part: Part, ordinal: int, after: Ints) -> Ints:
        return self._builder.computations(
            node=node,
            client=members.clients,
            label=Stage.PROBING,
            flops=members.of_split(lambda split: self._piece_flops(split, part, ordinal)),
            work=members.items,
            group=members.groups,
            after=after,
        )

    def _piece_flops(self, split: Split, part: Part, ordinal: int) -> int:
        flops = forward_flops(self._setting.shape, self._setting.layout, split)[part]
        return _total(flops, self._inquiry, ordinal)

    def _whole_flops(self) -> int:
        """Return the FLOPs of all probes through one whole model."""
        setting = self._setting
        by_part = forward_flops(setting.shape, setting.layout, whole(setting.shape.num_layers))
        pieces = range(len(probe_pieces(len(self._inquiry.probes))))
        return sum(_total(flops, self._inquiry, ordinal) for flops in by_part.values() for ordinal in pieces)


def _total(flops: Flops, inquiry: Inquiry, ordinal: int) -> int:
    piece = probe_pieces(len(inquiry.probes))[ordinal]
    return int(flops.total(len(piece), int(inquiry.probes.lengths[piece].max())))
