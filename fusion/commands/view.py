"""dynfusion view root=FOLDER [key=value ...]
dynfusion view gallery [out=gallery] [root=FOLDER version=VERSION] [split=SPLIT] [sample=0] [faults=[NAME,...]]
dynfusion view faults=NAME [out=FILE]

The first form shows a sample of a data set. `gallery` draws every fault of the catalogue, clean and at levels 1, 3 and
5, as one HTML page with PNGs, on a sample of a small town (written first) or of the data set in root. `faults` plots a
training schedule of configs/faults: probability and severity of every rule over the progress of training, by sensor.
"""


def run(arguments: list[str]) -> int:
    """Hand over to the picture that is asked for; each module tells and checks its own settings."""
    if arguments and arguments[0] == "gallery":
        from fusion.commands.view_gallery import run as show
    elif any(argument.startswith("faults=") for argument in arguments):
        from fusion.commands.view_faults import run as show
    else:
        from fusion.view.sample import run as show
    return show(arguments[1:] if arguments[:1] == ["gallery"] else arguments)
