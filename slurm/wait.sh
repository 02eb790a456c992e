# shellcheck shell=bash
# Sourced by job.sh and rank.sh.

# await PID: waits for a child, and sets code to how it ended. No signal may interrupt that: bash (5.2) loses the code of a
# child that ends in this moment. So SIGUSR1 and SIGTERM are ignored from here on, in this shell but not in the child.
await() {
    trap '' USR1 TERM
    code=0
    wait "$1" || code=$?
}
