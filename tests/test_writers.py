"""The writers, read back by a reader of event files that is independent of tensorboardX's writer."""

import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmclip_jax import writers
from mmclip_jax.errors import UserError


def _crc32c(data: bytes) -> int:
    """CRC-32C bit by bit (reflected polynomial 0x82F63B78), the checksum of the record format."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _masked(data: bytes) -> int:
    crc = _crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _records(path: Path) -> list[bytes]:
    """The payloads of a record file: length, its checksum, payload, its checksum."""
    data = path.read_bytes()
    out = []
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        assert struct.unpack_from("<I", data, at + 8)[0] == _masked(data[at : at + 8])
        payload = data[at + 12 : at + 12 + length]
        assert struct.unpack_from("<I", data, at + 12 + length)[0] == _masked(payload)
        out.append(payload)
        at += 16 + length
    return out


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(message: int | bytes | None) -> list[tuple[int, int | bytes]]:
    """A protocol buffer's (field number, value) pairs; none of what is no message."""
    if not isinstance(message, bytes):
        return []
    out: list[tuple[int, int | bytes]] = []
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        value: int | bytes
        match key & 7:
            case 0:
                value, at = _varint(message, at)
            case 1:
                value, at = message[at : at + 8], at + 8
            case 5:
                value, at = message[at : at + 4], at + 4
            case _:
                length, at = _varint(message, at)
                value, at = message[at : at + length], at + length
        out.append((key >> 3, value))
    return out


def _events(directory: Path) -> list[dict[int, int | bytes]]:
    return [dict(_fields(r)) for p in sorted(directory.glob("events.out.tfevents.*")) for r in _records(p)]


def _scalars(directory: Path) -> list[tuple[int, str, float]]:
    """Every (step, tag, value) with a simple value (field 2)."""
    return [
        (step, tag, struct.unpack("<f", entry[2])[0])
        for step, tag, entry in _values(directory)
        if isinstance(entry.get(2), bytes)
    ]


def _values(directory: Path) -> list[tuple[int, str, dict[int, Any]]]:
    """Every (step, tag, fields): Event.step = 2, Event.summary = 5, Summary.value = 1, Value.tag = 1."""
    out = []
    for event in _events(directory):
        for number, value in _fields(event.get(5)):
            if number == 1:
                fields: dict[int, Any] = dict(_fields(value))
                out.append((int(event.get(2, 0)), fields.get(1, b"").decode(), fields))
    return out


