"""`mmclip predict`."""

import argparse
import json
from typing import Any

from mmclip_jax.cli.arguments import Commands, add_command, add_run, existing, words_of


def _predict(args: argparse.Namespace) -> None:
    from mmclip_jax.inference import model as model_lib
    from mmclip_jax.text import prompts

    for finding in args.findings or ():
        prompts.zero_shot_prompts(finding)  # refuses unknown findings before the model is loaded
    from mmclip_jax.memory import keep_freed_memory

    keep_freed_memory()
    model = model_lib.load(args.model, args.step)
    scores = model.zero_shot(args.images, args.findings or _known_findings(model.manifest))
    rows: list[tuple[str, dict[str, float]]] = [
        (str(image), {finding: round(float(values[n]), 4) for finding, values in scores.items()})
        for n, image in enumerate(args.images)
    ]
    if args.format == "json":
        images = [{"image": image, "findings": findings} for image, findings in rows]
        print(json.dumps({"model": str(args.model), "step": model.step, "images": images}, indent=1))
        return
    for image, findings in rows:
        print(image)
        for finding, probability in sorted(findings.items(), key=lambda item: -item[1]):
            print(f"  {probability:6.3f}  {finding}")
    print("Probability of the positive against the negative prompts: a research score, not calibrated, no diagnosis.")


def _known_findings(manifest: dict[str, Any]) -> list[str]:
    """The kinds that the model has read or been told of, in the vocabulary's order."""
    from mmclip_jax.text import prompts

    exposure = manifest.get("exposure", {})
    seen = {
        kind for name in ("label_kinds", "report_kinds") for kinds in exposure.get(name, {}).values() for kind in kinds
    }
    return [kind for kind in prompts.KINDS if kind in seen] or list(prompts.KINDS)


def add(top: Commands) -> None:
    """Adds the command."""
    predict = add_command(top, "predict", "score single images by prompts", _predict)
    predict.add_argument(
        "images", nargs="+", type=existing, metavar="IMAGE", help="JPEG, PNG, TIFF, BMP or DICOM files"
    )
    add_run(predict)
    predict.add_argument(
        "--findings", type=words_of, metavar="A,B,…", help="default: all that the model was trained on"
    )
    predict.add_argument("--format", default="table", choices=("table", "json"), help="how to print the scores")
