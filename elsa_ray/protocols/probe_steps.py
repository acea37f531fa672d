"""Plans what the public probes cost: the set's way to the nodes, the models' answers, and the tables to the cloud.

With verified evidence the edge computes: it puts the submitted update together and runs the probes through the whole
model. With reported evidence the client does, through its edge's middle blocks, and sends what it says it found.

Shapes: W work items (the members).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

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

    def send_set(self, node: int) -> int:
        """Send the probe set to a node that lacks it; returns the row, -1 where nothing is sent."""
        if node in self._holders:
            return -1
        self._holders.add(node)
        inquiry = self._inquiry
        size = probe_set_num_bytes(inquiry.probes, self._setting.shape.hidden_size, inquiry.dimensions)
        (row,) = self._message(self._setting.cloud, node, Role.PROBE, size, after=-1)
        return int(row)

    def answer(self, members: Members, trained: Ints) -> Ints:
        """Let clients run the probes and report, where they do it themselves; returns the rows that uploads wait for.

        Args:
            members: who was trained.
            trained: their last rows [W].
        """
        if not self._inquiry.clients_report or not len(trained):
            return trained
        probes, width, last = self._inquiry.probes, self._setting.shape.hidden_size, trained
        edge = np.full(len(trained), members.edge)
        sets = [self.send_set(int(node)) for node in members.nodes]
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
            after=last,
        )

    def verify(self, members: Members, uploads: Ints, opener: int) -> Ints:
        """Let the edge run the probes through what was uploaded, where it does; returns the rows that its gather takes.

        Where changes are compared, it runs them through the model that the members start from as well.

        Args:
            members: who was trained.
            uploads: their uploads' rows [W].
            opener: the row with which the edge has that model.
        """
        if self._inquiry.clients_report or not len(uploads):
            return uploads
        flops = self._whole_flops()
        start = np.full(1, -1)
        if self._inquiry.trust is not None and self._inquiry.trust.compares_changes:
            start = self._builder.computations(
                node=members.edge, client=-1, label=Stage.PROBING, flops=flops, after=opener
            )
            self._builder.depend(start, self.send_set(members.edge))
        checked = self._builder.computations(
            node=np.full(len(uploads), members.edge),
            client=members.clients,
            label=Stage.PROBING,
            flops=flops,
            work=members.items,
            after=uploads,
        )
        self._builder.depend(checked, start if start[0] >= 0 else self.send_set(members.edge))
        return checked

    def tell_cloud(self, edge: int, num_clients: int, after: int) -> list[int]:
        """Send the edge's tables of so many clients' fingerprints and standings to the cloud; returns their rows."""
        if num_clients == 0:
            return []
        rows = []
        cloud = self._setting.cloud
        columns = self._inquiry.fingerprint_columns(self._setting.shape.hidden_size)
        if columns:
            size = table_num_bytes(num_clients, columns)
            rows += self._message(edge, cloud, Role.FINGERPRINT, size, after=after).tolist()
        if self._inquiry.trust is not None:
            size = table_num_bytes(num_clients, TRUST_COLUMNS)
            rows += self._message(edge, cloud, Role.CONTROL, size, after=after).tolist()
        return rows

    def tell_edge(self, edge: int, num_clients: int) -> int:
        """Send an edge the standings of so many clients; returns the row, -1 where nothing is sent."""
        if self._inquiry.trust is None or num_clients == 0:
            return -1
        size = table_num_bytes(num_clients, TRUST_COLUMNS)
        (row,) = self._message(self._setting.cloud, edge, Role.CONTROL, size, after=-1)
        return int(row)

    def _message(self, source: int, target: int, role: Role, size: int, *, after: int) -> Ints:
        return self._builder.transfers(
            client=-1,
            source=source,
            target=target,
            label=role,
            num_bytes=size,
            uncompressed_bytes=size - HEADER_BYTES,
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
            after=after,
        )

    def _compute(self, members: Members, node: Ints, part: Part, ordinal: int, after: Ints) -> Ints:
        flops = [self._piece_flops(split, part, ordinal) for split in members.splits]
        return self._builder.computations(
            node=node, client=members.clients, label=Stage.PROBING, flops=flops, work=members.items, after=after
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