def _rows(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_crc_of_the_reader_is_right():
    assert _crc32c(b"123456789") == 0xE3069283  # the published check value of CRC-32C


def test_event_file_and_jsonl_hold_the_same_scalars(tmp_path):
    writer = writers.create_writer(tmp_path)
    for step in (7, 13, 200):
        writer.write_scalars(step, {"loss/total": 1.5 / step, "accuracy": np.float32(0.25)})
    writer.flush()
    expected = {(s, t): v for s in (7, 13, 200) for t, v in (("loss/total", 1.5 / s), ("accuracy", 0.25))}
    events = {(s, t): v for s, t, v in _scalars(tmp_path)}
    assert events.keys() == expected.keys()
    assert all(abs(events[k] - v) < 1e-6 for k, v in expected.items())
    assert {(r["step"], k): v for r in _rows(tmp_path) for k, v in r.items() if k != "step"} == expected
    writer.close()


def test_arrays_of_one_number_are_scalars_and_longer_ones_are_refused(tmp_path):
    import jax.numpy as jnp

    writer = writers.create_writer(tmp_path)
    writer.write_scalars(1, {"a": jnp.float32(0.5), "b": np.array([2.0]), "c": 3})
    assert _rows(tmp_path) == [{"step": 1, "a": 0.5, "b": 2.0, "c": 3.0}]
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        writer.write_scalars(2, {"a": np.zeros(3)})


def test_one_row_a_step_whatever_the_order(tmp_path):
    writer = writers.create_writer(tmp_path)
    writer.write_scalars(10, {"loss": 3.0})
    writer.write_scalars(20, {"rate": 9.0})  # progress of step 20 arrives before the loss of step 20
    writer.write_scalars(10, {"late": 1.0})
    writer.write_scalars(20, {"loss": 2.0})
    assert _rows(tmp_path) == [{"step": 10, "loss": 3.0, "late": 1.0}, {"step": 20, "rate": 9.0, "loss": 2.0}]


def test_long_curves_and_very_late_values(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = writers.JsonLinesWriter(path)
    for step in range(1, 101):
        writer.write_scalars(step, {"loss": 1.0 / step})
        if step % 10 == 0:
            writer.write_scalars(step, {"evaluation/loss": 2.0 / step})
    writer.write_scalars(3, {"late": 5.0})  # far behind the last rows
    writer.write_scalars(101, {"loss": 0.5})
    rows = _rows(tmp_path)
    assert [r["step"] for r in rows] == list(range(1, 102))
    assert rows[2] == {"step": 3, "loss": 1 / 3, "late": 5.0}
    assert rows[39] == {"step": 40, "loss": 1 / 40, "evaluation/loss": 2 / 40}
    assert rows[100] == {"step": 101, "loss": 0.5}


@pytest.mark.parametrize("length", [5, 16, 17, 40])
def test_resume_drops_later_rows_and_goes_on(tmp_path, length):
    writer = writers.create_writer(tmp_path)
    for step in range(1, length + 1):
        writer.write_scalars(step, {"loss": float(step)})
    writer.close()
    writer = writers.create_writer(tmp_path, step=length - 2)
    assert [r["step"] for r in _rows(tmp_path)] == list(range(1, length - 1))
    for step in range(length - 1, length + 4):
        writer.write_scalars(step, {"loss": -float(step)})
    writer.close()
    assert [(r["step"], r["loss"]) for r in _rows(tmp_path)] == [
        (s, float(s if s < length - 1 else -s)) for s in range(1, length + 4)
    ]
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []
    # TensorBoard drops what it read before of the steps from a START event's own on: Event.session_log = 7, status = 1.
    starts = [e[2] for e in _events(tmp_path) if 7 in e and dict(_fields(e[7]))[1] == 1]
    assert starts == [1, length - 1]
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2  # though both were opened within one second


def test_resume_of_a_new_run_starts_over(tmp_path):
    writers.create_writer(tmp_path).write_scalars(5, {"loss": 1.0})
    writers.create_writer(tmp_path, step=0)
    assert _rows(tmp_path) == []


def test_incomplete_last_line_is_dropped_and_a_bad_line_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert writers.read_rows(path) == [{"step": 1, "loss": 2.0}]
    writers.JsonLinesWriter(path, step=9).write_scalars(2, {"loss": 1.0})
    assert _rows(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    path.write_text('{"step": 1}\n[]\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        writers.JsonLinesWriter(path, step=9)


def test_not_finite_becomes_null(tmp_path):
    writers.JsonLinesWriter(tmp_path / "metrics.jsonl").write_scalars(1, {"a": float("nan"), "b": np.inf, "c": 1.0})
    assert _rows(tmp_path) == [{"step": 1, "a": None, "b": None, "c": 1.0}]


def test_a_killed_process_loses_no_row(tmp_path):
    code = f"""
        import os, signal
        from mmclip_jax import writers
        writer = writers.create_writer({str(tmp_path)!r})
        for step in range(1, 31):
            writer.write_scalars(step, {{"loss": 1.0}})
            writer.write_scalars(step, {{"rate": 2.0}})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert _rows(tmp_path) == [{"step": s, "loss": 1.0, "rate": 2.0} for s in range(1, 31)]


def test_nothing_of_tensorflow_is_needed_and_no_module_is_replaced(tmp_path):
    """In a fresh interpreter without TensorFlow; the table of parameters is what training writes."""
    code = f"""
        import sys
        sys.modules["tensorflow"] = None  # an import of it raises
        import numpy as np
        from mmclip_jax import writers
        from clu import parameter_overview
        writer = writers.create_writer({str(tmp_path)!r})
        table = parameter_overview.get_parameter_overview({{"a": {{"b": np.zeros((3, 5))}}}}, include_stats=False)
        writer.write_texts(2, {{"parameters": table}})
        writer.write_scalars(4, {{"loss": 0.125}})
        writer.close()
        assert not [name for name in sys.modules if name.startswith("clu.metric_writers")]
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=environment)
    assert _scalars(tmp_path) == [(4, "loss", 0.125)]
    texts = [(step, tag) for step, tag, _ in _values(tmp_path) if tag.startswith("parameters")]
    assert [step for step, _ in texts] == [2]
    (file,) = tmp_path.glob("events.out.tfevents.*")
    assert b"| a/b  | (3, 5) |" in file.read_bytes()


def test_pictures_texts_and_settings_reach_the_event_file(tmp_path):
    import io

    from PIL import Image

    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (7, 11, 1), dtype=np.uint8)
    pair = np.linspace(0, 1, 2 * 5 * 3 * 3, dtype=np.float32).reshape(2, 5, 3, 3)
    writer = writers.EventFileWriter(tmp_path)
    writer.write_images(3, {"mask": grey, "pair": pair})
    writer.write_texts(3, {"note": "hello"})
    writer.write_hparams({"model": {"width": 64, "name": "vit"}, "sources": ("a", "b")})
    writer.close()
    values = _values(tmp_path)
    # Value.image is field 4, and its encoded bytes are field 4 of that.
    encoded = {tag: dict(_fields(fields[4]))[4] for _, tag, fields in values if isinstance(fields.get(4), bytes)}
    pictures = {
        tag: np.asarray(Image.open(io.BytesIO(data))) for tag, data in encoded.items() if isinstance(data, bytes)
    }
    tags = {tag for _, tag, _ in values}
    np.testing.assert_array_equal(pictures["mask"].reshape(7, 11, -1)[..., :1], grey)
    np.testing.assert_allclose(pictures["pair/1"], pair[1] * 255, atol=1)
    assert any(t.startswith("note") for t in tags)
    assert any("hparams" in t for t in tags)


def test_other_processes_write_no_files(tmp_path):
    writer = writers.create_writer(tmp_path, primary=False)
    writer.write_scalars(1, {"loss": 1.0})
    writer.flush()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("full", [False, True])
def test_console_shows_our_lines_and_hides_library_chatter(full, tmp_path):
    """Every metric on the terminal only where it is asked for; in the file always."""
    code = f"""
        import logging as std
        from absl import logging
        from mmclip_jax import writers
        writers.configure_logging(full={full})
        writers.create_writer({str(tmp_path)!r}).write_scalars(12, {{"loss": 0.123456789}})
        logging.info("library chatter")
        std.getLogger("jax").debug("debugging chatter")
        logging.warning("library warning")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True)
    assert ("[12] loss=0.123457" in done.stderr) == full
    assert "chatter" not in done.stderr
    assert "library warning" in done.stderr
    assert _rows(tmp_path) == [{"step": 12, "loss": 0.123456789}]
