"""plan: what decides the result of every other stage, a file each (`pipeline.runtime.plan`)."""

import sys

from kdm_core.errors import KDMError
from pipeline.runtime import log
from pipeline.runtime.plan.plans import write_plans


def main() -> None:
    for stage in write_plans():
        log.say(f"{stage}: parameters, code or torch are others than in the last plan")


if __name__ == "__main__":
    try:
        log.set_up("plan")
        main()
    except KDMError as error:
        sys.exit(log.failure(str(error)))
