"""dynfusion view root=FOLDER [version=VERSION] [split=SPLIT] [sample=TOKEN|index=0] [scene=NAME|NUMBER] [out=view.png]
dynfusion view root=FOLDER scene=NAME|NUMBER out=FILE.gif|FILE.mp4 [fps=2]
dynfusion view root=FOLDER scene=NAME|NUMBER map=true [out=map.png]
dynfusion view gallery [out=gallery] [root=FOLDER version=VERSION] [split=SPLIT] [sample=0] [faults=[NAME,...]]
dynfusion view faults=NAME [out=FILE]
dynfusion view root=FOLDER|run=RUN save=FILE.rrd|rerun=true [scene=NAME|NUMBER] [fault=NAME] [suite=NAME] [budget=1.0]

The first form draws a sample of any data set in nuScenes' format: the six views with the labelled boxes, the same with
LiDAR and radar points coloured by depth, and the view from above with radar velocity arrows. index counts within the
scene where one is named, within the split otherwise; without split every scene counts. The second form writes the whole
scene, two keyframes a second unless fps says otherwise. The third draws the map around the ego's path. missing=absent
goes on without files that are not there. `gallery` draws every fault of the catalogue, clean and at levels 1, 3 and
5, as one HTML page with PNGs, on a sample of a small town (written first) or of the data set in root. `faults` plots a
training schedule of configs/faults: probability and severity of every rule over the progress of training, by sensor.
save=FILE.rrd records a scene for the Rerun viewer (rerun=true opens it): cameras, LiDAR, radar with Doppler arrows and
boxes; with run=RUN also detections, routes and exits over time; fault=NAME lets a fault (or a scenario of suite) act.
"""


def run(arguments: list[str]) -> int:
    """Hand over to the picture that is asked for; each module tells and checks its own settings."""
    if arguments and arguments[0] == "gallery":
        from fusion.commands.view_gallery import run as show
    elif any(argument.startswith("faults=") for argument in arguments):
        from fusion.commands.view_faults import run as show
    elif any(argument.startswith(("save=", "rerun=", "run=")) for argument in arguments):
        from fusion.commands.view_rerun import run as show
    else:
        from fusion.commands.view_sample import run as show
    return show(arguments[1:] if arguments[:1] == ["gallery"] else arguments)
