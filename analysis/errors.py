"""The errors a user can meet. Each names what is wrong and what to do, and knows its exit status."""


class OnnxPruneError(Exception):
    """Base of every error raised on purpose; ``exit_status`` is what the command line returns."""

    exit_status = 1


class ModelError(OnnxPruneError):
    """A model file cannot be read, or is not a model this program can work on."""


class PlanError(OnnxPruneError):
    """A plan cannot be made, read, or does not fit the model it is applied to."""


class OutputError(OnnxPruneError):
    """A result cannot be written where it was asked for."""


class BackendError(OnnxPruneError):
    """A runtime or compiler is missing, or cannot take this model."""


class PluginError(OnnxPruneError):
    """A rule or criterion of a plug-in failed when it was asked for, or two claim the same name."""


class PluginWarning(UserWarning):
    """A plug-in cannot be loaded: the rules or criteria it may have are missing."""


class UsageError(OnnxPruneError):
    """An option has a value that makes no sense."""

    exit_status = 2


class CheckError(OnnxPruneError):
    """A check (certificate, accuracy, pattern) was carried out and did not hold."""

    exit_status = 3
