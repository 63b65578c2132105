"""Writes `events`, the event file that aludel's writer is compared with byte for byte, with TensorBoard's own classes.

    pip install tensorboard
    python tests/golden/tensorboard/generate.py

Made with tensorboard 2.21.0 and protobuf 7.36.2. With `--read FILE`, prints what TensorBoard's reader finds in a file.
"""

import math
import pathlib
import sys

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

ENTRIES = [
    ("validation", 0, [("loss", 6.25), ("top1", 0.0)]),
    ("train", 1, [("loss", 2.71828182846001), ("learning_rate", 1e-4)]),
    ("train", 300, [("loss", math.nan), ("gradient_norm", math.inf)]),
    ("train", 5_000_000_000, [("loss", -1e-42), ("größe", math.inf)]),
]


def generate(path):
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=1_700_000_000.0, file_version="brain.Event:2").SerializeToString())
        for phase, step, values in ENTRIES:
            summary = Summary(value=[Summary.Value(tag=f"{phase}/{name}", simple_value=v) for name, v in values])
            event = Event(wall_time=1_700_000_000.5 + step, step=step, summary=summary)
            writer.write(event.SerializeToString(deterministic=True))
        writer.flush()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        for event in LegacyEventFileLoader(sys.argv[2]).Load():
            for value in event.summary.value:
                print(event.step, event.wall_time, value.tag, value.simple_value)
    else:
        generate(pathlib.Path(__file__).parent / "events")
