"""Run by every Python that has this folder on PYTHONPATH: arms, in Ray's workers, the faults that a variable names."""

import json
import os
import sys

if "SLIME_RAY_TEST_FAULT" in os.environ and any("default_worker" in argument for argument in sys.orig_argv):
    from tests.faults.harness import Fault, arm

    for fault in json.loads(os.environ["SLIME_RAY_TEST_FAULT"]):
        arm(Fault(**fault))
