"""The command that looks at runs on disk: are they whole, and what is to be done if not."""

from __future__ import annotations

from typing import Annotated

import typer

from cl_zoo.cli.flags import AsJson
from cl_zoo.cli.looking import print_json


def verify(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN…", help="Folders of runs, finished or not (ID or ID.partial).")
    ],
    mend: Annotated[
        bool,
        typer.Option(
            "--repair", help="Move what is damaged away, so that the run's own command makes it anew."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check every file of runs against its list and score the answers again; exit code 2 where something is damaged."""
    from pathlib import Path

    from cl_zoo.runs.verify import repair
    from cl_zoo.runs.verify import verify as look
    from cl_zoo.scoring.scorer import Scorer

    records = []
    with Scorer() as scorer:
        for run in runs:
            found = look(Path(run), scorer)
            records.append(found.to_json())
            if not as_json:
                print(found.text(), flush=True)
            if found.damaged and mend:
                records[-1]["repaired"] = repair(found)
                if not as_json:
                    print(records[-1]["repaired"], flush=True)
    if as_json:
        print_json(records)
    broken = [one["run"] for one in records if one["damaged"]]
    if broken and not mend and not as_json:
        print(f"pass --repair to take out what is damaged in {', '.join(broken)}")
    if broken and not mend:
        raise SystemExit(2)
