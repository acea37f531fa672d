"""What is asked of models on the public probes, by whom, and how large the answers are."""

from __future__ import annotations

from dataclasses import dataclass

from elsa_ray.config.clustering import ClusteringConfig, TrustConfig
from elsa_ray.tasks.tokens import TokenizedTexts


@dataclass(frozen=True)
class Inquiry:
    """What is asked in each edge round.

    Attributes:
        probes: the texts.
        clustering: which form fingerprints have; None where nobody is clustered.
        trust: how answers are weighed, and who runs the probes; None where everybody is trusted.
        num_labels: classes; 0 for causal_lm, where states are compared in place of answers.
    """

    probes: TokenizedTexts
    clustering: ClusteringConfig | None
    trust: TrustConfig | None
    num_labels: int

    @property
    def clients_report(self) -> bool:
        """Whether clients run the probes themselves; else the edge does, on what they have sent."""
        return self.trust is not None and self.trust.evidence == "reported"

    @property
    def dimensions(self) -> int | None:
        """Width of the common basis of fingerprints; None where there is none."""
        projected = self.clustering is not None and self.clustering.form == "projected"
        return self.clustering.dimensions if self.clustering is not None and projected else None

    def fingerprint_columns(self, width: int) -> int:
        """Return the numbers of a client's fingerprint, for a model of width D: moments, or all states; 0 for none."""
        if self.clustering is None:
            return 0
        if self.dimensions is None:
            return len(self.probes) * width
        return self.dimensions + self.dimensions * (self.dimensions + 1) // 2

    def report_shapes(self, width: int) -> list[tuple[int, ...]]:
        """Return the shapes of the tensors of one client's report, for a model of width D."""
        shapes: list[tuple[int, ...]] = []
        if self.clustering is not None:
            shapes.append((1, self.fingerprint_columns(width)))
        if self.trust is not None:
            shapes.append((len(self.probes), self.num_labels or width))
        return shapes
