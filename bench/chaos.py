"""Chaos: everything is killed under load, and what is left is compared with a run in peace.

    make chaos              all scenes, under 15 minutes
    make chaos SHORT=1      fewer kills at 1,000 events a second, under 2 minutes
    python -m bench.chaos [--short] [--scenes stream,learn] [--seed 1] [--keep]

Needs   Java and Maven, for a broker that this command starts, kills and stops; root for the
        full disk and the network cut, which are skipped without it, and say so.
Prints  progress while it runs, a table, and one JSON object on the last line. The exit code is 0
        where every row holds that ran: decisions written = triggers, none lost, none twice, all
        bytes and the users' state equal to the undisturbed run's.

Logs and state stay where something did not hold, or with --keep.
"""

import argparse
import contextlib
import gc
import logging
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from bench.chaos_report import Report
from bench.chaos_scenes import SCENES, SHORT
from tests.system.cluster import Nodes


def main() -> int:
    """Play the scenes."""
    options = arguments()
    work = Path(tempfile.mkdtemp(prefix="pushflow-chaos-"))
    logging.basicConfig(filename=work / "chaos.log", level=logging.INFO)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is then ended
    gc.freeze()
    report = Report(work, seed=options.seed, is_short=options.short, pace=options.pace)
    report.say(f"seed {options.seed}, logs and state in {work}")
    is_held = False
    try:
        with contextlib.closing(Nodes(work / "kafka")) as nodes:
            report.say(f"broker at {nodes.bootstrap}")
            for name in options.scenes:
                SCENES[name](report, nodes)
        is_held = report.is_held
        report.print()
    finally:
        if is_held and not options.keep:
            shutil.rmtree(work)
        else:
            report.say(f"logs and state are kept in {work}")
    return 0 if is_held else 1


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="fewer kills: under 2 minutes")
    parser.add_argument("--scenes", default="", help=f"by commas, of {', '.join(SCENES)}")
    parser.add_argument("--seed", type=int, default=1, help="of all random moments")
    parser.add_argument("--pace", type=int, default=0, help="events a second")
    parser.add_argument("--keep", action="store_true", help="keep logs and state")
    options = parser.parse_args()
    options.pace = options.pace or (1_000 if options.short else 5_000)
    names = options.scenes.split(",") if options.scenes else SHORT if options.short else SCENES
    options.scenes = list(names)
    if unknown := set(names) - set(SCENES):
        parser.error(f"no scene {', '.join(sorted(unknown))}; there are {', '.join(SCENES)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
