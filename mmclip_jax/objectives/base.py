"""What an objective is: a loss of the global batch, with its settings, its weight and what it costs.

An objective works in three stages. `prepare` draws what it needs before the encoders run, and may add texts to encode.
`rows` takes single rows, in chunks under accumulation, as `prepare` does; what it returns of each row is gathered.
`loss` takes these results of the whole batch. The train step, the checks and the planner go through the objectives
that `registry` knows and name none.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
from ml_collections import ConfigDict

from mmclip_jax import sharding
from mmclip_jax.models import encoders
from mmclip_jax.models.inputs import patch_count
from mmclip_jax.models.mmclip import MMCLIP
from mmclip_jax.models.work import NOTHING, Work
from mmclip_jax.ranges import Range

Rows = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Shape = tuple[int, ...]

EMBEDDINGS, IDS = "embeddings and their gradients", "ids of texts"


@dataclasses.dataclass(frozen=True)
class Context:
    """The step that a loss is computed in.

    variables: {"params": ...} of the model; config: the run's settings; step: int32, its number; mask_id: the token
    that stands for a hidden word.
    """

    model: MMCLIP
    variables: Mapping[str, Any]
    config: ConfigDict
    step: jax.Array
    mask_id: int


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Rows of a batch and what the encoders make of them, the parts joined.

    rows: the fields of the joined rows and "key", the key data of each row's draws; parts: the same before joining;
    images: [B,S,S,1] in [0, 1]; patches: V [B,N,D]; image_embed and text_embed: [B,E] float32, L2-normalised;
    features: T [B,L,D_t]; prepared: what each objective prepared, and "features", T of the "tokens" in it.
    """

    rows: Rows
    parts: Mapping[str, Rows]
    images: jax.Array
    patches: jax.Array
    image_embed: jax.Array
    features: jax.Array
    text_embed: jax.Array
    prepared: Mapping[str, Rows]

    def of_part(self, joined: jax.Array, part: str) -> jax.Array:
        """The rows of one part out of an array of the joined rows."""
        sizes = [len(rows["tokens"]) for rows in self.parts.values()]
        return sharding.split_rows(joined, *sizes)[list(self.parts).index(part)]


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of one global batch: rows: of single rows, repeated under accumulation; pairs: of the loss between rows."""

    rows: Work = NOTHING
    pairs: Work = NOTHING


class Tower(NamedTuple):
    """Layers that run over every row: part (width, depth, heads, mlp_dim), positions, positions of their context."""

    part: Mapping[str, int]
    positions: int
    context: int = 0


def image_towers(model: ConfigDict) -> list[Tower]:
    """The image encoder over all patches; model: the `model` part of a run's settings."""
    patches = patch_count(model.image_size, model.patch_size)
    return [Tower(*stage) for stage in encoders.image_encoder(model).stages(model.image_size, patches)]


@dataclasses.dataclass(frozen=True)
class Buffers:
    """Bytes beside the encoders: towers: layers a row; row: further bytes a row; pairs: bytes on a chip for pairs."""

    towers: tuple[Tower, ...] = ()
    row: float = 0.0
    pairs: float = 0.0


class Exchange(NamedTuple):
    """An array that all chips exchange: EMBEDDINGS or IDS, the operation, dtype and shape of the result, how often."""

    what: str
    operation: str
    dtype: str
    shape: Shape
    times: int = 1


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What a loss sends between chips.

    exchanges: a count by formula. What a compiled step may send: embeddings and ids: shapes of whole arrays;
    own_embeddings and own_ids: shapes of a chip's share of them, which goes round or is what a reduction leaves.
    """

    exchanges: tuple[Exchange, ...] = ()
    embeddings: frozenset[Shape] = frozenset()
    ids: frozenset[Shape] = frozenset()
    own_embeddings: frozenset[Shape] = frozenset()
    own_ids: frozenset[Shape] = frozenset()


class Objective(abc.ABC):
    """A term of the total loss. Its settings are the block `config.objective.NAME`.

    name: of the block, of its metrics "NAME/…" and of its gradient norm; ranges: of every setting of the block;
    fields: of a row that it reads; part: the part that it concerns, "" for all rows. Without rows of its part a
    batch has no such loss.
    """

    name: ClassVar[str]
    ranges: ClassVar[Mapping[str, Range]]
    fields: ClassVar[tuple[str, ...]] = ()
    part: ClassVar[str] = ""

    def settings(self, config: ConfigDict) -> ConfigDict:
        """Its block of a run's settings."""
        return config.objective[self.name]

    def weight(self, config: ConfigDict) -> float:
        """Its weight in the total; 1 where the block has none, 0 where there is no block."""
        return self.settings(config).get("weight", 1.0) if self.name in config.objective else 0.0

    def check(self, config: ConfigDict) -> None:  # noqa: B027
        """Refuses settings that do not fit each other or the model; each is in its range already.

        Raises:
          UserError: naming the setting and the remedy.
        """

    def prepare(self, context: Context, parts: Mapping[str, Rows]) -> Rows:
        """What it draws before the encoders run: {name: [B, ...]}, B the rows of `part`; parts: as in `Encoded`.

        "tokens", int [B,L] with the L of the batch, are texts that it wants encoded: one pass of the text encoder takes
        them and those of the batch. `rows` finds T of them as "features" [B,L,D_t]. The rows of an objective of all
        parts stand in the order of `sharding.join_rows`.
        """
        return {}

    @abc.abstractmethod
    def rows(self, context: Context, encoded: Encoded) -> Rows:
        """What the loss needs of each row: {name: [B, ...]}, B the rows of `part`."""

    @abc.abstractmethod
    def loss(self, context: Context, rows: Rows) -> tuple[jax.Array, Metrics]:
        """(loss float32, before its weight; metrics without the prefix) from what `rows` gave of the whole batch."""

    def flops(self, config: ConfigDict, sizes: Mapping[str, int]) -> Flops:
        """Of a global batch of so many rows a part."""
        return Flops()

    def buffers(self, config: ConfigDict, rows: float, chips: int) -> Buffers:
        """Of a global batch of so many rows in all."""
        return Buffers()

    def traffic(self, config: ConfigDict, rows: int, chips: int, fields: Mapping[str, Shape]) -> Traffic:
        """Of a global batch of so many rows in all; fields: the shape that each field of a row has."""
        return Traffic()
