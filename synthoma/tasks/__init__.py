"""Every detector and classifier of the toolkit, by the name that the command line uses.

To add one: write `tasks/<name>.py` with a frozen config, a final `System` and `PRESETS`, then add
a line here. The contract tests take it up from that moment on.
"""

from pydantic import BaseModel

from synthoma.engine.system import System
from synthoma.tasks.yolov3 import YOLOv3, YOLOv3Config

TASKS: dict[str, tuple[type[System], type[BaseModel]]] = {
    "yolov3": (YOLOv3, YOLOv3Config),
}
