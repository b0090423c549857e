"""TensorFlow Datasets writes the ArrayRecord files, one TFDS split for each split and part."""

import contextlib
import io
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from mmclip_jax.data import schema
from mmclip_jax.data.records.builder import RecordsBuilder
from mmclip_jax.data.records.message import in_one_order


def write_splits(
    builder: RecordsBuilder, splits: Mapping[str, Any], data_dir: pathlib.Path, download_config: Any = None
) -> pathlib.Path:
    """Has TFDS write a data set under `data_dir`; returns the version directory.

    Args:
      builder: gives the name, the version and the description.
      splits: for each TFDS split an iterator of (id, features of `schema.to_features`), or a Beam transform to such.
      data_dir: where the directory NAME/VERSION goes.
      download_config: a `tfds.download.DownloadConfig`, which tells Beam's options.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import writer as tfds_writer

    class CanonicalWriter(tfds_writer.ExampleWriter):  # type: ignore[misc]
        """Puts the fields of every record in one order: protobuf's own is another in each process."""

        def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> Any:
            return super().write(path, ((key, in_one_order(record)) for key, record in examples))

    class SplitsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[misc, call-arg]
        name = builder.name
        code_path = None  # there is no package of checksums or citations beside this class for TFDS to look for
        VERSION = tfds.core.Version(builder.VERSION)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                features=schema.features(),
                description=builder.description or None,
                citation=builder.citation or None,
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return dict(splits)

        def _generate_examples(self) -> Any:
            raise NotImplementedError("the splits come with their examples")

        def _example_writer(self) -> Any:
            return CanonicalWriter(file_format=self.info.file_format)

    tfds_builder = SplitsBuilder(data_dir=str(data_dir), file_format="array_record")
    # TFDS announces a download and draws bars that say "shuffling"; ours is the progress a user needs.
    was_shown = tfds.core.utils.tqdm_utils._active
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            tfds_builder.download_and_prepare(download_dir=str(data_dir / "downloads"), download_config=download_config)
    finally:
        if was_shown:
            tfds.enable_progress_bar()
    return pathlib.Path(tfds_builder.data_path)
