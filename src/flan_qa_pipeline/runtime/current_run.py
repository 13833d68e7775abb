"""What the hooks of one run share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flan_qa_pipeline.config.parameters import Parameters


@dataclass
class CurrentRun:
    """The project and the parameters of the run that the hooks serve.

    Attributes:
        project_path: the folder of the Kedro project.
        parameters: the checked parameters. `HubInputHooks` pins the commits of hub files in them.
        saved: the datasets that nodes have saved so far. A run with `--only-missing-outputs` skips
            nodes of its pipeline.
    """

    project_path: Path = field(init=False)
    parameters: "Parameters" = field(init=False)
    saved: set[str] = field(default_factory=set)
