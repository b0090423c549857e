"""Builds of collections that outgrow one machine: the same builders on Apache Beam, written by TFDS's own Beam support.

The tables are read, and patients divided, where the build is started; images are read and records written by Beam's
workers. Workers need this package, and must see the folders under the same paths (a network file system, or a mounted
bucket). Beam's versions of shared packages differ from JAX's: give it an environment of its own.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from mmclip_jax.data import records, schema
from mmclip_jax.data.builders.collection import Collection
from mmclip_jax.data.builders.items import Item, Reject
from mmclip_jax.data.builders.making import chunked
from mmclip_jax.data.schema import Example
from mmclip_jax.errors import UserError, extra

_REJECTS = "rejects"


def make(
    builder: Collection, scratch: pathlib.Path, extra: pathlib.Path, progress: bool, *, options: Sequence[str]
) -> tuple[pathlib.Path, dict[str, Any]]:
    """What `records.build` takes as `make`; the records are those of a build in one process, perhaps in other files.

    Args:
      builder: of a published data set or a user's table.
      scratch: folder that the workers see too.
      extra: for the builder's own files.
      progress: whether to show a bar while the written records are counted.
      options: of Beam, e.g. ["--runner=FlinkRunner", "--flink_master=localhost:8081"]; none for the Direct runner.

    Raises:
      UserError: Beam is not installed, or does not understand the options.
    """
    import tensorflow_datasets as tfds

    pipeline_options = _pipeline_options(options)
    chunks = {name: chunked(items) for name, items in sorted(_by_split(builder.items).items())}
    if not chunks:
        raise UserError(f"{builder.name}: the builder gave no examples, nothing was written")
    rejects = scratch / _REJECTS
    rejects.mkdir()
    maker = builder.maker()
    splits = {name: _examples(name, each, maker, rejects / name) for name, each in chunks.items()}
    config = tfds.download.DownloadConfig(beam_options=pipeline_options)
    written = records.write_splits(builder, splits, scratch / "out", config)
    for file in sorted(rejects.iterdir()):
        builder.rejects += [Reject(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    census = records.Census(builder.name)
    with records.progress_bar(f"counting {builder.name}", builder.total, progress) as advance:
        for name in chunks:
            for example in records.Records(written, name):
                builder.keep(example)
                census.add(example)
                advance()
    return written, {**census.facts(), **builder.finish(extra)}


def _by_split(items: Iterable[Item]) -> dict[str, list[Item]]:
    """The items of each TFDS split."""
    splits: dict[str, list[Item]] = {}
    for item in items:
        part = "paired" if schema.report_text(item.findings, item.impression) else "unpaired"
        splits.setdefault(f"{item.split}_{part}", []).append(item)
    return splits


def _pipeline_options(options: Sequence[str]) -> Any:
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(
            f"--beam needs Apache Beam: {extra('beam')}, in an environment of its own (docs/data.md)"
        ) from error
    found = PipelineOptions(list(options))
    unknown = [option for option in options if option.partition("=")[0].lstrip("-") not in found.get_all_options()]
    if unknown:
        raise UserError(f"Apache Beam has no option {unknown[0]}; options are given as --name=value")
    return found


def _examples(name: str, chunks: Sequence[Sequence[Item]], maker: Any, rejects: pathlib.Path) -> Any:
    """A Beam transform to the (id, features) of a split; what was rejected goes to files that begin with `rejects`."""
    import apache_beam as beam

    @beam.ptransform_fn
    def transform(pipeline: Any) -> Any:
        made = (
            pipeline
            | "Rows" >> beam.Create(list(chunks))
            | "Spread" >> beam.Reshuffle()
            | "Make" >> beam.FlatMap(functools.partial(_tagged, maker)).with_outputs(_REJECTS, main="examples")
        )
        _ = made[_REJECTS] | "Rejects" >> beam.io.WriteToText(str(rejects))
        return made["examples"]

    return f"{name} images" >> transform()


def _tagged(maker: Any, items: Sequence[Item]) -> Iterable[Any]:
    from apache_beam import pvalue

    for made in maker(items):
        if isinstance(made, Example):
            yield made.id, schema.to_features(made)
        else:
            yield pvalue.TaggedOutput(_REJECTS, json.dumps(dataclasses.asdict(made)))
