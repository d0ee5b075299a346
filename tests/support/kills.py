"""Train, be killed at random moments, resume, until the run is done; says what happened as JSON.

    python kills.py OUT KILLS SEED COMMAND...        COMMAND as for `latentddpm`, without --out

One process imports TensorFlow and forks a life of the run each time, before anything of
TensorFlow's runtime exists: a life costs what tracing costs. Every fifth is killed somewhere in
its first seconds, the others within half a second after their first checkpoint; of these every
other one lives on from there until it is seen writing the next. OUT.log holds what the lives said.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from latentddpm.cli import main
from latentddpm.utils.startup import import_keras

STARTING = 8.0  # seconds, about, until the first step
WRITING = 0.5


def killed(out, kills, seed, *command):
    """Answer of this script, which runs in a process of its own."""
    arguments = [sys.executable, __file__, out, kills, seed, *command, "--quiet"]
    process = subprocess.run(
        [str(argument) for argument in arguments], capture_output=True, text=True
    )
    assert process.returncode == 0, f"the harness failed: {process.stderr}"
    done = json.loads(process.stdout)
    assert done["code"] == 0, f"a life ended with {done}: {out.with_suffix('.log').read_text()}"
    return done


def live(arguments, log):
    """The pid of a process that runs the command."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), stream)
        main(arguments, prog_name="latentddpm")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pid):
    """The exit status of a process, None while it lives."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def steps(out):
    """Checkpoints of a run, or of the one in the folder of a whole run."""
    return sorted(out.glob("**/checkpoints/step-*"))


def begun(out):
    """True for a run that wants --resume; a whole run has its plan first."""
    return bool(steps(out)) or (out / "plan.yaml").is_file()


def train(out, wanted, seed, command):
    log, numbers = out.with_suffix(".log"), random.Random(seed)
    kills = writing = 0
    while True:
        before = steps(out)[-1:]
        pid = live([*command, "--out", str(out), *["--resume"] * begun(out)], log)
        if kills >= wanted:
            while (code := ended(pid)) is None:
                time.sleep(0.02)
        else:
            starting = numbers.random() < 0.2
            began, after = time.monotonic(), numbers.random()
            deadline = began + after * STARTING if starting else float("inf")
            while (code := ended(pid)) is None and time.monotonic() < deadline:
                if deadline == float("inf") and steps(out)[-1:] != before:
                    deadline = time.monotonic() + after * WRITING
                time.sleep(0.001)
            if not starting and numbers.random() < 0.5:
                while code is None and not any(out.glob("**/checkpoints/.tmp-step-*")):
                    code = ended(pid)
        if code is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            kills += 1
            writing += any(out.glob("**/checkpoints/.tmp-step-*"))
            continue
        return {"code": code, "kills": kills, "while_writing": writing}


if __name__ == "__main__":
    import_keras()
    import latentddpm.training.autoencoder
    import latentddpm.training.diffusion  # noqa: F401

    out, wanted, seed, *command = sys.argv[1:]
    print(json.dumps(train(Path(out), int(wanted), int(seed), command)))
