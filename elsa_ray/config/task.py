"""The ``task`` section: data, its partition over clients, the backbone and its adapters."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from elsa_ray.config.section import PositiveInt, Section


class PydocsDataset(Section):
    """The docstrings of the installed packages and the standard library, labelled by subject area."""

    name: Literal["pydocs"]
    test_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the examples held out as the test set."""
    max_examples: PositiveInt | None = None
    """Keep at most so many examples (train and test together), chosen by seed."""


class FileDataset(Section):
    """JSON lines, CSV or Parquet files with a text column and, for classification, a label column."""

    train: str
    """Path of the training file (.jsonl, .csv or .parquet); relative to the config file."""
    test: str | None = None
    """Path of the test file; without it ``test_fraction`` of the training file is held out."""
    text: str = "text"
    label: str = "label"
    test_fraction: float = Field(default=0.1, gt=0, lt=1)
    max_examples: PositiveInt | None = None


class HubDataset(Section):
    """A dataset of the Hugging Face hub, or a local folder of that form, through the extra ``hub``."""

    hub: str
    subset: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    text: str = "text"
    label: str = "label"
    max_examples: PositiveInt | None = None


class SizeRange(Section):
    """Each client has a whole number of samples between two bounds, all equally likely."""

    min: PositiveInt
    max: PositiveInt

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.max < self.min:
            raise PydanticCustomError("range_order", "a max of at least min ({min})", {"min": self.min})
        return self


class MeanAndSigma(Section):
    """Mean of the samples; sigma is the standard deviation, of a lognormal that of the logarithm."""

    mean: float = Field(gt=0, le=1e9)
    sigma: float = Field(ge=0, le=1e9)


class LognormalSizes(Section):
    """Few clients with much: the logarithm of the samples is normally distributed."""

    lognormal: MeanAndSigma
    max: PositiveInt | None = None
    """No client has more."""


class NormalSizes(Section):
    """About the same everywhere; what falls below one sample is one."""

    normal: MeanAndSigma
    max: PositiveInt | None = None
    """No client has more."""


class ParetoTail(Section):
    """The share of clients with more than x samples is (min / x) ^ shape."""

    min: PositiveInt
    shape: float = Field(gt=0)


class ParetoSizes(Section):
    """A heavy tail."""

    pareto: ParetoTail
    max: PositiveInt | None = None
    """No client has more."""


DrawnSizes = LognormalSizes | NormalSizes | ParetoSizes


# The tags are no keys of a section: pydantic puts them into the path of a mistake, where they must not pass for one.
def _sizes_kind(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return "number of samples"
    keys = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return next((f"{key} sizes" for key in ("lognormal", "normal", "pareto", "min") if key in keys), None)


class SizesDataset(Section):
    """No data at all, only how many samples each client has: for ``elsa-ray plan``. Each is ``max_length`` tokens."""

    sizes: Annotated[
        Annotated[PositiveInt, Tag("number of samples")]
        | Annotated[SizeRange, Tag("min sizes")]
        | Annotated[LognormalSizes, Tag("lognormal sizes")]
        | Annotated[NormalSizes, Tag("normal sizes")]
        | Annotated[ParetoSizes, Tag("pareto sizes")],
        Discriminator(
            _sizes_kind,
            custom_error_type="sizes_kind",
            custom_error_message="a number of samples a client, {min: N, max: N}, {lognormal: {mean: N, sigma: X}}, "
            "{normal: {mean: N, sigma: N}}, or {pareto: {min: N, shape: X}}",
        ),
    ]
    """Samples of a client: a number, a range, or a distribution that each client's is drawn from."""
    num_labels: Annotated[int, Field(ge=2)] = 2
    """Labels of a classification: its head is that wide. Without meaning for ``causal_lm``."""


def _dataset_kind(value: Any) -> str | None:
    keys = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return next((f"{key} dataset" for key in ("hub", "train", "name", "sizes") if key in keys), None)


DatasetConfig = Annotated[
    Annotated[PydocsDataset, Tag("name dataset")]
    | Annotated[FileDataset, Tag("train dataset")]
    | Annotated[HubDataset, Tag("hub dataset")]
    | Annotated[SizesDataset, Tag("sizes dataset")],
    Discriminator(
        _dataset_kind,
        custom_error_type="dataset_kind",
        custom_error_message="{name: pydocs}, {train: FILE, test: FILE, text: COLUMN, label: COLUMN}, {hub: NAME}, "
        "or {sizes: SAMPLES A CLIENT}",
    ),
]


class IidPartition(Section):
    """Every example to a client at random; sizes differ by at most one."""

    kind: Literal["iid"] = "iid"


class DirichletPartition(Section):
    """Each label's examples are shared out by proportions drawn from a Dirichlet distribution."""

    kind: Literal["dirichlet"]
    alpha: float = Field(default=0.5, gt=0)
    """Concentration: small means that each client sees few labels."""


class ShardPartition(Section):
    """Examples sorted by label are cut into equal shards; each client gets ``shards_per_client`` of them."""

    kind: Literal["shards"]
    shards_per_client: PositiveInt = 2


class ColumnPartition(Section):
    """All examples with the same value of a column (a writer, a device) go to the same client."""

    kind: Literal["by_column"]
    column: str


PartitionConfig = Annotated[
    IidPartition | DirichletPartition | ShardPartition | ColumnPartition, Field(discriminator="kind")
]


class DatasetProbes(Section):
    """A public part of the training data, drawn by seed; no client gets these examples."""

    kind: Literal["dataset"] = "dataset"
    count: Annotated[int, Field(ge=2)] = 64


class FileProbes(Section):
    """The first texts of a file (.jsonl, .csv or .parquet)."""

    kind: Literal["file"]
    file: str
    """Path; relative to the config file."""
    text: str = "text"
    count: Annotated[int, Field(ge=2)] = 64


class GeneratedProbes(Section):
    """Sequences of random ordinary tokens: needs no text at all."""

    kind: Literal["generated"]
    count: Annotated[int, Field(ge=2)] = 64
    length: PositiveInt = 16
    """Tokens of each, special ones included."""


ProbesConfig = Annotated[DatasetProbes | FileProbes | GeneratedProbes, Field(discriminator="kind")]


class LoraConfig(Section):
    """Low-rank adapters on the frozen backbone."""

    rank: PositiveInt = 8
    alpha: float = Field(default=16.0, gt=0)
    targets: Literal["auto"] | list[str] = "auto"
    """Linear modules that get an adapter, by their name in a block; ``auto`` is query and value."""
    train_head: bool | None = None
    """Train and send the head; by default true for classification, false for causal_lm."""
    train_pooler: bool = False
    """Train and send the encoder's pooler too."""


class TaskConfig(Section):
    """What is learned, from which data, by which model."""

    kind: Literal["classification", "causal_lm"] = "classification"
    dataset: DatasetConfig = PydocsDataset(name="pydocs")
    partition: PartitionConfig = IidPartition()
    probes: ProbesConfig | None = None
    """Public texts, the same for everybody, on which models are compared: for clustering and trust."""
    model: str = "minilm"
    """``minilm`` (packaged), ``tiny`` (random BERT), ``tiny_llama``, ``tiny_gpt2``, a local folder, or a hub id."""
    lora: LoraConfig = LoraConfig()
    max_length: Annotated[int, Field(gt=0, le=65_535)] = 64
    """Longest text in tokens; longer ones are cut. A payload tells a text's length in two bytes."""
    preloaded: bool = True
    """The frozen blocks lie on the devices already; if false, sending them once is charged as weights_down."""
