"""Run the packaged project: `flan-qa-pipeline` or `python -m flan_qa_pipeline`."""

import os
import sys
from pathlib import Path
from typing import Any

from flan_qa_pipeline.errors import in_one_line
from flan_qa_pipeline.runtime import interruption


def main(*args: Any, **kwargs: Any) -> Any:
    """Run the pipelines. Ctrl+C ends the command in one line, even while it imports Kedro."""
    interruption.end_at_once()
    _import_kedro()
    from kedro.framework.cli.utils import find_run_command
    from kedro.framework.project import configure_project

    package_name = Path(__file__).parent.name
    configure_project(package_name)
    kwargs["standalone_mode"] = not hasattr(sys, "ps1")
    return find_run_command(package_name)(*args, **kwargs)


def _import_kedro() -> None:
    """Import Kedro, which configures logging from a file; exit with one line if it is broken."""
    from kedro.utils import find_config_file

    path = os.environ.get("KEDRO_LOGGING_CONFIG") or find_config_file("conf/logging")
    try:
        import kedro.framework.project  # noqa: F401
    except Exception as error:  # of YAML, of decoding, or of logging
        if path is None:
            raise
        print(
            f"Error: {path} cannot configure logging: {in_one_line(error)}; correct or remove it.",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
