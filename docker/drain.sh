#!/usr/bin/env bash
# What a pod does before it ends: Ray hears that its node is about to go, so that training writes a checkpoint at once and
# Serve starts its replicas elsewhere; then it waits until nothing runs here any more, at most so many seconds.
set -u
seconds=$1
timeout 30 ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "its pod ends" \
    --deadline-remaining-seconds "$seconds"
# Ray names a process after the actor or task that it is of.
for ((second = 0; second < seconds; second++)); do
    cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n' | grep '^ray::' | grep -qv '^ray::IDLE' || break
    sleep 1
done
