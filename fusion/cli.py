"""The command ``dynfusion``: one word, then settings as ``key=value``.

A user's mistake ends in one line on standard error and exit code 2; ``--traceback`` shows where it came from.
"""

import importlib
import os
import re
import sys

# Threads of one operator wait for each other by spinning, which stalls everybody once loader processes want the same
# cores (measured on two cores: up to three times slower). A short spin keeps a quiet machine as fast. Read by libgomp
# when torch loads it, so it stands before any import of torch.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

COMMANDS = {
    "demo": "make a small town, train on it, break its sensors, score it, write a report",
    "synth": "write a synthetic town in nuScenes' on-disk format",
    "index": "read the tables of a data set once and keep them as a fast index",
    "train": "train a model (or go on with a run that stopped)",
    "evaluate": "score a trained run with the official nuScenes metrics",
    "stream": "run a scene in order as a vehicle would, opening only the sensors that the route chose",
    "calibrate": "find the thresholds at which a run's router spends given budgets on average",
    "costs": "measure what a run costs: milliseconds per part, GFLOPs by condition and fault, joules",
    "budgets": "score one checkpoint at several budgets beside random, static and oracle routes",
    "router": "teach a run's router anew, by the losses of many routes of every sample",
    "adaptive": "find settings of router, exits and tokens for every budget, and score them alone and together",
    "robustness": "score a trained run under a suite of sensor failures and budgets",
    "report": "write the HTML page of a run",
    "corrupt": "write a corrupted copy of a data set, for other code bases",
    "view": "pictures: a sample, the gallery of all faults, a training schedule of faults",
    "summary": "print parameters and GFLOPs of a model, unit by unit",
    "check": "say whether this machine has what dynfusion needs",
}
USER_MISTAKE = 2
AFTER_INTERRUPTION = {
    **dict.fromkeys(("demo", "synth", "corrupt", "robustness"), "the same command goes on where it stopped"),
    "train": "dynfusion train resume=RUN goes on from its last checkpoint, where there is one",
}
"""What an interrupted command leaves to go on with; the others start from the beginning."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code: 0 done, 1 ran but found failures, 2 a user's mistake."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        from importlib.metadata import version

        print(version("dynfusion"))
        return 0
    try:
        if name not in COMMANDS:
            raise ValueError(f"expected one of the commands {', '.join(COMMANDS)}, got '{name}'; see dynfusion --help")
        command = importlib.import_module(f"fusion.commands.{name}")
        if any(argument in ("-h", "--help") for argument in rest):
            print((command.__doc__ or "").strip())
            return 0
        return command.run(rest)
    except KeyboardInterrupt:
        then = AFTER_INTERRUPTION.get(name, "the same command starts from the beginning")
        print(f"dynfusion {name}: interrupted; {then}", file=sys.stderr)
        return 130
    except Exception as error:
        mistake = mistake_of(error)
        if show_traceback or mistake is None:
            raise
        print(f"dynfusion {name}: {mistake}", file=sys.stderr)
        return USER_MISTAKE


def usage() -> str:
    """The list of commands."""
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: dynfusion COMMAND [key=value ...] [--traceback]",
            "",
            *lines,
            "",
            "dynfusion COMMAND --help tells its settings.",
        ]
    )


def mistake_of(error: BaseException) -> str | None:
    """The one line to tell the user, or None for a defect of ours, which keeps its traceback.

    Hydra wraps what a constructor raises, and a data loader wraps what its worker raises: both are unwrapped.
    """
    import hydra.errors
    import omegaconf.errors
    import yaml

    wrapped = (hydra.errors.InstantiationException, hydra.errors.ConfigCompositionException)
    is_wrapped = isinstance(error, wrapped)
    while isinstance(error, wrapped) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if is_wrapped and isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
        return f"expected keys that the configured class takes, got another: {error}; remove it"
    if is_wrapped and isinstance(error, TypeError) and re.search(r"missing (a|\d+) required .*arguments?:", str(error)):
        return f"expected all keys that the configured class needs, some are not there: {error}; set them"
    if is_wrapped and isinstance(error, omegaconf.errors.OmegaConfBaseException) and "is not in struct" in str(error):
        plus = f"check its spelling, or write + before a key that is new: +{error.full_key}=..."
        return f"{str(error).splitlines()[0]}; {plus}"
    if isinstance(error, yaml.YAMLError):
        return f"expected YAML in a setting or configuration, got a text that is none: {' '.join(str(error).split())}"
    config_errors = (hydra.errors.HydraException, omegaconf.errors.OmegaConfBaseException)
    files = (FileNotFoundError, NotADirectoryError, PermissionError)
    # Lightning's error for settings that do not fit the machine; by name, since importing it takes seconds.
    misconfigured = type(error).__name__ == "MisconfigurationException"
    if not misconfigured and not isinstance(error, (ValueError, ImportError, *files, *config_errors)):
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("Caught "):
        return lines[-1].partition(": ")[2] or lines[-1]
    # Hydra ends the line with a colon where the reason follows in the next one.
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


if __name__ == "__main__":
    sys.exit(main())
