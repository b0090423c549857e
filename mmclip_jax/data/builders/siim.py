"""The SIIM-ACR Pneumothorax Segmentation challenge of 2019."""

import collections
from collections.abc import Iterator

from mmclip_jax.data.builders.collection import Collection
from mmclip_jax.data.builders.items import Item, Reject
from mmclip_jax.data.builders.labels import Beside
from mmclip_jax.data.builders.masks import RunLengths
from mmclip_jax.data.schema import LabelState

_SIDE = 1024


class Siim(Collection):
    """12,047 frontal images of ChestX-ray14 with masks of pneumothoraces.

    One image may have several rows, a run-length encoded region each; they are one mask. Splits are by image: a split
    by row, as is often published, puts regions of one image on both sides. The challenge hides who the patients are, so
    every image counts as a patient of its own. Audit it against ChestX-ray14 by pixels. Folders of masks, as copies in
    PNG have them beside the images, are passed over: the table has the masks. Sex, age and view come from the DICOM
    headers.
    """

    name = "siim"
    no_finding = Beside.NEVER
    description = "SIIM-ACR Pneumothorax Segmentation: 12,047 radiographs of ChestX-ray14 with masks."
    citation = "SIIM-ACR Pneumothorax Segmentation, Kaggle 2019."
    licence = "as of the challenge's rules at Kaggle: academic and other non-commercial use."
    instructions = (
        "accept the rules of siim-acr-pneumothorax-segmentation at Kaggle; the files come from the Google Cloud "
        "Healthcare API or its copies there: train-rle.csv (or stage_2_train.csv) and dicom-images-train (DICOM, 2 GB; "
        "or stage_2_images) or the same images as PNG."
    )

    def read(self) -> Iterator[Item | Reject]:
        """Yields the images of the table."""
        file = self.required("train-rle.csv", "stage_2_train.csv")
        rows_of: dict[str, list[tuple[int, str]]] = collections.defaultdict(list)
        for number, row in self.table(file, "ImageId", "EncodedPixels"):
            rows_of[row["ImageId"]].append((number, row["EncodedPixels"]))
        for image, rows in rows_of.items():
            number = rows[0][0]
            regions = [runs for _, runs in rows if runs != "-1"]
            if not image or not all(runs for _, runs in rows) or (regions and len(regions) != len(rows)):
                for each, _ in rows:
                    yield Reject(file.name, each, image, "neither -1 nor run lengths, or both for one image")
                continue
            yield Item(
                table=file.name,
                row=number,
                file=self.index.find_any(image),
                id=image,
                patient=image,
                study=image,
                labels={"pneumothorax": LabelState.PRESENT if regions else LabelState.ABSENT},
                masks=tuple(RunLengths("pneumothorax", runs, _SIDE, _SIDE) for runs in regions),
                from_header=True,
            )
        self.notes.append("who the patients are is not published: every image counts as a patient of its own")


BUILDER = Siim
