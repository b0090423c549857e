"""Serialised examples: the protocol buffer `tf.train.Example`, without TensorFlow and without TFDS."""

import functools
from collections.abc import Sequence
from typing import Any


@functools.cache
def example_message() -> Any:
    """The protobuf class of `tf.train.Example`, described here so that neither TensorFlow nor TFDS is needed to read.

    Source: tensorflow/core/example/{example,feature}.proto (field names and numbers are its wire format).
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="mmclip_example.proto", package="mmclip", syntax="proto3")

    def message(parent: Any, name: str, *fields: tuple[str, int, int, int, str]) -> Any:
        added = parent.add(name=name)
        for field_name, number, label, kind, type_name in fields:
            added.field.add(name=field_name, number=number, label=label, type=kind, type_name=type_name or None)
        return added

    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    message(file.message_type, "BytesList", ("value", 1, many, field.TYPE_BYTES, ""))
    message(file.message_type, "FloatList", ("value", 1, many, field.TYPE_FLOAT, ""))
    message(file.message_type, "Int64List", ("value", 1, many, field.TYPE_INT64, ""))
    feature = message(
        file.message_type,
        "Feature",
        ("bytes_list", 1, one, field.TYPE_MESSAGE, ".mmclip.BytesList"),
        ("float_list", 2, one, field.TYPE_MESSAGE, ".mmclip.FloatList"),
        ("int64_list", 3, one, field.TYPE_MESSAGE, ".mmclip.Int64List"),
    )
    feature.oneof_decl.add(name="kind")
    for choice in feature.field:
        choice.oneof_index = 0
    entry_name = ".mmclip.Features.FeatureEntry"
    features = message(file.message_type, "Features", ("feature", 1, many, field.TYPE_MESSAGE, entry_name))
    entry = message(
        features.nested_type,
        "FeatureEntry",
        ("key", 1, one, field.TYPE_STRING, ""),
        ("value", 2, one, field.TYPE_MESSAGE, ".mmclip.Feature"),
    )
    entry.options.map_entry = True
    message(file.message_type, "Example", ("features", 1, one, field.TYPE_MESSAGE, ".mmclip.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("mmclip.Example"))


def in_one_order(record: bytes) -> bytes:
    """A serialised example with its fields in an order that does not depend on the process."""
    return example_message().FromString(record).SerializeToString(deterministic=True)


_SEQUENCES = {
    "entities": ("start", "end", "label", "negated", "kind"),
    "labels": ("kind", "state"),
    "boxes": ("kind", "x_min", "y_min", "x_max", "y_max"),
    "masks": ("kind", "image"),
}


def decode(record: bytes) -> dict[str, Any]:
    """One serialised example as the nested dictionary that `schema.from_features` takes."""
    decoded: dict[str, Any] = {name: dict.fromkeys(keys, ()) for name, keys in _SEQUENCES.items()}
    for path, feature in example_message().FromString(record).features.feature.items():
        kind = feature.WhichOneof("kind")
        values: Sequence[Any] = getattr(feature, kind).value if kind else ()
        name, slash, key = path.partition("/")
        if not slash:
            decoded[name] = values[0]
        elif key in decoded.get(name, ()):
            decoded[name][key] = values
    return decoded
