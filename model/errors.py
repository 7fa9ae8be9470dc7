"""The errors of `model/`: every mistake a user can make raises one of these, with one clear line as its message.

ModelError
├── ConfigError        a setting, a flag, a TOML file or a config.json is wrong
│   └── UncalibratedTargetError  the checkpoint is not calibrated for the target precision that was asked for
├── CatalogueError     a catalogue's table or images cannot be used
├── CheckpointError    a checkpoint folder is incomplete, damaged or put together from different trainings
├── TrainingError      training cannot go on (a non-finite loss, …)
├── ImageError         an image cannot be used
│   ├── ImageFormatError   it is in none of the formats that are accepted
│   ├── ImageSizeError     it has too many pixels
│   └── UndecodableError   it is damaged, or takes more time or memory to decode than an image of its size may
└── DecodingStoppedError  no decode worker can be started: the fault of the machine, and of no image
"""

from __future__ import annotations


class ModelError(Exception):
    """Base of all: the message is meant to be shown to the user as it is."""


class ConfigError(ModelError):
    """A setting, a flag, a TOML file or a config.json is wrong."""


class UncalibratedTargetError(ConfigError):
    """The checkpoint is not calibrated for the target precision that was asked for."""


class CatalogueError(ModelError):
    """A catalogue's table or images cannot be used."""


class CheckpointError(ModelError):
    """A checkpoint folder is incomplete, damaged or put together from different trainings."""


class TrainingError(ModelError):
    """Training cannot go on."""


class ImageError(ModelError):
    """An image cannot be used."""


class ImageFormatError(ImageError):
    """The image is in none of the formats that are accepted."""


class ImageSizeError(ImageError):
    """The image has more pixels than are accepted."""


class UndecodableError(ImageError):
    """The image is damaged, or takes more time or memory to decode than an image of its size may."""


class DecodingStoppedError(ModelError):
    """No decode worker can be started: the fault of the machine, and of no image."""
