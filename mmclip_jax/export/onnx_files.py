"""Both encoders as ONNX, through PyTorch: its exporter translates the module that `--to huggingface` writes.

Converters from JAX do not cover Flax's scan over layers; PyTorch's covers everything that the module does.
"""

import pathlib
from typing import Any

import numpy as np

from mmclip_jax.errors import UserError, extra
from mmclip_jax.export.content import Content, write_json
from mmclip_jax.export.huggingface import remote_module
from mmclip_jax.models.inputs import PIXEL_MEAN, PIXEL_STD
from mmclip_jax.text.tokens import PAD_ID

ABOUT_FILE = "onnx.json"
_ROWS = 2  # of the example that the exporter follows; a number of rows of its own would be taken for a constant


def write(content: Content, folder: pathlib.Path) -> str:
    """Writes encode_image.onnx and encode_text.onnx, for any number of rows, and the tokenizer.

    Raises:
      UserError: PyTorch, transformers or the packages of ONNX are missing.
    """
    try:
        import onnxscript
        import torch

        from mmclip_jax.export.remote.configuration_mmclip import MMCLIPConfig
        from mmclip_jax.export.remote.modeling_mmclip import MMCLIPModel
    except ImportError as error:
        raise UserError(f"ONNX is written by PyTorch ({error.name} is missing); install {extra('onnx')}") from error
    weights, config = remote_module(content)
    model = MMCLIPModel(MMCLIPConfig(settings=config["settings"]))
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})

    class Encoder(torch.nn.Module):
        """One of the two encoders: its input's name, and its output's."""

        def __init__(self, taken: str, given: str):
            super().__init__()
            self.model, self.taken, self.given = model, taken, given

        def forward(self, rows: Any) -> Any:
            return getattr(self.model(**{self.taken: rows}), self.given)

    size, length = content.model.image_size, content.model.text.length
    examples = {
        "encode_image": ("pixel_values", "image_embeds", torch.zeros(_ROWS, 1, size, size)),
        "encode_text": ("input_ids", "text_embeds", torch.ones(_ROWS, length, dtype=torch.int64)),
    }
    batch = {0: torch.export.Dim("batch", min=1, max=1 << 16)}
    about: dict[str, Any] = {}
    for name, (taken, given, rows) in examples.items():
        program = torch.onnx.export(
            Encoder(taken, given).eval(),
            (rows,),
            dynamo=True,
            verbose=False,
            dynamic_shapes={"rows": batch},
            input_names=[taken],
            output_names=[given],
        )
        assert program is not None
        program.save(folder / f"{name}.onnx")
        about[name] = {"input": taken, "shape": ["batch", *rows.shape[1:]], "output": given}
    pixels = {"mean": PIXEL_MEAN, "std": PIXEL_STD, "channels": 1}
    scale = float(np.exp(content.params["log_logit_scale"]))
    write_json(folder / ABOUT_FILE, {"programs": about, "pixels": pixels, "padding": PAD_ID, "logit_scale": scale})
    content.write_tokenizer(folder)
    return f"2 programs, by torch {torch.__version__} and onnxscript {onnxscript.__version__}"
