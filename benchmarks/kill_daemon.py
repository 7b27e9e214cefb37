"""Kill the daemon with SIGKILL at random moments and check after each kill that nothing was lost, judged twice or charged.

    python benchmarks/kill_daemon.py --kills 200 [--submissions 60] [--seed 1] [--json out.json]

Real chain client, real store, real downloads on a dev chain of this machine; a stand-in judge, so that a kill costs three
seconds. The tests do twenty of these.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "tests"), str(Path(__file__).parent.parent)]

import trio  # noqa: E402 - after the path is set
from kill_lab import kill_story, open_lab  # noqa: E402


async def main(arguments):
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crusades-kill-") as folder:
        async with open_lab(Path(folder)) as lab:
            await kill_story(lab, kills=arguments.kills, submissions=arguments.submissions, seed=arguments.seed, say=lambda words: print(words, flush=True))
            attempts = lab.rows("SELECT sum(attempts), max(attempts), count(*) FROM submissions")[0]
            told = {"kills": lab.kills, "submissions": attempts[2], "attempts": attempts[0], "most_attempts_of_one": attempts[1],
                    "interruptions": lab.rows("SELECT count(*) FROM transitions WHERE reason LIKE '%2005%'")[0][0],
                    "violations": 0, "seed": arguments.seed, "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps(told))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(told) + "\n")  # noqa: ASYNC240 - everything is over


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--submissions", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json")
    trio.run(main, parser.parse_args())
