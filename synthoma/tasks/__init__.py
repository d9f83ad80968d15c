"""Every detector and classifier of the toolkit: the module of each, by its command-line name.

To add one: write `tasks/<name>.py` with a frozen config, a final `System`, and `SYSTEM`, `PRESETS`
and `fitted` (see `synthoma.zoo`), then add a line here and a line of small settings to the
contract tests.
"""

TASKS: dict[str, str] = {
    "classifier": "synthoma.tasks.classifier",
    "yolov3": "synthoma.tasks.yolov3",
    "rcnn3d": "synthoma.tasks.rcnn3d",
}
