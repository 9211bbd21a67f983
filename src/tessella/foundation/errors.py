"""What goes wrong because of the user's input, said in one line.

Every message says what is wrong, where, and what to do. The command line prints it and exits with status 2;
any other exception is a defect of the package.
"""


class TessellaError(Exception):
    """A mistake that the user can mend. The message is one line."""


class DataError(TessellaError):
    """The data cannot be read, or does not fit what is asked of it."""


class SpecError(TessellaError):
    """The parts that were asked for do not fit together, or do not fit the data."""


class RunError(TessellaError):
    """A run folder cannot be used: it is missing, occupied, damaged, or from a newer version."""


class TrainingError(TessellaError):
    """Training cannot go on."""
