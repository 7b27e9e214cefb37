"""Kill the daemon with SIGKILL at random moments and check after each kill that nothing was lost, judged twice or charged.

    python benchmarks/kill_daemon.py --kills 200 [--submissions 60] [--seed 1] [--record FILE] [--judge real]

Real chain client, real store, real downloads on a dev chain of this machine; a stand-in judge, so that a kill costs three
seconds, or (`--judge real`) referee and sandboxes on `tiny`, where every kill falls into an evaluation. The kills come in
stories of twenty with a chain and a database of their own; with `--record` each finished story is a line of that file, and
a benchmark that was interrupted goes on behind the last one. The tests do one story of twenty, and three with the real judge.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "tests"), str(Path(__file__).parent.parent)]

import trio  # noqa: E402 - after the path is set
from kill_lab import kill_story, open_lab, real_story  # noqa: E402

STORY = 20
"""Kills of one chain and one database."""


async def story(number, kills, submissions, arguments):
    """One line of the record."""
    began = time.monotonic()
    seed = arguments.seed * 1000 + number
    real = arguments.judge == "real"
    with tempfile.TemporaryDirectory(prefix="crusades-kill-") as folder:
        async with open_lab(Path(folder), real_judge=real) as lab:
            say = lambda words: print(f"story {number}, {words}", flush=True)  # noqa: E731
            if real:
                await real_story(lab, kills=kills, seed=seed, say=say)
            else:
                await kill_story(lab, kills=kills, submissions=submissions, seed=seed, say=say)
            attempts = lab.rows("SELECT sum(attempts), max(attempts), count(*) FROM submissions")[0]
            return {"story": number, "judge": arguments.judge, "seed": seed, "kills": lab.kills, "submissions": attempts[2], "attempts": attempts[0],
                    "most_attempts_of_one": attempts[1], "violations": 0, "seconds": round(time.monotonic() - began, 1),
                    "interruptions": lab.rows("SELECT count(*) FROM transitions WHERE reason LIKE '%2005%'")[0][0]}


def recorded(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path and path.exists() else []


def total(stories):
    told = {name: sum(one[name] for one in stories) for name in ("kills", "submissions", "attempts", "interruptions", "violations", "seconds")}
    return {"stories": len(stories), **told, "most_attempts_of_one": max((one["most_attempts_of_one"] for one in stories), default=0)}


def main(arguments):
    stories = recorded(arguments.record)
    while (done := sum(one["kills"] for one in stories)) < arguments.kills:
        kills = min(STORY, arguments.kills - done)
        stories.append(trio.run(story, len(stories) + 1, kills, max(1, round(arguments.submissions * kills / arguments.kills)), arguments))
        print(json.dumps(stories[-1]), flush=True)
        if arguments.record:
            with arguments.record.open("a") as file:
                file.write(json.dumps(stories[-1]) + "\n")
    print(json.dumps(total(stories)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--submissions", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--judge", choices=["stand-in", "real"], default="stand-in")
    main(parser.parse_args())
