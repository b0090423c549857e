# Copyright the authors of mmclip-jax. Licensed under the Apache License, Version 2.0; see
# https://www.apache.org/licenses/LICENSE-2.0. Distributed "as is", without warranties or conditions of any kind.
"""The settings of an exported MMCLIP, for transformers."""

from transformers import PretrainedConfig


class MMCLIPConfig(PretrainedConfig):
    """Settings of `MMCLIPModel`.

    settings: the "model" part of the run's settings. logit_scale_init_value: the logarithm of the logit scale.
    """

    model_type = "mmclip"

    def __init__(self, settings=None, logit_scale_init_value=2.6592, **kwargs):
        self.settings = settings or {}
        self.logit_scale_init_value = logit_scale_init_value
        self.projection_dim = self.settings.get("embed_dim", 0)
        super().__init__(**kwargs)
