"""Runs a program in a terminal: terminal.py STEPS PROGRAM ARGUMENTS...

STEPS is a list in JSON of [text to wait for, seconds to wait then, keys to press]. Prints what the terminal showed, and ends with the program's exit code.
Fails if a text does not appear within a minute.
"""

import json
import os
import pty
import select
import sys
import time

steps, command = json.loads(sys.argv[1]), sys.argv[2:]
pid, terminal = pty.fork()
if pid == 0:
    os.environ["TERM"] = "xterm"
    os.execvp(command[0], command)

shown, seen, deadline = "", 0, time.monotonic() + 60
while True:
    if steps and (at := shown.find(steps[0][0], seen)) >= 0:
        seen = at + len(steps[0][0])
        _, pause, keys = steps.pop(0)
        time.sleep(pause)
        os.write(terminal, keys.encode())
        deadline = time.monotonic() + 60
    ready, _, _ = select.select([terminal], [], [], 0.1)
    try:
        read = os.read(terminal, 4096) if ready else b""
    except OSError:
        break
    if ready and not read:
        break
    shown += read.decode(errors="replace")
    if time.monotonic() > deadline:
        os.kill(pid, 9)
        sys.stdout.write(shown)
        sys.exit(f"this did not appear: {steps[:1]}")
_, status = os.waitpid(pid, 0)
sys.stdout.write(shown)
sys.exit(os.waitstatus_to_exitcode(status) if not steps else f"the program ended before: {steps[0]}")
