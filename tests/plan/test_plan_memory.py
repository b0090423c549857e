"""Bytes and seconds by hand."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from small_plan import CONTRASTIVE, V5E, config

from mmclip_jax import flops, sharding
from mmclip_jax.data import batch, pipeline
from mmclip_jax.plan import memory, roofline, topologies
from mmclip_jax.text.tokenizer import load_tokenizer
from mmclip_jax.train import run as training

pytestmark = pytest.mark.compiles


def test_what_the_batch_holds() -> None:
    settings, mesh = config(), sharding.make_mesh(1, jax.devices()[:8])
    arrays = jax.tree.leaves(training.abstract_batch(settings, mesh))
    assert sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays) == 128 * batch.row_bytes(settings)


@pytest.mark.slow
def test_the_batch_that_is_planned_with_is_that_of_the_pipeline(phantom_dir: Path) -> None:
    settings = tiny.load_config("demo", "runlocal")
    settings.data.train = (str(phantom_dir),)
    made = next(pipeline.make_train_iterator(settings, load_tokenizer()))
    expected = {part: {k: (v.shape, v.dtype) for k, v in rows.items() if k != "record"} for part, rows in made.items()}
    planned = training.abstract_batch(settings, sharding.make_mesh(1, jax.devices()[:8]))
    assert {part: {k: (v.shape, v.dtype) for k, v in rows.items()} for part, rows in planned.items()} == expected


def test_buffers_grow_with_the_rows_and_gradients_do_not() -> None:
    before = memory.Memory(state=1000.0, batch=64.0, buffers=4e9, program=7.0)
    params = {"kernel": jax.ShapeDtypeStruct((500, 1_000_000), np.float32)}
    twice = memory.scaled_memory(before, config(), params, 256, V5E)
    logits = 6 * 4 * (256**2 - 2 * 128**2) / 8
    assert twice == memory.Memory(1000.0, 128.0, 2e9 + 2 * 2e9 + logits, 7.0)
    assert twice.total == 1000 + 128 + 6e9 + logits + 7
    # Of a sharded optimizer gathered parameters stay (here float32), and a quarter more.
    cut = config(mesh__shard_optimizer=True)
    assert memory.scaled_memory(before, cut, params, 256, V5E).buffers == 2.5e9 + 2 * 1.5e9 + logits
    # Hardly more than the gradients: the rows grow by the formula, and there is a largest batch.
    few = memory.Memory(0.0, 0.0, 2e9)
    grown = memory.scaled_memory(few, config(**CONTRASTIVE), params, 1024, V5E).buffers - 2e9
    by_formula = [memory.activation_bytes(config(**CONTRASTIVE), rows, 8) for rows in (128, 1024)]
    assert grown == pytest.approx(by_formula[1] - by_formula[0] + 6 * 4 * (1024**2 - 8 * 128**2) / 8)
    assert 0 < by_formula[0] < 1e9
    # At most half of the buffers.
    few = memory.Memory(0.0, 0.0, by_formula[0])
    grown = memory.scaled_memory(few, config(**CONTRASTIVE), params, 256, V5E).buffers - by_formula[0]
    assert grown == pytest.approx(by_formula[0] / 2 + 6 * 4 * (256**2 - 2 * 128**2) / 8)


def test_what_does_not_grow_by_hand() -> None:
    def steady(topology: str, **changes: Any) -> float:
        return memory.steady_bytes(config(**changes), PARAMS, topologies.parse_topology(topology)) / 1000

    cut = {"mesh__shard_optimizer": True}
    assert steady("v5e:2x4") == 4
    assert steady("v5e:2x4", mesh__fsdp=2) == 2
    assert steady("v5e:2x4", **cut) == 1.25 * 4
    assert steady("v5e:2x4", model__dtype="bfloat16", **cut) == 1.25 * 2
    assert steady("v5e:2x4", model__dtype="bfloat16", optimizer__accumulate=2, **cut) == 1.25 * 2 + 4
    assert steady("h100:8", model__dtype="bfloat16", **cut) == 8
    # Nothing is cut along an axis of one.
    assert steady("h100:1", **cut) == 4
    assert steady("v5e:2x4", mesh__fsdp=8, **cut) == 0.5


def test_logits_are_chunked_where_they_are_large() -> None:
    chunked = 6 * 128 * 2**20
    assert memory.pairs_bytes(config(), 1024, 8) == 6 * 4 * 128 * 1024
    assert memory.pairs_bytes(config(), 10**6, 8) == chunked
    assert memory.pairs_bytes(config(objective__contrastive__chunk=-1), 10**6, 8) == 6 * 4 * 1e12 / 8
    assert memory.pairs_bytes(config(objective__contrastive__chunk=100), 1024, 8) == 6 * 4 * 128 * 100


def test_the_largest_batch_by_hand() -> None:
    # 16 GB hold 1 GB and 1.5 GB for each of ten thousand rows a chip: ten times that, in steps of 16 rows.
    def memory_at(rows: int) -> memory.Memory:
        return memory.Memory(1e9, 0.0, 1.5e9 * rows / 8 / 10_000)

    assert memory.largest_batch(config(optimizer__accumulate=2), V5E, memory_at) == 800_000
    assert memory.largest_batch(config(), V5E, lambda rows: memory.Memory(17e9, 0.0, 0.0)) == 0


def test_the_roofline_by_hand() -> None:
    settings = config()
    point = roofline.point(settings, memory.Memory(3e9, 8e6, 5e9, 1e9), links=0.02, topology=V5E)
    assert point.products == pytest.approx(sum(flops.train_step_flops(settings).values()) / 8 / 197e12)
    assert point.traffic == pytest.approx((2 * 8e9 + 8e6) / 800e9)
    # 2, 20.01 and 20 ms.
    point = dataclasses.replace(point, products=0.002)
    assert point.hidden == point.traffic
    assert point.exposed == pytest.approx(0.02001 + 0.02)
    assert point.alone / point.exposed == pytest.approx(0.50012, abs=1e-5)


# 1,000 numbers.
PARAMS = {"a": {"kernel": jax.ShapeDtypeStruct((8, 117), np.float32), "bias": jax.ShapeDtypeStruct((64,), np.float32)}}


def test_memory_by_formula_by_hand() -> None:
    settings = config(optimizer__ema=0.0, **CONTRASTIVE)
    counted = memory.memory_by_formula(settings, PARAMS, 128, V5E)
    assert counted.state == 3 * 4 * 1000
    # Three image layers on 25 patches, two text layers on 11 tokens, float32, nothing recomputed.
    image = 3 * (25 * (8 * 12 + 2 * 20) * 4 + 3 * 25 * 25 * 8)
    text = 2 * (11 * (8 * 20 + 2 * 36) * 4 + 5 * 11 * 11 * 8)
    assert counted.buffers == 8 * 1000 + 16 * (image + text) + 6 * 4 * 16 * 128
    # With remat the inputs of all layers, and one image layer twice.
    settings.model.remat = True
    kept = 3 * 25 * 12 * 4 + 2 * 11 * 20 * 4
    counted = memory.memory_by_formula(settings, PARAMS, 128, V5E)
    assert counted.buffers == 8 * 1000 + 16 * (kept + 2 * image / 3) + 6 * 4 * 16 * 128
    settings.mesh.fsdp = 4
    assert memory.memory_by_formula(settings, PARAMS, 128, V5E).state == 3 * 4 * (936 / 4 + 64)  # biases stay whole
    settings.mesh.shard_optimizer = True  # over two chips what fsdp does not cut, over all eight what it does
    assert memory.memory_by_formula(settings, PARAMS, 128, V5E).state == 3 * 4 * (936 / 4 + 64 / 2)


def test_memory_of_a_convnext_by_hand() -> None:
    changes = {"encoder": "convnext", "depths": (1, 2), "width": 12}
    sizes = {f"model__image__{name}": value for name, value in changes.items()}
    more = {"model__image_size": 16, "model__patch_size": 8, "optimizer__ema": 0.0, **CONTRASTIVE}
    counted = memory.memory_by_formula(config(**sizes, **more), PARAMS, 128, V5E)
    # One block on 4x4 places of 6 channels, two on 2x2 places of 12, float32, without attention.
    image = 16 * (8 * 6 + 2 * 24) * 4 + 2 * (4 * (8 * 12 + 2 * 48) * 4)
    text = 2 * (11 * (8 * 20 + 2 * 36) * 4 + 5 * 11 * 11 * 8)
    assert counted.buffers == 8 * 1000 + 16 * (image + text) + 6 * 4 * 16 * 128
