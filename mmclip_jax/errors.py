"""The errors that end a command with one line instead of a traceback."""


class UserError(ValueError):
    """Bad input or a bad request; the message names what is wrong, where, and the remedy. The CLI exits with 2."""


class DamagedCheckpointError(UserError):
    """Files of a checkpoint cannot be read, or hold other bits than were saved; the message names other steps."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what was saved. The CLI exits with 1."""


class StorageError(TrainingError):
    """A checkpoint cannot be written: the disk is full or read-only. The message says which checkpoint stands."""


class LeakageError(RuntimeError):
    """A test set shares something with a training set; the message says what. The CLI exits with 1."""


class DoesNotFitError(RuntimeError):
    """A planned step does not fit, or does what it must not; the message says which. The CLI exits with 1."""


EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: "try again later"; the launchers start the same command again


class PreemptedError(RuntimeError):
    """SIGTERM asked the run to stop; a checkpoint holds every step that was done. The CLI exits with 75."""


class LostWorkerError(PreemptedError):
    """A process that prepares batches was killed. The CLI exits with 75: the same command goes on."""


class LostProcessError(PreemptedError):
    """Another process of the run is gone, so this one cannot go on. The CLI exits with 75, without waiting for it."""
